"""Overrides of the parts of a config: which arguments their targets take, what may stand in a part's place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser

from scripts.core.part_arguments import an_argument_of, replaced_parts, unknown_arguments

KNOWN: dict[str, Any] = {
    "rate": 0.1,
    "optimizer": {"_target_": "$torch.optim.Adam", "lr": "@rate"},
    "loss": {"_target_": "torch.nn.L1Loss", "reduction": "mean"},
    "grid": {"rate": [1.0]},
    "count": {"_target_": "collections.Counter"},
    "train": {
        "inferer": {"_target_": "SimpleInferer"},
        "trainer": {"_target_": "monai.engines.SupervisedTrainer", "device": "cpu", "max_epochs": "@rate"},
        "handlers": [{"_target_": "monai.handlers.StatsHandler", "tag_name": "x"}, "@optimizer"],
    },
    "settings": {"data": {"_target_": "torch.nn.Flatten", "start_dim": 1}},
}


def overridden(**overrides: Any) -> dict[str, Any]:
    """The config of the files with overrides, whose ids have ``__`` for ``#``."""
    parser = ConfigParser(copy.deepcopy(KNOWN))
    parser.update({key.replace("__", "#"): value for key, value in overrides.items()})
    config: dict[str, Any] = parser.get()
    return config


def unknown(**overrides: Any) -> dict[str, str | None]:
    return unknown_arguments(overridden(**overrides), KNOWN, ComponentLocator())


def replaced(**overrides: Any) -> list[tuple[str, Any]]:
    return [(id_, value) for id_, value, _ in replaced_parts(overridden(**overrides), KNOWN)]


@pytest.mark.parametrize(
    ("id_", "nearest"),
    [
        ("loss__reducton", "loss#reduction"),
        ("loss___disable_", "loss#_disabled_"),
        ("loss__zzz", None),
        ("train__trainer__max_epoch", "train#trainer#max_epochs"),
        ("train__trainer__AMP", "train#trainer#amp"),
        ("train__handlers__0__tagname", "train#handlers#0#tag_name"),
        ("settings__data__end_dims", "settings#data#end_dim"),
    ],
)
def test_an_argument_that_a_target_does_not_take_is_unknown_at_any_depth(id_, nearest):
    assert unknown(**{id_: 3}) == {id_.replace("__", "#"): nearest}


def test_a_target_may_be_a_name_of_monais_own():
    assert unknown(train__inferer__x=3) == {"train#inferer#x": None}


@pytest.mark.parametrize(
    "id_",
    [
        "loss__size_average",  # taken by the target, though not in the files
        "loss___desc_",
        "loss___debug_",
        "count__anything",  # takes any
        "optimizer__lrr",  # nothing is run to find the target
        "grid__lr",  # no part
    ],
)
def test_what_may_be_an_argument_is_not_unknown(id_):
    assert unknown(**{id_: 3}) == {}


def test_a_target_that_is_an_expression_of_the_files_is_evaluated_by_who_can():
    asked = []

    def evaluate(id_):
        asked.append(id_)
        return torch.optim.Adam

    for target, found in ((KNOWN["optimizer"]["_target_"], {"optimizer#lrr": "optimizer#lr"}), ("$other", {})):
        changed = {**KNOWN, "optimizer": {**KNOWN["optimizer"], "lrr": 3, "_target_": target}}
        assert unknown_arguments(changed, KNOWN, ComponentLocator(), evaluate) == found
    assert asked == ["optimizer#_target_"]


@pytest.mark.parametrize("target", ["no.such.module", "torch.nn.NoSuchLoss", "torch.pi", "@optimizer", 3])
def test_a_target_that_cannot_be_located_is_monais_to_refuse(target):
    assert unknown(loss__reducton=3, loss___target_=target) == {}


def test_another_target_is_asked_for_its_own_arguments():
    assert unknown(loss__beta=0.1, loss___target_="torch.nn.SmoothL1Loss") == {}
    assert unknown(loss__beta=0.1) == {"loss#beta": None}


def test_the_arguments_of_the_files_are_not_judged():
    own = {"loss": {"_target_": "torch.nn.L1Loss", "reducton": 3}}
    assert unknown_arguments(own, own, ComponentLocator()) == {}


@pytest.mark.parametrize("id_", ["train", "optimizer", "train__trainer", "train__handlers__0", "settings__data"])
@pytest.mark.parametrize("value", [5, 0.5, True, "text", ""])
def test_a_plain_value_does_not_stand_for_a_part_or_a_section(id_, value):
    assert replaced(**{id_: value}) == [(id_.replace("__", "#"), value)]


@pytest.mark.parametrize("value", ["$None", "@loss", {"_target_": "torch.nn.Flatten"}, {}, object(), None])
def test_what_may_become_an_object_does(value):
    assert replaced(optimizer=value, train=value) == []


def test_what_is_no_part_may_be_replaced():
    assert replaced(rate=5, grid=5, train__handlers=[], optimizer__lr=5) == []


def test_the_first_argument_that_is_a_reference_shows_how_a_part_is_overridden():
    assert an_argument_of("optimizer", KNOWN["optimizer"]) == "optimizer#lr"
    assert an_argument_of("train", KNOWN["train"]) == "train#trainer#max_epochs"
    assert an_argument_of("loss", KNOWN["loss"]) is None
