"""Rules on the configs: each fails for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.checked import Bundle
from bundle.rules_configs import RULES
from scripts.core.errors import SettingsError
from tests.bundles import change_json, copied, write

Config = dict[str, Any]


@pytest.fixture
def root(trained_repository: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return copied(trained_repository, tmp_path)


def check(rule: str, root: Path) -> None:
    RULES[rule](Bundle(root, "folder"))


def broken(rule: str, root: Path) -> str:
    with pytest.raises(SettingsError) as error:
        check(rule, root)
    return str(error.value)


def remove(key: str) -> Callable[[Config], object]:
    """Takes out a key such as ``train#handlers``."""

    def change(config: Config) -> None:
        *path, last = key.split("#")
        for part in path:
            config = config[part]
        del config[last]

    return change


def handler(config: Config, name: str) -> Config:
    (found,) = (
        item for item in config["train"]["handlers"] if isinstance(item, dict) and item["_target_"].endswith(name)
    )
    result: Config = found
    return result


@pytest.mark.parametrize("rule", RULES)
def test_this_repository_keeps_every_rule(rule: str, root: Path) -> None:
    check(rule, root)


@pytest.mark.parametrize(
    "key",
    [
        "bundle_root",
        "device",
        "dataset_dir",
        "output_dir",
        "network_def",
        "inferer",
        "preprocessing",
        "postprocessing",
    ],
)
def test_the_inference_config_has_its_keys(root: Path, key: str) -> None:
    change_json(root, "configs/inference.json", remove(key))
    assert f"configs/inference.json: has not the keys {key}. Define them." in broken("inference keys", root)


@pytest.mark.parametrize(
    "key",
    [
        "bundle_root",
        "device",
        "dataset_dir",
        "output_dir",
        "network_def",
        "train#trainer#max_epochs",
        "train#dataset#data",
        "train#handlers",
        "train#inferer",
        "validate#evaluator",
        "validate#handlers",
        "validate#dataset#data",
    ],
)
def test_the_training_config_has_its_keys(root: Path, key: str) -> None:
    change_json(root, "configs/train.json", remove(key))
    assert f"configs/train.json: has not the keys {key}. Define them." in broken("train keys", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["train"]["trainer"].update(inferer=c["train"]["inferer"]),
            "train.json#train#trainer#inferer: is written out there, so a change of train#inferer would change nothing",
        ),
        (
            lambda c: c["validate"]["evaluator"].update(key_val_metric="@other"),
            "#validate#evaluator#key_val_metric: is '@other'",
        ),
        (
            lambda c: c["validate"]["evaluator"].update(postprocessing="@validate#postprocessing"),
            "train.json#validate#postprocessing: is not defined",
        ),
        (
            lambda c: c["train"]["dataset"].update(transform={"_target_": "x"}),
            "Define train#preprocessing, and write @train#preprocessing here.",
        ),
        (remove("validate#key_metric"), "train.json#validate#key_metric: is not defined"),
    ],
)
def test_parts_that_training_uses_are_under_the_keys_that_others_change(
    root: Path, change: Callable[[Config], object], message: str
) -> None:
    change_json(root, "configs/train.json", change)
    assert message in broken("train keys", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: handler(c, "ValidationHandler").update(interval=1), "has the interval 1. Write @val_interval."),
        (lambda c: handler(c, "ValidationHandler").pop("interval"), "has the interval not there. Write @val_interval."),
        (lambda c: handler(c, "ValidationHandler").update(validator="@other"), "Write @validate#evaluator."),
        (remove("val_interval"), "configs/train.json#val_interval: is not defined"),
    ],
)
def test_validation_takes_its_interval_from_the_one_key(
    root: Path, change: Callable[[Config], object], message: str
) -> None:
    change_json(root, "configs/train.json", change)
    assert message in broken("val_interval", root)


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        (
            "train",
            "train#sampler",
            "multi_gpu_train.json#train#sampler#num_replicas: train#sampler is not in configs/train.json",
        ),
        ("train", "network", "multi_gpu_train.json: refers to @network, which is neither there nor in configs/train"),
        ("evaluate", "dataloader", "multi_gpu_evaluate.json#dataloader#sampler: dataloader is not in configs/evaluate"),
        ("evaluate", "dataset", "multi_gpu_evaluate.json: refers to @dataset, which is neither there nor in configs"),
    ],
)
def test_what_several_ranks_change_is_in_the_config_of_one(root: Path, config: str, key: str, message: str) -> None:
    change_json(root, f"configs/{config}.json", remove(key))
    assert message in broken("overlays", root)


def test_what_is_laid_over_a_config_is_not_packed_without_it(root: Path) -> None:
    (root / "configs" / "evaluate.json").unlink()
    assert "multi_gpu_evaluate.json: is laid over configs/evaluate.json, which is not there" in broken("overlays", root)


def test_a_bundle_without_training_keeps_the_rules_of_training(root: Path) -> None:
    (root / "configs" / "train.json").unlink()
    check("train keys", root)
    check("val_interval", root)


@pytest.mark.parametrize("folder", ["/home/ann/slides", "/Users/ann/slides", "/root/x", "C:\\Users\\ann\\x"])
def test_no_folder_of_a_person_is_named(root: Path, folder: str) -> None:
    change_json(root, "configs/inference.json", lambda c: c["dataset"].update(cache=f"$'{folder} ' + @x"))
    assert f"configs/inference.json#dataset#cache: names the folder {folder}." in broken("private folders", root)


def name_part(target: str) -> Callable[[Config], object]:
    return lambda config: config.update(extra={"parts": [{"_target_": target}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            name_part("scripts.bags.bag.Gone"),
            "inference.json#extra#parts#0#_target_: names scripts.bags.bag.Gone, which is not there",
        ),
        (name_part("scripts.gone.BagBuilder"), "names scripts.gone.BagBuilder, which is not there"),
        (name_part("monai.transforms.Gone"), "names monai.transforms.Gone, which is not there"),
        (name_part("bundle.pack.pack"), "names bundle.pack.pack, which is neither under scripts nor of an installed"),
        (
            lambda c: c.update(heads="$scripts.networks.methods.gone(@method)"),
            "#heads: names scripts.networks.methods.gone, which is not",
        ),
        (lambda c: c["imports"].append("$import scripts.gone"), "names scripts.gone, which is not there"),
        (lambda c: c["imports"].append("$from bundle import pack"), "names bundle, which is neither under scripts"),
    ],
)
def test_a_part_that_cannot_be_found_is_named(root: Path, change: Callable[[Config], object], message: str) -> None:
    change_json(root, "configs/inference.json", change)
    assert message in broken("parts", root)


def test_a_part_is_looked_for_in_the_bundle_and_not_in_the_repository(root: Path) -> None:
    text = (root / "scripts" / "bags" / "bag.py").read_text(encoding="utf-8")
    write(root, "scripts/bags/bag.py", text.replace("class BagBuilder", "class Builder"))
    assert "BagBuilder" in broken("parts", root)
    write(root, "scripts/bags/bag.py", "import nothing_of_that_name\n")
    message = broken("parts", root)
    assert "cannot be imported (No module named 'nothing_of_that_name')" in message


def test_parts_of_the_bundle_may_be_new(root: Path) -> None:
    write(root, "scripts/new.py", "class Part:\n    pass\n")
    change_json(root, "configs/train.json", name_part("scripts.new.Part"))
    check("parts", root)


@pytest.mark.parametrize("value", [3, None, ["scripts.bags.bag"], {"name": "scripts.bags.bag"}])
def test_a_part_has_a_name(root: Path, value: Any) -> None:
    change_json(root, "configs/inference.json", lambda config: config.update(extra={"_target_": value}))
    message = broken("parts", root)
    assert message.startswith("configs/inference.json#extra#_target_: is ")
    assert message.endswith(", and no name. Name a part there.")
