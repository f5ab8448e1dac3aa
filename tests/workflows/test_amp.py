"""What ``amp`` is by default in every config, and that it reaches the backbone and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from bundle.contents import base_config
from tests.conftest import ROOT
from tests.encoders.test_backbones import ASKED, machine_with

ALONE = (path for path in ROOT.glob("configs/[!m]*.json") if base_config(path.name) is None)
CONFIGS = sorted(path for path in ALONE if "amp" in json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@ASKED
def test_amp_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, path: Path, cpu: bool, gpus: list[tuple[int, int]], device: str, fast: bool
) -> None:
    machine_with(monkeypatch, cpu, *gpus)
    parser = ConfigParser()
    parser.read_config(str(path))
    by_default = str(parser.get_parsed_content("device"))
    assert by_default == ("cuda" if gpus else "cpu")
    if device != by_default:
        parser["device"] = device
        parser.parse(reset=True)
    assert parser.get_parsed_content("amp") is fast


def test_every_config_with_a_backbone_has_it() -> None:
    having = {path for path in ROOT.glob("configs/*.json") if "get_backbone" in path.read_text("utf-8")}
    assert having <= set(CONFIGS)
    assert len(CONFIGS) == 9


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """The parts of a config at any depth."""
    inner = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
    for value in inner:
        yield from parts(value)
    if isinstance(config, dict) and "_target_" in config:
        yield config


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.json")), ids=lambda path: path.stem)
def test_no_engine_has_it(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    assert not [part for part in parts(config) if "amp" in part and "engines" in part["_target_"]]
    assert not [key for key in config if key.endswith("#amp")]
