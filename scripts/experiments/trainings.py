"""Many trainings: each runs the shipped configs in a folder of its own; finished ones are skipped, others resume."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from tqdm import tqdm

from scripts.core.errors import BundleError, SettingsError, mistake_in
from scripts.core.files import locked, write_json
from scripts.core.overrides import place_advanced
from scripts.core.ranks import forget_ranks, from_every_rank, num_ranks, rank
from scripts.core.running import ADVANCED
from scripts.core.settings import LATER, check_settings, with_role
from scripts.core.start import as_literal
from scripts.datalists.labels import with_positive_classes

__all__ = ["Experiment", "leaving_out", "run_experiments"]

# Each step's config, and the type of workflow that MONAI runs it as.
STEPS = {"training": ("train.json", "train"), "evaluating": ("evaluate.json", "infer")}
WATCH_SECONDS = 0.2


@dataclass(frozen=True)
class Experiment:
    """One training, and perhaps its evaluation, with the shipped configs.

    Args:
        name: for the progress bar and for errors.
        folder: gets all output: ``settings.json``, ``training.json``, ``models``, ``metrics.json``, ..., ``log.txt``,
            and last ``done.json``.
        settings: of the configs, as plain values, and whatever else distinguishes this run from others.
        steps: ``"training"``, ``"evaluating"``, in this order.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    steps: tuple[str, ...] = ("training", "evaluating")

    @property
    def is_done(self) -> bool:
        """Whether this run has finished.

        Raises:
            SettingsError: if the folder contains a run with other settings, which is neither used nor replaced.
        """
        path, done = self.folder / "settings.json", (self.folder / "done.json").is_file()
        remedy = f"Delete the folder {self.folder} to run it anew."
        if not path.is_file():
            if done:
                raise SettingsError(path, "is missing beside done.json", remedy)
            return False
        try:
            found = with_positive_classes(dict(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise SettingsError(path, f"is damaged ({error})", remedy) from error
        wanted = json.loads(json.dumps(dict(self.settings)))
        if "runtime" in wanted:
            found.setdefault("runtime", "torch")  # runs of version 0.3 do not record it
        found = {name: value for name, value in LATER.items() if name in wanted} | found
        keys = sorted((wanted.keys() | found.keys()) - set(with_role("free")))
        differs = [key for key in keys if found.get(key) != wanted.get(key)]
        if differs:
            both = ", ".join(f"{key} {found.get(key)!r}, now {wanted.get(key)!r}" for key in differs[:3])
            raise SettingsError(
                self.folder,
                f"holds a run with other settings ({both})",
                "Choose another `output_dir`, or delete the folder to run it anew.",
            )
        return done

    def settings_for(self, step: str, bundle_root: str | Path) -> dict[str, Any]:
        """What a step's config is given: those of the settings that it knows, and where the output is."""
        known = ConfigParser.load_config_file(Path(bundle_root) / "configs" / STEPS[step][0])
        places = {
            "bundle_root": str(bundle_root),
            "output_dir": str(self.folder),
            "ckpt_dir": str(self.folder / "models"),
            "report": False,  # one report shows all runs, and pictures of each would take longer than it
        }
        known = known.keys() | known.get(ADVANCED, {}).keys()
        return {key: as_literal(value) for key, value in {**self.settings, **places}.items() if key in known}

    def open(self, step: str, bundle_root: str | Path) -> ConfigParser:
        """A step's config with the settings of this run."""
        parser = ConfigParser()
        parser.read_config(Path(bundle_root) / "configs" / STEPS[step][0])
        parser.update(self.settings_for(step, bundle_root))
        place_advanced(parser)
        return parser

    def run(self, bundle_root: str | Path) -> None:
        """Run what is not done yet; an interrupted training resumes after its last whole epoch.

        A run that is done keeps its weights, but not the checkpoint that it would have resumed from.

        Raises:
            SettingsError: if the folder contains a run with other settings, or another process has locked it.
        """
        with locked(self.folder):
            if self.is_done:
                return
            write_json(self.folder / "settings.json", dict(self.settings))
            for step in self.steps:
                config, kind = STEPS[step]
                given = self.settings_for(step, bundle_root)
                if step == "training":
                    given["resume"] = (self.folder / "models" / "last.ckpt").is_file()
                file = Path(bundle_root) / "configs" / config
                workflow = ConfigWorkflow(str(file), workflow_type=kind, run_id=step, **given)
                workflow.initialize()
                workflow.run()
                workflow.finalize()
            write_json(self.folder / "done.json", {"steps": list(self.steps)})
            # It is larger than the weights, and nothing resumes a run that is done.
            (self.folder / "models" / "last.ckpt").unlink(missing_ok=True)


def leaving_out(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Settings with more slides in ``leave_out``; the key is absent if there are none.

    It is a setting like any other: finished runs that used these slides are refused.
    """
    left_out = sorted({*settings.get("leave_out", ()), *names})
    others = {key: value for key, value in settings.items() if key != "leave_out"}
    return {**others, "leave_out": left_out} if left_out else others


def run_experiments(
    experiments: Sequence[Experiment], bundle_root: str | Path, num_processes: int = 1, desc: str = "runs"
) -> dict[str, BundleError]:
    """Run all experiments that are not done, in processes of their own.

    Their output goes to ``log.txt`` in the experiment's folder. Under ``torchrun`` each rank runs its shard, and all
    return together.

    Args:
        experiments: what to run, in folders that differ.
        bundle_root: the bundle's folder.
        num_processes: how many run at the same time; they share the processor's cores.
        desc: the title of the progress bar.

    Returns:
        By name, the error of each experiment of any rank that failed because of a user's mistake. The others ran to
        their end.

    Raises:
        SettingsError: if ``num_processes`` is below 1, a folder contains a run with other settings, or a process
            died.
    """
    check_settings(num_processes=num_processes)
    done = [experiment.is_done for experiment in experiments]
    # Shards of all, not of what is left: a rank that starts later finds less left, and would choose another shard.
    shard = list(zip(experiments, done, strict=True))[rank() :: num_ranks()]
    mine = [experiment for experiment, is_done in shard if not is_done]
    failed: dict[str, BundleError] = {}
    with tqdm(
        total=len(experiments), initial=sum(done), desc=desc, unit="run", dynamic_ncols=True, disable=rank() > 0
    ) as bar:
        if mine:
            failed = _run_here(mine, bundle_root, min(num_processes, len(shard)), bar)
    of_ranks = from_every_rank({name: (str(e.subject), e.cause, e.remedy) for name, e in failed.items()})
    return {name: BundleError(*error) for of_rank in of_ranks for name, error in of_rank.items()}


def _run_here(
    experiments: Sequence[Experiment], bundle_root: str | Path, processes: int, bar: tqdm
) -> dict[str, BundleError]:
    failed: dict[str, BundleError] = {}
    # Not by what is left to run: with another number of threads, sums have other last digits.
    threads = max(1, torch.get_num_threads() // processes)
    # A fresh process each, because a forked one may inherit locked threads of OpenCV or torch.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(threads, stop)) as pool:
        running = {pool.submit(_run_logged, experiment, bundle_root): experiment for experiment in experiments}
        try:
            for future in as_completed(running):
                experiment = running[future]
                try:
                    future.result()
                except BundleError as error:
                    failed[experiment.name] = error
                    tqdm.write(f"{experiment.name} failed: {error}", file=sys.stderr)
                except BrokenProcessPool as error:
                    raise SettingsError(
                        experiment.name,
                        "its process was killed, perhaps for want of memory",
                        f"See {experiment.folder / 'log.txt'}; the same command goes on from here.",
                    ) from error
                except Exception:
                    pool.shutdown(cancel_futures=True)
                    tqdm.write(f"{experiment.name} failed: see {experiment.folder / 'log.txt'}", file=sys.stderr)
                    raise
                bar.set_postfix_str(experiment.name, refresh=False)
                bar.update()
        except KeyboardInterrupt:
            stop.set()  # otherwise the pool waits for the runs under way
            tqdm.write("stopped; the same command goes on from here", file=sys.stderr)
            raise
    return failed


def _run_logged(experiment: Experiment, bundle_root: str | Path) -> None:
    experiment.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # By descriptor, since native libraries write past Python's streams.
    with open(experiment.folder / "log.txt", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        experiment.run(bundle_root)
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may have no room for the log
            traceback.print_exc()
        mistake = mistake_in(error)
        if mistake is None:
            raise
        # MONAI wraps it in an error that cannot be pickled.
        raise mistake from None


def _start(num_threads: int, stop: Event) -> None:
    forget_ranks()  # a run belongs to one rank alone
    torch.set_num_threads(num_threads)
    # A terminal sends an interrupt to every process; the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()


def _end_with_parent(stop: Event) -> None:
    # A run that outlives its killed parent would write into the folder in which the next one resumes.
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not stop.is_set() and not wait([parent.sentinel], timeout=WATCH_SECONDS):
        pass
    os._exit(1)
