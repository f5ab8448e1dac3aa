"""Rules on the network, without weights: each fails for its own reason, with the bundle's own code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.checked import Bundle
from bundle.rules_network import RULES, bag, in_bundle, make_network
from bundle.verify import OK, check
from tests.bundles import change_json, copied, finding, write


@pytest.fixture
def root(trained_repository: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return copied(trained_repository, tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_this_repository_keeps_every_rule(rule: str, root: Path) -> None:
    assert str(check(rule, Bundle(root, "folder"))) == f"{OK:<12} {rule}"


def set_value(key: str, value: object) -> Callable[[Any], object]:
    """Sets a key such as ``pred#num_channels`` of the tensors in the metadata."""

    def change(metadata: Any) -> None:
        group, name, last = key.split("#")
        metadata["network_data_format"][group][name][last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("inputs#image#spatial_shape", [1281, 2], "[2, 1281]"),
        ("outputs#pred#num_channels", 4, "3"),
        ("outputs#pred#spatial_shape", [6], "[5]"),
        ("outputs#pred#channel_def", {"0": "cancer"}, "{'0': 'cancer', '1': 'hgd'"),
    ],
)
def test_the_metadata_says_what_the_config_makes(root: Path, key: str, value: object, wanted: str) -> None:
    change_json(root, "configs/metadata.json", set_value(key, value))
    text = finding("data format", root)
    assert (
        f"configs/metadata.json#network_data_format#{key}: is {value!r}, and of configs/inference.json {wanted}" in text
    )


@pytest.mark.parametrize("has_positive", [True, False])
def test_the_output_of_the_binary_task_is_called_after_its_positive_classes(root: Path, has_positive: bool) -> None:
    def change(config: Any) -> None:
        config.update(task="binary", class_names=["benign", "malignant"], positive_classes=["malignant"])
        if not has_positive:  # as bundles up to 0.3.0
            del config["positive_classes"]

    change_json(root, "configs/inference.json", change)
    for key, value in (("spatial_shape", [1]), ("channel_def", {"0": "other"})):
        change_json(root, "configs/metadata.json", set_value(f"outputs#pred#{key}", value))
    wanted = "malignant" if has_positive else "positive"
    assert f"is {{'0': 'other'}}, and of configs/inference.json {{'0': '{wanted}'}}" in finding("data format", root)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("outputs#pred#num_channels", 5, "output channel number `3` doesn't match: `5`"),
        ("outputs#pred#dtype", "float64", "dtype of output data `torch.float32` doesn't match: torch.float64"),
        ("outputs#pred#spatial_shape", [6], "outputs#pred: says [1, 3, 6], and the network gives [1, 3, 5]"),
        ("inputs#image#spatial_shape", [2, 1280, 3], "features [B, N, 2, 1280] or patches"),
        ("inputs#image#spatial_shape", [3, 1281], "features must be [B, N, 2, 1280], got [1, 8, 3, 1280]"),
    ],
)
def test_the_network_takes_and_gives_what_the_metadata_says(root: Path, key: str, value: object, message: str) -> None:
    change_json(root, "configs/metadata.json", set_value(key, value))
    assert message in finding("network in and out", root)


def test_it_is_the_network_of_the_bundle_that_is_checked(root: Path) -> None:
    path = "scripts/networks/methods.py"
    write(
        root,
        path,
        (root / path).read_text(encoding="utf-8") + "\n\ndef get_network(*_, **__):\n    raise OSError('own')\n",
    )
    assert "OSError: own" in finding("network in and out", root)


def test_a_mistake_that_the_bundle_itself_finds_is_told_in_its_words(root: Path) -> None:
    change_json(root, "configs/inference.json", lambda config: config.update(method="unheard"))
    text = finding("network in and out", root)
    assert text.startswith("method: got 'unheard'. Choose one of mustmil, msmil")


def test_bags_are_random_and_their_padding_is_silent(root: Path) -> None:
    bundle = Bundle(root, "folder")
    x = bag(bundle, 4, padding=3)
    assert x.shape == (1, 7, 2, 1281)
    assert bool((x[:, :4, :, -1] <= 0).all())
    assert bool((x[:, 4:, :, -1] == -torch.inf).all())
    with in_bundle(bundle):
        network = make_network(bundle)
        assert torch.allclose(network(x), network(x[:, :4]), atol=1e-5)


def test_nothing_is_printed_and_logging_goes_on_afterwards(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with in_bundle(Bundle(root, "folder")):
        print("noise")
        logging.getLogger("noise").error("noise")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("noise").isEnabledFor(logging.ERROR)
