"""The curves of a training: what TensorBoard shows of each iteration."""

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.handlers import TensorBoardStatsHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.tensorboard import SummaryWriter

from scripts.training.curves import training_scalars
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
        "train/loss", "train/loss_global", "train/loss_5x", "train/loss_10x", "train/learning_rate",
    ]  # fmt: skip
    assert scalars["train/loss"] == 3.5
    assert scalars["train/learning_rate"] == 0.25
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    for index, head in enumerate(HEADS):
        y, q = labels.numpy(), p[:, index]
        by_hand = -(y * np.log(q) + (1 - y) * np.log(1 - q)).mean()
        assert scalars[f"train/loss_{head}"] == pytest.approx(by_hand, rel=1e-5)


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
        shown = events.Scalars(f"train/loss_{head}")
        assert [event.step for event in shown] == list(range(1, 17))
        assert [event.value for event in shown] == pytest.approx(losses[:, index], rel=1e-5)
    total = [event.value for event in events.Scalars("train/loss")]
    assert total == pytest.approx(losses.sum(axis=1), rel=1e-5)  # alpha = beta = 1
    assert {event.value for event in events.Scalars("train/learning_rate")} == {np.float32(0.01).item()}
