"""A comparison in TensorBoard: the table, the pictures, and a line of the HParams tab for each run."""

from __future__ import annotations

from matplotlib.figure import Figure

from scripts.experiments.comparison_board import write_board
from tests.comparisons import write_cohort
from tests.experiments.test_hparams import events_of, knobs_of


def test_each_run_is_a_line_with_its_knobs_and_scores(tmp_path):
    runs = write_cohort(tmp_path / "runs", seeds=(0, 1))
    settings = {"task": "multilabel", "epochs": 3, "lr": 0.5, "backbone": "tiny", "magnifications": [5, 10]}
    write_board(tmp_path / "board", runs, "| table |", {"scores": Figure(figsize=(2, 1))}, settings)
    for run in runs:
        events = events_of(tmp_path / "board" / run.method / f"seed_{run.seed}")
        knobs = knobs_of(events)
        assert knobs["method"].string_value == run.method
        assert knobs["seed"].number_value == run.seed
        assert knobs["epochs"].number_value == 3
        for head, report in run.metrics.items():
            (event,) = events.Scalars(f"{head}/micro_f1")
            assert abs(event.value - report["micro_f1"]["value"]) < 1e-6
    shared = events_of(tmp_path / "board")
    assert shared.Tags()["images"] == ["scores"]
    assert shared.Tensors("comparison/text_summary")[0].tensor_proto.string_val == [b"| table |"]


def test_a_second_comparison_takes_the_place_of_the_first(tmp_path):
    runs = write_cohort(tmp_path / "runs", seeds=(0,))
    for _ in range(2):
        write_board(tmp_path / "board", runs, "", {}, {})
    folder = tmp_path / "board" / "mustmil" / "seed_0"
    assert len(list(folder.iterdir())) == 1
