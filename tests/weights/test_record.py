"""What travels with weights: a file tells what it was trained with and on, and whether it is whole."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from monai.networks import copy_model_state

from scripts.core.errors import SettingsError
from scripts.networks.baselines import MSMIL
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign, signed_record, weights_sha256
from scripts.weights.checkpoints import load_weights
from scripts.weights.record import (
    check_weights,
    is_demonstration,
    read_origin,
    read_record,
    trained_settings,
    training_of,
)

SETTINGS = {
    "method": "mustmil",
    "task": "multilabel",
    "magnifications": [5, 10],
    "class_names": ["a", "b"],
    "patch_size": 224,
    "min_tissue": 0.7,
    "backbone": "efficientnet_lite0",
    "backbone_sha256": "ab12",
    "num_nodes": 4,
}
DATA = {"training_slides": 3, "validation_slides": 1, "drawn_slides": 0}
RECORD = {"version": "1", "settings": SETTINGS, "data": DATA}


def network(seed: int = 0) -> MuSTMIL:
    torch.manual_seed(seed)
    return MuSTMIL(2, 2, 6, 4)


def write(path: Path, record: dict | None = RECORD, seed: int = 1) -> Path:
    model = network(seed)
    if record is not None:
        sign(model, record)
    torch.save(model.state_dict(), path)
    return path


def test_a_file_of_weights_is_a_plain_state_dict_that_tells_its_training(tmp_path: Path) -> None:
    state = torch.load(write(tmp_path / "model.pt"), weights_only=True)
    assert isinstance(state, OrderedDict)
    assert state.keys() == network().state_dict().keys()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert read_record(tmp_path / "model.pt") == RECORD


def test_every_way_of_loading_keeps_the_record_and_lifts_the_refusal(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt")
    by_us, by_torch, by_monai = network(2), copy.deepcopy(network(2)), network(2)
    load_weights(by_us, path, SETTINGS)
    by_torch.load_state_dict(torch.load(path, weights_only=True), strict=False)
    loader = CheckpointLoader(str(path), {"model": by_monai}, map_location="cpu", strict=False)
    loader(Engine(lambda engine, batch: None))
    for loaded in (by_us, by_torch, by_monai):
        check_weights(loaded, SETTINGS)
        assert loaded.record == RECORD


def test_weights_that_monai_copies_into_a_network_are_whole(tmp_path: Path) -> None:
    target = network(2)
    copy_model_state(target, torch.load(write(tmp_path / "model.pt"), weights_only=True))
    check_weights(target)
    assert weights_sha256(target.state_dict()) == weights_sha256(network(1).state_dict())


def test_one_changed_number_is_noticed(tmp_path: Path) -> None:
    state = torch.load(write(tmp_path / "model.pt"), weights_only=True)
    state["embed.0.weight"][0, 0] += 1e-6
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(SettingsError, match=r"model.pt: they are not those that training wrote: their checksum"):
        load_weights(network(), tmp_path / "model.pt")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.embed[0].bias[0] = torch.nan  # type: ignore[index,union-attr,operator]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(SettingsError, match="some of them are not finite numbers"):
        load_weights(network(), tmp_path / "model.pt")


def test_settings_that_change_the_scores_are_refused_and_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.pt")
    load_weights(network(), path, {**SETTINGS, "magnifications": [10, 5], "unknown": 1})
    for key, value in (("method", "msmil"), ("class_names", ["b", "a"]), ("magnifications", [2.5, 10])):
        with pytest.raises(SettingsError, match=f"model.pt: they were trained with other settings .{key} "):
            load_weights(network(), path, {**SETTINGS, key: value})
    with caplog.at_level(logging.WARNING):
        load_weights(network(), path, {**SETTINGS, "min_tissue": 0.4})
    assert "the weights were trained with min_tissue 0.7, now 0.4" in caplog.text


PAPER = ["cancer", "hgd", "normal"]


@pytest.mark.parametrize(
    ("task", "names", "trained", "now", "told"),
    [
        # Up to version 0.3.0 a record has no positive classes.
        ("multilabel", ["a", "b"], "none", None, None),
        ("binary", PAPER, "none", ["cancer", "hgd"], None),
        ("binary", ["a", "b"], "none", None, None),
        ("binary", PAPER, "none", ["normal"], r"positive_classes \['cancer', 'hgd'\], now \['normal'\]"),
        ("binary", ["a", "b"], ["b"], ["b"], None),
        ("binary", ["a", "b"], ["b"], ["a"], r"positive_classes \['b'\], now \['a'\]"),
        ("binary", ["a", "b"], ["b"], None, r"positive_classes \['b'\], now None"),
        ("binary", ["a", "b"], None, ["b"], None),
    ],
)
def test_the_positive_classes_of_a_training_decide_what_its_scores_mean(
    tmp_path: Path, task: str, names: list[str], trained: Any, now: Any, told: str | None
) -> None:
    settings = {**SETTINGS, "task": task, "class_names": names}
    own = {} if trained == "none" else {"positive_classes": trained}
    path = write(tmp_path / "model.pt", {**RECORD, "settings": {**settings, **own}})
    used = {**settings, "positive_classes": now}
    if told is None:
        load_weights(network(), path, used)
        return
    with pytest.raises(SettingsError, match=rf"model.pt: they were trained with other settings \({told}\)"):
        load_weights(network(), path, used)


@pytest.mark.parametrize("value", ["a", [1], {"a": 1}, 3])
def test_a_record_with_positive_classes_that_are_none_is_damaged(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "model.pt", {**RECORD, "settings": {**SETTINGS, "positive_classes": value}})
    with pytest.raises(SettingsError, match="their record of the training is damaged: its positive_classes is"):
        read_record(path)


def test_weights_without_a_record_are_told_and_have_none_to_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.pt", None)
    with caplog.at_level(logging.WARNING):
        load_weights(network(), path, SETTINGS)
    assert "whether these settings fit is not known" in caplog.text
    with pytest.raises(SettingsError, match=r"model.pt: has no record of its training"):
        read_record(path)
    with pytest.raises(SettingsError, match=r"none.pt: there is no such file"):
        read_record(tmp_path / "none.pt")
    # A file of weights where their folder is asked for.
    with pytest.raises(SettingsError, match=r"model.pt: there is no such file. Name the folder of the weights"):
        read_record(path / "model.pt")


def test_weights_that_went_on_from_others_tell_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn = {**RECORD, "data": {**DATA, "drawn_slides": 4}}
    model = network()
    load_weights(model, write(tmp_path / "drawn.pt", drawn))
    sign(model, RECORD)
    sign(model, RECORD)  # after each epoch again
    torch.save(model.state_dict(), tmp_path / "model.pt")
    record = read_record(tmp_path / "model.pt")
    assert record == {**RECORD, "pretrained": drawn}
    # A training that is resumed has loaded its own weights, not others.
    resumed = network()
    load_weights(resumed, tmp_path / "model.pt")
    sign(resumed, RECORD)
    assert resumed.record == record
    assert is_demonstration(drawn)
    assert is_demonstration(record)
    assert "model.pt: Demonstration weights: synthetic slides were among" in caplog.text
    assert not is_demonstration(RECORD)


def test_a_frozen_backbone_is_not_part_of_the_checksum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    on_patches = MuSTMIL(2, 2, 6, 4, backbone=torch.nn.Conv2d(3, 6, 3))
    load_weights(on_patches, write(tmp_path / "model.pt"), SETTINGS)
    check_weights(on_patches)
    assert weights_sha256(on_patches.state_dict()) == weights_sha256(network(1).state_dict())


def test_the_checksum_is_of_names_types_shapes_and_values() -> None:
    one = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1) + 1e-7},
    ]
    assert weights_sha256(dict(reversed(one.items()))) == weights_sha256(one)
    assert weights_sha256({"a": torch.zeros(3, 2).T, "b": torch.ones(1)}) == weights_sha256(one)
    assert len({weights_sha256(one), *map(weights_sha256, others)}) == 5


def test_networks_of_other_methods_keep_one_too() -> None:
    model = MSMIL(num_classes=2, num_scales=2, num_features=6, num_nodes=4)
    with pytest.raises(SettingsError, match="no weights were loaded"):
        check_weights(model)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: [record], "it is not an object"),
        (lambda record: {**record, "settings": None}, "it lacks settings or data"),
        (lambda record: {"settings": SETTINGS}, "it lacks settings or data"),
        (lambda record: {**record, "settings": {}}, "its method is None"),
        (lambda record: {**record, "settings": {**SETTINGS, "magnifications": "5"}}, "its magnifications is '5'"),
        (lambda record: {**record, "settings": {**SETTINGS, "unit": "block"}}, "its unit is 'block'"),
        (lambda record: {**record, "settings": {**SETTINGS, "precision": "int4"}}, "its precision is 'int4'"),
        (lambda record: {**record, "settings": {**SETTINGS, "int8_sha256": 8}}, "its int8_sha256 is 8"),
        (lambda record: {**record, "data": {**DATA, "drawn_slides": "30"}}, "its drawn_slides is '30'"),
        (lambda record: {**record, "data": {**DATA, "training_slides": -1}}, "its training_slides is -1"),
        (lambda record: {**record, "pretrained": []}, "it is not an object"),
    ],
)
def test_a_record_of_another_form_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    state = torch.load(write(tmp_path / "model.pt"), weights_only=True)
    state._metadata[""]["record"] = json.dumps(change(RECORD))
    torch.save(state, tmp_path / "model.pt")
    for read in (read_record, lambda path: load_weights(network(), path)):
        with pytest.raises(SettingsError, match=f"model.pt: their record of the training is damaged: {told}"):
            read(tmp_path / "model.pt")


def test_weights_of_before_patients_were_bags_are_of_slides(tmp_path: Path) -> None:
    model = network()
    load_weights(model, write(tmp_path / "model.pt"), {**SETTINGS, "unit": "slide"})
    with pytest.raises(SettingsError, match=r"trained with other settings \(unit 'slide', now 'patient'\)"):
        check_weights(model, {**SETTINGS, "unit": "patient"})


INT8 = {"precision": "int8", "int8_sha256": "f" * 64}


@pytest.mark.parametrize(
    ("trained", "used", "told"),
    [
        ({}, INT8, "precision 'amp', now 'int8'"),
        ({"precision": "amp"}, INT8, "precision 'amp', now 'int8'"),
        (INT8, {"precision": "amp"}, "precision 'int8', now 'amp'"),
        (INT8, {**INT8, "int8_sha256": "e" * 64}, f"int8_sha256 '{'f' * 64}', now '{'e' * 64}'"),
    ],
)
def test_features_in_int8_are_for_weights_that_were_trained_on_features_of_that_network(
    tmp_path: Path, trained: dict[str, str], used: dict[str, str], told: str
) -> None:
    path = write(tmp_path / "model.pt", {**RECORD, "settings": {**SETTINGS, **trained}})
    load_weights(network(), path, {**SETTINGS, **({"precision": "amp"} | trained)})
    with pytest.raises(SettingsError, match=rf"trained with other settings \({told}\)"):
        load_weights(network(), path, {**SETTINGS, **used})
    assert trained_settings(tmp_path).get("int8_sha256") == trained.get("int8_sha256")


@pytest.mark.parametrize("spoil", ["record", "sha256"])
def test_a_record_cannot_be_changed_unnoticed(tmp_path: Path, spoil: str) -> None:
    state = torch.load(write(tmp_path / "model.pt"), weights_only=True)
    if spoil == "sha256":
        del state._metadata[""]["sha256"]
    else:
        state._metadata[""]["record"] = state._metadata[""]["record"].replace(
            '"training_slides": 3', '"training_slides": 9'
        )
    torch.save(state, tmp_path / "model.pt")
    for read in (read_record, lambda path: load_weights(network(), path)):
        with pytest.raises(SettingsError, match="their checksum differs"):
            read(tmp_path / "model.pt")


def test_a_network_inside_another_module_is_looked_at() -> None:
    with pytest.raises(SettingsError, match="no weights were loaded"):
        check_weights(torch.nn.Sequential(network()), SETTINGS)
    check_weights(torch.nn.Linear(1, 1), SETTINGS)  # keeps no record


@pytest.mark.parametrize("value", [torch.zeros(2).to_sparse(), torch.empty(2, device="meta")])
def test_what_holds_no_plain_numbers_is_no_file_of_weights(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"a": value}, tmp_path / "model.pt")
    with pytest.raises(SettingsError, match="contains neither a state dict"):
        load_weights(network(), tmp_path / "model.pt")


ORIGIN = {"best_for": "5x", "made_by": {"seed": 0, "datalist_sha256": None}}


def write_kept(path: Path, origin: dict[str, Any] = ORIGIN) -> Path:
    model = network(1)
    sign(model, RECORD, origin)
    torch.save(model.state_dict(), path)
    return path


def test_a_file_tells_what_made_it_beside_a_record_that_is_that_of_the_training(tmp_path: Path) -> None:
    path = write_kept(tmp_path / "model_5x.pt")
    assert read_origin(path) == ORIGIN
    assert read_record(path) == RECORD
    loaded = network(2)
    load_weights(loaded, path, SETTINGS)
    assert loaded.origin == ORIGIN
    assert read_origin(write(tmp_path / "model.pt")) == {}


def test_a_record_that_was_written_before_there_were_origins_is_read(tmp_path: Path) -> None:
    state = network(1).state_dict()
    record = json.dumps(RECORD)
    state._metadata[""]["record"] = record  # type: ignore[attr-defined]
    sha256 = hashlib.sha256(f"{record}\n{weights_sha256(state)}".encode()).hexdigest()
    state._metadata[""]["sha256"] = sha256  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "model.pt")
    assert read_record(tmp_path / "model.pt") == RECORD
    load_weights(network(2), tmp_path / "model.pt", SETTINGS)


@pytest.mark.parametrize("damaged", ["{", "[]", "null", 5, '{"made_by": 3}', '{"made_by": {"configuration": null}}'])
def test_an_origin_of_another_form_is_damaged(tmp_path: Path, damaged: object) -> None:
    state = torch.load(write_kept(tmp_path / "model.pt"), weights_only=True)
    state._metadata[""]["origin"] = damaged
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(
        SettingsError, match=r"model.pt: their record of the training is damaged: (it is not|what made)"
    ):
        read_origin(tmp_path / "model.pt")


def test_a_state_dict_of_another_program_has_no_record() -> None:
    state: Any = OrderedDict()
    state._metadata = "no mapping"
    assert signed_record(state) == signed_record({}) == ({}, {}, None)


def test_a_long_chain_of_trainings_is_read_to_its_first(tmp_path: Path) -> None:
    record: dict[str, Any] = {**RECORD, "data": {**DATA, "drawn_slides": 1}}
    for _ in range(200):
        record = {**RECORD, "pretrained": record}
    assert read_record(write(tmp_path / "model.pt", record)) == record
    assert is_demonstration(record)


@pytest.mark.parametrize("change", ['"5x"', None, "lost"])
def test_an_origin_cannot_be_changed_unnoticed(tmp_path: Path, change: str | None) -> None:
    state = torch.load(write_kept(tmp_path / "model_5x.pt"), weights_only=True)
    metadata = state._metadata[""]
    if change == "lost":
        del metadata["origin"]
    else:
        metadata["origin"] = metadata["origin"].replace('"5x"', '"10x"') if change else "{"
    torch.save(state, tmp_path / "model_5x.pt")
    told = "their checksum differs" if change else "their record of the training is damaged: it is not JSON"
    for read in (read_record, lambda path: load_weights(network(), path)):
        with pytest.raises(SettingsError, match=told):
            read(tmp_path / "model_5x.pt")


def test_a_training_is_told_by_what_stays_from_its_first_file_to_its_last() -> None:
    record = {"settings": {"method": "mustmil"}, "data": {"training_slides": 3}}
    made_by = {"seed": 0, "data": {"training": {"slides": 3}}, "git": None, "configuration": {"epochs": 5}}
    one = training_of(record, {"best_for": "global", "made_by": made_by})
    # Resumed for more epochs, with newer code.
    later = {**made_by, "git": {"revision": "a"}, "configuration": {"epochs": 9}}
    assert training_of(record, {"best_for": "5x", "made_by": later}) == one
    for change in ({"seed": 1}, {"data": {"training": {"slides": 4}}}, {"configuration": {"epochs": 5, "lr": 0.1}}):
        assert training_of(record, {"made_by": {**made_by, **change}}) != one
    assert training_of({**record, "data": {"training_slides": 4}}, {"made_by": made_by}) != one
    assert training_of(record, {}) == training_of(record, {"best_for": "5x"}) != one


def test_settings_are_not_taken_from_a_folder_with_weights_of_several_trainings(tmp_path: Path) -> None:
    write(tmp_path / "model.pt")
    write(tmp_path / "model_5x.pt", seed=2)
    assert trained_settings(tmp_path)["method"] == "mustmil"
    write(tmp_path / "model_10x.pt", {**RECORD, "settings": {**SETTINGS, "method": "ssmil"}})
    with pytest.raises(SettingsError, match=r"model_10x.pt: is not of the same training as model.pt. Give a"):
        trained_settings(tmp_path)
