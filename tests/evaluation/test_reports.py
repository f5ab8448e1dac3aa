import csv
import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose, MapTransform
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    auc,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from scripts.datalists.labels import label_vector, output_names
from scripts.evaluation.bootstrap import class_intervals
from scripts.evaluation.label_texts import classes_text, label_of_text, label_text
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, class_scores, score_names
from scripts.evaluation.reports import EvaluationReport, PredictionReport, without_nan
from scripts.training.datasets import pad_bags

HEADS = ["global", "5x", "10x"]
CLASSES = ["cancer", "hgd", "normal"]


def some_slides(num_slides, num_classes, labelled=True, one_class=False):
    """Slides whose image is nothing but the logits [1, S, K] that a network would give, [1 + S, K] of them."""
    rng = np.random.default_rng(5)
    slides = []
    for i in range(num_slides):
        label = np.zeros(num_classes) if one_class else rng.integers(0, 2, num_classes)
        # The outputs differ in how good they are, so that none can pass for another.
        logits = rng.normal(size=(3, num_classes)) + np.array([[0.5], [1.5], [3.0]]) * (label - 0.5)
        slides.append(
            {
                "image": torch.tensor(logits[None], dtype=torch.float32),
                "log_weight": torch.zeros(1, 3),
                "slide": f"slide {i:02d}",
                **({"label": torch.tensor(label, dtype=torch.float32)} if labelled else {}),
            }
        )
    return slides


class Given(torch.nn.Module):
    """Returns the logits that ride in the image."""

    def forward(self, x):
        return x[:, 0]


def evaluate(slides, report, batch_size=1, before=None):
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(slides), batch_size=batch_size, collate_fn=pad_bags),
        network=Given(),
        postprocessing=Compose([*([before] if before else []), Activationsd(keys="pred", sigmoid=True)]),
        val_handlers=[report],
    ).run()


def read_csv(folder):
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities_of(rows, head, classes=CLASSES):
    return np.array([[float(row[name]) for name in classes] for row in rows if row["head"] == head])


def evaluation(folder, slides, classes=CLASSES, task="multilabel", batch_size=1, seed=0, data=(), before=None):
    evaluate(slides, EvaluationReport(folder, HEADS, classes, task, seed=seed, data=data), batch_size, before)
    with open(folder / "metrics.json", encoding="utf-8") as file:
        return json.load(file)


def values_of(scores):
    """The values of an output's or class's scores, by name."""
    return {name: score["value"] for name, score in scores.items() if isinstance(score, dict) and "value" in score}


def test_a_label_reads_as_in_a_datalist():
    assert label_text(np.array([1, 0, 1]), CLASSES) == "cancer;normal"
    assert label_text(np.array([0, 0, 0]), CLASSES) == "0;0;0"
    assert label_text(np.array([0.0, 1.0, 0.0]), CLASSES) == "hgd"


def test_a_prediction_and_a_label_read_alike_on_a_page():
    assert classes_text(np.array([0.5, 0.49, 1.0]), CLASSES) == "cancer, normal"
    assert classes_text(np.array([0, 0, 0]), CLASSES) == "none"
    assert [classes_text(np.array([value]), ["cancer"]) for value in (1, 0)] == ["cancer", "not cancer"]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("multilabel", CLASSES),
        ("multilabel", ["a", "b"]),
        ("multilabel", ["a"]),
        ("binary", CLASSES),
        ("binary", ["a", "b"]),
    ],
)
def test_a_label_that_was_written_is_read_again_as_it_was(task, names):
    outputs = output_names(task, names)
    for label in itertools.product([0, 1], repeat=len(outputs)):
        text = label_text(np.array(label), outputs)
        assert text  # an empty one would be no label
        assert label_of_text(text, outputs) == list(label)
        assert label_vector(text, task, names).tolist() == list(label)


def test_labels_of_version_0_3_0_are_read():
    texts = ["", "cancer", "cancer;normal"]
    assert [label_of_text(text, CLASSES) for text in texts] == [[0, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert [label_of_text(text, ["high_risk"]) for text in ("", "high_risk")] == [[0], [1]]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_predictions_hold_a_probability_for_each_slide_output_and_class(tmp_path, batch_size):
    slides = some_slides(7, 3)
    evaluate(slides, PredictionReport(tmp_path / "out", HEADS, CLASSES), batch_size)
    rows = read_csv(tmp_path / "out")
    assert list(rows[0]) == ["slide", "head", "cancer", "hgd", "normal", "decision", "label"]
    assert [(row["slide"], row["head"]) for row in rows] == [
        (f"slide {i:02d}", head) for i in range(7) for head in HEADS
    ]
    for slide, i in zip(slides, range(0, 21, 3), strict=True):
        expected = 1 / (1 + np.exp(-slide["image"][0].numpy().astype(float)))
        found = np.array([[float(rows[i + h][name]) for name in CLASSES] for h in range(3)])
        assert found == pytest.approx(expected, rel=1e-6)
        names = [name for name, value in zip(CLASSES, slide["label"], strict=True) if value == 1]
        assert {rows[i + h]["label"] for h in range(3)} == {";".join(names) or "0;0;0"}
        for h in range(3):
            assert rows[i + h]["decision"] == label_text(found[h] >= 0.5, CLASSES)


def test_slides_without_labels_have_no_label_column(tmp_path):
    evaluate(some_slides(3, 3, labelled=False), PredictionReport(tmp_path, HEADS, CLASSES), batch_size=2)
    rows = read_csv(tmp_path)
    assert list(rows[0]) == ["slide", "head", "cancer", "hgd", "normal", "decision"]
    assert len(rows) == 9


def test_names_with_commas_and_quotes_stay_whole(tmp_path):
    slides = some_slides(2, 3)
    slides[0]["slide"] = 'block 3, "deep" cut'
    evaluate(slides, PredictionReport(tmp_path, HEADS, CLASSES))
    assert read_csv(tmp_path)[0]["slide"] == 'block 3, "deep" cut'


def test_a_second_run_reports_its_own_slides_only(tmp_path):
    report = PredictionReport(tmp_path, HEADS, CLASSES)
    evaluate(some_slides(4, 3), report)
    evaluate(some_slides(2, 3), report)
    assert len(read_csv(tmp_path)) == 2 * 3


def test_metrics_tell_what_made_them_beside_the_outputs(tmp_path):
    made_by = {"seed": 0, "configuration": {"magnifications": [5, 10]}, "git": None}
    evaluate(some_slides(4, 3), EvaluationReport(tmp_path, HEADS, CLASSES, "multilabel", made_by=made_by))
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert list(told) == [*HEADS, "slides", "patients", "made_by"]
    assert told.pop("made_by") == made_by
    assert told == evaluation(tmp_path / "without", some_slides(4, 3))


def test_metrics_of_a_multilabel_task_are_those_of_its_predictions(tmp_path):
    metrics = evaluation(tmp_path, some_slides(40, 3), batch_size=3)
    rows = read_csv(tmp_path)
    label = np.array([
        [name in row["label"].split(";") for name in CLASSES] for row in rows if row["head"] == "global"
    ])  # fmt: skip
    assert list(metrics) == [*HEADS, "slides", "patients"]
    for head in HEADS:
        p = probabilities_of(rows, head)
        assert values_of(metrics[head]) == pytest.approx(
            {
                "micro_accuracy": accuracy_score(label.ravel(), p.ravel() >= 0.5),
                "micro_f1": f1_score(label, p >= 0.5, average="micro"),
                "macro_f1": f1_score(label, p >= 0.5, average="macro"),
                "roc_auc": roc_auc_score(label.ravel(), p.ravel()),
                "brier": np.mean((label - p) ** 2),
            }
        )
        for name in score_names("multilabel"):
            score = metrics[head][name]
            low, high = score["ci95"]
            assert 0 <= low < score["value"] < high <= 1
            assert high - low < 0.4
    highest = metrics["global"]["micro_accuracy"]["ci95"][1]
    assert highest < metrics["10x"]["micro_accuracy"]["value"]  # an interval is that of its own output


def test_metrics_of_a_binary_task_are_those_of_its_predictions(tmp_path):
    metrics = evaluation(tmp_path, some_slides(40, 1), ["high risk"], "binary")
    rows = read_csv(tmp_path)
    assert {row["label"] for row in rows} == {"0", "1"}
    label = np.array([row["label"] == "1" for row in rows if row["head"] == "global"])
    assert 0 < label.sum() < 40
    for head in HEADS:
        p = probabilities_of(rows, head, ["high risk"])[:, 0]
        assert values_of(metrics[head]) == pytest.approx(
            {
                "accuracy": accuracy_score(label, p >= 0.5),
                "f1": f1_score(label, p >= 0.5),
                "roc_auc": roc_auc_score(label, p),
                "brier": brier_score_loss(label, p),
            }
        )


@pytest.mark.parametrize(("task", "classes"), [("multilabel", CLASSES), ("binary", ["high_risk"])])
def test_each_output_says_how_it_does_on_each_class(tmp_path, task, classes):
    slides = some_slides(30, len(classes))
    metrics = evaluation(tmp_path, slides, classes, task, batch_size=4)
    rows = read_csv(tmp_path)
    label = np.stack([slide["label"].numpy() for slide in slides])
    for head in HEADS:
        p = probabilities_of(rows, head, classes)
        scores, intervals = class_scores(p, label, classes, task), class_intervals(p, label, classes, task=task)
        assert list(metrics[head]["classes"]) == classes
        for k, name in enumerate(classes):
            of_class = metrics[head]["classes"][name]
            assert list(of_class) == [*CLASS_SCORE_NAMES, "slides", "curves"]
            curve = of_class["curves"]["roc"]
            area = auc(curve["false_positive_rate"], curve["true_positive_rate"])
            assert area == pytest.approx(of_class["roc_auc"]["value"], abs=1e-5)
            assert metrics[head]["confusion"]["classes"][name] == confusion_matrix(label[:, k], p[:, k] >= 0.5).tolist()
            assert of_class["slides"] == label[:, k].sum()
            assert isinstance(of_class["slides"], int)
            assert of_class["f1"]["value"] == pytest.approx(f1_score(label[:, k], p[:, k] >= 0.5))
            for score in CLASS_SCORE_NAMES:
                assert of_class[score]["value"] == pytest.approx(scores[name][score])
                assert of_class[score]["ci95"] == pytest.approx(intervals[name][score])


def with_patients(slides, patients):
    return [{"slide": slide["slide"], "patient": patient} for slide, patient in zip(slides, patients, strict=True)]


def test_intervals_are_those_of_patients_however_their_names_are_spelled(tmp_path, caplog):
    slides = some_slides(36, 3)
    each, spelled = [f"p{i}" for i in range(36)], [("P1", "p1", "P2 ", "P2\u200b")[i % 4].strip() for i in range(36)]
    plain = evaluation(tmp_path / "plain", slides)
    assert (plain.pop("slides"), plain.pop("patients")) == (36, None)
    assert caplog.text.count("so each slide counts as a patient of its own, and intervals are too narrow") == 1
    own = evaluation(tmp_path / "own", slides, data=with_patients(slides, each))
    assert {head: own[head] for head in HEADS} == plain  # to the last digit
    assert "not to be trusted" not in caplog.text
    few = evaluation(tmp_path / "few", slides, data=with_patients(slides, spelled))
    assert (few["slides"], few["patients"]) == (36, 2)
    assert caplog.text.count("its intervals rest on 2 patients, fewer than 10, and are not to be trusted.") == 1
    # Of two patients a resample holds both, or one of them twice: the interval ends at the scores of these alone.
    y = np.stack([slide["label"].numpy() for slide in slides])
    right = (np.stack([slide["image"][0, 0].numpy() for slide in slides]) >= 0) == y
    assert few["global"]["micro_accuracy"]["ci95"] == pytest.approx(
        sorted(right[[i % 4 // 2 == k for i in range(36)]].mean() for k in (0, 1))
    )
    assert values_of(few["global"]) == values_of(plain["global"])


def test_json_has_null_for_what_is_no_number():
    report = {"a": (0.5, float("nan")), "b": [{"c": float("inf")}, 3, "NaN", True, None]}
    assert without_nan(report) == {"a": [0.5, None], "b": [{"c": None}, 3, "NaN", True, None]}


def test_what_is_not_defined_is_null(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        metrics = evaluation(tmp_path, some_slides(5, 3, one_class=True))
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    for head in HEADS:
        assert metrics[head]["roc_auc"] == {"value": None, "ci95": [None, None]}
        assert metrics[head]["micro_accuracy"]["value"] is not None
        absent = metrics[head]["classes"]["cancer"]
        assert absent["recall"] == {"value": None, "ci95": [None, None]}
        assert absent["accuracy"]["value"] is not None
        assert absent["slides"] == 0


def test_the_seed_decides_the_interval_and_nothing_else(tmp_path):
    slides = some_slides(20, 3)
    first, again, other = (
        evaluation(tmp_path / name, slides, seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert first == again
    assert first["global"]["roc_auc"]["value"] == other["global"]["roc_auc"]["value"]
    assert first["global"]["roc_auc"]["ci95"] != other["global"]["roc_auc"]["ci95"]


def test_the_order_of_the_slides_decides_no_metric(tmp_path):
    slides = some_slides(20, 3)
    assert evaluation(tmp_path / "a", slides) == evaluation(tmp_path / "b", slides[::-1])


def test_the_board_gets_what_the_files_contain_in_the_order_of_names(tmp_path):
    given = {}

    class Board:
        def write(self, metrics, slides, probabilities, labels, figures):
            given.update(metrics=metrics, slides=slides, probabilities=probabilities, labels=labels, figures=figures)

    slides = some_slides(6, 3)[::-1]
    evaluate(slides, EvaluationReport(tmp_path, HEADS, CLASSES, "multilabel", Board()))
    assert given["metrics"] == json.loads((tmp_path / "metrics.json").read_text())
    assert given["slides"] == [f"slide {i:02d}" for i in range(6)]
    for index, head in enumerate(HEADS):
        written = probabilities_of(read_csv(tmp_path), head)[::-1]
        assert given["probabilities"][:, index] == pytest.approx(written)
    assert np.array_equal(given["labels"], [slide["label"].numpy() for slide in slides[::-1]])
    names = ["roc", "precision_recall", "confusion", "calibration"]
    assert {head: [name for name, *_ in found] for head, found in given["figures"]().items()} == dict.fromkeys(
        HEADS, names
    )


class Halved(MapTransform):
    """An operating point at which probabilities are halved, and decisions are made at 0.3."""

    def __call__(self, data):
        calibrated = torch.sigmoid(data["pred"]).double() / 2
        return {**data, "calibrated": calibrated, "threshold": torch.full(calibrated.shape, 0.3).double()}


def test_at_the_operating_point_probabilities_are_calibrated_and_decisions_are_at_the_thresholds(tmp_path):
    metrics = evaluation(tmp_path, some_slides(40, 3), before=Halved("pred"))
    rows = read_csv(tmp_path)
    label = np.array([
        [name in row["label"].split(";") for name in CLASSES] for row in rows if row["head"] == "global"
    ])  # fmt: skip
    names = [f"{name}_calibrated" for name in CLASSES]
    for head in HEADS:
        p, calibrated = probabilities_of(rows, head), probabilities_of(rows, head, names)
        assert calibrated == pytest.approx(p / 2, rel=1e-6)
        decided = calibrated >= 0.3
        told = [row["decision"] for row in rows if row["head"] == head]
        assert told == [label_text(row, CLASSES) for row in decided]
        # As in the paper, and beside it at the operating point.
        assert metrics[head]["micro_f1"]["value"] == pytest.approx(f1_score(label, p >= 0.5, average="micro"))
        point = metrics[head]["operating_point"]
        assert values_of(point) == pytest.approx(
            {
                "micro_accuracy": accuracy_score(label.ravel(), decided.ravel()),
                "micro_f1": f1_score(label, decided, average="micro"),
                "macro_f1": f1_score(label, decided, average="macro"),
                "brier": np.mean((label - calibrated) ** 2),
            }
        )
        for k, name in enumerate(CLASSES):
            of_class = point["classes"][name]
            assert of_class["threshold"] == pytest.approx(0.3)
            assert of_class["recall"]["value"] == pytest.approx(recall_score(label[:, k], decided[:, k]))
            specificity = recall_score(~label[:, k], ~decided[:, k])
            low, high = of_class["specificity"]["ci95"]
            assert of_class["specificity"]["value"] == pytest.approx(specificity)
            assert low <= specificity <= high
            assert point["confusion"]["classes"][name] == confusion_matrix(label[:, k], decided[:, k]).tolist()


class FailAt:
    """Ends a run before its n-th slide, from 1 up."""

    def __init__(self, iteration):
        self.iteration = iteration

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.iteration), self)

    def __call__(self, engine):
        raise OSError("the disk is gone")


def evaluate_until(slides, report, iteration, *others):
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(slides), batch_size=1, collate_fn=pad_bags),
        network=Given(),
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[report, *others, FailAt(iteration)],
    ).run()


def test_a_run_that_fails_leaves_the_predictions_that_were_made(tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_until(some_slides(5, 3), PredictionReport(tmp_path, HEADS, CLASSES, write_seconds=1e9), 4)
    assert [row["slide"] for row in read_csv(tmp_path)[::3]] == ["slide 00", "slide 01", "slide 02"]


def test_a_run_that_writes_at_its_end_leaves_none_and_none_of_an_earlier_run(tmp_path):
    evaluation(tmp_path, some_slides(5, 3))
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "metrics.json"}
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_until(some_slides(5, 3), EvaluationReport(tmp_path, HEADS, CLASSES, "multilabel"), 4)
    assert not list(tmp_path.iterdir())


def test_predictions_are_written_while_the_run_goes_on(tmp_path):
    written = []

    class Look(FailAt):
        def __call__(self, engine):
            written.append([row["slide"] for row in read_csv(tmp_path)[::3]])

    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_until(some_slides(3, 3), PredictionReport(tmp_path, HEADS, CLASSES, write_seconds=0), 3, Look(3))
    assert written == [["slide 00", "slide 01"]]
