"""Full disks and folders that cannot be written to: the shipped commands on a small file system that runs full.

The file system is one of its own, mounted where nobody else sees it, so it goes with the process that mounted it. Where
that is not allowed, a limit on the size of a file takes its place, and read-only folders are not tried.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from tests.conftest import ROOT
from tests.reliability.counters import Counts
from tests.reliability.jobs import JOBS, Job, Workplace, broken_files, differing, finish, left_parts
from tests.reliability.kills import Undisturbed, measure

__all__ = ["FULL", "READ_ONLY", "fill", "namespace", "run"]

FILLED = ("extracting", "training", "comparing", "inferring", "pack")
TRIES = 25
DISK_MB = 256
WAYS_TO_MOUNT = (("unshare", "--user", "--map-root-user", "--mount"), ("unshare", "--mount"))

FULL, READ_ONLY = "the disk runs full", "the output folder is read-only"
# What may come of it.
GOES_ON = "one line with file or key, cause and remedy; nothing damaged; the same result once there is room"
ONE_LINE, ENOUGH = "one line with folder or key, cause and remedy", "there was room enough"
NOT_TRIED = "not tried: this machine lets nobody mount"
SEVERAL_LINES, DAMAGED, WRITTEN = "NOT ONE LINE WITH THE CAUSE", "DAMAGED", "WRITTEN ALL THE SAME"
STOPS, OTHER, PARTS = "DOES NOT GO ON", "ANOTHER RESULT", "TEMPORARY FILES LEFT"


def run(counts: Counts, folder: Path, tries: int | None = None, seed: int = 0) -> None:
    """Run each command on a disk with too little room, then with enough, and on one that is read-only.

    Args:
        counts: gets two rows for each command.
        folder: for slides and output.
        tries: on how many full disks in all, the commands taken in turn.
        seed: of the room that is left.
    """
    place = Workplace(folder)
    place.draw()
    known: dict[str, Undisturbed] = {}
    for name in FILLED:
        measure(JOBS[name], place, known)
    names = list(itertools.islice(itertools.cycle(FILLED), tries or TRIES))
    for name, fault, outcome in fill(place, names, list(dict.fromkeys(names)), seed):
        counts.add(f"`{name}`: {fault}", outcome)


def fill(
    place: Workplace, full: Sequence[str], read_only: Sequence[str], seed: int = 0
) -> Iterator[tuple[str, str, str]]:
    """Run commands on disks that are full, or cannot be written to.

    Args:
        place: with the undisturbed output of each of them.
        full: the jobs to run on a full disk.
        read_only: those to run on a disk that is read-only.
        seed: of the room that is left.

    Returns:
        job, fault and outcome of each, as they come.

    Raises:
        RuntimeError: if the process that mounts the disk fails.
    """
    before = namespace()
    task = json.dumps([str(place.folder), list(full), list(read_only), seed, before is not None])
    call = [*(before or ()), sys.executable, "-m", "tests.reliability.disk", task]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, fault, outcome = json.loads(line)
            yield name, fault, outcome
    if process.returncode:
        raise RuntimeError(f"the disk's process ended with exit code {process.returncode}")


@cache
def namespace() -> tuple[str, ...] | None:
    """What to put before a command so that it may mount file systems that nobody else sees; ``None`` if none may."""
    for call in WAYS_TO_MOUNT:
        if shutil.which(call[0]) is not None:
            tried = subprocess.run([*call, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
            if tried.returncode == 0:
                return call
    return None


class _Disk:
    """A small file system in which room can be left and made.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leave(self, room: int) -> None:
        """Fill it but for so many bytes."""
        free = shutil.disk_usage(self.folder).free
        with open(self.folder / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - room, 1))

    def make_room(self) -> None:
        """Empty it of what fills it."""
        (self.folder / "ballast").unlink()


@contextmanager
def _disk(folder: Path, mounts: bool) -> Iterator[_Disk | None]:
    """An empty folder: a small file system, in a namespace of this process's own, or one of the machine's."""
    folder.mkdir()
    if mounts:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    try:
        yield _Disk(folder) if mounts else None
    finally:
        if mounts:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


def _try_full(job: Job, place: Workplace, folder: Path, number: int, draw: random.Random, disk: _Disk | None) -> str:
    undisturbed, output, log = place.undisturbed(job.name), folder / "output", place.folder / f"full_{number}.log"
    before = _leave_old_files(undisturbed, output)
    if job.name == "inferring":
        before = []  # it begins by removing what an earlier one left
    # A bank is taken over as it is; everything else is written anew.
    there = [path for path in before if path.suffix == ".h5"]
    sizes = [
        path.stat().st_size
        for path in undisturbed.rglob("*")
        if path.is_file() and output / path.relative_to(undisturbed) not in there
    ]
    if disk is not None:
        disk.leave(draw.randrange(sum(sizes)))
        code = finish(job, place, output, log)
        disk.make_room()
    else:
        limit = draw.randrange(max(sizes))
        code = finish(job, place, output, log, preexec_fn=partial(_limit_files, limit))
    if code == 0:
        return ENOUGH
    return _judge(job, place, output, log, before)


def _judge(job: Job, place: Workplace, output: Path, log: Path, before: Sequence[Path]) -> str:
    if not _is_one_line(log, output.parent, ("No space left on device", "File too large")):
        return SEVERAL_LINES
    if broken_files(output) or not all(path.is_file() for path in before):
        return DAMAGED
    again = log.with_suffix(".again.log")
    if finish(job, place, output, again):
        return STOPS
    if differing(job.content(place.undisturbed(job.name)), job.content(output)):
        return OTHER
    return PARTS if left_parts(output) else GOES_ON


def _try_read_only(job: Job, place: Workplace, folder: Path) -> str:
    log = place.folder / f"read_only_{job.name}.log"
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        code = finish(job, place, folder / "output", log)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    if code == 0:
        return WRITTEN
    return ONE_LINE if _is_one_line(log, folder, ("may not write", "Read-only file system")) else SEVERAL_LINES


def _leave_old_files(undisturbed: Path, output: Path) -> list[Path]:
    """Files of an earlier run, which the next one takes over or replaces; but for a checkpoint to go on from."""
    old = []
    for path in sorted(undisturbed.rglob("*"))[::2]:
        if path.suffix in (".h5", ".pt", ".zip", ".csv") and "runs" not in path.relative_to(undisturbed).parts:
            old.append(output / path.relative_to(undisturbed))
            old[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, old[-1])
    return old


def _is_one_line(log: Path, folder: Path, causes: Sequence[str]) -> bool:
    text = log.read_text(errors="replace").replace("\r", "\n")
    errors = [line for line in text.splitlines() if "error: " in line]
    last = errors[-1] if errors else ""
    # Errors of TensorBoard and of a log name no file.
    named = (str(folder) in last or "error: output_dir: " in last) and any(cause in last for cause in causes)
    return named and last.endswith(".") and "Traceback" not in text


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _tell(name: str, fault: str, outcome: str) -> None:
    print(json.dumps([name, fault, outcome]), flush=True)


def _work(place: Workplace, full: Sequence[str], read_only: Sequence[str], seed: int, mounts: bool) -> None:
    """Try everything, in the namespace, and print what comes of it."""
    draw, folder = random.Random(seed), place.folder / "disk"
    for number, name in enumerate(full):
        with _disk(folder, mounts) as disk:
            _tell(name, FULL, _try_full(JOBS[name], place, folder, number, draw, disk))
    for name in read_only:
        with _disk(folder, mounts) as disk:
            outcome = NOT_TRIED if disk is None else _try_read_only(JOBS[name], place, folder)
        _tell(name, READ_ONLY, outcome)


if __name__ == "__main__":
    place_folder, *task = json.loads(sys.argv[1])
    _work(Workplace(Path(place_folder)), *task)
