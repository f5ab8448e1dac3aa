"""TensorBoard's view of many trainings: the tables, the pictures, and a line of the HParams tab for each run."""

from __future__ import annotations

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from scripts.experiments.board import write_comparison, write_hparams
from tests.comparisons import write_cohort


def events_of(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def settings_of(events):
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return HParamsPluginData.FromString(content).session_start_info.hparams


def test_what_tensorboard_has_no_column_for_is_text(tmp_path):
    write_hparams(tmp_path, {"magnifications": [5, 10], "lr": 0.1}, {"loss": 0.25})
    settings = settings_of(events_of(tmp_path))
    assert settings["magnifications"].string_value == "[5, 10]"
    assert settings["lr"].number_value == 0.1


def test_each_run_is_a_line_with_its_settings_and_scores(tmp_path):
    runs = write_cohort(tmp_path / "runs", seeds=(0, 1))
    settings = {"task": "multilabel", "epochs": 3, "lr": 0.5, "backbone": "tiny", "magnifications": [5, 10]}
    write_comparison(tmp_path / "board", runs, "| table |", {"scores": Figure(figsize=(2, 1))}, settings)
    for run in runs:
        events = events_of(tmp_path / "board" / run.method / f"seed_{run.seed}")
        found = settings_of(events)
        assert found["method"].string_value == run.method
        assert found["seed"].number_value == run.seed
        assert found["epochs"].number_value == 3
        for head, scores in run.scores.items():
            (event,) = events.Scalars(f"{head}/micro_f1")
            assert abs(event.value - scores["micro_f1"]) < 1e-6
    shared = events_of(tmp_path / "board")
    assert shared.Tags()["images"] == ["scores"]
    assert shared.Tensors("comparison/text_summary")[0].tensor_proto.string_val == [b"| table |"]


def test_a_second_comparison_takes_the_place_of_the_first(tmp_path):
    runs = write_cohort(tmp_path / "runs", seeds=(0,))
    for _ in range(2):
        write_comparison(tmp_path / "board", runs, "", {}, {})
    folder = tmp_path / "board" / "mustmil" / "seed_0"
    assert len(list(folder.iterdir())) == 1
