"""The split by patient, on cohorts small enough to reason about and on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.split import split_patients


def cohort(num_patients: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Patients with 1 to 4 slides, classes from common to rare."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i}" for i in range(num_patients) for _ in range(rng.integers(1, 5))]
    labels = rng.random((len(patients), 5)) < np.array([0.5, 0.3, 0.2, 0.1, 0.03])
    return patients, labels.astype(np.float32)


def test_sizes_and_classes_follow_the_fractions() -> None:
    patients, labels = cohort(200)
    split = np.array(split_patients(patients, labels))
    for name, part in (("training", 0.7), ("validation", 0.1), ("testing", 0.2)):
        chosen = split == name
        assert chosen.mean() == pytest.approx(part, abs=0.02)
        np.testing.assert_allclose(labels[chosen].sum(0) / labels.sum(0), part, atol=0.08)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(0, 1000), st.integers(0, 3))
def test_patients_stay_together_and_no_partition_is_empty(num_patients: int, cohort_seed: int, seed: int) -> None:
    patients, labels = cohort(num_patients, cohort_seed)
    split = split_patients(patients, labels, seed)
    assert len(split) == len(patients)
    assert len(set(zip(patients, split, strict=True))) == num_patients
    assert set(split) == {"training", "validation", "testing"}
    # The order of the slides plays no part.
    order = np.random.default_rng(seed).permutation(len(patients))
    shuffled = split_patients([patients[i] for i in order], labels[order], seed)
    assert shuffled == [split[i] for i in order]


@pytest.mark.parametrize("seed", range(20))
def test_every_class_is_in_training(seed: int) -> None:
    """Also one that a single patient has."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((30, 5), dtype=np.float32)
    labels[np.arange(30), rng.permutation([0] * 15 + [1] * 8 + [2] * 4 + [3] * 2 + [4])] = 1
    split = np.array(split_patients([str(i) for i in range(30)], labels, seed))
    assert labels[split == "training"].any(axis=0).all()
    assert labels[split == "testing", :3].any(axis=0).all()


def test_filling_an_empty_partition_spares_rare_classes() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    for seed in range(10):
        split = np.array(split_patients(list("abcd"), labels, seed))
        assert set(split) == {"training", "validation", "testing"}
        assert labels[split == "training"].any(axis=0).all()


def test_seed() -> None:
    patients, labels = cohort(50)
    assert split_patients(patients, labels, 1) == split_patients(patients, labels, 1)
    assert split_patients(patients, labels, 1) != split_patients(patients, labels, 2)


def test_slides_without_a_class_are_spread() -> None:
    split = split_patients([str(i) for i in range(10)], np.zeros((10, 5)))
    assert sorted(split) == ["testing"] * 2 + ["training"] * 7 + ["validation"]


def test_too_few_patients() -> None:
    with pytest.raises(DatalistError, match=r"d\.csv: 2 patients are too few for 3 partitions\. Add"):
        split_patients(["a", "a", "b"], np.ones((3, 1)), subject="d.csv")


@pytest.mark.parametrize("seed", [None, -1, 0.5])
def test_a_split_needs_a_seed(seed: object) -> None:
    with pytest.raises(SettingsError, match=r"seed: got .*Give a whole number"):
        split_patients(list("abc"), np.ones((3, 1)), seed)  # type: ignore[arg-type]
