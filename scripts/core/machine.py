"""What this process may use of its machine, and the settings that follow from it where they are ``auto``.

The limits are those of the processor affinity (``taskset``, cpusets, Slurm) and of control groups (containers),
versions 1 and 2. The ranks that ``torchrun`` started on a machine share them.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from scripts.core.ranks import is_first_rank
from scripts.core.setting_checks import AUTO

__all__ = ["CPU_BATCH", "Machine", "chosen", "log_chosen", "this_machine", "use_own_cores"]

CPU_BATCH = 32
"""Patches that a CPU encodes at once: more are no faster there."""

# A CPU core encodes 192 patches a second at most, and a thread reads 560 (docs/benchmarks.md).
CORES_A_READER = 3
LEAST_READERS = 2  # one reads while another waits for the file
MOST_READERS = 32
# Measured: 72 MB of a reader's process, three copies of each of the two blocks it is ahead, of 7 MB each.
READER_BYTES = 115e6
# Of the memory that is free; as much again is for validation's banks.
CACHED_FRACTION, MOST_CACHED_GB = 0.25, 64.0
READERS_FRACTION = 0.25

TORCHRUN_THREADS = "1"
"""What ``torchrun`` sets ``OMP_NUM_THREADS`` to where it is not set."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What one process may use.

    Args:
        cores: processor cores, at least 1.
        memory_bytes: memory that is free.
    """

    cores: int
    memory_bytes: float

    def num_readers(self, device: str) -> int:
        """Threads that read patches for a device that encodes: as many as hide the reading, bounded by memory.

        A GPU encodes more patches than all cores read; on a CPU the forward pass takes the cores, and few readers
        are enough.
        """
        if torch.device(device).type != "cuda":
            return max(LEAST_READERS, self.cores // CORES_A_READER)
        fitting = int(self.memory_bytes * READERS_FRACTION / READER_BYTES)
        return max(LEAST_READERS, min(self.cores, MOST_READERS, fitting))

    def cache_gb(self, num_processes: int = 1) -> float:
        """Gigabytes of banks that a process keeps in memory, where so many like it share what is free."""
        return min(round(self.memory_bytes * CACHED_FRACTION / num_processes / 1e9, 1), MOST_CACHED_GB)


@functools.cache
def this_machine(root: Path = Path("/")) -> Machine:
    """This process's part of its machine, as it is at the first call.

    Args:
        root: the folder with ``proc`` and ``sys``.
    """
    ranks = _num_local_ranks()
    own = _affinity(0)
    # Ranks may be bound to cores of their own; what they share is what their parent, torchrun, may use.
    of_all = own if ranks == 1 else max(own, _affinity(os.getppid()))
    cores = int(min(own, of_all / ranks, _quota(root) / ranks))
    return Machine(max(1, cores), _free_memory(root) / ranks)


def chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``auto`` stands for on this machine, by setting; ``encode_batch`` is left to the encoder on a GPU.

    Args:
        settings: of a config, with ``device``.
    """
    device = str(settings.get("device", "cpu"))
    found: dict[str, Any] = {}
    if settings.get("num_workers") == AUTO:
        found["num_workers"] = this_machine().num_readers(device)
    if settings.get("encode_batch") == AUTO and torch.device(device).type != "cuda":
        found["encode_batch"] = CPU_BATCH
    if settings.get("cache_gb") == AUTO:
        found["cache_gb"] = this_machine().cache_gb(settings.get("num_processes", 1))
    return found


def use_own_cores() -> None:
    """Let PyTorch and OpenCV compute with as many threads as this process has cores.

    A container's limit hides from both how many they have, and each rank would use all. ``OMP_NUM_THREADS`` decides
    where it is set by the user: ``torchrun`` sets it to 1 where it is not.
    """
    cores = this_machine().cores
    given = os.environ.get("OMP_NUM_THREADS")
    is_torchruns = given == TORCHRUN_THREADS and _num_local_ranks() > 1
    if is_torchruns or (given is None and torch.get_num_threads() > cores):
        torch.set_num_threads(cores)
    cv2.setNumThreads(min(cores, cv2.getNumThreads()))


def log_chosen(found: Mapping[str, Any]) -> None:
    """Log, in one line and once a process, what ``auto`` stands for.

    Args:
        found: the value of each setting.
    """
    if found and is_first_rank():
        _log(", ".join(f"{name} {value}" for name, value in found.items()))


@functools.cache
def _log(values: str) -> None:
    machine = this_machine()
    has = f"cores: {machine.cores}, threads: {torch.get_num_threads()}, GB free: {machine.memory_bytes / 1e9:.1f}"
    logger.info("auto: %s (this process has %s)", values, has)


def _num_local_ranks() -> int:
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(given)) if given.isdecimal() else 1


def _affinity(process: int) -> int:
    try:
        return len(os.sched_getaffinity(process))
    except (AttributeError, OSError):  # there is none on macOS; the parent may be another user's
        return os.cpu_count() or 1


def _quota(root: Path) -> float:
    """The cores that control groups leave to this process and all that share its groups."""
    quotas = [float("inf")]
    for folder in _groups("cpu", root):
        if (line := _read(folder / "cpu.max")) is not None:
            quota, period = line.split()[:2]
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") or "-1" for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas)


def _free_memory(root: Path) -> float:
    """The bytes that the machine, and the control groups of this process, have left."""
    info = _read(root / "proc/meminfo") or ""
    free = [1024.0 * int(line.split()[1]) for line in info.splitlines() if line.startswith("MemAvailable:")]
    if not free:
        free = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for folder in _groups("memory", root):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "max"
        # Without the page cache, which makes room.
        stat = dict(line.split()[:2] for line in (_read(folder / "memory.stat") or "").splitlines())
        if limit != "max":
            free.append(max(0.0, float(limit) - float(stat.get("anon", stat.get("total_rss", 0)))))
    return min(free)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups that limit a resource, each with those above it.

    Within a container the path of a group may be the host's, whose folders are not there; its own are the topmost.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers  # version 2 names no controllers
        group = Path(path.strip("/"))
        yield from (top / folder for folder in (group, *group.parents) if (top / folder).is_dir())


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
