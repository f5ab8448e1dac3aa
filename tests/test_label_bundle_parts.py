"""What the MONAI Label app takes from a bundle: the names under which it answers with scores."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import pytest
from monai.bundle import ConfigParser

from bundle.label_app.lib.bundle_parts import read_parts
from tests.conftest import ROOT

OWN: dict[str, Any] = {"task": "binary", "class_names": ["benign", "malignant"]}


@pytest.mark.parametrize(
    ("knobs", "left_out", "names"),
    [
        ({}, [], ("cancer", "hgd", "lgd", "hyperplastic", "normal")),
        ({"task": "binary"}, [], ("high_risk",)),
        ({**OWN, "positive_classes": ["malignant"]}, [], ("malignant",)),
        (OWN, [], ("positive",)),
        # Bundles up to version 0.3.0 have no such setting.
        ({"task": "binary"}, ["positive_classes", "positives", "settings"], ("high_risk",)),
    ],
)
def test_scores_have_the_names_of_the_bundles_outputs(
    monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any], left_out: list[str], names: tuple[str, ...]
) -> None:
    monkeypatch.chdir(ROOT)
    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "inference.json"))
    config.update(knobs)
    for key in left_out:
        config.config.pop(key)  # type: ignore[union-attr,call-arg]
    # The app loads the bundle's scripts anew.
    with mock.patch.dict(sys.modules):
        parts = read_parts(str(ROOT), config)
    assert parts.offer.class_names == names
    if "settings" not in left_out:
        positive = {"high_risk": ["cancer", "hgd"], "malignant": ["malignant"]}.get(names[0])
        assert parts.settings["positive_classes"] == positive
