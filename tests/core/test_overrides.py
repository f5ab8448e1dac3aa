"""Overrides handed to MONAI's own runner and workflow: those that act are taken, those that cannot refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.core.errors import SettingsError, mistake_in
from scripts.core.overrides import unknown_keys

CONFIG: dict[str, Any] = {
    "imports": ["$import scripts.core.overrides", "$import scripts"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/out'",
    "epochs": 5,
    "lr": 0.1,
    "nothing": None,
    "grid": {"lr": [1.0]},
    "loss": {"_target_": "scripts.networks.methods.get_loss", "method": "mustmil", "alpha": "@lr"},
    "tell": "$id",
    "train": {"trainer": {"_target_": "builtins.dict", "max_epochs": "@epochs"}, "handlers": []},
    "initialize": ["$scripts.core.overrides.refuse_unknown()"],
    "training": ["$@tell(@train#trainer)"],
    "run": "@training",
}
OVERLAY = {"finalize": ["$None"], "fast": True, "train#sampler": {"_target_": "builtins.dict"}, "loss#beta": 1}
OTHER = {"partition": "testing", "evaluating": "$None", "epochs": 1}


@pytest.fixture
def configs(tmp_path: Path) -> Iterator[Path]:
    """The folder of a bundle's configs, whose workflow trains nothing."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, content in {"train": CONFIG, "multi_gpu_train": OVERLAY, "evaluate": OTHER}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metadata.json").write_text(json.dumps({"version": "1", "schema": "none"}))
    path = list(sys.path)
    yield folder
    sys.path[:] = path  # a workflow adds its bundle's folder


@pytest.fixture(params=["monai.bundle.run", "ConfigWorkflow"])
def start(request: pytest.FixtureRequest, configs: Path) -> Callable[..., None]:
    """Run the workflow of train.json with overrides, in both ways that there are in Python."""
    config = str(configs / "train.json")

    def run(config_file: Any = config, **override: Any) -> None:
        if request.param == "monai.bundle.run":
            monai.bundle.run(config_file=config_file, **override)
            return
        workflow = ConfigWorkflow(config_file, **override)
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    return run


def refusal(run: Callable[..., None], *args: Any, **override: Any) -> str:
    with pytest.raises(Exception, match=".") as error:
        run(*args, **override)
    mistake = mistake_in(error.value)
    assert isinstance(mistake, SettingsError), error.value
    return str(mistake)


def test_an_override_that_no_config_knows_is_refused_with_the_nearest_name(start, configs):
    expected = f"epoch: no such knob of {configs / 'train.json'}. Did you mean epochs?"
    assert refusal(start, epoch=10) == expected


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("outputdir", "output_dir"), ("Epochs", "epochs"), ("LR", "lr"), ("grids", "grid")],
)
def test_the_nearest_name_is_what_was_meant(start, override, nearest):
    assert refusal(start, **{override: 1}).endswith(f"Did you mean {nearest}?")


def test_where_no_name_is_near_the_user_learns_where_they_are(start):
    assert refusal(start, temperature=1).endswith("The knobs stand at the top of that file, and in docs/guide.md.")


def test_all_of_several_are_named_at_once(start):
    message = refusal(start, epoch=1, outputdir="x")
    assert message.startswith("epoch, outputdir: no such knobs of ")
    assert message.endswith("Did you mean epochs, output_dir?")


def test_a_knob_of_another_config_of_the_bundle_is_no_knob_of_this_one(start):
    assert refusal(start, partition="validation").startswith("partition: no such knob of ")


def test_it_is_refused_before_anything_runs(start):
    results: list[Any] = []
    refusal(start, epoch=10, tell=results.append)
    assert results == []


@pytest.mark.parametrize(
    "override",
    [
        {"epochs": 7},
        {"train#trainer#max_epochs": 7},
        {"train::trainer::max_epochs": 7},
        {"train": {"trainer": {"_target_": "builtins.dict", "max_epochs": 7}}},
        {"train#trainer": {"_target_": "builtins.dict", "max_epochs": 7}, "train#handlers": ["x"]},
        # A part of the user's own that a known one refers to.
        {"mine": 7, "epochs": "@mine"},
        {"mine": {"number": 7}, "train#trainer#max_epochs": "$@mine#number"},
        {"train#mine": 7, "epochs": "@train#mine"},
    ],
)
def test_what_acts_is_taken(start, override):
    results: list[Any] = []
    start(tell=results.append, **override)
    assert results == [{"max_epochs": 7}]


def test_a_grid_may_hold_any_names(start):
    start(grid={"anything": [1]})


def test_what_is_added_to_a_section_and_used_by_nothing_is_refused(start):
    assert refusal(start, **{"train#traner": 3}).endswith("Did you mean train#trainer?")
    assert refusal(start, **{"train::handler": []}).endswith("Did you mean train#handlers?")


def test_monai_itself_refuses_an_id_in_a_section_that_is_not_there(start):
    with pytest.raises(KeyError, match="query key: trian") as error:
        start(**{"trian#trainer#max_epochs": 3})
    assert "did you mean 'train'" in str(error.value.__cause__)


def test_what_monai_takes_itself_is_taken(start, configs, tmp_path):
    results: list[Any] = []
    (tmp_path / "logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nhandlers=\n"
    )
    start(
        run_id="mine",
        init_id="before",
        final_id="after",
        meta_file=str(configs / "metadata.json"),
        logging_file=str(tmp_path / "logging.conf"),
        workflow_type="infer",
        tell=results.append,
        mine="$@tell('ran')",
        before="$scripts.core.overrides.refuse_unknown()",
        after="$@tell('ended')",
    )
    assert results == ["ran", "ended"]


def test_tracking_and_its_settings_are_taken(start, tmp_path):
    start(tracking="mlflow", output_dir=str(tmp_path), experiment_name="x", run_name="y", tracking_uri="z")


def test_a_setting_of_tracking_without_tracking_does_nothing_and_is_refused(start):
    assert refusal(start, experiment_name="x").startswith("experiment_name: no such knob of ")


def test_all_of_several_config_files_are_known(start, configs):
    files = [str(configs / "train.json"), str(configs / "multi_gpu_train.json")]
    results: list[Any] = []
    start(files, fast=False, tell=results.append)
    assert results == [{"max_epochs": 5}]
    names = ", ".join(files)
    assert refusal(start, files, fats=False) == f"fats: no such knob of {names}. Did you mean fast?"


def test_the_keys_of_an_overlay_that_is_not_laid_over_are_not_known(start):
    assert refusal(start, fast=False).startswith("fast: no such knob of ")


def test_a_config_of_the_users_own_in_another_folder_is_known(configs, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"mine": 1, "epochs": 2}))
    results: list[Any] = []
    monai.bundle.run(config_file=[str(configs / "train.json"), str(tmp_path / "mine.json")], tell=results.append)
    assert results == [{"max_epochs": 2}]


def test_an_args_file_is_no_way_around(configs, tmp_path):
    args = {"config_file": str(configs / "train.json"), "epoch": 10}
    (tmp_path / "args.json").write_text(json.dumps(args))
    message = refusal(lambda **a: monai.bundle.run(**a), args_file=str(tmp_path / "args.json"))
    assert message.startswith("epoch: no such knob")
    results: list[Any] = []
    del args["epoch"]
    (tmp_path / "args.json").write_text(json.dumps({**args, "run_id": "training", "epochs": 3}))
    monai.bundle.run(args_file=str(tmp_path / "args.json"), tell=results.append)
    assert results == [{"max_epochs": 3}]


NONE = "None cannot be given to MONAI's runner, which would ignore it. Leave the option out, or put null into a file"


@pytest.mark.parametrize("key", ["epochs", "loss", "train#handlers", "train::trainer::max_epochs", "output_dir"])
def test_none_which_the_runner_would_ignore_is_refused(configs, key):
    message = refusal(monai.bundle.run, config_file=str(configs / "train.json"), **{key: None})
    assert message.startswith(f"{key.replace('::', '#')}: {NONE}")


def test_every_none_that_would_be_ignored_is_named(configs):
    message = refusal(monai.bundle.run, config_file=str(configs / "train.json"), epochs=None, nothing=None, loss=None)
    assert message.startswith(f"epochs, loss: {NONE}")


def test_none_for_a_misspelled_knob_is_refused_with_the_nearest_name(start):
    assert refusal(start, epoch=None).endswith("Did you mean epochs?")


def test_none_is_taken_where_the_config_says_so_or_monai_has_a_default(start):
    start(nothing=None, meta_file=None, logging_file=None, tracking=None)


def test_none_acts_where_it_does_not_pass_the_runner(configs, tmp_path):
    results: list[Any] = []
    workflow = ConfigWorkflow(str(configs / "train.json"), epochs=None, tell=results.append)
    workflow.initialize()
    workflow.run()
    args = {"config_file": str(configs / "train.json"), "epochs": None}
    (tmp_path / "args.json").write_text(json.dumps(args))
    monai.bundle.run(args_file=str(tmp_path / "args.json"), tell=results.append)
    assert results == [{"max_epochs": None}] * 2


def test_none_does_not_undo_what_an_args_file_says(configs, tmp_path):
    args = {"config_file": str(configs / "train.json"), "nothing": 3}
    (tmp_path / "args.json").write_text(json.dumps(args))
    assert refusal(monai.bundle.run, args_file=str(tmp_path / "args.json"), nothing=None).startswith(f"nothing: {NONE}")


def test_the_remedy_for_none_works(configs, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"epochs": None}))
    results: list[Any] = []
    monai.bundle.run(config_file=[str(configs / "train.json"), str(tmp_path / "mine.json")], tell=results.append)
    assert results == [{"max_epochs": None}]


@pytest.mark.parametrize("separator", ["#", "::"])
def test_an_argument_that_a_part_does_not_take_is_refused_with_the_nearest_name(start, configs, separator):
    expected = f"loss#alhpa: no such knob of {configs / 'train.json'}. Did you mean loss#alpha?"
    assert refusal(start, **{f"loss{separator}alhpa": 1}) == expected


def test_arguments_and_knobs_are_named_at_once(start):
    message = refusal(start, **{"loss#alhpa": 1, "epoch": 3})
    assert message.startswith("epoch, loss#alhpa: no such knobs of ")
    assert message.endswith("Did you mean epochs, loss#alpha?")


def test_an_argument_that_the_part_takes_may_be_added(start):
    start(**{"loss#beta": 3, "loss#_disabled_": True})


def test_a_plain_value_in_place_of_a_part_or_a_section_is_refused(start):
    others = "or give an expression, a reference or a part with a _target_."
    expected = f"loss: is a part of the config, and got 5. Override its arguments (--loss#alpha), {others}"
    assert refusal(start, loss=5) == expected
    assert "(--train#trainer#max_epochs)" in refusal(start, train="no")
    assert refusal(start, **{"train::trainer": True}).startswith("train#trainer: is a part of the config, and got True")


def test_an_expression_a_reference_or_a_part_may_replace_a_part(start):
    results: list[Any] = []
    for part in ("$3", "@loss#method", {"_target_": "builtins.dict"}):
        start(tell=results.append, **{"train#trainer": part})
    assert results == [3, "mustmil", {}]


def test_the_parts_of_several_config_files_are_judged_as_one(start, configs):
    files = [str(configs / "train.json"), str(configs / "multi_gpu_train.json")]
    start(files, **{"loss#beta": 2})
    assert refusal(start, files, **{"loss#bata": 2}).endswith("Did you mean loss#beta?")
    assert refusal(start, files, **{"train#sampler": 2}).startswith("train#sampler: is a part of the config, and got 2")


def test_a_config_that_a_program_reads_by_itself_has_no_overrides(configs):
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    parser["epoch"] = 10
    assert parser.get_parsed_content("initialize") == [None]


def test_a_config_read_inside_of_anothers_workflow_is_not_taken_for_it(start, configs):
    def read() -> None:
        parser = ConfigParser()
        parser.read_config(str(configs / "train.json"))
        parser["epoch"] = 10
        parser.get_parsed_content("initialize")

    start(tell=lambda _: read())


def test_a_workflow_whose_files_cannot_be_found_again_is_refused(configs):
    workflow = ConfigWorkflow(str(configs / "train.json"))
    (configs / "train.json").unlink()
    assert "none of its configs is the one that is running" in refusal(workflow.initialize)


def test_what_a_config_refers_to_is_used():
    known = {"a": 1, "part": {"_target_": "x"}, "section": {"part": {"_target_": "x", "y": 1}}}
    assert unknown_keys(known, known) == []
    assert unknown_keys({**known, "b": 1}, known) == ["b"]
    assert unknown_keys({**known, "b": 1}, known, named=["b"]) == []
    assert unknown_keys({**known, "b": 1, "a": "$@b + 1"}, known) == []
    # A longer name is another name, and a text that is no expression refers to nothing.
    assert unknown_keys({**known, "b": 1, "bb": 2, "a": "@bb"}, known) == ["b"]
    assert unknown_keys({**known, "b": 1, "a": "write to a@b"}, known) == ["b"]
    # Arguments of a part are no keys of the config.
    assert unknown_keys({**known, "part": {"_target_": "x", "new": 1}}, known) == []
