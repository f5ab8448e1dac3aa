"""Making one set of weights of several trainings: an ensemble."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts import __version__
from scripts.core.errors import SettingsError
from scripts.core.provenance import software
from scripts.core.settings import LATER
from scripts.core.sums import unlist
from scripts.core.tasks import get_task
from scripts.datalists.labels import output_names, with_positive_classes
from scripts.encoders.int8_networks import copy_int8, find_int8
from scripts.encoders.registry import ENCODERS
from scripts.networks.ensemble import Ensemble
from scripts.networks.methods import result_heads, served_head
from scripts.networks.state_record import COUNTS, sign, weights_sha256
from scripts.weights.checkpoints import load_state, save_checkpoint
from scripts.weights.doubts import doubt_of_head
from scripts.weights.operating_point import (
    LINE,
    OPERATING_POINT,
    RECALIBRATED,
    operating_point_of,
    point_text,
    points_warning,
)
from scripts.weights.paths import weights_path
from scripts.weights.record import DECISIONS, read_origin, read_record, record_problem, training_of

__all__ = ["Members"]

REMEDY = "Name folders of weights of one kind: `--members \"['a/models','b/models']\"`, or one that contains them."
ONCE = "Name each training once."
# What a run of many trainings leaves in the folder of each, and last of all.
STARTED, DONE = ("settings.json", "datalist.json"), "done.json"

logger = logging.getLogger(__name__)


class Members:
    """The trainings of which an ensemble is made: of the same method, task, classes, encoder and magnifications.

    Args:
        members: folders of weights; a folder with ``models`` in it stands for that, and one whose folders have such,
            as ``cross_validating`` and ``comparing`` write it, for all of these.

    Attributes:
        folders: of the weights, in order.
        settings: what the ensemble's record stores: those of the first member, and ``members``, how many there are.
        heads: the heads' names.
        class_names: of the K classes.
        kind: their task.
        trainings: of each member, see :func:`scripts.weights.record.training_of`.
        record: of the ensemble, see :func:`scripts.weights.record.read_record`.

    Raises:
        SettingsError: if there are fewer than two, one has no weights, a damaged or an unfinished training, is there
            twice, or is an ensemble; or if they are of different kinds.
    """

    def __init__(self, members: str | Sequence[str] | None) -> None:
        self.folders = _find(members)
        records = [_read(folder) for folder in self.folders]
        first: dict[str, Any] = with_positive_classes(records[0]["settings"])
        for folder, record in zip(self.folders[1:], records[1:], strict=True):
            # A training may be without positive classes, and is another one for that.
            positive = {"positive_classes": with_positive_classes(record["settings"])["positive_classes"]}
            problem = record_problem(record, {**LATER, **first}) or record_problem({"settings": first}, positive)
            if problem is not None:
                cause = f"differs from {self.folders[0]}: {problem}"
                raise SettingsError(folder, cause, REMEDY)
        if first.get("num_features") is None and first["backbone"] not in ENCODERS:
            cause = f"its record does not say how many features backbone {first['backbone']} has"
            raise SettingsError(f"member {self.folders[0]}", cause, "Train again: version 0.3 did not store it.")
        self.settings = {**first, "members": len(self.folders)}
        self.heads = result_heads(first["method"], first["magnifications"])
        self.class_names = output_names(first["task"], first["class_names"], first["positive_classes"])
        self.kind = get_task(first["task"])
        self.trainings = [
            training_of(record, read_origin(_file(folder, self.heads[0])))
            for folder, record in zip(self.folders, records, strict=True)
        ]
        # The greatest, not the sum: folds share slides.
        counts = {key: max(record["data"][key] for record in records) for key in COUNTS}
        self.record = {
            "version": __version__,
            "settings": self.settings,
            "data": counts,
            "members": self.trainings,
        }

    @property
    def num_logits(self) -> int:
        """L, the number of logits of each head."""
        return self.kind.num_logits(len(self.class_names))

    def write(self, network: Ensemble, ckpt_dir: str | Path) -> None:
        """Write a file of weights for each head, of the members' files that are best for it.

        Args:
            network: with as many members, of their kind; it gets their weights.
            ckpt_dir: gets ``model.pt``, ``model_5x.pt``, ...; an earlier ensemble there is replaced. With INT8 it gets
                the encoder's network, too.

        Raises:
            SettingsError: if the folder has weights of a training; if a member's weights do not load, or are not all of
                one training; if the INT8 network of all is missing; or if only some have an operating point, or these
                follow different rules. Then nothing was written.
        """
        earlier, served = _earlier(Path(ckpt_dir)), self.heads[served_head(self.heads)]
        sha256 = self.settings.get("int8_sha256")
        int8 = None if sha256 is None else find_int8(sha256, self.folders)
        states, points = {}, dict[str, Any]()
        for head in self.heads:
            origin = {"best_for": head, **self._load(network, head)}
            network.record = {}  # type: ignore[assignment]
            sign(network, self.record, origin)
            states[weights_path(ckpt_dir, head)] = copy.deepcopy(network.state_dict())
            if head == served:
                points = origin.get(OPERATING_POINT, {})
        Path(ckpt_dir).mkdir(parents=True, exist_ok=True)
        for path in earlier:
            unlist(path)
            if path not in states:
                path.unlink()
                logger.info("removed %s of the earlier ensemble", path)
        if int8 is not None:
            copy_int8(int8, Path(ckpt_dir))
        # The one that serves last: without it, the folder is not taken for a whole ensemble.
        for path in sorted(states, key=lambda path: path == weights_path(ckpt_dir, served)):
            save_checkpoint(states[path], path)
            logger.info("wrote %s: the mean of %d trainings", path, len(self.folders))
        for name, point in points.items():
            logger.info("operating point of head %s: %s", name, point_text(point))
        if not points:
            logger.warning("the members have no operating point: the mean is of probabilities that are not calibrated")
        if (warning := points_warning(points)) is not None:
            logger.warning("%s", warning)

    def _load(self, network: Ensemble, head: str) -> dict[str, Any]:
        """Give a network the members' weights that are best for a head, and their calibration; returns its origin."""
        origins, sums = [], []
        for e, folder in enumerate(self.folders):
            member: Any = network.members[e]
            path = _file(folder, head)
            load_state(member, path)
            if training_of(member.record, member.origin) != self.trainings[e]:
                cause = f"is not of the same training as {_file(folder, self.heads[0]).name}"
                raise SettingsError(
                    f"member {path}", cause, "Name a folder into which one training wrote, and no other."
                )
            if (doubt := doubt_of_head(member.origin, head)) is not None:
                logger.warning("what member %s predicts by the head %s may mean nothing: %s", folder, head, doubt)
            origins.append(member.origin)
            sums.append(weights_sha256(member.state_dict()))
            if sums[-1] in sums[:-1]:
                same = self.folders[sums.index(sums[-1])]
                raise SettingsError(f"member {folder}", f"its weights for {head} are those of {same}", ONCE)
            for h, name in enumerate(self.heads):
                point = operating_point_of(member, [name], self.class_names, self.kind.name)
                for key in LINE:
                    value = 1.0 if key == "slope" else 0.0
                    line = np.full(len(self.class_names), value) if point is None else getattr(point, key)[0]
                    getattr(network, key)[e, h] = torch.tensor(line)
            # What it stored of its own training is in the ensemble's record.
            member.record, member.origin = {}, {}
        points = self._points([origin.get(OPERATING_POINT, {}) for origin in origins])
        rules = [{**origin, **origin.get(RECALIBRATED, {})}.get("made_by", {}) for origin in origins]
        configurations = [rule.get("configuration", {}) for rule in rules]
        decided = {k: v for k, v in configurations[0].items() if k in (*DECISIONS, "runtime")}
        if len(runtimes := {of_member.get("runtime", "torch") for of_member in configurations}) > 1:
            logger.warning("members were trained on features of several runtimes: %s", ", ".join(sorted(runtimes)))
        if points and len({of_member.get("prior_correction", True) for of_member in configurations}) > 1:
            cause = "the prior is corrected in the probabilities of some, and not of others"
            raise SettingsError("members", cause, "Decide again with one `prior_correction`, by `calibrating`.")
        made_by = {**software(), "configuration": decided, "members_sha256": sums}
        return {"made_by": made_by, **({OPERATING_POINT: points} if points else {})}

    def _points(self, of_members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The operating point of each head: the members' probabilities are calibrated, thresholds are their mean."""
        if len({bool(points) for points in of_members}) > 1:
            lacking = next(str(f) for f, points in zip(self.folders, of_members, strict=True) if not points)
            remedy = "Decide one with `calibrating`, or leave it out."
            raise SettingsError(lacking, "has no operating point, and other members have", remedy)
        found = {}
        for head in self.heads:
            points = [points[head] for points in of_members if head in points]
            if len(points) < len(of_members):
                continue
            rules = sorted({str(point["rule"]) for point in points})
            if len(rules) > 1:
                cause = f"decide by different rules, of head {head}: threshold {', '.join(rules)}"
                raise SettingsError("members", cause, "Decide again with one, by `calibrating`.")
            distinct = self._of_distinct_slides(points)
            how = sorted({point["calibration"] for point in points})
            found[head] = {
                "calibration": f"of each member ({', '.join(how)})",
                "rule": points[0]["rule"],
                "slides": sum(point["slides"] for point in distinct),
                "classes": {name: _mean(name, points, distinct) for name in self.class_names},
            }
        return found

    def _of_distinct_slides(self, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """One of the points for each set of validation slides: those of several seeds rest on the same.

        Sets of folds may overlap. Which slides are in both is not known, since a record has no names.
        """
        found: dict[str, Mapping[str, Any]] = {}
        for training, point in zip(self.trainings, points, strict=True):
            found.setdefault(str((training["data"] or {}).get("validation")), point)
        return list(found.values())


def _mean(
    name: str, points: Sequence[Mapping[str, Any]], distinct: Sequence[Mapping[str, Any]]
) -> dict[str, float | int]:
    """The operating point of a class, on probabilities that are calibrated already."""
    classes = [point["classes"][name] for point in points]
    line: dict[str, float | int] = {"shift": 0.0, "slope": 1.0, "intercept": 0.0}
    if "threshold" in classes[0]:
        line["threshold"] = float(np.mean([of_class["threshold"] for of_class in classes]))
    return {**line, "positives": sum(point["classes"][name]["positives"] for point in distinct)}


def _find(members: str | Sequence[str] | None) -> list[Path]:
    if not members:
        raise SettingsError("members", "got none", REMEDY)
    places = [members] if isinstance(members, str | Path) else list(members)
    folders = [folder for place in places for folder in _in(Path(place))]
    if len(folders) < 2:
        raise SettingsError("members", f"got one ({folders[0]})", f"An ensemble has two or more. {REMEDY}")
    real = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder in real if real.count(folder) > 1]
    if twice:
        raise SettingsError("members", f"{twice[0]} is there twice", ONCE)
    return folders


def _in(place: Path) -> list[Path]:
    """The folders of weights that a place stands for."""
    if not place.is_dir():
        cause = "is a file" if place.exists() else "there is no such folder"
        raise SettingsError(f"member {place}", cause, REMEDY)
    if any(place.glob("model*.pt")):
        if place.name == "models" and (place.parent / STARTED[0]).is_file():
            _refuse_unfinished(place.parent)
        return [place]
    runs = [place] if (place / "models").is_dir() else sorted(filter(_is_run, place.iterdir()), key=_natural)
    if not runs:
        raise SettingsError(f"member {place}", "the folder contains no weights", REMEDY)
    for run in runs:
        _refuse_unfinished(run)
    return [run / "models" for run in runs]


def _refuse_unfinished(run: Path) -> None:
    started = any((run / name).is_file() for name in STARTED)
    if (started and not (run / DONE).is_file()) or not any((run / "models").glob("model*.pt")):
        raise SettingsError(f"member {run}", "its training has not finished", "Run it to its end first.")


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*STARTED, "models"))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in a name by their value."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"(\d+)", path.name)]


def _file(folder: Path, head: str) -> Path:
    path = weights_path(folder, head)
    if not path.is_file():
        raise SettingsError(f"member {folder}", f"contains no {path.name}", "Name a folder that training wrote.")
    return path


def _read(folder: Path) -> dict[str, Any]:
    record = read_record(min(folder.glob("model*.pt"), key=lambda path: (len(path.name), path.name)))
    if "members" in record:
        raise SettingsError(f"member {folder}", "is an ensemble", "Name the trainings that it is made of.")
    return record


def _earlier(ckpt_dir: Path) -> list[Path]:
    """The files of an earlier ensemble in a folder, which may be replaced; whatever else it has would be lost."""
    paths = sorted(ckpt_dir.glob("model*.pt"))
    for path in paths:
        try:
            is_ensemble = "members" in read_record(path)
        except SettingsError:
            is_ensemble = False
        if not is_ensemble:
            cause = f"{path} is not of an ensemble, and would be lost"
            raise SettingsError("ckpt_dir", cause, "Give a folder of the ensemble's own.")
    return paths
