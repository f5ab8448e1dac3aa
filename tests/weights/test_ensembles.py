"""Making an ensemble: which folders it takes, what it refuses, and what its files say."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256
from scripts.core.sums import SUMS, format_sums, read_sums
from scripts.encoders.int8_networks import copy_int8, read_int8, write_int8
from scripts.networks.ensemble import Ensemble
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign, signed_record, weights_sha256
from scripts.weights.checkpoints import HeadwiseNetwork, load_weights
from scripts.weights.ensembles import Members
from scripts.weights.operating_point import OPERATING_POINT
from scripts.weights.pretrained import read_pretrained
from scripts.weights.record import is_demonstration, read_origin, read_record, read_weights, trained_settings
from tests.weights.test_record import RECORD, SETTINGS

HEADS = ["global", "5x", "10x"]
FILES = ["model.pt", "model_5x.pt", "model_10x.pt"]


def network(seed: int = 0) -> MuSTMIL:
    torch.manual_seed(seed)
    return MuSTMIL(2, 2, 6, 4)


def point(seed: int, rule: float | str = "f1") -> dict[str, Any]:
    """An operating point of every head, another one for each seed."""
    classes = {
        name: {
            "shift": 0.1 * seed,
            "slope": 1.0 + seed,
            "intercept": 0.0,
            "threshold": 0.2 + 0.1 * seed,
            "positives": 4,
        }
        for name in SETTINGS["class_names"]
    }
    return {head: {"calibration": "temperature", "rule": rule, "slides": 9, "classes": classes} for head in HEADS}


def training(
    folder: Path,
    seed: int,
    points: dict[str, Any] | None = None,
    validation: str = "same",
    decided: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """The weights of a training, a file for each head, as ``training`` writes them."""
    folder.mkdir(parents=True)
    record = {**copy.deepcopy(RECORD), "settings": {**SETTINGS, **settings}}
    record["data"]["training_slides"] += seed
    for h, (head, name) in enumerate(zip(HEADS, FILES, strict=True)):
        model = network(10 * seed + h)
        configuration = {"threshold": "f1", "runtime": "openvino", "epochs": 5, **(decided or {})}
        made_by = {"seed": seed, "configuration": configuration, "data": {"validation": {"sha256": validation}}}
        origin = {"best_for": head, "made_by": made_by, **({OPERATING_POINT: points} if points else {})}
        sign(model, record, origin)
        torch.save(model.state_dict(), folder / name)
    return folder


def made(members: Members, folder: Path) -> Path:
    members.write(Ensemble([network() for _ in members.folders]), folder)
    return folder


@pytest.fixture
def trainings(tmp_path: Path) -> list[str]:
    return [str(training(tmp_path / f"seed_{seed}" / "models", seed, point(seed))) for seed in range(3)]


def test_each_file_has_the_members_files_that_are_best_for_its_head(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings), tmp_path / "ensemble")
    x = torch.randn(1, 5, 2, 6)
    for h, name in enumerate(FILES):
        loaded = Ensemble([network() for _ in trainings])
        load_weights(loaded, folder / name)
        of_members = []
        for seed, place in enumerate(trainings):
            member = network()
            load_weights(member, Path(place) / name)
            of_members.append(torch.sigmoid((1 + seed) * (member(x)[:, h] + 0.1 * seed)))
        assert torch.allclose(torch.sigmoid(loaded(x)[:, h]), torch.stack(of_members).mean(dim=0), atol=1e-6)


def test_of_members_in_int8_it_keeps_their_network_and_without_it_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "features"
    source.mkdir()
    int8 = write_int8(source, {"encoder": {}, "patch": [224, 224]}, b"<net/>", b"weights")
    settings = {"precision": "int8", "int8_sha256": int8.sha256}
    folders = [training(tmp_path / f"seed_{seed}" / "models", seed, point(seed), **settings) for seed in range(2)]
    with pytest.raises(SettingsError, match=f"the network {int8.path.name} is not in"):
        made(Members(list(map(str, folders))), tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists()
    copy_int8(int8, folders[1])
    folder = made(Members(list(map(str, folders))), tmp_path / "ensemble")
    assert read_int8(folder / int8.path.name).sha256 == int8.sha256 == trained_settings(folder)["int8_sha256"]
    plain = training(tmp_path / "plain" / "models", 3, point(3))
    with pytest.raises(SettingsError, match="precision 'amp', now 'int8'"):
        Members([str(folders[0]), str(plain)])


def test_heads_of_an_evaluation_come_from_their_own_files(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings), tmp_path / "ensemble")
    whole = HeadwiseNetwork(Ensemble([network() for _ in trainings]), [folder / name for name in FILES])
    x = torch.randn(1, 5, 2, 6)
    logits, spread = whole.with_spread(x)
    for h, name in enumerate(FILES):
        own = Ensemble([network() for _ in trainings])
        load_weights(own, folder / name)
        assert torch.equal(logits[:, h], own(x)[:, h])
        assert torch.equal(spread[:, h], own.with_spread(x)[1][:, h])
    assert torch.equal(logits, whole(x))


def test_thresholds_are_the_members_mean_on_probabilities_that_are_calibrated(
    trainings: list[str], tmp_path: Path
) -> None:
    found = read_origin(made(Members(trainings), tmp_path / "ensemble") / "model.pt")[OPERATING_POINT]
    for head in HEADS:
        of_class = found[head]["classes"]["a"]
        assert {key: of_class[key] for key in ("shift", "slope", "intercept")} == {
            "shift": 0.0, "slope": 1.0, "intercept": 0.0,
        }  # fmt: skip
        assert of_class["threshold"] == pytest.approx(0.3)
        assert found[head]["rule"] == "f1"


@pytest.mark.parametrize(("validations", "slides", "positives"), [("same", 9, 4), ("each its own", 27, 12)])
def test_slides_that_several_members_share_count_once(
    tmp_path: Path, validations: str, slides: int, positives: int
) -> None:
    names = ["a", "a", "a"] if validations == "same" else ["a", "b", "c"]
    folders = [str(training(tmp_path / f"{s}", s, point(s), validation=names[s])) for s in range(3)]
    found = read_origin(made(Members(folders), tmp_path / "ensemble") / "model.pt")[OPERATING_POINT]["global"]
    assert found["slides"] == slides
    assert found["classes"]["b"]["positives"] == positives


def test_its_record_says_what_it_is_made_of(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings), tmp_path / "ensemble")
    record, origin = read_record(folder / "model.pt"), read_origin(folder / "model_5x.pt")
    assert [member["seed"] for member in record["members"]] == [0, 1, 2]
    assert record["data"]["training_slides"] == max(m["record"]["data"]["training_slides"] for m in record["members"])
    assert trained_settings(folder)["members"] == 3
    assert origin["best_for"] == "5x"
    assert origin["made_by"]["configuration"] == {"threshold": "f1", "runtime": "openvino"}
    sums = [weights_sha256(read_weights(Path(place) / "model_5x.pt")) for place in trainings]
    assert origin["made_by"]["members_sha256"] == sums


def test_one_member_of_synthetic_slides_makes_it_a_demonstration(trainings: list[str], tmp_path: Path) -> None:
    record = read_record(made(Members(trainings), tmp_path / "ensemble") / "model.pt")
    assert not is_demonstration(record)
    record["members"][1]["record"]["pretrained"] = {**RECORD, "data": {**RECORD["data"], "drawn_slides": 1}}
    assert is_demonstration(record)


def test_members_without_an_operating_point_make_one_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [str(training(tmp_path / f"{seed}", seed)) for seed in range(2)]
    assert OPERATING_POINT not in read_origin(made(Members(folders), tmp_path / "ensemble") / "model.pt")
    assert "the mean is of probabilities that are not calibrated" in caplog.text


def test_a_member_whose_head_was_not_trained_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = [{"method": "mustmil", "magnifications": [5, 10], "alpha": alpha, "beta": 1.0} for alpha in (1.0, 0.0)]
    folders = [str(training(tmp_path / f"{e}", e, point(e), decided=rule)) for e, rule in enumerate(rules)]
    made(Members(folders), tmp_path / "ensemble")
    told = [message for message in caplog.messages if "may mean nothing" in message]
    assert len(told) == 1
    assert told[0].startswith(f"what member {folders[1]} predicts by the head global may mean nothing: its training")


def test_a_folder_stands_for_the_trainings_in_it(trainings: list[str], tmp_path: Path) -> None:
    for number in (9, 10):
        training(tmp_path / f"seed_{number}" / "models", number)
    (tmp_path / "tensorboard").mkdir()
    folders = Members(str(tmp_path)).folders
    assert [folder.parent.name for folder in folders] == ["seed_0", "seed_1", "seed_2", "seed_9", "seed_10"]
    assert Members([str(Path(place).parent) for place in trainings]).folders == [Path(place) for place in trainings]


def refusal(members: Any, folder: Path) -> str:
    with pytest.raises(SettingsError) as raised:
        made(Members(members), folder)
    return str(raised.value)


def test_what_is_no_ensemble_is_refused(trainings: list[str], tmp_path: Path) -> None:
    to, two = tmp_path / "ensemble", trainings[:2]
    other = [str(training(tmp_path / "other", 5, point(5), num_nodes=8))]
    rule = [str(training(tmp_path / "rule", 6, point(6, 0.5)))]
    none = [str(training(tmp_path / "none", 7))]
    (tmp_path / "empty").mkdir()
    assert "got none" in refusal(None, to)
    assert "An ensemble has two or more" in refusal(trainings[:1], to)
    shutil.copytree(two[0], tmp_path / "copy")
    assert f"its weights for global are those of {two[0]}" in refusal([*two, str(tmp_path / "copy")], to)
    assert "is there twice" in refusal([*two, two[0]], to)
    assert "there is no such folder" in refusal([*two, str(tmp_path / "absent")], to)
    assert "the folder contains no weights" in refusal([*two, str(tmp_path / "empty")], to)
    assert "num_nodes 8, now 4" in refusal([*two, *other], to)
    assert "decide by different rules" in refusal([*two, *rule], to)
    assert f"{none[0]}: has no operating point" in refusal([*two, *none], to)
    drawn = [str(training(tmp_path / "drawn", 8, point(8), decided={"prior_correction": False}))]
    assert "the prior is corrected in the probabilities of some" in refusal([*two, *drawn], to)
    assert "is a file" in refusal([*two, f"{trainings[2]}/model.pt"], to)
    assert "would be lost" in refusal(two, Path(trainings[0]))
    (tmp_path / "empty" / "model.pt").write_bytes(b"no weights")
    assert "is not of an ensemble, and would be lost" in refusal(two, tmp_path / "empty")
    assert not to.exists() or not list(to.glob("*.pt"))


@pytest.mark.parametrize("name", FILES)
def test_a_fault_in_any_file_leaves_an_earlier_ensemble_as_it_was(
    trainings: list[str], tmp_path: Path, name: str
) -> None:
    folder = made(Members(trainings[:2]), tmp_path / "ensemble")
    before = {file: (folder / file).read_bytes() for file in FILES}
    whole = (Path(trainings[1]) / name).read_bytes()
    for fault in (whole[: len(whole) // 2], (Path(trainings[2]) / name).read_bytes(), None):
        (Path(trainings[1]) / name).unlink()
        if fault is not None:
            (Path(trainings[1]) / name).write_bytes(fault)
        refusal(trainings[:2], folder)
        assert {file: (folder / file).read_bytes() for file in FILES} == before


def test_files_of_several_trainings_are_no_member(trainings: list[str], tmp_path: Path) -> None:
    shutil.copy(Path(trainings[2]) / "model_5x.pt", trainings[1])
    cause = f"member {trainings[1]}/model_5x.pt: is not of the same training as model.pt"
    assert cause in refusal(trainings[:2], tmp_path / "ensemble")


def test_a_record_of_an_earlier_version_has_the_settings_of_that_version(trainings: list[str], tmp_path: Path) -> None:
    later = str(training(tmp_path / "patients", 5, point(5), unit="patient"))
    assert "unit" not in SETTINGS
    assert "unit 'patient', now 'slide'" in refusal([trainings[0], later], tmp_path / "ensemble")


def test_weights_of_an_own_backbone_that_do_not_say_its_features_are_refused(tmp_path: Path) -> None:
    folders = [str(training(tmp_path / f"{seed}", seed, backbone="mine")) for seed in range(2)]
    assert "does not say how many features backbone mine has" in refusal(folders, tmp_path / "ensemble")
    known = [str(training(tmp_path / f"known_{seed}", seed, backbone="mine", num_features=6)) for seed in range(2)]
    assert made(Members(known), tmp_path / "ensemble").is_dir()


@pytest.mark.parametrize("order", [1, -1])
def test_trainings_on_other_positive_classes_are_refused(tmp_path: Path, order: int) -> None:
    """Labels of 0 and 1 name no classes, and those of the other training are not known to be the same."""
    chosen = training(tmp_path / "chosen", 0, task="binary", positive_classes=["a"])
    given = training(tmp_path / "given", 1, task="binary", positive_classes=None)
    found = refusal([str(chosen), str(given)][::order], tmp_path / "ensemble")
    assert "they were trained with other settings (positive_classes" in found


def test_a_training_that_has_not_finished_is_refused(trainings: list[str], tmp_path: Path) -> None:
    run = Path(trainings[1]).parent
    (run / "settings.json").write_text("{}")
    assert f"{run}: its training has not finished" in refusal(str(tmp_path), tmp_path / "ensemble")
    assert f"{run}: its training has not finished" in refusal(trainings, tmp_path / "ensemble")
    (run / "done.json").write_text("{}")
    assert len(Members(str(tmp_path)).folders) == 3
    (tmp_path / "fold_4").mkdir()
    (tmp_path / "fold_4" / "datalist.json").write_text("{}")
    assert "fold_4: its training has not finished" in refusal(str(tmp_path), tmp_path / "ensemble")


def test_an_ensemble_is_replaced_and_is_no_member_and_no_start(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings[:2]), tmp_path / "ensemble")
    made(Members(trainings), folder)
    assert len(read_record(folder / "model.pt")["members"]) == 3
    assert "is an ensemble" in refusal([*trainings, str(folder)], tmp_path / "more")
    with pytest.raises(SettingsError, match="is an ensemble"):
        read_pretrained(folder, SETTINGS, SETTINGS["class_names"])


def test_an_ensemble_with_fewer_heads_leaves_no_file_of_the_earlier_one(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings), tmp_path / "ensemble")
    alone = [str(training(tmp_path / f"alone_{seed}", seed, magnifications=[10], method="msmil")) for seed in (5, 6)]
    made(Members(alone), folder)
    assert [path.name for path in folder.glob("*.pt")] == ["model.pt"]
    assert trained_settings(folder)["method"] == "msmil"


def test_a_replaced_file_of_a_packed_ensemble_is_no_longer_listed(trainings: list[str], tmp_path: Path) -> None:
    folder = made(Members(trainings[:2]), tmp_path / "bundle" / "models")
    sums = {f"models/{name}": file_sha256(folder / name) for name in FILES}
    (tmp_path / "bundle" / SUMS).write_text(format_sums(sums))
    made(Members(trainings), folder)
    assert read_sums(tmp_path / "bundle" / SUMS) == {}
    load_weights(Ensemble([network() for _ in trainings]), folder / "model.pt")


NESTED = {"record": {**RECORD, "settings": {**SETTINGS, "members": 0}, "members": []}}


@pytest.mark.parametrize(
    "members", [7, [], [3, 3, 3], [{"record": 1}] * 3, [NESTED] * 3, [{"record": RECORD, "data": "training"}] * 3]
)
def test_a_record_with_other_members_is_damaged(trainings: list[str], tmp_path: Path, members: Any) -> None:
    folder = made(Members(trainings), tmp_path / "ensemble")
    loaded = Ensemble([network() for _ in trainings])
    load_weights(loaded, folder / "model.pt")
    loaded.record = {**loaded.record, "members": members}  # type: ignore[dict-item]
    assert "record of the training is damaged" in str(signed_record(loaded.state_dict())[2])
