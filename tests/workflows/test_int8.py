"""INT8 from training to a prediction, by the shipped configs."""

import csv
import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from scripts.core.errors import mistake_in
from scripts.datalists.labels import CLASS_NAMES
from scripts.encoders.int8_networks import INT8_FILES, read_int8
from scripts.weights.record import read_record
from tests.cohorts import conv_backbone

# Not imported to find out: NNCF would keep the standard output of that moment.
pytestmark = pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed (the extra int8)")


def probabilities(path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["slide"], row["head"]): [float(row[name]) for name in CLASS_NAMES] for row in rows}


@pytest.fixture
def script(tmp_path):
    """A small encoder of the user's own."""
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(conv_backbone().network), path)
    said = {"size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    path.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
    return path


@pytest.mark.slow
def test_weights_that_were_trained_in_int8_predict_in_int8_and_in_nothing_else(workflow, cohort, script, tmp_path):
    out, models = tmp_path / "out", tmp_path / "out" / "models"
    encoder = {"backbone": "torchscript", "backbone_weights": str(script)}
    own = {"dataset_dir": str(cohort), "output_dir": str(out), "ckpt_dir": str(models)}
    workflow("training", "train", epochs=1, precision="int8", runtime="openvino", **encoder, **own)
    (network,) = (read_int8(path) for path in models.glob(INT8_FILES))
    assert [path.name for path in (out / "features").glob(INT8_FILES)] == [network.path.name]
    settings = read_record(models / "model.pt")["settings"]
    assert (settings["precision"], settings["int8_sha256"]) == ("int8", network.sha256)

    own["backbone_weights"] = str(script)
    workflow("evaluating", "evaluate", report=False, **own)
    assert json.loads((out / "metrics.json").read_text("utf-8"))["made_by"]["configuration"]["precision"] == "int8"
    # Elsewhere, where there is neither a bank nor NNCF.
    shutil.copytree(models, tmp_path / "models")
    served = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "served")}
    served |= {"backbone_weights": str(script), "heatmaps": False, "report": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.encoders.quantising.find_spec", lambda name: None)
        workflow("inferring", "inference", dataset_dir=str(cohort / "slides"), **served)
    evaluated, predicted = (probabilities(folder / "predictions.csv") for folder in (out, tmp_path / "served"))
    assert evaluated
    for key, values in evaluated.items():
        assert predicted[key] == pytest.approx(values, abs=1e-4)

    with pytest.raises(RuntimeError) as refused:
        workflow("inferring", "inference", dataset_dir=str(cohort / "slides"), precision="amp", **served)
    assert "precision: got 'amp', and the weights were trained with 'int8'" in str(mistake_in(refused.value))
    next((tmp_path / "models").glob(INT8_FILES)).unlink()
    with pytest.raises(RuntimeError) as refused:
        workflow("inferring", "inference", dataset_dir=str(cohort / "slides"), **served)
    assert f"precision: is int8, and the network {network.path.name} is not in" in str(mistake_in(refused.value))
    # The banks are those of this network.
    with pytest.raises(RuntimeError) as refused:
        workflow("training", "train", epochs=1, backbone="torchscript", **own)
    assert "precision: is amp, and the feature banks in" in str(mistake_in(refused.value))
