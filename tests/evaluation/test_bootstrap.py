"""Intervals: against resamples that are made one by one, and by how often they hold what they should."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import SettingsError
from scripts.evaluation.bootstrap import bootstrap_interval, class_intervals, mean_interval, paired_difference
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, class_scores, head_scores, score_names


def slides(n: int, classes: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties that know something of the labels, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=(n, classes))
    return np.round(np.clip(0.35 * labels + 0.65 * rng.random((n, classes)), 0, 1), decimals), labels


def trainings(repeats: int, labels: np.ndarray, knowledge: float, seed: int) -> np.ndarray:
    """Probabilities ``[repeats, n, K]`` of trainings that know more or less of the labels."""
    noise = np.random.default_rng(seed).random((repeats, *labels.shape))
    return np.clip(knowledge * labels + (1 - knowledge) * noise, 0, 1)


def percentiles(values: list[float]) -> tuple[float, float]:
    known = [value for value in values if not math.isnan(value)]
    return tuple(np.percentile(known, [2.5, 97.5])) if known else (math.nan, math.nan)


# --- one output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 3), ("binary", 1)])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_intervals_equal_those_of_resamples_that_are_made(task: str, classes: int, n: int) -> None:
    p, y = slides(n, classes, seed=n, decimals=1)
    draws = np.random.default_rng(5).integers(n, size=(60, n))
    resamples = [head_scores(p[draw], y[draw], task) for draw in draws]
    intervals = bootstrap_interval(p, y, task, num_resamples=60, seed=5)
    assert tuple(intervals) == score_names(task)
    for name, interval in intervals.items():
        assert interval == pytest.approx(percentiles([scores[name] for scores in resamples]), nan_ok=True)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_intervals_of_a_class_equal_those_of_resamples_that_are_made(n: int) -> None:
    p, y = slides(n, 3, seed=n, decimals=1)
    names = ["cancer", "hgd", "normal"]
    draws = np.random.default_rng(5).integers(n, size=(60, n))
    resamples = [class_scores(p[draw], y[draw], names, "multilabel") for draw in draws]
    intervals = class_intervals(p, y, names, num_resamples=60, seed=5, task="multilabel")
    assert list(intervals) == names
    for name, of_class in intervals.items():
        assert tuple(of_class) == CLASS_SCORE_NAMES
        for score, interval in of_class.items():
            assert interval == pytest.approx(percentiles([s[name][score] for s in resamples]), nan_ok=True)


def one_class(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three classes with ties, and labels of one class a slide."""
    rng = np.random.default_rng(seed)
    labels = np.eye(3)[rng.integers(3, size=n)]
    scores = 0.5 * labels + rng.integers(1, 6, (n, 3))
    return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_intervals_of_one_class_a_slide_equal_those_of_resamples_that_are_made(task: str, n: int) -> None:
    (p, y), names = one_class(n, seed=n), ["normal", "hgd", "cancer"]
    draws = np.random.default_rng(5).integers(n, size=(60, n))
    resamples = [head_scores(p[draw], y[draw], task) for draw in draws]
    of_classes = [class_scores(p[draw], y[draw], names, task) for draw in draws]
    intervals = bootstrap_interval(p, y, task, num_resamples=60, seed=5)
    assert tuple(intervals) == score_names(task)
    for name, interval in intervals.items():
        assert interval == pytest.approx(percentiles([scores[name] for scores in resamples]), nan_ok=True)
    for name, of_class in class_intervals(p, y, names, num_resamples=60, seed=5, task=task).items():
        for score, interval in of_class.items():
            assert interval == pytest.approx(percentiles([s[name][score] for s in of_classes]), nan_ok=True)


@pytest.mark.parametrize("score", score_names("ordinal"))
def test_the_paired_difference_of_ordered_classes_is_that_of_a_plain_loop(score: str) -> None:
    labels = one_class(6, seed=3)[1]
    first, second = (
        np.stack([one_class(6, seed)[0] * (1 - weight) + weight * labels for seed in seeds])
        for seeds, weight in (((3, 4, 5), 0.4), ((6, 7), 0.1))
    )
    found = paired_difference(first, second, labels, "ordinal", score, num_resamples=40, seed=7)
    wanted = slow_difference(first, second, labels, "ordinal", score, 40, 7)
    assert dataclasses.astuple(found) == pytest.approx(wanted)


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 5), ("binary", 1)])
def test_an_interval_holds_the_estimate_and_narrows_with_slides(task: str, classes: int) -> None:
    few, many = slides(40, classes), slides(1000, classes)
    wide, narrow = bootstrap_interval(*few, task), bootstrap_interval(*many, task)
    for name, estimate in head_scores(*few, task).items():
        assert wide[name][0] <= estimate <= wide[name][1]
        assert wide[name][1] - wide[name][0] > 2 * (narrow[name][1] - narrow[name][0]) > 0


def test_the_seed_decides_the_interval() -> None:
    p, y = slides(30, 3)
    assert bootstrap_interval(p, y, "multilabel", seed=1) == bootstrap_interval(p, y, "multilabel", seed=1)
    assert bootstrap_interval(p, y, "multilabel", seed=1) != bootstrap_interval(p, y, "multilabel", seed=2)


def test_blocks_of_resamples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = slides(30, 3)
    first, second = trainings(2, y, 0.3, 1), trainings(3, y, 0.4, 2)

    def results() -> list[object]:
        return [
            bootstrap_interval(p, y, "multilabel", num_resamples=50),
            class_intervals(p, y, "abc", num_resamples=50, task="multilabel"),
            mean_interval(p, num_resamples=50),
            paired_difference(first, second, y, "multilabel", "roc_auc", num_resamples=50),
        ]

    whole = results()
    monkeypatch.setattr("scripts.evaluation.bootstrap.BLOCK_VALUES", 700)
    assert results() == whole


def test_a_thousand_slides_take_seconds_not_minutes() -> None:
    start = time.process_time()
    bootstrap_interval(*slides(1000, 5, decimals=6), "multilabel")
    class_intervals(*slides(1000, 5, decimals=6), "abcde", task="multilabel")
    assert time.process_time() - start < 10


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="within 0 to 1, got 1.2"):
        bootstrap_interval([[1.2]], [[1]], "binary")
    with pytest.raises(ValueError, match="a name for each of 1 classes, got 2"):
        class_intervals([[0.2]], [[1]], ["cancer", "hgd"], task="multilabel")
    with pytest.raises(SettingsError, match=r"task: got 'both'. Choose one of: multilabel, binary"):
        bootstrap_interval([[0.1]], [[1]], "both")


# --- patients with several slides ---------------------------------------------------------------------------


def whose(n: int, patients: int, seed: int = 0) -> list[str]:
    """The patients of n slides, of which some have several."""
    return [f"P{i}" for i in np.random.default_rng(seed).integers(patients, size=n)]


def patient_resamples(patients: list[str], num_resamples: int, seed: int) -> list[list[int]]:
    """The slides of each resample: patients are drawn one by one, each with all slides."""
    names = list(dict.fromkeys(patients))
    own = [[i for i, patient in enumerate(patients) if patient == name] for name in names]
    draws = np.random.default_rng(seed).integers(len(names), size=(num_resamples, len(names)))
    return [[i for one in draw for i in own[one]] for draw in draws]


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 3), ("binary", 1)])
@pytest.mark.parametrize(("n", "patients"), [(1, 1), (7, 2), (40, 12)])
def test_intervals_equal_those_of_resampled_patients(task: str, classes: int, n: int, patients: int) -> None:
    p, y = slides(n, classes, seed=n, decimals=1)
    own, names = whose(n, patients, seed=n), "abc"[:classes]
    resamples = patient_resamples(own, 60, 5)
    told = [head_scores(p[draw], y[draw], task) for draw in resamples]
    for name, interval in bootstrap_interval(p, y, task, 60, 5, patients=own).items():
        assert interval == pytest.approx(percentiles([scores[name] for scores in told]), nan_ok=True)
    of_classes = [class_scores(p[draw], y[draw], names, task) for draw in resamples]
    for name, of_class in class_intervals(p, y, names, 60, 5, patients=own, task=task).items():
        for score, interval in of_class.items():
            assert interval == pytest.approx(percentiles([s[name][score] for s in of_classes]), nan_ok=True)
    means = [float(p[draw].mean()) for draw in resamples]
    assert mean_interval(p, 60, 5, patients=own) == pytest.approx(percentiles(means))


def test_a_mean_counts_the_patients_that_have_a_value() -> None:
    values, own = [0.1, math.nan, 0.7, 0.4, math.nan], ["b", "a", "c", "b", "c"]
    means = [float(np.mean(np.array([0.1, 0.7, 0.4])[draw])) for draw in patient_resamples(["b", "c", "b"], 60, 5)]
    assert mean_interval(values, 60, 5, patients=own) == pytest.approx(percentiles(means))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**16), st.sampled_from(["p", 7, "é"]))
def test_patients_with_one_slide_each_change_no_digit(n: int, seed: int, name: str | int) -> None:
    p, y = slides(n, 3, seed)
    own = [(name, i) for i in np.random.default_rng(seed).permutation(n)]
    first, second = trainings(2, y, 0.3, 1), trainings(3, y, 0.4, 2)
    # As text, in which NaN equals NaN.
    for call in (
        lambda patients: bootstrap_interval(p, y, "multilabel", 40, seed, patients=patients),
        lambda patients: class_intervals(p, y, "abc", 40, seed, patients=patients, task="multilabel"),
        lambda patients: mean_interval(p, 40, seed, patients=patients),
        lambda patients: paired_difference(first, second, y, "multilabel", "micro_f1", 40, seed, patients=patients),
    ):
        assert repr(call(own)) == repr(call(None))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(6, 25), st.integers(0, 2**16))
def test_more_slides_of_the_same_patients_are_no_more_evidence(k: int, n: int, seed: int) -> None:
    """Each slide k times: the interval of patients stays, that of slides narrows, as if patients had been added."""
    p, y = slides(n, 2, seed)
    own = whose(n, n, seed)
    many_p, many_y, many_own = np.repeat(p, k, axis=0), np.repeat(y, k, axis=0), np.repeat(own, k).tolist()
    before, after = (
        {
            **bootstrap_interval(*cohort, "multilabel", 200, seed, patients=whose_slides),
            "mean": mean_interval(cohort[0], 200, seed, patients=whose_slides),
            "paired": dataclasses.astuple(
                paired_difference([cohort[0]], [1 - cohort[0]], cohort[1], "multilabel", "micro_accuracy", 200, seed,
                                  patients=whose_slides)
            ),
        }
        for cohort, whose_slides in (((p, y), own), ((many_p, many_y), many_own))
    )  # fmt: skip
    for name, interval in before.items():
        assert after[name] == pytest.approx(interval, abs=1e-12, nan_ok=True)
    low, high = mean_interval(many_p, 200, seed)
    alone = mean_interval(p, 200, seed)
    assert high - low < alone[1] - alone[0]


def test_paired_differences_are_those_of_resampled_patients() -> None:
    labels = np.random.default_rng(3).integers(2, size=(9, 3))
    first, second = trainings(3, labels, 0.4, 1), trainings(2, labels, 0.1, 2)
    own = whose(9, 4)
    found = paired_difference(first, second, labels, "multilabel", "micro_f1", 40, 7, patients=own)
    wanted = slow_difference(first, second, labels, "multilabel", "micro_f1", 40, 7, patient_resamples(own, 40, 7))
    assert dataclasses.astuple(found) == pytest.approx(wanted)


def test_about_95_of_100_intervals_of_patients_hold_the_true_accuracy() -> None:
    """Of patients with four alike slides each. The intervals of slides hold it too rarely, which is the fault."""
    rng, held = np.random.default_rng(3), {"patients": 0, "slides": 0}
    for cohort in range(200):
        hard = rng.beta(2, 0.5, 40)  # the patients' own accuracies, 0.8 on average
        right = rng.random((40, 4)) < hard[:, None]
        own = np.repeat(np.arange(40), 4).tolist()
        for name, patients in (("patients", own), ("slides", None)):
            low, high = mean_interval(right.reshape(-1).astype(float), 300, cohort, patients=patients)
            held[name] += low <= 0.8 <= high
    assert held["patients"] / 200 > 0.89
    assert held["slides"] / 200 < 0.86


# --- a mean -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**16))
def test_the_interval_of_a_mean_is_that_of_means_of_drawn_slides(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n, m)) < 0.4, np.nan, rng.random((n, m)))
    known = values[~np.isnan(values).all(axis=1)]
    draws = np.random.default_rng(5).integers(max(len(known), 1), size=(60, len(known)))
    means = [float(np.nanmean(known[draw])) for draw in draws] if len(known) else []
    assert mean_interval(values, num_resamples=60, seed=5) == pytest.approx(percentiles(means), nan_ok=True)


def test_a_row_of_values_is_one_value_for_each_slide() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    assert mean_interval(values) == mean_interval([[value] for value in values])
    low, high = mean_interval(values)
    assert 0.1 <= low < np.mean(values) < high <= 0.9


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 0)), np.zeros((0, 3)), [[math.nan, math.nan]]])
def test_a_mean_of_nothing_has_no_interval(nothing: list | np.ndarray) -> None:
    assert np.isnan(mean_interval(nothing)).all()


# --- two methods ------------------------------------------------------------------------------------------


def slow_difference(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    task: str,
    score: str,
    num_resamples: int,
    seed: int,
    resamples: list[list[int]] | None = None,
) -> tuple[float, float, float, float]:
    """The definition, a resample at a time, with nothing but head_scores."""

    def mean_score(method: np.ndarray, chosen: list[int], slides: np.ndarray) -> float:
        return float(np.mean([head_scores(method[r][slides], labels[slides], task)[score] for r in chosen]))

    n = len(labels)
    slide_draws = resamples or list(np.random.default_rng(seed).integers(n, size=(num_resamples, n)))
    uniform = np.random.default_rng([seed, 1]).random((2, num_resamples, max(len(first), len(second))))
    differences = []
    for one, other in ((0, 1), (1, 0)):
        for i in range(num_resamples):
            chosen = [
                [int(u * len(method)) for u in uniform[side, i, : max(1, len(method) - 1)]]
                for method, side in ((first, one), (second, other))
            ]
            pair = [mean_score(m, c, slide_draws[i]) for m, c in zip((first, second), chosen, strict=True)]
            differences.append(pair[0] - pair[1])
    known = [d for d in differences if not math.isnan(d)]
    rarer = min(sum(d <= 0 for d in known), sum(d >= 0 for d in known))
    estimate = mean_score(first, [*range(len(first))], np.arange(n)) - mean_score(
        second, [*range(len(second))], np.arange(n)
    )
    return estimate, *percentiles(known), min(1, 2 * (1 + rarer) / (1 + len(known)))


@pytest.mark.parametrize(
    ("task", "classes", "score"),
    [*(("multilabel", 3, name) for name in score_names("multilabel")), ("binary", 1, "f1"), ("binary", 1, "roc_auc")],
)
def test_the_paired_difference_is_that_of_a_plain_loop(task: str, classes: int, score: str) -> None:
    labels = np.random.default_rng(3).integers(2, size=(6, classes))
    first, second = trainings(3, labels, 0.4, 1), trainings(2, labels, 0.1, 2)
    found = paired_difference(first, second, labels, task, score, num_resamples=40, seed=7)
    assert dataclasses.astuple(found) == pytest.approx(slow_difference(first, second, labels, task, score, 40, 7))


@pytest.mark.parametrize("repeats", [1, 5])
def test_a_method_does_not_differ_from_itself(repeats: int) -> None:
    labels = slides(30, 3)[1]
    method = trainings(repeats, labels, 0.3, 1)
    same = paired_difference(method, method, labels, "multilabel", "micro_f1")
    assert same.difference == 0
    assert same.low <= 0 <= same.high
    assert same.p_value > 0.9
    assert (same.low < 0 < same.high) == (repeats > 1)  # of one training nothing but the slides can vary


@pytest.mark.parametrize("repeats", [(4, 4), (2, 5), (1, 3)])
def test_exchanging_the_methods_changes_the_signs_and_nothing_else(repeats: tuple[int, int]) -> None:
    labels = slides(30, 3)[1]
    first, second = (trainings(r, labels, 0.2 + 0.1 * r, r) for r in repeats)
    there = paired_difference(first, second, labels, "multilabel", "roc_auc")
    back = paired_difference(second, first, labels, "multilabel", "roc_auc")
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_a_clear_difference_is_found_and_its_sign_is_that_of_first_minus_second() -> None:
    labels = slides(60, 3)[1]
    better, worse = trainings(5, labels, 0.5, 1), trainings(5, labels, 0.05, 2)
    found = paired_difference(better, worse, labels, "multilabel", "micro_f1")
    assert 0 < found.low < found.difference < found.high
    assert 0 < found.p_value < 0.01


def test_errors_on_the_same_slides_do_not_count_against_a_comparison() -> None:
    # Hard slides are hard for both methods. Shuffled within equal labels, the second method's scores are the same,
    # but its errors fall on other slides: what is left is an unpaired comparison.
    rng = np.random.default_rng(0)
    labels = (np.arange(80) % 2)[:, None]
    wrong = rng.random(80) < 0.3
    also_wrong = wrong | (rng.random(80) < 0.05)
    first, second = (
        np.where(w, 1 - labels[:, 0], labels[:, 0]).astype(float)[None, :, None] for w in (wrong, also_wrong)
    )
    elsewhere = second.copy()
    for value in (0, 1):
        mine = np.flatnonzero(labels[:, 0] == value)
        elsewhere[:, mine] = second[:, rng.permutation(mine)]
    paired = paired_difference(first, second, labels, "binary", "accuracy")
    unpaired = paired_difference(first, elsewhere, labels, "binary", "accuracy")
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_seeds_that_differ_widen_the_interval() -> None:
    labels = (np.arange(200) % 2)[:, None]
    rng = np.random.default_rng(0)
    hard = rng.random(200)

    def method(shares_wrong: list[float]) -> np.ndarray:
        return np.stack([np.where(hard[:, None] < share, 1 - labels, labels) for share in shares_wrong]).astype(float)

    other = method([0.25] * 5)
    steady = paired_difference(method([0.2] * 5), other, labels, "binary", "accuracy")
    shaky = paired_difference(method([0.05, 0.1, 0.2, 0.3, 0.35]), other, labels, "binary", "accuracy")
    assert shaky.difference == pytest.approx(steady.difference, abs=0.01)
    assert shaky.high - shaky.low > 2 * (steady.high - steady.low)


@pytest.mark.parametrize("seed_spread", [0.0, 0.3])
def test_about_95_of_100_intervals_hold_the_true_difference(seed_spread: float) -> None:
    """Slides are hard or easy for all, for one method, and for one training; the true accuracies are known.

    200 cohorts tell 0.95 to 0.03 up or down (two standard errors); the limits leave 0.02 more for what a percentile
    interval of five seeds lacks, and what drawing slides and seeds across each other adds.
    """
    rng, skill, num_slides, repeats, cohorts = np.random.default_rng(11), (1.0, 0.7), 100, 5, 200
    spread = {"slide": 1.0, "slide and method": 0.5, "training": seed_spread, "rest": 0.3}
    normal_cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))
    accuracies = normal_cdf(np.array(skill) / math.sqrt(sum(value**2 for value in spread.values())))
    truth, held = accuracies[0] - accuracies[1], 0
    for cohort in range(cohorts):
        labels = rng.integers(2, size=(num_slides, 1))
        slide = rng.normal(0, spread["slide"], num_slides)
        methods = []
        for mean in skill:
            margin = mean + slide + rng.normal(0, spread["slide and method"], num_slides)
            margin = margin + rng.normal(0, spread["training"], (repeats, 1))
            right = margin + rng.normal(0, spread["rest"], (repeats, num_slides)) > 0
            methods.append(np.where(right[..., None], labels, 1 - labels).astype(float))
        found = paired_difference(*methods, labels, "binary", "accuracy", num_resamples=300, seed=cohort)
        held += found.low <= truth <= found.high
    assert 0.90 <= held / cohorts <= 0.99


def test_two_thousand_resamples_take_less_than_two_seconds() -> None:
    labels = slides(60, 5)[1]
    first, second = trainings(5, labels, 0.3, 1), trainings(5, labels, 0.2, 2)
    start = time.process_time()
    paired_difference(first, second, labels, "multilabel", "roc_auc")
    assert time.process_time() - start < 2


def test_a_roc_auc_that_is_undefined_has_no_difference() -> None:
    found = paired_difference([[[0.1], [0.2]]], [[[0.3], [0.2]]], [[1], [1]], "binary", "roc_auc")
    assert all(math.isnan(value) for value in dataclasses.astuple(found))
