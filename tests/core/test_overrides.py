"""Options handed to MONAI's own runner and workflow: those that act are taken, those that cannot are refused."""

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
from scripts.core.overrides import unused_keys
from scripts.core.settings import SETTINGS
from tests.worlds import CONFIGS, load

CONFIG: dict[str, Any] = {
    "imports": ["$import scripts.workflow as workflow"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/out'",
    "epochs": 5,
    "lr": 0.1,
    "grid": {"lr": [1.0]},
    "advanced": {"val_interval": 1, "cache_gb": "$@epochs * 2.0"},
    "loss": {"_target_": "scripts.networks.methods.get_loss", "method": "mustmil", "alpha": "@lr"},
    "tell": "$id",
    "train": {
        "trainer": {"_target_": "builtins.dict", "max_epochs": "@epochs", "every": "@advanced#val_interval"},
        "handlers": [],
    },
    "initialize": ["$workflow.start()"],
    "training": ["$workflow.started()", "$@tell((@train#trainer, @advanced#cache_gb))"],
    "unused": "$(@output_dir, @grid, @loss, @train#handlers)",
    "run": "$(@training, @unused)",
}
OVERLAY = {"finalize": ["$None"], "train#sampler": {"_target_": "builtins.dict"}, "train#handlers": ["@train#sampler"]}


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    """The config of a bundle whose workflow trains nothing."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, content in {"train": CONFIG, "multi_gpu_train": OVERLAY}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metadata.json").write_text(json.dumps({"version": "1", "schema": "none"}))
    path = list(sys.path)
    yield str(folder / "train.json")
    sys.path[:] = path  # a workflow adds its bundle's folder


@pytest.fixture(params=["monai.bundle.run", "ConfigWorkflow"])
def start(request: pytest.FixtureRequest, config: str) -> Callable[..., Any]:
    """Run the workflow of train.json with options, in both ways that there are in Python; what it told comes back."""

    def run(config_file: Any = config, run_id: str = "training", **options: Any) -> Any:
        told: list[Any] = []
        options = {"tell": told.append, **options}
        if request.param == "monai.bundle.run":
            monai.bundle.run(run_id, config_file=config_file, **options)
        else:
            workflow = ConfigWorkflow(config_file, run_id=run_id, **options)
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        return told

    return run


def refusal(run: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(Exception, match=".") as error:
        run(*args, **options)
    mistake = mistake_in(error.value)
    assert isinstance(mistake, SettingsError), error.value
    return str(mistake)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("epoch", "epochs"),
        ("outputdir", "output_dir"),
        ("LR", "lr"),
        ("val_intervall", "val_interval"),
        ("train#trainr", "train#trainer"),
    ],
)
def test_an_option_that_nothing_uses_is_refused_with_the_nearest_name(start, option, nearest):
    assert refusal(start, **{option: 1}) == f"{option}: the config has no such option. Did you mean {nearest}?"


def test_where_no_name_is_near_the_user_learns_where_they_are(start):
    assert refusal(start, temperature=1).endswith("docs/settings.md lists the options of each config.")


def test_all_of_several_are_named_at_once(start):
    message = refusal(start, epoch=1, outputdir="x")
    assert message == "epoch, outputdir: the config has no such options. Did you mean epochs, output_dir?"


def test_a_setting_of_another_config_is_no_option_of_this_one(start):
    assert refusal(start, partition="validation").startswith("partition: the config has no such option")
    # configs/ablations.json has this key alone.
    assert refusal(start, methods=["ssmil"]).startswith("methods: the config has no such option")


def test_it_is_refused_before_anything_runs(start):
    told: list[Any] = []
    refusal(start, epoch=10, tell=told.append)
    assert told == []


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 7},
        {"train#trainer#max_epochs": 7},
        {"train::trainer::max_epochs": 7},
        {"mine": 7, "epochs": "@mine"},
        {"mine": {"number": 7}, "train#trainer#max_epochs": "$@mine#number"},
        {"train#mine": 7, "epochs": "@train#mine"},
    ],
)
def test_what_acts_is_taken(start, option):
    ((trainer, _),) = start(**option)
    assert trainer["max_epochs"] == 7


def test_a_setting_of_the_section_of_advanced_ones_is_an_option_like_any_other(start):
    assert start() == [({"max_epochs": 5, "every": 1}, 10.0)]
    assert start(val_interval=3, cache_gb=1.5) == [({"max_epochs": 5, "every": 3}, 1.5)]
    assert start(**{"advanced#val_interval": 4}) == [({"max_epochs": 5, "every": 4}, 10.0)]
    assert refusal(start, val_interval=0).startswith("val_interval: got 0. Give a whole number")


def test_a_file_of_the_users_own_may_set_it_too(start, config, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"val_interval": 2, "epochs": 3}))
    assert start(config_file=[config, str(tmp_path / "mine.json")]) == [({"max_epochs": 3, "every": 2}, 6.0)]


def test_every_setting_is_checked(start):
    assert refusal(start, epochs=0) == "epochs: got 0. Give a whole number from 1 up."
    assert refusal(start, output_dir=5).startswith("output_dir: got 5. Give a path")


def test_a_workflow_that_the_config_does_not_have_is_refused(start):
    expected = "trainig: the config has no such workflow. Did you mean training?"
    assert refusal(start, run_id="trainig") == expected


def test_what_monai_takes_itself_is_taken(start, config):
    start(meta_file=str(Path(config).with_name("metadata.json")), logging_file=None, workflow_type="train")


def test_tracking_and_its_settings_are_taken(start, tmp_path):
    start(tracking={"handlers_id": {}, "configs": {"save_execute_config": False}, "handlers": {}})
    assert "tracking_uri" in refusal(start, tracking_uri="x")


def test_an_overlay_may_add_components(start, config):
    overlay = str(Path(config).with_name("multi_gpu_train.json"))
    start(config_file=[config, overlay])


def test_a_key_that_only_a_replaced_value_referred_to_is_no_unknown_option(start):
    assert start(output_dir="out", bundle_root=".") == start()


def test_a_config_that_a_program_reads_by_itself_has_no_options(config):
    parser = ConfigParser()
    parser.read_config(config)
    parser["epoch"] = 3
    assert parser.get_parsed_content("initialize") == [None]


def test_a_config_read_inside_of_anothers_workflow_is_not_taken_for_it(start, config):
    def read(_: Any) -> None:
        parser = ConfigParser()
        parser.read_config(config)
        parser["epoch"] = 3
        parser.get_parsed_content("initialize")

    start(tell=read)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_shipped_config_is_used(name):
    # `settings()` looks at every setting.
    unused = {key.removeprefix("advanced#") for key in unused_keys(load(name))} - SETTINGS.keys()
    assert unused <= {"imports", "initialize", "run", "finalize", "advanced", "exporting", "encoders", "importing"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advanced": 3}, "advanced: got 3, and is a section of settings. Give each of its settings as an option"),
        ({"advanced": {"cache_gb": 1}}, "advanced: was replaced as a whole, without val_interval. Write its settings"),
        ({"advanced#lr": 0.1}, "advanced#lr: the config has no such option. Give --lr."),
        ({"advanced#cache_gbb": 1}, "advanced#cache_gbb: the config has no such option. docs/settings.md lists"),
    ],
)
def test_a_section_that_is_not_the_configs_own_is_refused(start, options, message):
    assert refusal(start, **options).startswith(message)
