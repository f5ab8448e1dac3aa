"""Files that version 0.3 wrote (tests/fixtures/0.3): the numbers are those that it read from them itself."""

import hashlib
import json
import logging
import re
import shutil
import tarfile
import zipfile

import h5py
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError
from scripts.features.bank import read_bank
from scripts.features.extraction import Extractor
from scripts.networks.methods import get_network
from scripts.weights.checkpoints import load_weights
from scripts.weights.record import read_origin, read_record
from tests.cohorts import tiny_backbone, tiny_encoder
from tests.conftest import ROOT

WRITTEN = ROOT / "tests" / "fixtures" / "0.3"
SETTINGS = {"magnifications": [5, 10], "patch_size": 16, "min_tissue": 0.5}
HEADS = ("global", "5x", "10x")
# The rows, the sum of their features, and the last row: its patches, and the first two features of each.
BANKS = {
    "s0": (54, 642.96875, [14, 53], [[0.96484375, 1.125], [1.359375, 1.484375]]),
    "s1": (16, 108.46875, [3, 15], [[1.30078125, 1.32421875], [1.625, 0.890625]]),
}
LOGITS = {
    "model.pt": [0.7400376796722412, -0.49756234884262085],
    "model_5x.pt": [0.13128729164600372, -0.12341560423374176],
    "model_10x.pt": [-0.14908535778522491, -0.7414529323577881],
}
# The lowest validation losses when version 0.3 went on for a second epoch, which was the best of each output.
SECOND_EPOCH = {"global": 0.4272478222846985, "5x": 0.6317400932312012, "10x": 0.5391848683357239}
# Which bank lacks what that banks store today, and what to do about it.
NO_MASK_SHA256 = "s1.h5) do not store the checksum of their masks: delete them if a mask was edited since"
LACKING = {
    "first": [
        "s0.h5) do not store the `sha256` of their slides: delete them if in doubt",
        "s0.h5) were made before ink was left out of the tissue, and those of slides with ink contain it: `checking` "
        "names these slides; delete their banks to have them made again",
        "s1.h5) were made before masks with several values were refused, and before masks of a slide's bounds were "
        "placed there: run `checking`, which looks at the masks; delete their banks in doubt",
        NO_MASK_SHA256,
    ],
    "last": [NO_MASK_SHA256],
}


@pytest.fixture(params=["first", "last"])
def state(request):
    """The first state of version 0.3, or its last."""
    return request.param


@pytest.fixture
def written(state, tmp_path):
    """An output folder of version 0.3, with the slides that it was made from."""
    shutil.unpack_archive(WRITTEN / f"{state}.tar.xz", tmp_path, filter="data")
    return tmp_path


def test_a_bank_has_the_rows_features_and_places_that_were_written(written):
    for slide, (rows, total, last_row, last_features) in BANKS.items():
        bank = read_bank(written / "features" / f"{slide}.h5", (5.0, 10.0))
        assert bank.rows.shape == (rows, 2)
        assert bank.row_features().shape == (rows, 2, 12)
        assert bank.row_features().sum(dtype=float) == total
        assert bank.rows[-1].tolist() == last_row
        assert bank.row_features()[-1, :, :2].tolist() == last_features
        assert bank.row_corners()[-1].tolist() == [[288, 64], [304, 80]]
        assert (bank.base_mpp, bank.patch_level0) == (1.0, (32.0, 16.0))


def test_banks_are_used_and_those_that_lack_a_setting_of_today_are_named(written, state, caplog):
    entries = [{"slide": slide, "image": str(written / "cohort" / f"{slide}.tif")} for slide in BANKS]
    entries[0]["sha256"] = hashlib.sha256((written / "cohort" / "s0.tif").read_bytes()).hexdigest()
    entries[1]["mask"] = str(written / "cohort" / "mask.png")
    before = {path.name: path.read_bytes() for path in (written / "features").iterdir()}
    with caplog.at_level(logging.INFO):
        Extractor(entries, BagBuilder(**SETTINGS), tiny_encoder(), written / "features").run()
    *warnings, last = caplog.messages
    assert sorted(warnings) == [f"1 feature banks of an older version ({lack}" for lack in sorted(LACKING[state])]
    assert last == f"extracting 0 of 2 slides into {written / 'features'} (2 are there)"
    assert {path.name: path.read_bytes() for path in (written / "features").iterdir()} == before


@pytest.mark.parametrize("name", LOGITS)
def test_head_weights_give_the_logits_that_they_gave(written, name):
    bank = read_bank(written / "features" / "s0.h5", (5.0, 10.0))
    network = get_network("mustmil", num_classes=2, num_scales=2, num_features=12, num_nodes=2)
    used = {"method": "mustmil", "task": "multilabel", "class_names": ["a", "b"], "backbone": "tiny", "num_nodes": 2}
    load_weights(network, written / "models" / name, SETTINGS | used)
    logits = network.eval()(*(torch.from_numpy(a[None]) for a in (bank.row_features(), bank.log_weight())))
    head = list(LOGITS).index(name)
    assert logits[0, head].tolist() == pytest.approx(LOGITS[name], abs=1e-6)


def test_head_weights_tell_their_version_and_the_last_also_what_they_are_best_for(written, state):
    for name, head in zip(LOGITS, HEADS, strict=True):
        record, origin = (read(written / "models" / name) for read in (read_record, read_origin))
        assert record["version"] == "0.3.0"
        assert record["data"] == {"training_slides": 1, "validation_slides": 1, "drawn_slides": 0}
        told = (head, name, "pathology-mustmil 0.3.0") if state == "last" else (None, None, None)
        made_by = origin.get("made_by", {})
        assert (origin.get("best_for"), origin.get("file"), made_by.get("bundle")) == told


def test_head_weights_that_were_changed_since_are_refused(written):
    weights = torch.load(written / "models" / "model.pt", weights_only=True)
    next(iter(weights.values()))[0] += 1
    torch.save(weights, written / "models" / "model.pt")
    with pytest.raises(SettingsError, match="their checksum differs"):
        read_record(written / "models" / "model.pt")


def test_a_training_goes_on_from_its_last_checkpoint_as_version_0_3_did(written, monkeypatch):
    monkeypatch.chdir(ROOT)
    folders = {"dataset_dir": "cohort", "output_dir": ".", "feature_dir": "features", "ckpt_dir": "models"}
    own_network = {"backbone": "tiny", "encoder#backbone": tiny_backbone(), "network_def#num_features": 12}
    settings = {**SETTINGS, "class_names": ["a", "b"], "num_nodes": 2, "num_workers": 0, "amp": False, "device": "cpu"}
    settings |= {key: str(written / name) for key, name in folders.items()} | own_network
    config = ROOT / "configs" / "train.json"
    workflow = ConfigWorkflow(str(config), workflow_type="train", run_id="training", epochs=2, resume=True, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    trainer = torch.load(written / "models" / "last.ckpt", weights_only=True)["trainer"]
    assert (trainer["iteration"], trainer["epoch_length"], trainer["max_epochs"]) == (2, 1, 2)
    events = EventAccumulator(str(written / "tensorboard" / "training")).Reload()
    # The first epoch was not trained again.
    assert [event.step for event in events.Scalars("loss/global/validation")] == [2]
    best = json.loads((written / "training.json").read_text(encoding="utf-8"))["best"]
    assert {head: told["epoch"] for head, told in best.items()} == dict.fromkeys(HEADS, 2)
    assert {head: told["validation_loss"] for head, told in best.items()} == pytest.approx(SECOND_EPOCH, abs=1e-6)


def test_the_files_tell_nothing_of_where_they_were_written(written, state):
    """Neither paths nor names of users; the texts within HDF5 files and PyTorch's archives are not compressed."""
    with tarfile.open(WRITTEN / f"{state}.tar.xz") as tar:
        assert all((member.uname, member.uid, member.mtime) == ("", 0, 0) for member in tar)
    for path in (path for path in written.rglob("*") if path.is_file()):
        assert not re.search(rb"/(home|tmp|root|work|usr|Users|mnt|opt)\b", path.read_bytes()), path.name
    for path in (written / "models").iterdir():
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in zipfile.ZipFile(path).infolist())
    for path in (written / "features").iterdir():
        with h5py.File(path) as bank:
            texts = [value for value in bank.attrs.values() if isinstance(value, str)]
            assert texts
            assert not any("/" in text for text in texts)
