"""The benchmarks of operating points and INT8: a cohort, what is read of an evaluation, and tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from scripts.synthetic.cohort import CLASSES
from tests.benchmarks.int8 import change_table
from tests.benchmarks.operating_points import (
    HEADS,
    RULES,
    Decided,
    class_table,
    frequency_table,
    paired_interval,
    read_decided,
    score_table,
)
from tests.benchmarks.rare_cohort import RARE_FRACTIONS, plan_rare_cohort

SIZES = {"training": 200, "validation": 120, "testing": 50}


# The cohort


@pytest.mark.parametrize("seed", range(5))
def test_every_partition_has_the_same_fraction_of_each_rare_class(seed):
    plans = plan_rare_cohort(SIZES, seed)
    for partition, number in SIZES.items():
        labels = np.array([plan.label for plan in plans if plan.partition == partition])
        assert len(labels) == number
        for name, fraction in RARE_FRACTIONS.items():
            assert labels[:, CLASSES.index(name)].sum() == round(fraction * number)


@pytest.mark.parametrize("seed", range(5))
def test_a_slide_has_one_to_three_classes_and_normal_glands_if_nothing_else(seed):
    labels = np.array([plan.label for plan in plan_rare_cohort(SIZES, seed)])
    others = np.delete(labels, CLASSES.index("normal"), axis=1).sum(axis=1)
    assert set(labels.sum(axis=1)) <= {1, 2, 3}
    assert labels[others == 0, CLASSES.index("normal")].all()
    assert 0.3 < labels[others == 1, CLASSES.index("normal")].mean() < 0.7


def test_a_patient_has_at_most_two_slides_in_one_partition_and_one_in_ten_slides_is_a_second_one():
    plans = plan_rare_cohort(SIZES)
    of = {plan.patient: {other.partition for other in plans if other.patient == plan.patient} for plan in plans}
    assert all(len(partitions) == 1 for partitions in of.values())
    assert len(of) == len(plans) * 9 // 10
    assert len({plan.name for plan in plans}) == len(plans)
    assert max(sum(plan.patient == patient for plan in plans) for patient in of) == 2


def test_the_seed_decides_the_plan():
    assert plan_rare_cohort(SIZES, 0) == plan_rare_cohort(SIZES, 0)
    assert plan_rare_cohort(SIZES, 0) != plan_rare_cohort(SIZES, 1)


# The results


def write_results(folder: Path, micro_f1: float, at_point: float) -> None:
    """Two slides, of cancer and of hgd with normal; all heads say cancer at 0.5, but all right at their point."""
    rows = [
        ("b", [0.9, 0.1, 0.1, 0.1, 0.1], "cancer", "cancer"),
        ("a", [0.6, 0.4, 0, 0, 0.4], "hgd;normal", "hgd;normal"),
    ]
    folder.mkdir()
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "head", *CLASSES, "decision", "label", "patient_number"])
        writer.writerows(
            [slide, head, *probabilities, decision, label, slide]
            for slide, probabilities, decision, label in rows
            for head in HEADS
        )
    of_head = {
        "micro_f1": {"value": micro_f1},
        "brier": {"value": 0.25},
        "operating_point": {"micro_f1": {"value": at_point}, "brier": {"value": 0.125}},
        "classes": {},
    }
    (folder / "metrics.json").write_text(json.dumps(dict.fromkeys(HEADS, of_head)))


def test_probabilities_decide_at_a_half_and_decisions_at_the_operating_point(tmp_path):
    # At 0.5: one true positive, one false one, two missed: F1 = 2 / (2 + 1 + 2). At the point all three are found.
    write_results(tmp_path / "run", 0.4, 1.0)
    plain, corrected = (read_decided(rule, [tmp_path / "run"]) for rule in RULES[:2])
    for head in range(len(HEADS)):
        found = {name: of[0] for name, of in plain.scores(head).items()}
        assert found == pytest.approx(
            {
                "micro_f1": 0.4,
                "precision": 1 / 2,
                "recall": 1 / 3,
                "macro_f1": 2 / 3 / 5,
                "predicted": 2 / 10,
                "brier": 0.25,
            }
        )
        found = {name: of[0] for name, of in corrected.scores(head).items()}
        assert found == pytest.approx(
            {"micro_f1": 1, "precision": 1, "recall": 1, "macro_f1": 3 / 5, "predicted": 0.3, "brier": 0.125}
        )


@pytest.mark.parametrize(("rule", "told"), [(RULES[0], (0.5, 1.0)), (RULES[1], (0.4, 0.9))])
def test_metrics_that_contradict_the_predictions_are_refused(tmp_path, rule, told):
    write_results(tmp_path / "run", *told)
    with pytest.raises(ValueError, match=r"global: micro-F1 is 0.\d in metrics.json, and "):
        read_decided(rule, [tmp_path / "run"])


# The tables


def test_the_interval_of_one_training_is_that_of_the_resampled_patients():
    differences = np.random.default_rng(0).normal(size=(1, 500))
    assert paired_interval(differences) == pytest.approx(np.percentile(differences, [2.5, 97.5]))


def test_the_interval_covers_which_trainings_there_were():
    constant = np.repeat([[0.0], [1.0]], 500, axis=1)
    assert paired_interval(constant) == (0, 1)  # of two trainings one is resampled
    assert paired_interval(np.full((5, 500), 0.25)) == (0.25, 0.25)
    five = np.repeat(np.arange(5.0)[:, None], 100_000, axis=1)
    half = (paired_interval(five)[1] - paired_interval(five)[0]) / 2
    # The mean of four of them has the variance 2 / 4.
    assert half == pytest.approx(1.96 * np.sqrt(0.5), abs=0.2)


def decided_by(rule, right: float) -> Decided:
    """Two trainings that call this fraction of ten slides right, and the others the opposite."""
    labels = (np.arange(50).reshape(10, 5) % 3 == 0).astype(float)
    decisions = np.repeat(labels[None, :, None], 2, axis=0).repeat(len(HEADS), axis=2)
    decisions[:, round(right * 10) :] = 1 - decisions[:, round(right * 10) :]
    return Decided(rule, [f"P{i}" for i in range(10)], labels, decisions, np.zeros((2, len(HEADS))))


def test_each_rule_is_compared_with_a_half_and_with_itself_uncorrected():
    table = score_table([decided_by(rule, 1 if rule.is_corrected else 0.5) for rule in RULES[:4]])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [line[:3] for line in cells[:4]] == [
        ["global", "0.5", "no"], ["global", "0.5", "yes"], ["global", "f1", "no"], ["global", "f1", "yes"],
    ]  # fmt: skip
    for line in cells[:2]:
        assert line[3].endswith("± 0.000")
    assert cells[0][-2:] == ["", ""]
    assert cells[2][-2:] == ["+0.000 [+0.000, +0.000]", ""]
    gain, low, high = (float(number.strip("[],")) for number in cells[3][-1].split())
    assert gain == pytest.approx(1 - float(cells[2][3].split()[0]), abs=0.001)
    assert 0 < low < gain < high < 1
    assert cells[3][-1] == cells[3][-2] == cells[1][-1]


def test_classes_have_the_fraction_that_is_called_positive_and_its_f1():
    labels, decisions = np.zeros((4, 5)), np.zeros((2, 4, len(HEADS), 5))
    labels[0, CLASSES.index("hgd")] = 1
    decisions[0, 0, :, CLASSES.index("hgd")] = 1  # found: F1 = 1
    decisions[1, :, :, CLASSES.index("hgd")] = 1  # called in all: F1 = 2 / (2 + 3)
    table = class_table([Decided(RULES[1], list("abcd"), labels, decisions, np.zeros((2, len(HEADS))))])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0] == ["head", "class", "true", "predicted, 0.5 corrected", "F1, 0.5 corrected"]
    spread = [f"{np.mean(of):.3f} ± {np.std(of, ddof=1):.3f}" for of in ([0.25, 1], [1, 0.4])]
    assert cells[3] == ["global", "hgd", "0.250", *spread]
    assert cells[2] == ["global", "cancer", "0.000", "0.000 ± 0.000", "0.000 ± 0.000"]


def test_frequencies_are_those_of_the_slides_and_of_their_draws():
    # Slides of cancer are drawn as often as the three of lgd together: half of the draws.
    labels = {"training": np.zeros((4, 5)), "testing": np.zeros((2, 5))}
    labels["training"][:, CLASSES.index("lgd")] = [0, 1, 1, 1]
    labels["training"][0, CLASSES.index("cancer")] = 1
    labels["testing"][:, CLASSES.index("cancer")] = 1
    lines = {line.split("|")[1].strip(): line for line in frequency_table(labels).splitlines()}
    cancer = [cell.strip() for cell in lines["cancer"].strip("|").split("|")]
    assert cancer == ["cancer", "0.250 (1 of 4)", "1.000 (2 of 2)", "0.500", f"{np.log(0.25 / 0.75):+.2f}"]


# INT8


def test_changes_of_scores_are_paired_by_seed():
    plain = np.arange(12.0).reshape(2, 3, 2) / 100
    quantised = plain + np.array([0.1, 0.3])[:, None, None]
    rows = change_table({"float32": plain, "INT8": quantised}).splitlines()
    assert [cell.strip() for cell in rows[0].strip("|").split("|")][2:] == ["float32", "INT8", "INT8 - float32"]
    cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]
    # Of 10x, ROC-AUC: 0.05 and 0.11, of which one rises by 0.1 and the other by 0.3.
    assert cells == ["10x", "ROC-AUC", "0.080 ± 0.042", "0.280 ± 0.184", "+0.200 ± 0.141"]
