"""Killed runs: the shipped commands, killed at random moments and started again, against runs that nothing disturbed.

A run is killed with SIGKILL, with every process that it started, one to three times; then it ends by itself. Moments
are uniform over a run's whole time, or, for most, over the time in which it writes, from the first file that it
touches. Where it is killed k times, each moment is within the first k-th of that time, since a run that resumes has
less to do.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.counters import Counts
from tests.reliability.jobs import (
    JOBS,
    RUNS_OWN,
    TIMEOUT_S,
    Job,
    Workplace,
    broken_files,
    differing,
    finish,
    kill,
    left_parts,
    start,
)

__all__ = ["KILLED", "Undisturbed", "measure", "run", "try_job"]

KILLED = ("extracting", "training", "training in phases", "comparing", "cross_validating", "pack")
TRIES = 50
MOST_KILLS = 3
SHARE_AT_WORK = 0.8
POLL_S = 0.002

# What may come of a killed run.
EQUAL, WHOLE = "equal to the undisturbed run", "every file whole"
OTHER, HALF, PARTS, FAILED = "ANOTHER RESULT", "HALF A FILE", "TEMPORARY FILES LEFT", "DID NOT GO ON"


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    Args:
        work_s: seconds from the first file that it touched to its end.
        all_s: seconds from its start to its end.
        content: what counts of its output.
    """

    work_s: float
    all_s: float
    content: dict[str, Any]


def run(counts: Counts, folder: Path, tries: int | None = None, seed: int = 0, only: str | None = None) -> None:
    """Kill each command in turn, and count what comes of it.

    Args:
        counts: gets two rows for each command: its files after each kill, and its result in the end.
        folder: for slides and output.
        tries: how many runs are killed in all, each one to three times.
        seed: of the moments.
        only: the name of the one command to kill.
    """
    draw, place = random.Random(seed), Workplace(folder)
    place.draw()
    jobs = [JOBS[name] for name in KILLED if only in (None, name)]
    known: dict[str, Undisturbed] = {}
    for number, job in enumerate(itertools.islice(itertools.cycle(jobs), tries or TRIES)):
        try_job(job, place, folder / f"try_{number}", known, counts, draw)


def try_job(
    job: Job,
    place: Workplace,
    output: Path,
    known: dict[str, Undisturbed],
    counts: Counts,
    draw: random.Random,
    num_kills: int | None = None,
) -> None:
    """Kill a command, start it again, compare, and count.

    Args:
        job: the command.
        place: where the slides are.
        output: its output folder, empty.
        known: undisturbed runs by their job's name; what is missing is run, and added.
        counts: gets the outcomes.
        draw: of the moments.
        num_kills: how often it is killed; by default at random, and fewer where a run ends before its moment comes.
    """
    undisturbed = measure(job, place, known)
    log = output.with_suffix(".log")
    kills, wanted = 0, num_kills or draw.randint(1, MOST_KILLS)
    while kills < wanted:
        if not _killed(job, place, output, log, undisturbed, wanted, draw):
            if kills and num_kills is None:
                break
            # It ended before its moment came: nothing of it is kept.
            kills, output = 0, output.with_name(f"{output.name}_")
            continue
        kills += 1
        broken = broken_files(output)
        counts.add(f"`{job.name}`: files after a kill", HALF if broken else WHOLE)
        _print(broken, log)
    code = finish(job, place, output, log)
    content = job.content(output) if code == 0 else {}
    wrong = {
        FAILED: [f"exit code {code}"] if code else [],
        HALF: broken_files(output),
        OTHER: list(differing(undisturbed.content, content).values()),
        PARTS: left_parts(output),
    }
    outcome = next((outcome for outcome, found in wrong.items() if found), EQUAL)
    counts.add(f"`{job.name}`: killed and started again", outcome)
    _print(wrong.get(outcome, []), log)


def measure(job: Job, place: Workplace, known: dict[str, Undisturbed]) -> Undisturbed:
    """A job's undisturbed run, after that of the job that it needs; each once.

    Raises:
        RuntimeError: if it fails.
    """
    if job.needs is not None:
        measure(JOBS[job.needs], place, known)
    if job.name not in known:
        output, log = place.undisturbed(job.name), place.folder / f"{job.name}.log"
        began, since = time.monotonic(), time.time_ns()
        process = start(job, place, output, log)
        try:
            _wait_for_write(process, output, since)
            first = time.monotonic()
            code = process.wait(TIMEOUT_S)
        finally:
            kill(process)
        if code:
            raise RuntimeError(f"{job.name} fails undisturbed: {log.read_text()[-2000:]}")
        end = time.monotonic()
        known[job.name] = Undisturbed(end - first, end - began, job.content(output))
    return known[job.name]


def _killed(
    job: Job, place: Workplace, output: Path, log: Path, undisturbed: Undisturbed, wanted: int, draw: random.Random
) -> bool:
    """Start a job and kill it; whether it still ran."""
    at_work = draw.random() < SHARE_AT_WORK
    delay_s = draw.uniform(0, (undisturbed.work_s if at_work else undisturbed.all_s) / wanted)
    since = time.time_ns()
    process = start(job, place, output, log)
    try:
        if at_work:
            _wait_for_write(process, output, since)
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        return True
    finally:
        kill(process)
    return False


def _wait_for_write(process: subprocess.Popen[bytes], output: Path, since_ns: int) -> None:
    """Wait until a run touches a file, or ends."""
    while process.poll() is None and not _touched(output, since_ns):
        time.sleep(POLL_S)


def _touched(output: Path, since_ns: int) -> bool:
    for folder, folders, files in os.walk(output):
        folders[:] = [name for name in folders if name not in RUNS_OWN]
        for name in files:
            try:
                if name not in (*RUNS_OWN, ".lock") and os.stat(os.path.join(folder, name)).st_mtime_ns >= since_ns:
                    return True
            except FileNotFoundError:
                return True  # a temporary file that just took its name
    return False


def _print(found: Sequence[str], log: Path) -> None:
    if found:
        print(f"{log}: {'; '.join(found[:5])}", file=sys.stderr, flush=True)
