"""The shipped commands on a few small slides, and what counts of the files that they write."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch

from tests.cohorts import PATCH_PX, draw_slide
from tests.conftest import ROOT
from tests.trainings import differences

__all__ = ["JOBS", "Job", "Workplace", "broken_files", "differing", "finish", "kill", "left_parts", "start"]

PARTITIONS = {"training": 3, "validation": 1, "testing": 2}
SIZES = ((1024, 512), (900, 780), (768, 640), (1150, 400), (900, 512), (640, 640))
LABELS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 1))
SETTINGS = {"patch_size": PATCH_PX, "class_names": ["a", "b", "c"], "views": 1, "num_workers": 1}
# Long enough that a training is killed within it, not before.
EPOCHS = 4
TIMEOUT_S = 900
# Names of files and folders about the run itself: when, how fast.
RUNS_OWN = ("tensorboard", "log.txt")


@dataclass(frozen=True)
class Workplace:
    """A small cohort, and what the commands need of each other.

    Args:
        folder: contains all of it.
        popen: starts the commands, as :class:`subprocess.Popen` does.
    """

    folder: Path
    popen: Callable[..., Any] = subprocess.Popen

    @property
    def data(self) -> Path:
        """The slides and their datalist."""
        return self.folder / "data"

    def undisturbed(self, job: str) -> Path:
        """The output folder of a command that nothing disturbed."""
        return self.folder / "undisturbed" / job

    def draw(self) -> None:
        """Write the slides, each with a mask of its whole, which is faster than finding tissue."""
        (self.data / "slides").mkdir(parents=True)
        entries = []
        for number, (size, label) in enumerate(zip(SIZES, LABELS, strict=True)):
            draw_slide(self.data / "slides" / f"s{number}.tif", size, seed=number)
            mask = np.full((size[1] // 16, size[0] // 16), 255, dtype=np.uint8)
            cv2.imwrite(str(self.data / "slides" / f"s{number}_mask.png"), mask)
            entries.append({"image": f"slides/s{number}.tif", "mask": f"slides/s{number}_mask.png", "label": label})
        left = iter(entries)
        parts = {name: [next(left) for _ in range(number)] for name, number in PARTITIONS.items()}
        (self.data / "datalist.json").write_text(json.dumps(parts))


@dataclass(frozen=True)
class Job:
    """A command, as a user types it.

    Args:
        name: of the command.
        needs: the job whose undisturbed output it reads; that runs before.
        call: the command's arguments after ``python``, from workplace and output folder.
        content: what counts of the output folder, by name; the same after a run that was disturbed.
    """

    name: str
    needs: str | None
    call: Callable[[Workplace, Path], list[str]]
    content: Callable[[Path], dict[str, Any]]


def start(job: Job, place: Workplace, output: Path, log: Path, **options: Any) -> Any:
    """Start a job's command in a process group of its own; what it prints is appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        call = [sys.executable, *job.call(place, output)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        return place.popen(call, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True, **options)


def finish(job: Job, place: Workplace, output: Path, log: Path, **options: Any) -> int:
    """Start a job and wait for its end; its exit code, which is negative if it hangs, and is killed."""
    process = start(job, place, output, log, **options)
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        kill(process)


def kill(process: Any) -> None:
    """Kill a job with SIGKILL, and every process that it started."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """The names under which two contents differ, with the first difference of each."""
    found = {}
    for name in sorted(one.keys() | other.keys()):
        of_name = [{name: content[name]} if name in content else {} for content in (one, other)]
        for difference in itertools.islice(differences(*of_name), 1):
            found[name] = difference
    return found


def broken_files(folder: Path) -> list[str]:
    """The files under their final name that are not whole, with what is wrong with them."""
    broken = []
    for path in _files(folder, hidden=False):
        try:
            whole = WHOLE.get(path.suffix, _is_any)(path)
        except Exception as error:  # whatever the reader says
            broken.append(f"{path.relative_to(folder)}: {error}")
        else:
            if not whole:
                broken.append(f"{path.relative_to(folder)}: not all of it is there")
    return broken


def left_parts(folder: Path) -> list[str]:
    """The temporary files that nobody removed."""
    return [str(path.relative_to(folder)) for path in _files(folder, hidden=True) if ".part" in path.name]


def _files(folder: Path, hidden: bool) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        own = set(path.relative_to(folder).parts) & set(RUNS_OWN)
        if path.is_file() and not own and path.name.startswith(".") == hidden:
            yield path


def _bank_is_whole(path: Path) -> bool:
    with h5py.File(path) as bank:
        scales = [bank[name] for name in bank if name != "rows"]
        # A bank is made with zeros, and filled batch by batch.
        return len(scales) == 2 and all(np.any(scale["features"][:], axis=1).all() for scale in scales)


def _weights_are_whole(path: Path) -> bool:
    return len(torch.load(path, weights_only=True)) > 0


def _zip_is_whole(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _is_any(path: Path) -> bool:
    return path.stat().st_size > 0


WHOLE: dict[str, Callable[[Path], bool]] = {
    ".h5": _bank_is_whole,
    ".json": lambda path: json.loads(path.read_text()) is not None,
    ".geojson": lambda path: json.loads(path.read_text()) is not None,
    ".csv": lambda path: path.read_text().endswith("\n"),
    ".md": lambda path: path.read_text().endswith("\n"),
    ".png": lambda path: cv2.imread(str(path)) is not None,
    ".pt": _weights_are_whole,
    ".ckpt": _weights_are_whole,
    ".zip": _zip_is_whole,
}


def _monai(run_id: str, config: str, **settings: Any) -> list[str]:
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", run_id, "--config_file", f"configs/{config}.json", *options]


def _extracting(place: Workplace, output: Path) -> list[str]:
    return _monai("extracting", "extract", dataset_dir=place.data, output_dir=output, **SETTINGS)


def _training(method: str) -> Callable[[Workplace, Path], list[str]]:
    def call(place: Workplace, output: Path) -> list[str]:
        places = {"dataset_dir": place.data, "output_dir": output, "ckpt_dir": output / "models"}
        features = place.undisturbed("extracting") / "features"
        resume = {"resume": True} if (output / "models" / "last.ckpt").is_file() else {}
        settings = {**SETTINGS, "method": method, "epochs": EPOCHS}
        return _monai("training", "train", **places, feature_dir=features, **settings, **resume)

    return call


def _comparing(place: Workplace, output: Path) -> list[str]:
    places = {"dataset_dir": place.data, "output_dir": output}
    features = place.undisturbed("extracting") / "features"
    few = {"methods": ["mustmil", "ssmil"], "seeds": [0], "epochs": 2}
    return _monai("comparing", "compare", **places, feature_dir=features, **SETTINGS, **few)


def _cross_validating(place: Workplace, output: Path) -> list[str]:
    places = {"dataset_dir": place.data, "output_dir": output}
    features = place.undisturbed("extracting") / "features"
    few = {"folds": 2, "epochs": 2, "threshold": "f1"}
    return _monai("cross_validating", "cross_validate", **places, feature_dir=features, **SETTINGS, **few)


def _inferring(place: Workplace, output: Path) -> list[str]:
    settings = {key: value for key, value in SETTINGS.items() if key != "views"}
    ckpt_dir = place.undisturbed("training") / "models"
    return _monai("inferring", "inference", dataset_dir=place.data, output_dir=output, ckpt_dir=ckpt_dir, **settings)


def _pack(place: Workplace, output: Path) -> list[str]:
    ckpt_dir = place.undisturbed("training") / "models"
    return ["-m", "bundle", "pack", "--ckpt_dir", str(ckpt_dir), "--output_dir", str(output)]


def _banks(output: Path) -> dict[str, Any]:
    return {str(path.relative_to(output)): _bank(path) for path in _files(output, hidden=False) if path.suffix == ".h5"}


def _bank(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}

    def see(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            content[name] = _array(item[()])
        for key, value in item.attrs.items():
            content[f"{name} {key}"] = _array(np.asarray(value))

    with h5py.File(path) as bank:
        bank.visititems(see)
        content.update({key: _array(np.asarray(value)) for key, value in bank.attrs.items()})
        content["made_by"] = _without_own(json.loads(bank.attrs["made_by"]))
    return content


def _array(values: Any) -> tuple[str, list[int], bytes | list[Any]]:
    return str(values.dtype), list(values.shape), values.tolist() if values.dtype == object else values.tobytes()


def _weights(output: Path) -> dict[str, Any]:
    found = {}
    for path in _files(output, hidden=False):
        if path.suffix in (".pt", ".ckpt"):
            found[str(path.relative_to(output))] = _without_own(torch.load(path, weights_only=True))
        elif path.name in ("training.json", "metrics.json"):
            found[str(path.relative_to(output))] = _without_own(json.loads(path.read_text()))
        elif path.name == "predictions.csv":
            found[str(path.relative_to(output))] = path.read_text()
    return found


def _compared(output: Path) -> dict[str, Any]:
    tables = {name: (output / name).read_text() for name in ("comparison.csv", "runs.csv")}
    return {**_weights(output), **{name: _without_seconds(text) for name, text in tables.items()}}


def _cross_validated(output: Path) -> dict[str, Any]:
    content = _without_own(json.loads((output / "cross_validation.json").read_text()))
    table = (output / "cross_validation.md").read_text()
    return {**_weights(output), "cross_validation.json": content, "cross_validation.md": table}


def _without_seconds(text: str) -> list[list[str]]:
    """A table without how long trainings took, which is a column in one, and rows in the other."""
    lines = [line.split(",") for line in text.splitlines()]
    kept = [place for place, name in enumerate(lines[0]) if name != "training_seconds"]
    of_times = [line for line in lines[1:] if "training_seconds" in line]
    return [[line[place] for place in kept] for line in lines if line not in of_times]


def _without_own(content: Any) -> Any:
    """The content of a file without the run's seconds and without the state of the work tree."""
    if isinstance(content, dict):
        return {key: _without_own(value) for key, value in content.items() if key not in ("seconds", "git")}
    return [_without_own(value) for value in content] if isinstance(content, list) else content


def _bytes(output: Path) -> dict[str, Any]:
    return {str(path.relative_to(output)): path.read_bytes() for path in _files(output, hidden=False)}


JOBS = {
    job.name: job
    for job in (
        Job("extracting", None, _extracting, _banks),
        Job("training", "extracting", _training("mustmil"), _weights),
        Job("training in phases", "extracting", _training("msmil"), _weights),
        Job("comparing", "extracting", _comparing, _compared),
        Job("cross_validating", "extracting", _cross_validating, _cross_validated),
        Job("inferring", "training", _inferring, _bytes),
        Job("pack", "training", _pack, _bytes),
    )
}
