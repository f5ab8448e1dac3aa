"""configs/paper.json: the settings of Marini et al. 2021, and the page that sets them beside our defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.core.errors import SettingsError, mistake_in
from scripts.core.overrides import place_advanced
from scripts.core.running import settings_in
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "evidence.md"
# Section 3 of the paper (https://proceedings.mlr.press/v156/marini21a.html) and, of what it does not name, its code.
PAPER: dict[str, Any] = {
    "task": "multilabel", "class_names": ["cancer", "hgd", "lgd", "hyperplastic", "normal"],
    "magnifications": [5, 10], "patch_size": 224, "overlap": 0, "min_tissue": 0.7, "read_level": "highest",
    "unit": "slide", "backbone": "resnet34", "amp": False, "num_nodes": 128, "class_attention": "joint",
    "classifier_init": "random", "linking": "linked", "alpha": 1, "beta": 1, "optimizer_name": "Adam", "lr": 1e-3,
    "weight_decay": 1e-4,
    "batch_size": 1, "epochs": 5, "prior_correction": False, "calibration": "none", "threshold": 0.5,
}  # fmt: skip


def load(config: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    return content


def settings_of(*configs: str, **options: Any) -> dict[str, Any]:
    """The settings of configs that are laid over each other, with options."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{config}.json") for config in configs])
    parser.update(options)
    place_advanced(parser)
    return settings_in(parser)


def rows() -> dict[str, list[str]]:
    """The cells of the page's table, by setting: the paper, our default, why."""
    section = PAGE.read_text(encoding="utf-8").split("## The paper's settings\n")[1].split("\n## ")[0]
    lines = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `"))
    return {cells[0].strip("` "): [cell.strip(" |") for cell in cells[1:]] for cells in lines}


BASES = {"train": "training", "compare": "comparing", "cross_validate": "cross_validating"}


@pytest.mark.parametrize("base", BASES)
def test_laid_over_a_config_it_sets_what_the_paper_set(base: str) -> None:
    found = settings_of(base, "paper", datalist="labels.csv")
    assert {name: found[name] for name in PAPER} == PAPER
    assert found["views"] > 0  # The paper augments; how many copies stand for that is ours to say.


@pytest.mark.parametrize("base", BASES)
def test_a_config_takes_all_of_it(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configs = [str(ROOT / "configs" / f"{name}.json") for name in (base, "paper")]
    ConfigWorkflow(configs, run_id=BASES[base], output_dir=str(tmp_path)).initialize()


def test_an_option_goes_before_it() -> None:
    assert settings_of("train", "paper", read_level="nearest", views=2)["read_level"] == "nearest"


def test_it_changes_settings_and_nothing_else() -> None:
    assert set(load("paper")) == {*PAPER, "views"}
    plain, laid = settings_of("train", datalist="x.csv"), settings_of("train", "paper", datalist="x.csv")
    assert plain.keys() == laid.keys()


def test_the_page_has_each_setting_with_the_papers_value_and_our_default() -> None:
    paper, train = load("paper"), load("train")
    train |= train["advanced"]
    assert set(rows()) == set(paper)
    for name, (theirs, ours, *_) in rows().items():
        assert as_text(paper[name]) == theirs, name
        assert as_text(train[name]) == ours, name


def test_the_page_says_why_each_default_differs() -> None:
    paper, train = settings_of("train", "paper", datalist="x.csv"), load("train")
    train |= train["advanced"]
    differing = {name for name in train if name in paper and paper[name] != train[name]} & set(load("paper"))
    assert differing >= {"read_level", "backbone", "amp", "views", "prior_correction", "calibration"}
    for name, cells in rows().items():
        assert bool(cells[2:] and re.search(r"\w", cells[2])) == (name in differing), name


def test_without_resnet34s_weights_a_user_reads_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.chdir(ROOT)
    configs = [str(ROOT / "configs" / f"{name}.json") for name in ("train", "paper")]
    workflow = ConfigWorkflow(configs, run_id="training", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    workflow.initialize()
    with pytest.raises(RuntimeError) as refused:
        workflow.parser.get_parsed_content("encoder")
    mistake = mistake_in(refused.value)
    assert isinstance(mistake, SettingsError)
    assert str(mistake) == (
        "backbone resnet34: its weights are not here, and nothing is downloaded unasked. Give --backbone_weights PATH, "
        "a file or a snapshot's folder; or --backbone_weights hub, to download "
        "https://download.pytorch.org/models/resnet34-b627a593.pth."
    )


def as_text(value: Any) -> str:
    """A value as the page shows it."""
    if isinstance(value, str) and value.startswith("$"):
        return "what fits the machine"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
