"""Variants of methods by their names: what they may change, what they are called, and which heads they train."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scripts.core.errors import SettingsError
from scripts.experiments.variants import Variant, read_variants

SHARED: dict[str, Any] = {
    "magnifications": [5, 10], "alpha": 1.0, "beta": 1.0, "lr": 0.001, "views": 4, "linking": "linked",
    "class_attention": "joint", "attention_entropy": 0.0, "threshold": 0.5, "patch_size": 224,
    "epochs": 5,
}  # fmt: skip


def read(*items: Any, **shared: Any) -> list[Variant]:
    return read_variants(items, {**SHARED, **shared})


@pytest.mark.parametrize(
    ("item", "method", "settings"),
    [
        ("mustmil", "mustmil", {}),
        (" mustmil  beta=0 ", "mustmil", {"beta": 0}),
        ("mustmil beta=0.5 alpha=2", "mustmil", {"alpha": 2, "beta": 0.5}),
        ("ssmil class_attention=separate views=0", "ssmil", {"class_attention": "separate", "views": 0}),
        ("mustmil linking=shuffled", "mustmil", {"linking": "shuffled"}),
        ("mustmil attention_entropy=-0.1", "mustmil", {"attention_entropy": -0.1}),
        ("mustmil threshold=sensitivity=0.95", "mustmil", {"threshold": "sensitivity=0.95"}),
        ("msmil prior_correction=False lr=1e-4", "msmil", {"prior_correction": False, "lr": 1e-4}),
        ("mil_att optimizer_name=SGD epochs=7", "mil_att", {"optimizer_name": "SGD", "epochs": 7}),
    ],
)
def test_an_item_is_a_method_and_settings_of_its_training(item: str, method: str, settings: dict[str, Any]) -> None:
    (variant,) = read(item)
    assert (variant.method, variant.settings) == (method, settings)


def test_names_titles_and_folders_say_what_differs() -> None:
    variants = read("mustmil", "mustmil views=0 beta=0.0", "mil_att threshold=sensitivity=0.95", "mustmil lr=0.0003")
    assert [variant.name for variant in variants] == [
        "mustmil", "mustmil beta=0 views=0", "mil_att threshold=sensitivity=0.95", "mustmil lr=0.0003",
    ]  # fmt: skip
    assert variants[1].title == "MuSTMIL beta=0 views=0"
    assert [variant.folder for variant in variants] == [
        "mustmil", "mustmil_beta=0_views=0", "mil_att_threshold=sensitivity=0.95", "mustmil_lr=0.0003",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("clam", "method: got 'clam'. Choose one of mustmil"),
        ("clam beta=0", "methods: 'clam beta=0': method: got 'clam'. Choose one of"),
        (5, "method: got 5"),
        ("", "method: got ''"),
        ("mustmil bta=0", "methods: 'mustmil bta=0': bta: there is no such setting. docs/settings.md lists"),
        ("mustmil beta", "methods: 'mustmil beta': beta: has no value. Write each setting once, without spaces"),
        ("mustmil beta =0", "beta: has no value"),
        ("mustmil beta=0 beta=1", "beta: is there twice"),
        ("mustmil beta=-1", "methods: 'mustmil beta=-1': beta: got -1. Give a number from 0 up."),
        ("mustmil beta=no", "beta: got 'no'"),
        ("mustmil linking=free", "linking: got 'free'. Choose one of linked, repeated, shuffled, pooled."),
        ("mustmil beta=1", "'mustmil beta=1': it: differs in nothing from what all trainings have. Leave it out."),
        ("ssmil beta=0", "methods: 'ssmil beta=0': beta: ssmil does not use it. Leave it out."),
        ("abmil class_attention=shared", "class_attention: abmil does not use it"),
        ("mean attention_entropy=1", "'mean attention_entropy=1': attention_entropy: mean does not use it. Leave it"),
        ("mustmil val_interval=9", "val_interval: is 9, and 5 epochs would end without a validation"),
        ("clam_sb linking=shuffled", "linking: clam_sb does not use it"),
        ("ssmil linking=shuffled", "linking=shuffled: trains the same network as linked: ssmil does not see which"),
        ("clam_sb instance_weight=1", "instance_weight: got 1. Give a number from 0 to 0.99."),
        ("mustmil attention_entropy=11", "attention_entropy: got 11. Give a number from -10 to 10."),
        ("mustmil attention_entropy=nan", "attention_entropy: got 'nan'. Give a number from -10 to 10."),
        ("mustmil attention_entropy=0", "it: differs in nothing from what all trainings have. Leave it out."),
        ("mustmil alpha=0 beta=0", "alpha and beta: both are 0, so nothing would train"),
        ("mustmil views=5", "views: is 5, and the feature banks have 4. Give --views 5; other variants may have view"),
        *(
            (f"mustmil {name}={value}", f"{name}: decides slides, labels or feature banks, which all trainings")
            for name, value in {
                "patch_size": 112, "magnifications": "[5]", "backbone": "resnet34", "min_tissue": 0.5,
                "unit": "patient", "task": "binary", "tissue": "{}", "feature_dtype": "float16", "precision": "int8",
                "split_seed": 1, "class_names": "['a']", "overlap": 0.5, "read_level": "highest", "source": "patches",
            }.items()
        ),
        *(
            (f"mustmil {name}={value}", f"{name}: decides nothing of a training, or is set by `comparing` itself")
            for name, value in {
                "method": "ssmil", "seed": 1, "device": "cpu", "output_dir": "x", "pretrained": "x", "heatmaps": True,
                "num_workers": 0, "amp": True, "runtime": "torch", "folds": 3, "datalist": "x",
            }.items()
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_its_item(item: Any, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read("mustmil", item)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_training_is_named_once() -> None:
    same = [
        ("mustmil", "mustmil"),
        ("mustmil beta=0", "mustmil beta=0.0"),
        ("ssmil lr=1 views=0", "ssmil views=0 lr=1"),
        ("mustmil beta=0", "msmil", "mustmil alpha=1 beta=0"),
    ]
    for first, *others in same:
        told = f"methods: '{first}' and '{others[-1]}' are the same training. Name it once."
        with pytest.raises(SettingsError, match=f"^{re.escape(told)}$"):
            read(first, *others)
    with pytest.raises(SettingsError, match="are the same training"):
        read("mustmil", "mustmil class_attention=separate", task="binary")
    with pytest.raises(SettingsError, match="are the same training"):
        read("mustmil alpha=0", "mustmil alpha=0 linking=shuffled")
    assert len(read("mustmil alpha=2 beta=0", "mustmil alpha=1 beta=0")) == 2


def test_one_magnification_has_no_links_to_shuffle() -> None:
    with pytest.raises(SettingsError, match="'mustmil linking=pooled': linking: got 'pooled', and with one magnificat"):
        read("mustmil linking=pooled", magnifications=[10])


@pytest.mark.parametrize(
    ("item", "shared", "heads"),
    [
        ("mustmil", {}, ["global", "5x", "10x"]),
        ("mustmil beta=0", {}, ["global"]),
        ("mustmil alpha=0", {}, ["5x", "10x"]),
        ("mustmil linking=shuffled", {}, ["global", "5x", "10x"]),
        ("mustmil", {"beta": 0.0}, ["global"]),
        ("mustmil beta=0.5", {"beta": 0.0}, ["global", "5x", "10x"]),
        # alpha and beta are MuSTMIL's.
        ("ssmil", {"beta": 0.0}, ["5x", "10x"]),
        ("msmil", {"alpha": 0.0}, ["global"]),
    ],
)
def test_heads_that_no_loss_trains_are_not_a_variants(item: str, shared: dict[str, Any], heads: list[str]) -> None:
    (variant,) = read(item, **shared)
    assert variant.heads({**SHARED, **shared}) == heads


def test_what_all_trainings_share_is_refused_if_nothing_would_train_or_the_task_has_no_such_rule() -> None:
    with pytest.raises(SettingsError, match="alpha and beta: both are 0, so nothing would train"):
        read("mustmil", alpha=0.0, beta=0.0)
    with pytest.raises(SettingsError, match="threshold: got 'f1', and in the multiclass task"):
        read("mustmil threshold=f1", task="multiclass")
