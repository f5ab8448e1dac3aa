"""What each training of a cross-validation gets: the datalist of its fold, and settings that name it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.files import output_folder, replacing
from scripts.datalists.failures import without
from scripts.datalists.folds import Folds, refuse_twice
from scripts.datalists.units import SLIDE
from scripts.features.bank import bank_path, stored_settings
from scripts.training.datasets import views_of_slides

__all__ = ["check_banks", "fold_settings", "views_of_folds", "write_datalist"]


def views_of_folds(split: Folds, views: int, unit: str = SLIDE) -> list[int]:
    """For each of the split's entries the most augmented views that the training of a fold needs of it."""
    most = {entry["slide"]: 0 for entry in split.entries}
    for fold in range(len(split.partitions)):
        training = split.part(fold, "training")
        counts = views_of_slides("bank", training, views, unit)
        for entry, count in zip(training, counts, strict=True):
            most[entry["slide"]] = max(most[entry["slide"]], count)
    return list(most.values())


def fold_settings(split: Folds, fold: int, datalist: Path) -> dict[str, Any]:
    """What distinguishes the training of a fold, counted from 0, whose datalist is this file."""
    sha256 = hashlib.sha256(split.datalist(fold).encode()).hexdigest()
    own = {"fold": fold + 1, "folds": len(split.partitions), "datalist": str(datalist), "datalist_sha256": sha256}
    kept = {entry["slide"] for entry in split.entries}
    # Of those that the user names, slides without a label are in no fold.
    return {**own, "leave_out": [slide.name for slide in split.slides if slide.name not in kept]}


def write_datalist(split: Folds, fold: int, path: Path) -> None:
    """Write the datalist of a fold, counted from 0."""
    output_folder(path.parent)
    with replacing(path) as part:
        part.write_text(split.datalist(fold), encoding="utf-8")


def check_banks(split: Folds, feature_dir: Path, left_out: Sequence[str]) -> None:
    """Refuse a slide under two names, which the feature banks reveal where the datalist has no checksums.

    Raises:
        DatalistError: if there is one.
    """
    found: dict[str, str | None] = {}
    for entry in without(split.entries, left_out):
        stored: Mapping[str, Any] = stored_settings(bank_path(feature_dir, entry["slide"]))
        found[entry["slide"]] = stored.get("slide_sha256")
    refuse_twice(found)
