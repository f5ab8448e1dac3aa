"""The ranks of a run under ``torchrun``: which one this process is, and what they do together.

They share two things, both PyTorch's. The *store* is a small table that ``torchrun`` keeps for its ranks: it shares out
work, and names who has failed. Nobody has to answer in it, so a rank that died hangs no other. The *process group* is
for what is computed together: gradients, and gathered results. Without ``torchrun`` neither is used.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from scripts.core.devices import tell_unused_gpu
from scripts.core.errors import BundleError, SettingsError, mistake_in, show_mistake

__all__ = [
    "SharedCounter",
    "StoppedError",
    "check_device",
    "forget_ranks",
    "from_every_rank",
    "from_first_rank",
    "is_first_rank",
    "join",
    "join_others",
    "leave",
    "num_ranks",
    "own_device",
    "rank",
    "refuse_several",
    "wait_for_ranks",
    "waiting",
]

T = TypeVar("T")

# Variables with which torchrun tells each process its rank.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# Variable with the number of tasks that srun started.
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
# Timeout of one collective call: a rank may be busy with the largest slide while the others wait.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
POLL_SECONDS = 0.1

# Every rank runs the same program, so the n-th use of the store is the same on each.
_uses = itertools.count()


class StoppedError(BundleError):
    """A run that was ended from outside: by a signal, or because another rank failed."""

    is_from_outside = True


def rank() -> int:
    """This process's rank, from 0 up."""
    return int(os.environ.get("RANK", 0))


def num_ranks() -> int:
    """The number of ranks of the run, from 1 up."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_rank() -> bool:
    """Whether this process writes what all ranks have in common; without ``torchrun``, true."""
    return rank() == 0


def own_device() -> torch.device:
    """The GPU of this rank, the ``LOCAL_RANK``-th of its node; the CPU where torch sees none.

    It is the default of ``device`` everywhere; a GPU that torch cannot use is warned of here.
    """
    if not torch.cuda.is_available():
        tell_unused_gpu()
        return torch.device("cpu")
    return torch.device("cuda", _local_rank()) if num_ranks() > 1 else torch.device("cuda")


def check_device(device: torch.device) -> None:
    """Refuse a GPU that is not this rank's own, because another rank computes there.

    Raises:
        SettingsError: if there are several ranks, and it is another GPU than that of :func:`own_device`; or if srun
            started several processes without torchrun.
    """
    _refuse_tasks()
    if num_ranks() > 1 and device.type == "cuda" and device != own_device():
        cause = f"got {str(device)!r}, but each of the {num_ranks()} ranks has a GPU of its own"
        raise SettingsError("device", cause, "Leave `device` out, or set it to cpu.")


def forget_ranks() -> None:
    """Make this process, which one of the ranks started, a run of its own."""
    for name in (*PLACE, SLURM_TASKS):
        os.environ.pop(name, None)


def refuse_several(config: str | None = None) -> None:
    """Refuse more than one rank, for a config whose workflow every rank would do alone.

    Args:
        config: the file to add, with which ranks share the work, if there is one.

    Raises:
        SettingsError: if there are several ranks, or srun started several processes without torchrun.
    """
    _refuse_tasks()
    if num_ranks() > 1:
        cause = f"each of the {num_ranks()} ranks would do all the work, and write the same files"
        remedy = f"Add {config} to `--config_file`" if config else "Run it without torchrun, in one process"
        raise SettingsError("torchrun", cause, f"{remedy}.")


def join(device: torch.device | str) -> None:
    """Join the process group, with NCCL on a GPU and gloo on the CPU; without ``torchrun``, make one of this process.

    Args:
        device: of this rank, different for each where it is a GPU.

    Raises:
        SettingsError: if srun started several processes without torchrun.
    """
    _refuse_tasks()
    if dist.is_initialized():
        return
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    # Under a name of its own: a second group of a process would find the addresses of the first, and hang.
    store = dist.PrefixStore(f"group/{next(_uses)}", _store()) if num_ranks() > 1 else dist.HashStore()
    if "SLURM_JOB_ID" in os.environ:
        # In a job of Slurm, Ignite takes this for LOCAL_RANK. A shell of salloc has none, and the ranks that torchrun
        # starts share that of their parent.
        os.environ["SLURM_LOCALID"] = os.environ.get("LOCAL_RANK", "0")
    dist.init_process_group(
        # Objects are gathered on the CPU, also where gradients are on GPUs.
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=COLLECTIVE_TIMEOUT,
        store=store,
        rank=rank(),
        world_size=num_ranks(),
    )


def join_others(device: torch.device | str) -> None:
    """:func:`join` where there are several ranks, for a config that one process runs without a group, too."""
    _refuse_tasks()
    if num_ranks() > 1:
        join(device)


def leave() -> None:
    """Wait for the other ranks, and leave the process group."""
    if dist.is_initialized():
        wait_for_ranks()
        dist.destroy_process_group()


class SharedCounter:
    """A number to which every rank adds. All ranks make their counters in the same order."""

    def __init__(self) -> None:
        self._key, self._alone = f"counter/{next(_uses)}", 0

    def add(self, amount: int = 0) -> int:
        """Add to it.

        Returns:
            What it is then, with all that the other ranks added so far.

        Raises:
            StoppedError: if another rank failed, or cannot be reached.
        """
        if num_ranks() > 1:
            return int(_ask("add", self._key, amount))
        self._alone += amount
        return self._alone


def from_first_rank(make: Callable[[], T]) -> T:
    """What the first rank makes, for all ranks.

    Args:
        make: called on the first rank alone; gives what JSON can hold.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """
    if num_ranks() == 1:
        return make()
    key = f"made/{next(_uses)}"
    _store()
    if is_first_rank():
        made = make()
        _ask("set", key, json.dumps(made))
        return made
    for _ in _until(key):
        pass
    made = json.loads(_ask("get", key))
    return made


def from_every_rank(value: T) -> list[T]:
    """What each rank gives, in the order of the ranks, once all have given theirs.

    Args:
        value: this rank's, which JSON can hold.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """
    if num_ranks() == 1:
        return [value]
    use = next(_uses)
    keys = [f"given/{use}/{of_rank}" for of_rank in range(num_ranks())]
    _ask("set", keys[rank()], json.dumps(value))
    for key in keys:
        for _ in _until(key):
            pass
    return [json.loads(_ask("get", key)) for key in keys]


def waiting() -> Iterator[None]:
    """Barrier that yields periodically while waiting.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """
    if num_ranks() == 1:
        return
    key = f"waiting/{next(_uses)}"
    if _ask("add", key, 1) == num_ranks():
        _ask("set", f"{key}/all", "")
    yield from _until(f"{key}/all")


def wait_for_ranks() -> None:
    """Wait until every rank waits, however long that takes.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """
    for _ in waiting():
        pass


def _refuse_tasks() -> None:
    """Refuse the tasks of srun that torchrun did not start: they know nothing of each other."""
    tasks = os.environ.get(SLURM_TASKS, "1")
    if "WORLD_SIZE" not in os.environ and tasks != "1":
        cause = f"started {tasks} processes, and each would do all the work, and write the same files"
        remedy = "Start torchrun with one task a machine (docs/clusters.md), or one process with `srun --ntasks=1`."
        raise SettingsError("srun", cause, remedy)


def _local_rank() -> int:
    try:
        return int(os.environ["LOCAL_RANK"])
    except KeyError:
        cause = f"is {num_ranks()}, but LOCAL_RANK, which torchrun sets with it, is not set"
        raise SettingsError("WORLD_SIZE", cause, "Start the ranks with torchrun, or unset WORLD_SIZE.") from None


@functools.cache
def _store() -> dist.Store:
    """The store of this run, opened once."""
    _local_rank()
    store, _, _ = next(dist.rendezvous("env://"))
    if not is_first_rank():
        logging.disable(logging.INFO)
    _tell_failures(store := dist.PrefixStore("mustmil", store))
    return store


def _ask(method: str, *args: Any) -> Any:
    store = _store()
    try:
        if store.check(["failed"]):
            raise _stopped(int(store.get("failed")))
        return getattr(store, method)(*args)
    except dist.DistNetworkError as error:
        raise StoppedError(
            f"rank {rank()}", "lost the connection to the other ranks", "Run the same command again."
        ) from error


def _until(key: str) -> Iterator[None]:
    # The store's own wait warns on stderr whenever its time is up, and sees no rank fail before.
    while not _ask("check", [key]):
        yield
        time.sleep(POLL_SECONDS)


def _stopped(failed: int, because: str = "") -> StoppedError:
    return StoppedError(f"rank {rank()}", f"stopped, because rank {failed} failed{because}", "See its message.")


def _tell_failures(store: dist.Store) -> None:
    """Let what ends this rank end the others, and be told once."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            failed = int(store.compare_set("failed", "", str(rank())))
        except RuntimeError:  # torchrun has ended
            failed = rank()
        if failed != rank() and mistake_in(error) is None:
            # A collective call whose partner is gone raises an error of many lines.
            reason = next(iter(str(error).splitlines()), "")
            because = f" ({kind.__name__}: {reason})" if reason else ""
            show_mistake(_stopped(failed, because))
        else:
            show(kind, error, trace)

    sys.excepthook = hook
