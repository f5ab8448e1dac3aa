"""The curves of a training: what TensorBoard shows of each iteration."""

import re

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.tensorboard import SummaryWriter

from scripts.training.curves import loss_and_metric_layout, training_scalars, write_validation
from tests.trainings import Training

HEADS = ["global", "5x", "10x"]


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(str(tmp_path / "events")) as opened:
        yield opened


def events_of(writer):
    writer.flush()
    events = EventAccumulator(writer.log_dir, size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_scalars_are_the_losses_of_each_head_and_the_learning_rate():
    logits = torch.tensor([[[0.2, -1.0], [1.5, 0.3], [-0.7, 0.0]], [[2.0, 0.1], [-0.4, 1.1], [0.9, -2.2]]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    output = [{"pred": p, "label": y, "loss": torch.tensor(3.5)} for p, y in zip(logits, labels, strict=True)]
    scalars = training_scalars(HEADS, optimizer)(output)
    assert list(scalars) == [
        "loss/training", "loss/global/training", "loss/5x/training", "loss/10x/training", "rate/learning_rate",
    ]  # fmt: skip
    assert scalars["loss/training"] == 3.5
    assert scalars["rate/learning_rate"] == 0.25
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    for index, head in enumerate(HEADS):
        y, q = labels.numpy(), p[:, index]
        by_hand = -(y * np.log(q) + (1 - y) * np.log(1 - q)).mean()
        assert scalars[f"loss/{head}/training"] == pytest.approx(by_hand, rel=1e-5)


def test_tensorboard_shows_the_loss_of_every_iteration(tmp_path, writer):
    losses = []

    class Record:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            (output,) = engine.state.output
            logits, label = output["pred"], output["label"]
            losses.append([float(binary_cross_entropy_with_logits(head, label)) for head in logits])

    training = Training(tmp_path, epochs=2, extra_handlers=[Record()])
    TensorBoardStatsHandler(summary_writer=writer, output_transform=training_scalars(HEADS, training.optimizer)).attach(
        training.trainer
    )
    training.run()
    events, losses = events_of(writer), np.array(losses)
    assert len(losses) == 16
    for index, head in enumerate(HEADS):
        shown = events.Scalars(f"loss/{head}/training")
        assert [event.step for event in shown] == list(range(1, 17))
        assert [event.value for event in shown] == pytest.approx(losses[:, index], rel=1e-5)
    total = [event.value for event in events.Scalars("loss/training")]
    assert total == pytest.approx(losses.sum(axis=1), rel=1e-5)  # alpha = beta = 1
    assert {event.value for event in events.Scalars("rate/learning_rate")} == {np.float32(0.01).item()}


def test_a_validation_is_shown_at_the_iteration_of_the_training(writer):
    validator = Engine(lambda engine, batch: None)
    TensorBoardStatsHandler(
        summary_writer=writer, iteration_log=False, epoch_event_writer=write_validation(["global", "2.5x"], 16)
    ).attach(validator)
    metrics = {"global_loss": 0.5, "global_micro_f1": 0.75, "2.5x_loss": 0.25, "2.5x_roc_auc": 1.0}
    validator.add_event_handler(Events.STARTED, lambda engine: engine.state.metrics.update(metrics))
    validator.run([0], max_epochs=2)
    events = events_of(writer)
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "loss/global/validation": 0.5,
        "metrics/global/micro_f1": 0.75,
        "loss/2.5x/validation": 0.25,
        "metrics/2.5x/roc_auc": 1.0,
    }
    assert [event.step for event in events.Scalars("loss/global/validation")] == [16, 32]


def test_one_chart_has_the_losses_of_a_head_and_one_a_score_of_all_heads(writer):
    heads = ["global", "2.5x"]
    writer.add_custom_scalars(loss_and_metric_layout(heads, ["micro_f1"]))
    (tensor,) = events_of(writer).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for group in layout.category for chart in group.chart}
    tags = [f"loss/{head}/{of}" for head in [*heads, "205x"] for of in ("training", "validation")]
    tags += [f"metrics/{head}/micro_f1" for head in [*heads, "205x"]]
    shown = {title: [tag for tag in tags if any(re.match(p, tag) for p in of)] for title, of in charts.items()}
    assert shown == {
        "loss of global": ["loss/global/training", "loss/global/validation"],
        "loss of 2.5x": ["loss/2.5x/training", "loss/2.5x/validation"],
        "micro_f1": ["metrics/global/micro_f1", "metrics/2.5x/micro_f1"],
    }
