"""ROC and precision-recall curves: those of scikit-learn, and no curve where there is none."""

import numpy as np
import pytest
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, average_precision_score, roc_auc_score

from scripts.evaluation.curves import MICRO, draw_precision_recall, draw_roc
from scripts.evaluation.metrics import head_scores

CLASSES = ["cancer", "hgd", "normal"]


def some_predictions(num_slides=30, num_classes=3):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (num_slides, num_classes)).astype(float)
    # Rounded, so that some probabilities are a tie.
    return np.round(0.3 * labels + 0.7 * rng.random((num_slides, num_classes)), 2), labels


def drawn(figure):
    """What the legend says, and the line of each name in it, as ``[points, 2]``."""
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    return {label.split(",")[0].split(":")[0]: (label, points) for label, points in lines.items()}


def test_each_class_and_all_together_have_scikit_learns_roc_curve():
    p, y = some_predictions()
    found = drawn(draw_roc(p, y, CLASSES))
    assert list(found) == [*CLASSES, MICRO, "chance"]
    expected = {name: (y[:, k], p[:, k]) for k, name in enumerate(CLASSES)} | {MICRO: (y.ravel(), p.ravel())}
    for name, (truth, of_class) in expected.items():
        label, points = found[name]
        display = RocCurveDisplay.from_predictions(truth, of_class, drop_intermediate=False)
        assert np.array_equal(points, np.stack([display.fpr, display.tpr], axis=1))
        assert label == f"{name}, AUC {roc_auc_score(truth, of_class):.3f}"
    assert f"{head_scores(p, y, 'multilabel')['roc_auc']:.3f}" in found[MICRO][0]
    assert np.array_equal(found["chance"][1], [[0, 0], [1, 1]])


def test_each_class_and_all_together_have_scikit_learns_precision_recall_curve():
    p, y = some_predictions()
    figure = draw_precision_recall(p, y, CLASSES)
    found, (axes,) = drawn(figure), figure.axes
    chance = [line.get_ydata()[0] for line in axes.lines if line.get_label().startswith("_")]
    assert chance == [*y.mean(axis=0), y.mean()]
    for name, truth, of_class in [*zip(CLASSES, y.T, p.T, strict=True), (MICRO, y.ravel(), p.ravel())]:
        label, points = found[name]
        display = PrecisionRecallDisplay.from_predictions(truth, of_class)
        assert np.array_equal(points, np.stack([display.recall, display.precision], axis=1))
        score = average_precision_score(truth, of_class)
        assert label == f"{name}, AP {score:.3f} (chance {truth.mean():.3f})"


def test_one_class_is_not_repeated_as_micro():
    p, y = some_predictions(num_classes=1)
    assert list(drawn(draw_roc(p, y, ["high_risk"]))) == ["high_risk", "chance"]


def test_a_class_of_no_slide_or_of_all_is_named_as_undefined():
    p, y = some_predictions()
    y[:, 0], y[:, 1] = 0, 1
    found = drawn(draw_roc(p, y, CLASSES))
    assert found["cancer"][0] == "cancer: undefined, no slide has it"
    assert found["hgd"][0] == "hgd: undefined, every slide has it"
    assert not len(found["cancer"][1])
    found = drawn(draw_precision_recall(p, y, CLASSES))
    assert found["cancer"][0] == "cancer: undefined, no slide has it"
    assert found["hgd"][0] == "hgd, AP 1.000 (chance 1.000)"


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a name for each of 3 classes, got 2"):
        draw_roc(*some_predictions(), CLASSES[:2])
