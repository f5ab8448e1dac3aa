"""Calls of MONAI's runner that would pass over `initialize`, options or signs in silence are refused, others taken."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import monai.bundle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from scripts.core.errors import SettingsError, mistake_in
from scripts.core.start import as_literal, refuse_lost
from tests.conftest import ROOT
from tests.worlds import CONFIGS, load

CONFIG: dict[str, Any] = {
    "imports": ["$import scripts.workflow", "$import scripts"],
    "output_dir": "./out",
    "names": [],
    "tell": "$id",
    "part": {"_target_": "builtins.dict", "names": "@names"},
    "initialize": ["$scripts.workflow.start()", "$@tell('seeded')"],
    "finalize": ["$@tell('ended')"],
    "training": ["$scripts.workflow.started()", "$@tell((@output_dir, @names))"],
    "run": "@training",
}
RAN = ["seeded", ("./out", []), "ended"]


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "configs" / "train.json").write_text(json.dumps(CONFIG))
    path = list(sys.path)
    yield str(tmp_path / "configs" / "train.json")
    sys.path[:] = path  # a workflow adds its bundle's folder


@pytest.fixture(params=["monai.bundle.run", "create_workflow", "ConfigWorkflow"])
def run(request: pytest.FixtureRequest, config: str) -> Callable[..., list[Any]]:
    """Run the workflow with options, in the ways that there are in Python; returns what it did."""

    def run(**options: Any) -> list[Any]:
        told: list[Any] = []
        options = {"config_file": config, "tell": told.append, **options}
        if request.param == "monai.bundle.run":
            monai.bundle.run(**options)
            return told
        workflow = create_workflow(**options) if request.param == "create_workflow" else ConfigWorkflow(**options)
        if request.param == "ConfigWorkflow":
            workflow.initialize()
        workflow.run()
        workflow.finalize()
        return told

    return run


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(Exception, match=".") as error:
        call(*args, **options)
    mistake = mistake_in(error.value)
    assert isinstance(mistake, SettingsError), error.value
    return str(mistake)


@pytest.mark.parametrize("run_id", ["training", "run"])
def test_a_workflow_that_is_started_runs(run, run_id):
    assert run(run_id=run_id) == RAN
    assert run(run_id=run_id, init_id="initialize", final_id="finalize") == RAN


# Words that name nothing, a number, an option without its dashes, and ids of the config, those of workflows too.
@pytest.mark.parametrize(
    "word", ["stray", 2, 2.5, "epochs=9", "a b", "part", "output_dir", "training", "run", "imports"]
)
@pytest.mark.parametrize("run_id", ["training", "run"])
def test_a_stray_word_in_place_of_initialize_is_refused_before_anything_runs(run, run_id, word):
    told: list[Any] = []
    message = refusal(run, run_id=run_id, init_id=word, tell=told.append)
    assert message.startswith(f"init_id: got {word!r}, in place of initialize, so that nothing was checked. ")
    assert told == []


def test_a_second_stray_word_is_refused(run):
    told: list[Any] = []
    message = refusal(run, run_id="training", final_id="stray", tell=told.append)
    assert message.startswith("final_id: got 'stray', which the config does not have. ")
    assert told == []
    assert refusal(run, run_id="training", init_id="a", final_id="b", tell=told.append).startswith("init_id: got 'a'")


def test_ids_of_the_users_own_are_taken_if_they_start_the_workflow(run):
    own = {"mine": ["@initialize", "$@tell('mine')"], "last": "$@tell('last')"}
    assert run(run_id="training", init_id="mine", final_id="last", **own) == ["seeded", "mine", RAN[1], "last"]
    assert refusal(run, run_id="training", init_id="mine", mine="$@tell('mine')").startswith("init_id: got 'mine', ")


def test_a_part_may_be_run_by_its_id(run):
    assert run(run_id="part") == ["seeded", "ended"]


def test_each_workflow_is_started_for_itself(config):
    first, second = ConfigWorkflow(config), ConfigWorkflow(config)
    first.initialize()
    assert refusal(second.run) == "workflow: was run before it was initialized. Call its initialize() first."
    first.run()


def test_a_config_that_a_program_reads_by_itself_needs_no_start(config):
    parser = ConfigParser(load_config(config) | {"tell": [].append})
    assert parser.get_parsed_content("training") == [None, None]
    assert parser.get_parsed_content("initialize") == [None, None]


def load_config(path: str) -> dict[str, Any]:
    return ConfigParser.load_config_file(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_finds_its_code_and_starts_its_workflow_first(name):
    config, first = load(name), load("train")
    for key in ("imports", "config_dirs", "code"):
        assert config[key] == first[key]
    assert config["initialize"][:2] == first["initialize"][:2]
    assert config["initialize"][2] == "$workflow.start()"
    assert config[CONFIGS[name]][0] == "$workflow.started()"
    assert config["run"] == f"@{CONFIGS[name]}"


def test_a_shipped_config_read_without_a_workflow_looks_for_no_code():
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inspect.json"))
    parser["bundle_root"] = str(ROOT)
    assert parser.get_parsed_content("initialize#0") == []
    assert parser.get_parsed_content("initialize#1") is True


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a copy of a shipped config and a config of the user's own."""
    monkeypatch.chdir(tmp_path)
    copy = load("inspect") | {"image": "no.tif"}
    Path("copy.json").write_text(json.dumps(copy), encoding="utf-8")
    Path("mine.json").write_text('{"min_tissue": 0.5}', encoding="utf-8")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path


FIRST_OWN = ["copy.json", ["mine.json", str(ROOT / "configs" / "inspect.json")]]


@pytest.mark.parametrize("files", FIRST_OWN)
@pytest.mark.parametrize("is_relative", [True, False])
def test_a_config_of_the_users_own_finds_the_code_under_bundle_root(own_folder, files, is_relative):
    root = os.path.relpath(ROOT, own_folder) if is_relative else str(ROOT)
    run_path = Mock()
    with patch("runpy.run_path", run_path):
        message = refusal(monai.bundle.run, "inspecting", config_file=files, bundle_root=root, image="no.tif")
    assert message.startswith("image: no such file no.tif")
    assert [Path(call.args[0]).resolve() for call in run_path.mock_calls] == [ROOT / "scripts" / "code_path.py"]


@pytest.mark.parametrize("files", FIRST_OWN)
@pytest.mark.parametrize("bundle_root", [".", "results", "x" * 300])
def test_where_no_code_is_found_the_run_ends_in_one_line(own_folder, monkeypatch, files, bundle_root):
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).is_absolute() and Path(entry) != ROOT])
    # Python remembers the folder that `.` meant, and MONAI adds `.` for every config named without its whole path.
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(SystemExit) as end:
        monai.bundle.run("inspecting", config_file=files, bundle_root=bundle_root, image="no.tif")
    assert end.value.code == f"error: {bundle_root} contains no scripts. Give --bundle_root PATH"


def test_code_beside_the_config_wins_over_that_under_bundle_root(own_folder):
    for folder in ("beside", "root"):
        for name in ("configs", "scripts"):
            Path(folder, name).mkdir(parents=True)
        Path(folder, "scripts", "code_path.py").touch()
    config = Path("beside", "configs", "inspect.json")
    config.write_text(json.dumps(load("inspect")), encoding="utf-8")
    run_path = Mock()
    with patch("runpy.run_path", run_path):
        refusal(monai.bundle.run, "inspecting", config_file=str(config), bundle_root="root", image="no.tif")
    found = [Path(call.args[0]).resolve().parents[1].name for call in run_path.mock_calls]
    assert found == ["root", "beside"]


TEXTS = ("dataset_dir", "datalist", "output_dir", "ckpt_dir", "feature_dir", "backbone_weights", "image", "mask")
TEXTS += ("bundle_root", "leave_out", "class_names", "figure_slides", "methods")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CONFIGS for key in TEXTS if key in load(name)])
def test_a_path_or_name_with_a_sign_that_monai_replaces_is_refused(monkeypatch, name, key):
    monkeypatch.chdir(ROOT)
    is_list = isinstance(load(name)[key], list) or key == "figure_slides"
    for text in ("/data/a#b", "a::b"):
        workflow = ConfigWorkflow(
            f"configs/{name}.json", workflow_type=None, run_id=CONFIGS[name], **{key: [text] if is_list else text}
        )
        place = f"{key}#0" if is_list else key
        changed = text.replace("#", "::")
        assert refusal(workflow.initialize).startswith(f"{place}: got {changed!r}, and MONAI writes :: for #. Rename")


NAMES = st.text() | st.text(alphabet="#:@$%a", min_size=1)


@given(NAMES | st.lists(NAMES))
def test_what_is_handed_to_another_config_comes_out_as_it_went_in(value):
    texts = [value] if isinstance(value, str) else value
    assume(not any(text.startswith(("$", "@", "%")) for text in texts))
    assert ConfigParser({"x": as_literal(value)}).get_parsed_content("x") == value


@pytest.mark.parametrize("separator", ["=", " "])
def test_the_remedy_for_a_sign_works(run, separator):
    message = refusal(refuse_lost, ["run", "training", *f"--output_dir{separator}./a#1/b".split(" ")])
    assert message.startswith("output_dir: got './a#1/b', and MONAI writes :: for #. ")
    example = message.rpartition("--output_dir ")[2].rstrip(".").strip('"')
    assert run(run_id="training", output_dir=example)[1] == ("./a#1/b", [])
    assert run(run_id="training", names=r"$['a\x23b', 'a::b']")[1] == ("./out", ["a#b", "a::b"])


@pytest.mark.parametrize(
    "arguments",
    [
        "run training --config_file configs/train.json --output_dir out",
        "run training --config_file=configs/a#b.json -epochs 9 -r training",
        "run training --train#trainer#max_epochs 3 --train#handlers#0#_disabled_=True",
        "run comparing --config_file ['configs/compare.json','configs/ablations.json']",
        "run training --mine @train#dataset --yours $@train#dataset#data --net %/data/other.json#net --lr -1",
    ],
)
def test_what_arrives_as_it_was_given_is_taken(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    refuse_lost(arguments.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run training --output_dir /results/run - 2", "-: what follows it would be lost. "),
        ("run training -- --epochs 2", "--: what follows it would be lost. "),
        ("run training --config_file=a.json --config_file b.json", "config_file: given more than once"),
        (
            "run training --config_file ['configs/paper.json','configs/train.json']",
            "config_file: configs/train.json would replace what configs/paper.json sets. Give configs/train.json first",
        ),
        ("run training --output_dir results#2", "output_dir: got 'results#2', "),
        ("run training --leave_out=['a#1']", "leave_out: got \"['a#1']\", "),
        ("run training --mine $open('a#1')", "mine: got \"$open('a#1')\", "),
        ("run training stray#1", "#: got 'stray#1', "),
    ],
)
def test_what_the_command_line_loses_or_changes_is_refused(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert refusal(refuse_lost, arguments.split()).startswith(message)
