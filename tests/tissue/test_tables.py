"""The tables of the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.benchmarks.tissue.results import AT_POINT, Output
from tests.benchmarks.tissue.tables import (
    ablation_table,
    chance_table,
    claims_table,
    difference_table,
    localisation_table,
    same_scales_table,
    score_table,
    turned_away_table,
)
from tests.comparisons import interval_of_four_groups, table_cells


def outputs_of(reference: list[float], other: list[float]) -> list[Output]:
    def scores(values):
        return {name: np.array(values) for name in ("micro_f1", AT_POINT, "roc_auc")}

    return [
        Output("MuSTMIL global", scores(reference), 1.0, (), (), (), "mustmil", "mustmil", "global"),
        Output("SSMIL 5x", scores(other), 1.0, (), (), (), "ssmil", "ssmil", "5x"),
    ]


def test_differences_are_paired_by_group():
    reference, other = np.array([0.9, 0.6, 0.8, 0.7]), np.array([0.8, 0.65, 0.6, 0.6])
    head, _, row = table_cells(difference_table(outputs_of(reference, other), "multilabel"))
    assert len(head) == len(row) == 5
    text = difference_text(reference, other)
    assert row == ["SSMIL 5x", text, text, text, "3 of 4 groups"]


def test_a_score_stands_beside_chance_and_says_whether_chance_is_within_its_interval():
    near, above = [0.45, 0.55, 0.5, 0.52], [0.8, 0.82, 0.78, 0.81]
    table, told = chance_table(outputs_of(near, above)).split("\n\n")
    rows = table_cells(table)[2:]
    assert told.startswith("Of 2 intervals 1 leave 0.5 out; of so many 0.1 do by chance.")
    assert [(row[0], row[2], row[3]) for row in rows] == [("MuSTMIL global", "0.5", "yes"), ("SSMIL 5x", "0.5", "no")]


def test_an_interval_of_a_score_is_cut_off_at_1_and_one_of_a_difference_is_not():
    outputs = outputs_of([1.0, 0.7, 1.0, 1.0], [0.1, 0.0, 0.0, 0.0])
    assert ", 1.000]" in chance_table(outputs).splitlines()[2]
    assert float(difference_table(outputs, "multilabel").split(", ")[-1].split("]")[0]) > 1


def test_the_gain_of_two_scales_stands_beside_that_of_one_scale_twice():
    real, same = outputs_of([0.9, 0.8, 0.9], [0.7, 0.7, 0.7]), outputs_of([0.7, 0.8, 0.6], [0.7, 0.8, 0.6])
    row = table_cells(same_scales_table(real, same))[2]
    assert row[1].startswith("+0.167 [")
    assert row[2] == "+0.000 [+0.000, +0.000]"
    assert row[3] == row[1]


def with_maps(title: str, variant: str, head: str, seed: int) -> Output:
    names = ("micro_f1", AT_POINT, "roc_auc", "attention", "contribution")
    scores = dict(zip(names, np.random.default_rng(seed).random((5, 4)), strict=True))
    return Output(f"{title} {head}", scores, 1.0, (), (), (), variant, variant.split()[0], head)


def difference_text(first: np.ndarray, second: np.ndarray) -> str:
    low, high = interval_of_four_groups(first - second)
    return f"{(first - second).mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def test_what_a_part_brings_is_told_for_each_head_that_the_variant_has():
    outputs = [
        with_maps("MuSTMIL", "mustmil", "global", 0),
        with_maps("MuSTMIL", "mustmil", "5x", 1),
        with_maps("SSMIL", "ssmil", "5x", 2),
        with_maps("MuSTMIL beta=0", "mustmil beta=0", "global", 3),
        with_maps("MuSTMIL alpha=0", "mustmil alpha=0", "5x", 4),
    ]
    rows = table_cells(ablation_table(outputs, "multilabel"))[2:]
    assert [row[0] for row in rows] == ["MuSTMIL beta=0 global", "MuSTMIL alpha=0 5x"]
    for row, method, variant in ((rows[0], outputs[0], outputs[3]), (rows[1], outputs[1], outputs[4])):
        assert row[1:] == [difference_text(method.scores[name], variant.scores[name]) for name in method.scores]
    assert ablation_table(outputs[:3], "multilabel") == ""


def test_each_head_of_mustmil_is_compared_with_its_own_scale_alone():
    heads = [("MuSTMIL", "mustmil", head) for head in ("global", "5x", "10x")]
    heads += [("MSMIL", "msmil", "global"), ("SSMIL", "ssmil", "5x"), ("SSMIL", "ssmil", "10x")]
    outputs = [with_maps(*place, seed) for seed, place in enumerate(heads)]
    rows = table_cells(claims_table(outputs, "multilabel"))[2:]
    pairs = {"MuSTMIL 5x less SSMIL 5x": (1, 4), "MuSTMIL 10x less SSMIL 10x": (2, 5)}
    others = ["MuSTMIL global less SSMIL 5x", "MuSTMIL global less SSMIL 10x", "MuSTMIL global less MSMIL global"]
    assert [row[0] for row in rows] == [*others, *pairs]
    for row in rows[3:]:
        first, second = (outputs[i].scores["roc_auc"] for i in pairs[row[0]])
        assert row[3] == difference_text(first, second)
    assert len(table_cells(claims_table(outputs[:-1], "multilabel"))[2:]) == 3
    assert claims_table(outputs[3:], "multilabel") == ""


def test_a_table_of_scores_says_which_trainings_might_have_gone_on_and_which_learnt_nothing():
    one = replace(with_maps("MuSTMIL", "mustmil", "global", 0), best_epochs=(20, 3, 20), best_losses=(0.1, 0.69, 0.2))
    one.scores["f1"] = one.scores["micro_f1"]
    head, _, row = table_cells(score_table([one], "binary", 20))
    assert head[-2:] == ["best epoch the last", "validation loss above 0.6"]
    assert row[-2:] == ["2 of 3", "1 of 3"]
    assert table_cells(score_table([one], "multilabel", 5))[2][-1] == "0 of 3"


def test_a_variants_attention_is_compared_with_the_contribution_of_its_method():
    method = with_maps("MuSTMIL", "mustmil", "global", 0)
    variant = with_maps("MuSTMIL class_attention=separate", "mustmil class_attention=separate", "global", 1)
    without = Output(
        "mean 10x", {"micro_f1": np.zeros(4), "attention": np.full(4, np.nan)}, 1.0, (), (), (), "mean", "mean", "10x"
    )
    _, _, own, other = table_cells(localisation_table([method, variant, without]))
    of_method = method.scores["attention"], method.scores["contribution"]
    assert own[3] == own[4] == difference_text(*of_method)
    assert other[4] == difference_text(variant.scores["attention"], of_method[1])
    assert localisation_table([without]) == ""


def test_attention_of_trainings_that_learnt_stands_apart_from_that_of_others():
    one = replace(
        with_maps("MuSTMIL", "mustmil", "global", 0),
        best_losses=(0.1, 0.69, 0.2, 0.7),
        attentions=(0.9, 0.125, 0.95, 0.0),
    )
    all_learnt = replace(one, title="MuSTMIL 5x", best_losses=(0.1,) * 4)
    rows = table_cells(turned_away_table([one, all_learnt]))[2:]
    assert rows == [
        ["MuSTMIL global", "2", "0.900 to 0.950", "2", "0.000 to 0.125"],
        ["MuSTMIL 5x", "4", "0.000 to 0.950", "0", "-"],
    ]
    assert turned_away_table([replace(one, scores={"f1": np.zeros(4)})]) == ""
