import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from scripts.core import machine
from scripts.core.machine import CPU_BATCH, READER_BYTES, Machine, chosen, log_chosen, this_machine, use_own_cores
from tests.conftest import ROOT

GB = 10**9
OWN_CORES = len(os.sched_getaffinity(0))
AUTO = {"num_workers": "auto", "encode_batch": "auto", "cache_gb": "auto"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    """One process of a machine that was not looked at yet."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    this_machine.cache_clear()
    machine._log.cache_clear()
    yield
    this_machine.cache_clear()
    machine._log.cache_clear()


def files(root: Path, **content: str) -> Path:
    """Files below a folder; ``__`` in a name stands for a slash."""
    for name, text in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def machine_with(root: Path, cgroup: str, **limits: str) -> Machine:
    """A machine of 64 cores with 100 GB free, and control groups."""
    info = "MemTotal:       125000000 kB\nMemAvailable:    97656250 kB\n"  # 100 GB
    files(root, proc__meminfo=info, proc__self__cgroup=cgroup)
    for path, text in limits.items():
        files(root / "sys/fs/cgroup", **{path: text})
    return this_machine(root)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


def test_without_control_groups_it_is_the_affinity_and_the_free_memory(tmp_path: Path, many_cores: None):
    assert machine_with(tmp_path, "0::/\n") == Machine(64, 100 * GB)


def test_a_container_of_version_2_has_its_quota_and_its_limit_without_the_page_cache(tmp_path, many_cores):
    limits = {"cpu.max": "600000 100000", "memory.max": str(8 * GB), "memory.stat": f"anon {3 * GB}\nfile {4 * GB}"}
    assert machine_with(tmp_path, "0::/\n", **limits) == Machine(6, 5 * GB)


def test_the_tightest_of_nested_groups_counts(tmp_path, many_cores):
    limits = {
        "job.slice__cpu.max": "400000 100000",
        "job.slice__memory.max": "max",
        "job.slice__step__cpu.max": "max 100000",
        "job.slice__step__memory.max": str(16 * GB),
        "other__cpu.max": "100000 100000",
    }
    assert machine_with(tmp_path, "0::/job.slice/step\n", **limits) == Machine(4, 16 * GB)


def test_a_container_of_version_1_whose_path_is_the_hosts(tmp_path, many_cores):
    cgroup = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"
    limits = {
        "cpu,cpuacct__cpu.cfs_quota_us": "250000",
        "cpu,cpuacct__cpu.cfs_period_us": "100000",
        "memory__memory.limit_in_bytes": str(10 * GB),
        "memory__memory.stat": f"cache {2 * GB}\ntotal_rss {GB}",
    }
    assert machine_with(tmp_path, cgroup, **limits) == Machine(2, 9 * GB)


def test_version_1_without_limits(tmp_path, many_cores):
    cgroup = "4:memory:/\n1:cpu:/\n"
    limits = {
        "cpu__cpu.cfs_quota_us": "-1",
        "cpu__cpu.cfs_period_us": "100000",
        "memory__memory.limit_in_bytes": str(2**63 - 4096),
    }
    assert machine_with(tmp_path, cgroup, **limits) == Machine(64, 100 * GB)


def test_less_than_a_core_is_one(tmp_path, many_cores):
    assert machine_with(tmp_path, "0::/\n", **{"cpu.max": "50000 100000"}).cores == 1


def test_the_ranks_of_a_machine_share_it(tmp_path, many_cores, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine_with(tmp_path, "0::/\n", **{"cpu.max": "2000000 100000"}) == Machine(5, 25 * GB)


@pytest.mark.parametrize(("own", "cores"), [(64, 16), (32, 16), (16, 16), (8, 8)])
def test_ranks_that_are_bound_to_cores_of_their_own_keep_them(tmp_path, monkeypatch, own, cores):
    affinity = {0: set(range(own)), os.getppid(): set(range(64))}
    monkeypatch.setattr(os, "sched_getaffinity", affinity.__getitem__)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine_with(tmp_path, "0::/\n").cores == cores


def test_a_process_that_is_bound_to_one_core_computes_with_one_thread():
    program = (
        "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "import cv2, torch; torch.set_num_threads(8); cv2.setNumThreads(8)\n"
        "from scripts.core.machine import this_machine, use_own_cores\n"
        "use_own_cores(); print(this_machine().cores, torch.get_num_threads(), cv2.getNumThreads())"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("given", "ranks", "threads"),
    [
        (None, 1, 6),  # no more than there are cores
        ("8", 1, 8),  # the user decides
        ("1", 1, 8),  # as it was set before: by the user
        ("1", 2, 3),  # torchrun's 1
        ("2", 2, 8),  # the user's, with torchrun
    ],
)
def test_threads_that_compute(monkeypatch, given, ranks, threads):
    found = []
    monkeypatch.setattr(machine, "this_machine", lambda: Machine(6 // ranks, GB))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(cv2, "setNumThreads", lambda _: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("OMP_NUM_THREADS", given) if given else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_own_cores()
    assert (found or [8]) == [threads]


@pytest.mark.parametrize(("cores", "on_cpu", "on_gpu"), [(1, 2, 2), (2, 2, 2), (8, 2, 8), (16, 5, 16), (64, 21, 32)])
def test_readers_hide_behind_a_cpu_and_feed_a_gpu(cores, on_cpu, on_gpu):
    found = Machine(cores, 500 * GB)
    assert (found.num_readers("cpu"), found.num_readers("cuda:1")) == (on_cpu, on_gpu)


def test_readers_leave_most_of_the_memory_alone():
    assert Machine(64, 2 * GB).num_readers("cuda") * READER_BYTES <= 2 * GB / 4


def test_what_is_auto_is_chosen_and_what_is_given_is_not(monkeypatch):
    monkeypatch.setattr(machine, "this_machine", lambda: Machine(16, 40 * GB))
    on_cpu = {"num_workers": 5, "encode_batch": CPU_BATCH, "cache_gb": 10.0}
    assert chosen({**AUTO, "device": "cpu"}) == on_cpu
    assert chosen({**AUTO, "device": torch.device("cuda", 1)}) == {"num_workers": 16, "cache_gb": 10.0}
    assert chosen({"num_workers": 0, "encode_batch": 8, "cache_gb": "auto", "num_processes": 4}) == {"cache_gb": 2.5}
    assert chosen({"num_workers": 1, "reader": "auto"}) == {}
    assert Machine(64, 1000 * GB).cache_gb() == 64.0  # a machine may have limits that it does not show


def test_what_was_chosen_is_logged_in_one_line_and_once(monkeypatch, caplog):
    monkeypatch.setattr(machine, "this_machine", lambda: Machine(16, 40 * GB))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            log_chosen({"num_workers": 4, "runtime": "torch"})
        log_chosen({})
    assert caplog.messages == [
        "auto: num_workers 4, runtime torch (this process has cores: 16, threads: 12, GB free: 40.0)"
    ]


def test_this_very_machine_has_its_affinitys_cores_at_most_and_some_memory():
    found = this_machine()
    assert 1 <= found.cores <= OWN_CORES
    assert 0 < found.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
