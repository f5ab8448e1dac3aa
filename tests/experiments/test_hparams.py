"""TensorBoard's HParams tab, read back."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from scripts.experiments.hparams import write_hparams


def events_of(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def knobs_of(events):
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return HParamsPluginData.FromString(content).session_start_info.hparams


def test_what_tensorboard_has_no_column_for_is_text(tmp_path):
    write_hparams(tmp_path, {"magnifications": [5, 10], "lr": 0.1}, {"loss": 0.25})
    knobs = knobs_of(events_of(tmp_path))
    assert knobs["magnifications"].string_value == "[5, 10]"
    assert knobs["lr"].number_value == 0.1
