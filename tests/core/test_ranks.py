"""Ranks that share work: what is dealt to whom, and what becomes of the others when one dies or fails."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys

import h5py
import ignite.distributed as idist
import numpy as np
import pytest
import torch
import torch.distributed as dist

from scripts.core.errors import SettingsError
from scripts.core.ranks import (
    SharedCounter,
    StoppedError,
    _tell_failures,
    forget_ranks,
    from_every_rank,
    from_first_rank,
    is_first_rank,
    join,
    leave,
    num_ranks,
    own_device,
    rank,
    refuse_several,
    wait_for_ranks,
    waiting,
)
from scripts.core.settings import check_settings
from scripts.core.shards import gather_shards, shard
from scripts.core.turns import Turns
from scripts.features.bags_ahead import bags_ahead
from scripts.features.extraction import Extractor
from scripts.features.progress import SlideToExtract
from tests.cohorts import builder, draw_cohort, tiny_encoder
from tests.torchruns import torchrun

# --- one rank ----------------------------------------------------------------------------------------------


def test_without_torchrun_there_is_one_rank_that_does_all():
    assert (rank(), num_ranks(), is_first_rank()) == (0, 1, True)
    assert list(Turns("abc")) == ["a", "b", "c"]
    assert from_first_rank(lambda: [1]) == [1]
    assert from_every_rank({"a": 1}) == [{"a": 1}]
    assert gather_shards([3, 4], 1) == [3, 4]
    counter = SharedCounter()
    assert [counter.add(2), counter.add(), counter.add(-1)] == [2, 2, 1]
    wait_for_ranks()
    refuse_several("configs/multi_gpu_train.json")
    assert own_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_group_of_one_needs_no_torchrun():
    join("cpu")
    join("cpu")  # as the second of two workflows of a process does
    assert (dist.get_world_size(), dist.get_rank()) == (1, 0)
    assert gather_shards([3, 4]) == [3, 4]
    leave()
    assert not dist.is_initialized()


def test_a_process_that_a_rank_starts_is_a_run_of_its_own(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (rank(), num_ranks(), is_first_rank()) == (1, 2, False)
    forget_ranks()
    assert (rank(), num_ranks(), is_first_rank()) == (0, 1, True)


def test_each_rank_of_a_node_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device() == torch.device("cuda")
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_settings(device=device)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_device() == torch.device("cuda:1")
    check_settings(device="cuda:1")
    check_settings(device="cpu")
    for device in ("cuda", "cuda:0"):
        with pytest.raises(SettingsError, match=f"device: got '{device}', but each of the 8 ranks has .* Leave"):
            check_settings(device=device)


def test_ranks_that_torchrun_did_not_start_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="WORLD_SIZE: is 2, but LOCAL_RANK.* Start the ranks with torchrun"):
        join("cpu")


@pytest.fixture
def slurm(monkeypatch):
    """Sets variables of Slurm's and of torchrun's, and gives what Ignite takes for the local rank then."""

    def local_rank(**variables):
        for name, value in {"SLURM_JOB_ID": "7", **variables}.items():
            monkeypatch.setenv(name, value)
        join("cpu")
        try:
            idist.sync()
            return idist.get_local_rank()
        finally:
            leave()
            idist.sync()

    # Ignite and `join` write into the environment.
    for name in ("SLURM_JOB_ID", "SLURM_LOCALID", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return local_rank


@pytest.mark.parametrize(
    "started_by",
    [
        {},  # the shell that salloc gives
        {"SLURM_LOCALID": "0"},  # the same where salloc starts it as a step, or torchrun as the task of srun
        {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "1"},  # on one machine of two
    ],
)
@pytest.mark.parametrize("place", [{}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "3"}])
def test_in_a_job_of_slurm_the_place_is_that_of_torchrun(slurm, started_by, place):
    assert slurm(**started_by, **place) == int(place.get("LOCAL_RANK", 0))
    assert os.environ.get("LOCAL_RANK", "0") == place.get("LOCAL_RANK", "0")


def test_tasks_of_slurm_that_torchrun_did_not_start_are_refused_and_one_task_is_not(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of the job; salloc's shell is one process all the same
    for tasks in (None, "1"):
        if tasks:
            monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        refuse_several()
        check_settings(device="cpu")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refusal = "^srun: started 4 processes, and each would do all the work.* Start torchrun with one task a machine"
    for start in (refuse_several, lambda: check_settings(device="cpu"), lambda: join("cpu")):
        with pytest.raises(SettingsError, match=refusal):
            start()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_settings(device="cpu")  # torchrun as each task
    forget_ranks()
    check_settings(device="cpu")  # a training that one of its ranks starts
    refuse_several()


@pytest.mark.parametrize(
    ("ranks", "shares"),
    [(1, ["abcde"]), (2, ["ace", "bda"]), (3, ["ad", "be", "ca"]), (7, ["a", "b", "c", "d", "e", "a", "b"])],
)
def test_all_are_dealt_as_many_in_turn(ranks, shares):
    assert ["".join(shard("abcde", to_rank, ranks)) for to_rank in range(ranks)] == shares


def test_told_to_stop_it_finishes_the_slide_and_the_next_run_goes_on(tmp_path):
    cohort, encoder, views = draw_cohort(tmp_path, 3), tiny_encoder(), [0, 2, 0]
    encode, before = encoder.encode, signal.getsignal(signal.SIGTERM)

    def told(bag, transforms):
        for number, batch in enumerate(encode(bag, transforms)):
            if bag.slide.path.stem == "s1" and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    encoder.encode = told
    with pytest.raises(StoppedError, match=r"extracting: was told to stop \(SIGTERM\).*The same command goes on"):
        Extractor(cohort, builder(), encoder, tmp_path / "features", views).run()
    assert signal.getsignal(signal.SIGTERM) == before
    assert made(tmp_path / "features") == ["s0", "s1"]
    assert made(tmp_path / "features/views/s1") == ["001", "002"]
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "features", views).run()
    assert made(tmp_path / "features") == ["s0", "s1", "s2"]


# --- one rank of two, with the other's part in the store played by the test ----------------------------------------


@pytest.fixture
def store(monkeypatch):
    """The store of a run of which this process is rank 1 of 2."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    shared = dist.HashStore()
    monkeypatch.setattr("scripts.core.ranks._store", lambda: shared)
    monkeypatch.setattr("scripts.core.ranks._uses", itertools.count())
    return shared


def test_a_rank_takes_what_the_others_left(store):
    queue = Turns("abcd")
    assert next(queue) == "a"
    store.add("counter/0", 2)
    assert list(queue) == ["d"]


def test_a_rank_takes_none_ahead_that_another_may_be_waiting_for(store):
    queue = Turns("abcd")
    spare = [(next(queue), queue.has_spare()) for _ in range(4)]
    assert spare == [("a", True), ("b", True), ("c", False), ("d", False)]


def test_a_rank_makes_the_bag_of_its_next_slide_while_it_encodes_unless_another_may_be_free(store, tmp_path):
    cohort, asked = draw_cohort(tmp_path, 4), []
    bags = builder()
    verified = bags.verified
    bags.verified = lambda entry, always: asked.append(entry["slide"]) or verified(entry, always)
    slides = bags_ahead([SlideToExtract(number, [0], 1) for number in range(4)], cohort, bags)
    assert next(slides)[0].number == 0
    assert int(store.add("counter/0", 0)) == 2  # the slide and the one after it
    store.add("counter/0", 1)  # the other rank takes s2
    (slide, get_bag) = next(slides)
    assert get_bag()[0].slide.path.stem == "s1"
    assert (slide.number, asked) == (1, ["s0", "s1"])
    assert int(store.add("counter/0", 0)) == 3
    assert [slide.number for slide, _ in slides] == [3]


def test_a_rank_waits_until_all_do_and_gets_what_the_first_made(store):
    wait = waiting()
    next(wait)
    next(wait)
    store.set("waiting/0/all", "")
    assert list(wait) == []
    store.set("made/1", "[1, 2]")
    assert from_first_rank(lambda: pytest.fail("the first rank's work")) == [1, 2]


def test_every_rank_gets_what_all_have_in_their_order(store):
    store.set("given/0/0", '{"a": "of rank 0"}')
    assert from_every_rank({"b": "of rank 1"}) == [{"a": "of rank 0"}, {"b": "of rank 1"}]


def test_a_rank_stops_when_another_failed(store):
    queue, wait = Turns("abc"), waiting()
    next(queue)
    next(wait)
    store.set("failed", "0")
    for use in (lambda: next(queue), lambda: next(wait), lambda: from_first_rank(lambda: [1])):
        with pytest.raises(StoppedError, match=r"rank 1: stopped, because rank 0 failed\. See its message\."):
            use()


def test_told_to_stop_a_rank_says_so_also_when_it_hears_first_of_another_that_failed(store, tmp_path):
    cohort, encoder = draw_cohort(tmp_path, 2), tiny_encoder()
    encode = encoder.encode

    def told(bag, transforms):
        store.set("failed", "0")
        os.kill(os.getpid(), signal.SIGTERM)
        yield from encode(bag, transforms)

    encoder.encode = told
    todo = [(number, [0], 1) for number in range(2)]
    store.set("made/0", json.dumps(Extractor(cohort, builder(), encoder, tmp_path / "features")._common_settings()))
    store.set("made/1", json.dumps(todo))
    with pytest.raises(StoppedError, match="rank 1: was told to stop"):
        Extractor(cohort, builder(), encoder, tmp_path / "features").run()
    assert made(tmp_path / "features") == ["s0"]


def test_the_first_failure_is_told_as_it_is_and_what_follows_from_it_in_one_line(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(last_shown := tmp_path / "error.json"))
    shown = []
    sys.excepthook = lambda *error: shown.append(error[1])
    _tell_failures(store)
    mistake, gone = SettingsError("lr", "is bad", "Lower it."), RuntimeError("Connection closed by peer\nat this place")
    sys.excepthook(RuntimeError, gone, None)
    assert shown == [gone]
    assert not last_shown.exists()
    assert store.get("failed") == b"1"
    store.set("failed", "0")
    sys.excepthook(SettingsError, mistake, None)
    sys.excepthook(RuntimeError, gone, None)
    assert shown == [gone, mistake]
    told = "rank 1: stopped, because rank 0 failed (RuntimeError: Connection closed by peer). See its message."
    assert capsys.readouterr().err == f"error: {told}\n"
    assert json.loads(last_shown.read_text())["message"]["message"] == told


# --- two ranks -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, time
from pathlib import Path
from scripts.core.errors import show_one_line
from scripts.features.extraction import Extractor
from scripts.core.ranks import rank
from tests.cohorts import builder, tiny_encoder

folder = Path(sys.argv[1])
encoder = tiny_encoder()
encode = encoder.encode


def dying(bag, transforms):
    (folder / f"rank{rank()}").write_text(bag.slide.path.stem)
    batches = encode(bag, transforms)
    yield next(batches)
    while not (folder / f"rank{1 - rank()}").exists():
        time.sleep(0.05)
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3)  # in which torchrun tells this rank to stop
    yield from batches


encoder.encode = dying
show_one_line()
entries = [{"slide": path.stem, "image": str(path)} for path in sorted(folder.glob("*.tif"))]
Extractor(entries, builder(), encoder, folder / "features").run()
"""


def test_a_rank_that_is_killed_costs_its_slide_alone(preloaded, tmp_path):
    cohort = draw_cohort(tmp_path, 4)
    done = torchrun(tmp_path, KILLED, tmp_path, python=preloaded.python)
    assert done.returncode != 0
    said = "error: rank 0: was told to stop (SIGTERM), and begins no other slide. The same command goes on from here."
    assert said in done.stderr.splitlines()
    survived, died = ((tmp_path / f"rank{number}").read_text() for number in (0, 1))
    largest = max(cohort, key=lambda entry: os.path.getsize(entry["image"]))
    assert survived != died
    assert largest["slide"] in (survived, died)  # it was the first to be taken
    assert made(tmp_path / "features") == [survived]

    bank = tmp_path / "features" / f"{survived}.h5"
    before = bank.stat().st_mtime_ns
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "features").run()
    assert bank.stat().st_mtime_ns == before
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "alone").run()
    for entry in cohort:
        with (
            h5py.File(tmp_path / "features" / f"{entry['slide']}.h5") as found,
            h5py.File(tmp_path / "alone" / f"{entry['slide']}.h5") as wanted,
        ):
            assert found.attrs["settings"] == wanted.attrs["settings"]
            for name in ("rows", "5x/features", "5x/coords", "10x/features", "10x/coords"):
                assert np.array_equal(found[name], wanted[name])


FAILED = """
import sys
from pathlib import Path
from ignite.engine import Events
from torch.nn.parallel import DistributedDataParallel
from scripts.core.errors import SettingsError, show_one_line
from scripts.core.ranks import join, rank
from tests.trainings import Training


class Fail:
    def attach(self, engine):
        if rank() == 1:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), self)

    def __call__(self, engine):
        raise SettingsError("lr", "the loss is nan", "Lower it.")


show_one_line()
join("cpu")
training = Training(Path(sys.argv[1]), epochs=2, extra_handlers=[Fail()])
training.trainer.network = DistributedDataParallel(training.network, find_unused_parameters=True)
training.run()
"""


def test_an_error_of_one_rank_ends_the_run_and_is_what_it_says(preloaded, tmp_path):
    done = torchrun(tmp_path, FAILED, tmp_path, python=preloaded.python)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.endswith("error: lr: the loss is nan. Lower it.")]
    assert said == ["[rank1]: error: lr: the loss is nan. Lower it."]
    # What torchrun shows last, and MONAI Label of all that was printed.
    root_cause = done.stderr.split("Root Cause (first observed failure):")[1].splitlines()
    assert "  traceback : lr: the loss is nan. Lower it." in root_cause
    assert not (tmp_path / "last.ckpt").exists()


def made(folder):
    return sorted(path.stem for path in folder.glob("[!.]*.h5"))
