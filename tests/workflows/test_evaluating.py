"""``evaluating`` and ``inferring``, as shipped."""

import csv
import json
import shutil

import monai.bundle
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.core.errors import mistake_in
from tests.conftest import ROOT
from tests.locks import locked_by_another
from tests.worlds import NO_PICTURES

CLASSES = ["cancer", "hgd", "lgd", "hyperplastic", "normal"]
CALIBRATED = [f"{name}_calibrated" for name in CLASSES]
HEADS = ["global", "5x", "10x"]


@pytest.fixture(scope="module")
def evaluated(cohort, trained, tmp_path_factory):
    """The output folder after ``evaluating``, without the bank of the test slides at first."""
    output = tmp_path_factory.mktemp("evaluated")
    settings = {"dataset_dir": str(cohort), "output_dir": str(output), "ckpt_dir": str(trained / "models")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        monai.bundle.run(run_id="evaluating", config_file="configs/evaluate.json", **settings)
    return output


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table(rows, head):
    chosen = [row for row in rows if row["head"] == head]
    probabilities = np.array([[float(row[name]) for name in CLASSES] for row in chosen])
    labels = np.array([[name in row["label"].split(";") for name in CLASSES] for row in chosen])
    return probabilities, labels


def test_predictions_name_slide_output_probabilities_and_label(evaluated, cohort):
    rows = read_csv(evaluated / "predictions.csv")
    testing = json.loads((cohort / "datalist.json").read_text())["testing"]
    assert list(rows[0]) == ["slide", "head", *CLASSES, *CALIBRATED, "decision", "label", "patient_number"]
    assert [row["head"] for row in rows] == HEADS * len(testing)
    assert [row["slide"] for row in rows[::3]] == [entry["image"][7:-5] for entry in testing]
    assert np.array_equal(table(rows, "5x")[1], [entry["label"] for entry in testing])


def test_metrics_are_those_of_the_predictions(evaluated, cohort):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    rows = read_csv(evaluated / "predictions.csv")
    testing = json.loads((cohort / "datalist.json").read_text())["testing"]
    assert (metrics["slides"], metrics["patients"]) == (len(testing), len({entry["patient"] for entry in testing}))
    assert list(metrics) == [*HEADS, "slides", "patients", "made_by"]
    for head in HEADS:
        probabilities, labels = table(rows, head)
        predicted = probabilities >= 0.5
        f1, accuracy = metrics[head]["micro_f1"], metrics[head]["micro_accuracy"]
        assert f1["value"] == pytest.approx(f1_score(labels, predicted, average="micro", zero_division=0))
        assert accuracy["value"] == pytest.approx(accuracy_score(labels.ravel(), predicted.ravel()))
        assert f1["ci95"][0] <= f1["value"] <= f1["ci95"][1]


def test_tensorboard_shows_the_metrics_of_each_output_and_slides(evaluated):
    events = EventAccumulator(str(evaluated / "tensorboard" / "evaluation"))
    events.Reload()
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for head in HEADS:
        shown = events.Scalars(f"evaluation/{head}/micro_f1")
        assert shown[0].value == pytest.approx(metrics[head]["micro_f1"]["value"], rel=1e-6)
    assert len(events.Tags()["scalars"]) <= 20
    images = set(events.Tags()["images"])
    # Of the one test slide, which cannot be both.
    assert {tag for tag in images if tag.startswith("slides/")} == {
        f"slides/most_wrong/{kind}" for kind in ("attention", "contribution")
    }
    assert "evaluation/text_summary" in events.Tags()["tensors"]


def test_a_second_evaluation_gives_the_same_to_the_last_digit(workflow, evaluated, cohort, trained, tmp_path):
    settings = {"dataset_dir": str(cohort), "output_dir": str(tmp_path), "ckpt_dir": str(trained / "models")}
    board = tmp_path / "tensorboard" / "evaluation"
    board.mkdir(parents=True)
    (board / "events.out.tfevents.of_an_earlier_one").touch()
    workflow("evaluating", "evaluate", feature_dir=str(evaluated / "features"), report=False, **settings)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
    (events,) = board.iterdir()  # none of an earlier evaluation
    assert events.stat().st_size


def test_evaluation_from_patches_gives_the_banks_predictions(workflow, cohort, trained, tmp_path):
    settings = {"dataset_dir": str(cohort), "ckpt_dir": str(trained / "models"), "amp": False, **NO_PICTURES}
    tables = []
    for source in ("patches", "bank"):
        workflow("evaluating", "evaluate", source=source, output_dir=str(tmp_path / source), **settings)
        tables.append(read_csv(tmp_path / source / "predictions.csv"))
    for head in HEADS:
        assert np.allclose(table(tables[0], head)[0], table(tables[1], head)[0], atol=1e-4)


def test_a_folder_of_slides_is_predicted_as_the_evaluation_predicts_it(workflow, evaluated, cohort, trained, tmp_path):
    datalist = json.loads((cohort / "datalist.json").read_text())
    (tmp_path / "slides").mkdir()
    for partition in ("testing", "validation"):
        image = cohort / datalist[partition][0]["image"]
        shutil.copy(image, tmp_path / "slides" / image.name)
    settings = {"output_dir": str(tmp_path), "ckpt_dir": str(trained / "models")}
    workflow("inferring", "inference", dataset_dir=str(tmp_path / "slides"), heatmaps=False, report=False, **settings)
    rows = read_csv(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["slide", "head", *CLASSES, *CALIBRATED, "decision"]
    assert len({row["slide"] for row in rows}) == 2
    names = (*CLASSES, *CALIBRATED)
    predicted = {row["slide"]: [row[name] for name in names] for row in rows if row["head"] == "global"}
    for row in read_csv(evaluated / "predictions.csv"):
        if row["head"] == "global":  # of the same weights; the scales' own best weights are the evaluation's alone
            assert [float(p) for p in predicted[row["slide"]]] == pytest.approx(
                [float(row[name]) for name in names], abs=1e-6
            )


def test_a_list_of_slides_is_predicted_in_its_order(workflow, cohort, trained, tmp_path):
    names = ["demo_003", "demo_001"]
    (tmp_path / "slides.txt").write_text("".join(f"{cohort}/slides/{name}.tiff\n" for name in names))
    places = {"output_dir": tmp_path, "ckpt_dir": trained / "models", "feature_dir": trained / "features"}
    settings = {key: str(path) for key, path in places.items()}
    workflow("inferring", "inference", datalist=str(tmp_path / "slides.txt"), heatmaps=False, report=False, **settings)
    assert [row["slide"] for row in read_csv(tmp_path / "predictions.csv")[::3]] == names


@pytest.mark.parametrize(
    ("run_id", "config"), [("extracting", "extract"), ("evaluating", "evaluate"), ("inferring", "inference")]
)
def test_two_runs_do_not_write_their_results_into_one_folder(workflow, cohort, trained, tmp_path, run_id, config):
    settings = {"dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    settings |= {} if run_id == "extracting" else {"ckpt_dir": str(trained / "models")}
    (tmp_path / "failed.csv").write_text("of the run under way")
    with locked_by_another(tmp_path), pytest.raises(RuntimeError) as refused:  # MONAI's, around it
        workflow(run_id, config, **settings)
    assert f"{tmp_path}: another process is writing into it. Wait for it to end" in str(mistake_in(refused.value))
    assert (tmp_path / "failed.csv").exists()
