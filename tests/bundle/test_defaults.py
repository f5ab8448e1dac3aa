"""Other defaults at the top of a config, and not a character of the rest."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest

from bundle.contents import base_config
from bundle.defaults import set_defaults
from tests.bundles import SETTINGS
from tests.conftest import ROOT

# Those that a user starts from; those that are laid over them are not changed.
CONFIGS = sorted(path for path in ROOT.glob("configs/[!m]*.json") if base_config(path.name) is None)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_that_a_shipped_config_has_leave_it_as_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set_defaults(text, SETTINGS) == text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_other_settings_change_their_own_lines_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    values = {"magnifications": [2.5, 10, 20], "min_tissue": 0.5, "task": "binary", "class_names": ["höher", 'a"b']}
    changed = set_defaults(text, values)

    before, after = json.loads(text), json.loads(changed)
    # A config that takes a setting from the weights keeps its expression.
    known = {key: value for key, value in values.items() if not str(before.get(key, "$")).startswith("$")}
    assert after == {**before, **known}
    assert list(after) == list(before)
    # inspect.json writes its list over four lines.
    added = [line for line in difflib.ndiff(text.splitlines(), changed.splitlines()) if line.startswith("+ ")]
    assert len(added) == len(known)
    assert ('+     "magnifications": [2.5, 10, 20],' in added) == ("magnifications" in known)


def test_a_setting_of_the_section_advanced_is_set_there() -> None:
    text = (ROOT / "configs" / "train.json").read_text(encoding="utf-8")
    changed = set_defaults(text, {"read_level": "highest"})
    assert json.loads(changed)["advanced"]["read_level"] == "highest"
    assert changed.replace("highest", "nearest") == text


def test_a_key_of_the_same_name_further_down_is_another_one() -> None:
    text = '{\n    "settings": {\n        "task": "@task"\n    },\n    "task": "multilabel"\n}\n'
    assert set_defaults(text, {"task": "binary"}) == text.replace("multilabel", "binary")


@pytest.mark.parametrize("text", ['{"task": "multilabel"}', '{\n  "task": "multilabel"\n}', "{"])
def test_a_config_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its key task is not on one line|Expecting"):
        set_defaults(text, {"task": "binary"})
