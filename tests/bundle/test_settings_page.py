"""The page of settings is that of the registry and the configs, and a new setting needs no more than an entry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from bundle.settings_page import PAGE, settings_page
from scripts.core import settings
from scripts.core.errors import SettingsError, mistake_in
from scripts.core.setting_checks import number
from scripts.core.setting_entry import Setting
from scripts.core.settings import values_with_role, with_role
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page()


def test_a_setting_is_added_by_one_entry_and_one_line_in_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = frozenset({"decides", "fixed", "provenance", "grid"})
    monkeypatch.setitem(settings.SETTINGS, "dropout", Setting("dropout", "of the heads", number(0.0, 1.0), roles))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    path = tmp_path / "configs" / "train.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "dropout": 0.25}), encoding="utf-8")

    assert "| `dropout` | `0.25` | train | of the heads |" in settings_page(tmp_path)
    assert all("dropout" in with_role(role) for role in roles)
    monkeypatch.chdir(ROOT)
    workflow = ConfigWorkflow(
        str(path), run_id="training", dropout=0.5, output_dir=str(tmp_path), bundle_root=str(ROOT)
    )
    workflow.initialize()
    stored = workflow.parser.get_parsed_content("settings")
    for role in ("decides", "fixed", "provenance"):
        assert values_with_role(stored, role)["dropout"] == 0.5
    with pytest.raises(RuntimeError) as refused:
        ConfigWorkflow(str(path), run_id="training", dropout=2.0, bundle_root=str(ROOT)).initialize()
    mistake = mistake_in(refused.value)
    assert isinstance(mistake, SettingsError)
    assert str(mistake) == "dropout: got 2.0. Give a number from 0 to 1."
