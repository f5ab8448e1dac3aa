"""What runs score in each group, and intervals over groups."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scripts.evaluation.metrics import frequency_baseline
from tests.benchmarks.tissue.results import AT_POINT, interval_over_groups, read_outputs
from tests.comparisons import CLASSES, interval_of_four_groups, write_run


@pytest.mark.parametrize("seed", range(3))
def test_intervals_over_groups_are_students_t_with_the_correction_for_trainings_that_share_slides(seed):
    values = np.random.default_rng(seed).normal(size=4)
    assert interval_over_groups(values) == pytest.approx((values.mean(), *interval_of_four_groups(values)))
    # Without a correction they would be those of scipy.
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert np.ptp(interval_of_four_groups(values)) / (high - low) == pytest.approx(np.sqrt(3))
    assert interval_over_groups(np.full(4, 0.25)) == (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Runs of two methods with two seeds and three folds, as `comparing` leaves them."""
    folder = tmp_path_factory.mktemp("compared")
    for method in ("mustmil", "ssmil"):
        for seed in range(2):
            for fold in range(3):
                run = folder / "runs" / method / f"seed_{seed}" / f"fold_{fold + 1}"
                write_run(run, method, seed, num_slides=14, cohort=fold)
                training = json.loads((run / "training.json").read_text())
                for best in training["best"].values():
                    best["validation_loss"] = 0.1 * (1 + 3 * seed + fold)
                (run / "training.json").write_text(json.dumps(training))
                (run / "done.json").write_text("{}")
    return folder


def test_a_score_is_the_mean_over_seeds_in_each_group(compared):
    outputs = read_outputs(compared, "multilabel", ["ssmil", "mustmil"], [0, 1])
    titles = ["SSMIL 5x", "SSMIL 10x", "MuSTMIL global", "MuSTMIL 5x", "MuSTMIL 10x", "class frequencies alone"]
    assert [output.title for output in outputs] == titles
    assert [output.title for output in outputs if output.is_reference] == ["MuSTMIL global"]
    for output in outputs[:-1]:
        title, head = output.title.split()
        for fold in range(3):
            runs = [compared / "runs" / title.lower() / f"seed_{seed}" / f"fold_{fold + 1}" for seed in range(2)]
            metrics = [json.loads((run / "metrics.json").read_text())[head] for run in runs]
            maps = [json.loads((run / "localisation.json").read_text()) for run in runs]
            wanted = {
                "micro_f1": [of["micro_f1"]["value"] for of in metrics],
                AT_POINT: [of["operating_point"]["micro_f1"]["value"] for of in metrics],
                "roc_auc": [np.mean([of["classes"][c]["roc_auc"]["value"] for c in CLASSES]) for of in metrics],
                "attention": [of[head]["all"]["roc_auc"]["value"] for of in maps],
                "contribution": [of[f"{head} contribution"]["all"]["roc_auc"]["value"] for of in maps],
            }
            for name, values in wanted.items():
                assert output.scores[name][fold] == pytest.approx(np.mean(values))
        assert output.seconds == pytest.approx(2.5)  # 2 and 3 s
        of_trainings = set()
        for run in (compared / "runs" / title.lower()).glob("seed_*/fold_*"):
            loss = json.loads((run / "training.json").read_text())["best"][head]["validation_loss"]
            attention = json.loads((run / "localisation.json").read_text())[head]["all"]["roc_auc"]["value"]
            of_trainings.add((loss, attention))
        assert set(zip(output.best_losses, output.attentions, strict=True)) == of_trainings
        assert len(of_trainings) == 6


def test_class_frequencies_are_those_of_the_other_groups(compared):
    last = read_outputs(compared, "multilabel", ["ssmil"], [1])[-1]
    labels = [np.random.default_rng([fold, 99]).integers(0, 2, (14, 3)).astype(float) for fold in range(3)]
    others = np.concatenate([labels[1], labels[2]])
    assert last.scores["micro_f1"][0] == frequency_baseline(others, labels[0], "multilabel")["micro_f1"]


def test_runs_of_other_seeds_and_methods_do_not_count(compared):
    outputs = read_outputs(compared, "multilabel", ["mustmil"], [1])
    assert [output.title for output in outputs] == [f"MuSTMIL {h}" for h in ("global", "5x", "10x")] + [
        "class frequencies alone"
    ]
    assert outputs[0].seconds == pytest.approx(3)


def test_a_variant_has_the_heads_that_it_trains(compared, tmp_path):
    own = Path("runs") / "mustmil_beta=0" / "seed_1"
    shutil.copytree(compared / "runs" / "mustmil" / "seed_1", tmp_path / own)
    outputs = read_outputs(tmp_path, "multilabel", ["mustmil beta=0"], [1])
    assert [output.title for output in outputs] == ["MuSTMIL beta=0 global", "class frequencies alone"]
    assert not any(output.is_reference for output in outputs)
