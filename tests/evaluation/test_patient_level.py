"""The scores of patients whose slides are bags of their own, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from scripts.evaluation.head_report import head_report
from scripts.evaluation.metrics import head_scores
from scripts.evaluation.patient_level import patient_predictions
from scripts.weights.thresholds import choose_threshold

CLASSES = ["a", "b"]


def predictions(seed, num_slides, num_patients):
    rng = np.random.default_rng(seed)
    p = rng.random((num_slides, 2)).round(3)
    y = rng.integers(0, 2, (num_slides, 2)).astype(float)
    return p, y, [f"P{i}" for i in rng.integers(0, num_patients, num_slides)]


def by_hand(p, y, patients):
    names = sorted(set(patients))
    rows = {name: [i for i, patient in enumerate(patients) if patient == name] for name in names}
    mean = [[sum(p[i, k] for i in rows[n]) / len(rows[n]) for k in range(2)] for n in names]
    maximum = [[max(p[i, k] for i in rows[n]) for k in range(2)] for n in names]
    labels = [[max(y[i, k] for i in rows[n]) for k in range(2)] for n in names]
    return np.array(labels), {"mean": np.array(mean), "maximum": np.array(maximum)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 20), st.integers(1, 6))
def test_a_patients_probability_is_the_mean_or_the_maximum_of_the_slides(seed, num_slides, num_patients):
    p, y, patients = predictions(seed, num_slides, num_patients)
    names, labels, pooled = patient_predictions(p, y, patients)
    expected, of_patients = by_hand(p, y, patients)
    assert names == sorted(set(patients))
    assert np.array_equal(labels, expected)
    assert list(pooled) == ["mean", "maximum"]
    assert all(np.allclose(pooled[name], of_patients[name]) for name in pooled)


def test_a_head_reports_patients_where_one_has_several_slides():
    p, y, patients = predictions(0, 40, 15)
    report = head_report(p, y, CLASSES, "multilabel", 0, patients)
    labels, of_patients = by_hand(p, y, patients)
    assert list(report["patients"]) == ["mean", "maximum"]
    for name, found in report["patients"].items():
        expected = head_scores(of_patients[name], labels, "multilabel")
        assert {score: found[score]["value"] for score in expected} == pytest.approx(expected)
        assert found["classes"]["a"]["slides"] == labels[:, 0].sum()
        low, high = found["micro_f1"]["ci95"]
        assert low <= found["micro_f1"]["value"] <= high
        assert "patients" not in found


def test_a_head_reports_no_patients_where_each_has_one_slide():
    p, y, _ = predictions(0, 6, 3)
    report = head_report(p, y, CLASSES, "multilabel", 0, list("abcdef"))
    assert "patients" not in report


def test_a_threshold_of_slides_is_none_of_patients_by_the_mean_or_maximum_of_their_slides():
    """Why patients are not scored at the operating point; the numbers are those of docs/operating_point.md."""
    rng, slides = np.random.default_rng(0), 3
    y = rng.integers(0, 2, 20_000).astype(float)
    # The log odds of a normal with variance 1 around 1, against one around -1, are twice the value: it is calibrated.
    p = expit(2 * rng.normal(2 * y[:, None] - 1, 1, (len(y), slides)))
    threshold = choose_threshold("sensitivity=0.95", p.ravel(), np.repeat(y, slides))
    owners = np.repeat(np.arange(len(y)), slides)
    _, labels, pooled = patient_predictions(
        p.reshape(-1, 1), np.repeat(y, slides)[:, None], [f"{i:05d}" for i in owners]
    )
    assert np.array_equal(labels[:, 0], y)
    found = {"slide": (p.ravel(), np.repeat(y, slides)), **{name: (of[:, 0], y) for name, of in pooled.items()}}
    specificity = {name: (of[own == 0] < threshold).mean() for name, (of, own) in found.items()}
    sensitivity = {name: (of[own == 1] >= threshold).mean() for name, (of, own) in found.items()}
    assert specificity == pytest.approx({"slide": 0.64, "mean": 0.53, "maximum": 0.26}, abs=0.01)
    assert sensitivity == pytest.approx({"slide": 0.95, "mean": 1.0, "maximum": 1.0}, abs=0.002)
