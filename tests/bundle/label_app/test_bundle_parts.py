"""What the MONAI Label app takes from a bundle: the names under which it answers with scores."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from monai.bundle import ConfigParser

from bundle.label_app.lib.bundle_parts import read_parts
from tests.conftest import ROOT
from tests.dicoms import write_dicom
from tests.pyramids import noise

OWN: dict[str, Any] = {"task": "binary", "class_names": ["benign", "malignant"]}


@pytest.mark.parametrize(
    ("given", "left_out", "names"),
    [
        ({}, [], ("cancer", "hgd", "lgd", "hyperplastic", "normal")),
        ({"task": "binary"}, [], ("high_risk",)),
        ({**OWN, "positive_classes": ["malignant"]}, [], ("malignant",)),
        (OWN, [], ("positive",)),
        # Bundles up to version 0.3.0 have no such setting.
        ({"task": "binary"}, ["positive_classes", "settings"], ("high_risk",)),
    ],
)
def test_scores_have_the_names_of_the_bundles_outputs(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], left_out: list[str], names: tuple[str, ...]
) -> None:
    monkeypatch.chdir(ROOT)
    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "inference.json"))
    config.update(given)
    for key in left_out:
        config.config.pop(key)  # type: ignore[union-attr,call-arg]
    # The app loads the bundle's scripts anew.
    with mock.patch.dict(sys.modules):
        parts = read_parts(str(ROOT), config)
    assert parts.offer.class_names == names
    if "settings" not in left_out:
        positive = {"high_risk": ["cancer", "hgd"], "malignant": ["malignant"]}.get(names[0])
        assert parts.settings["positive_classes"] == positive


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("task", ["multilabel", "multiclass", "ordinal"])
def test_maps_and_decisions_are_those_of_the_task(monkeypatch: pytest.MonkeyPatch, task: str, old: bool) -> None:
    if old and task != "multilabel":
        pytest.skip("bundles up to 0.4.0 have the paper's tasks alone")
    monkeypatch.chdir(ROOT)
    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "inference.json"))
    config.update({"task": task, "class_names": ["normal", "lgd", "cancer"]})
    find_spec = importlib.util.find_spec
    gone = "scripts.core.tasks" if old else ""
    with mock.patch.dict(sys.modules):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else find_spec(name))
        parts = read_parts(str(ROOT), config)
    scores = np.array([0.3, 0.3, 0.4])
    assert parts.offer.class_names == ("normal", "lgd", "cancer")
    is_ordinal = task == "ordinal"
    assert parts.offer.shown_classes == (("above normal", "above lgd") if is_ordinal else parts.offer.class_names)
    assert parts.per_logit(scores) == pytest.approx([0.7, 0.4] if is_ordinal else scores)
    decided = {"multilabel": [False] * 3, "multiclass": [False, False, True], "ordinal": [False, True, False]}
    assert parts.decided(scores).tolist() == decided[task]


@pytest.mark.parametrize("old", [False, True])
def test_a_slides_stamp_is_another_when_one_of_its_files_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: bool
) -> None:
    monkeypatch.chdir(ROOT)
    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "inference.json"))
    find_spec = importlib.util.find_spec
    gone = "scripts.slides.checksums" if old else ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else find_spec(name))
    with mock.patch.dict(sys.modules):
        parts = read_parts(str(ROOT), config)
    write_dicom(tmp_path, noise(256, 256), downsamples=(1, 2))
    named, other = tmp_path / "level_0.dcm", tmp_path / "level_1.dcm"
    before = parts.stamp_of(str(named))
    assert parts.stamp_of(str(named)) == before
    os.utime(other, ns=(1, 1))
    # Bundles up to 0.3.0 open a DICOM slide by one file, and look at no other.
    assert (parts.stamp_of(str(named)) == before) is old
    os.utime(named, ns=(1, 1))
    assert parts.stamp_of(str(named)) != before
