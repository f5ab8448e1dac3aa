"""The best weights of each head: when they are kept, and what their files store."""

import logging

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.core.errors import SettingsError
from scripts.networks.mustmil import MuSTMIL
from scripts.training.best_weights import BestWeights
from scripts.weights.paths import weights_path
from scripts.weights.record import read_origin, read_record
from tests.trainings import Training, checkpoint
from tests.weights.test_record import RECORD

HEADS = ["global", "5x", "10x"]


def validate(best, network, losses):
    """Validations of epochs 1, 2, ... with these losses; in epoch i all weights of the network are i."""
    evaluator = Engine(lambda engine, batch: None)
    best.attach(evaluator)
    for epoch, loss in enumerate(losses, start=1):
        with torch.no_grad():
            network.weight.fill_(epoch)
        evaluator.state.epoch = epoch
        evaluator.state.metrics = {f"{head}_loss": value for head, value in zip(HEADS, loss, strict=True)}
        evaluator.fire_event(Events.EPOCH_COMPLETED)


def kept(folder, head):
    state = torch.load(weights_path(folder, head), weights_only=True)
    assert set(state) == {"weight"}  # a state dict, as the Model Zoo wants it
    return float(state["weight"])


def test_each_head_keeps_the_weights_of_its_own_best_epoch(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights(tmp_path, network, HEADS)
    validate(best, network, [(0.9, 0.5, 0.8), (0.7, 0.6, 0.9), (0.8, 0.5, 0.7), (0.75, 0.9, 0.71)])
    # The lowest loss; the first of equal ones.
    assert [kept(tmp_path, head) for head in HEADS] == [2, 1, 3]
    assert best.losses == {"global": 0.7, "5x": 0.5, "10x": 0.7}
    assert best.epochs == {"global": 2, "5x": 1, "10x": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "model_10x.pt", "model_5x.pt"]


def test_a_loss_that_is_nan_is_never_the_best(tmp_path):
    network, nan = torch.nn.Linear(1, 1, bias=False), float("nan")
    validate(BestWeights(tmp_path, network, HEADS), network, [(nan, nan, 0.5), (0.7, nan, nan), (nan, nan, 0.9)])
    assert [kept(tmp_path, head) for head in ("global", "10x")] == [2, 1]
    assert not weights_path(tmp_path, "5x").exists()


def test_a_resumed_training_has_the_earlier_best_to_beat(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    first = BestWeights(tmp_path, network, HEADS)
    validate(first, network, [(0.9, 0.5, 0.8)])
    second = BestWeights(tmp_path, network, HEADS)
    second.load_state_dict(first.state_dict())
    validate(second, network, [(1.0, 1.0, 1.0), (0.91, 0.49, 0.81)])
    assert [kept(tmp_path, head) for head in HEADS] == [1, 2, 1]


def test_a_resumed_validation_is_not_called_the_best_for_being_the_first(tmp_path, caplog):
    Training(tmp_path, epochs=2).run()
    content = checkpoint(tmp_path)
    content["best"]["losses"]["global"] = 0.0  # which no epoch will reach
    torch.save(content, tmp_path / "last.ckpt")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        Training(tmp_path, epochs=3, resume=True).run()
    assert "Got new best metric" not in caplog.text
    assert "going on after epoch 2" in caplog.text


def test_kept_weights_tell_what_they_were_trained_with_and_on(tmp_path):
    network = MuSTMIL(2, 2, 6, 4)
    best, evaluator = BestWeights(tmp_path, network, HEADS, RECORD), Engine(lambda engine, batch: None)
    best.attach(evaluator)
    evaluator.state.metrics = {f"{head}_loss": 0.5 for head in HEADS}
    evaluator.fire_event(Events.EPOCH_COMPLETED)
    assert [read_record(weights_path(tmp_path, head)) for head in HEADS] == [RECORD] * 3


def test_kept_weights_tell_which_head_they_are_best_for_and_what_made_them(tmp_path):
    made_by, network = {"seed": 3, "versions": {"torch": "2"}}, MuSTMIL(2, 2, 6, 4)
    best, evaluator = BestWeights(tmp_path, network, HEADS, RECORD, made_by), Engine(lambda engine, batch: None)
    best.attach(evaluator)
    evaluator.state.metrics = {f"{head}_loss": 0.5 for head in HEADS}
    evaluator.fire_event(Events.EPOCH_COMPLETED)
    for head in HEADS:
        path = weights_path(tmp_path, head)
        assert read_origin(path) == {"best_for": head, "made_by": made_by}
        assert read_record(path) == RECORD
    # What it goes on with is best for none of them.
    assert network.origin == {"made_by": made_by}


def test_a_training_does_not_go_on_beside_kept_weights_of_another(tmp_path):
    networks, bests = [], []
    for name, seed in (("one", 0), ("other", 1)):
        network = MuSTMIL(2, 2, 6, 4)
        best, evaluator = BestWeights(tmp_path / name, network, HEADS, RECORD, {"seed": seed}), Engine(lambda *_: None)
        best.attach(evaluator)
        evaluator.state.epoch, evaluator.state.metrics = 1, {f"{head}_loss": 0.5 for head in HEADS}
        evaluator.fire_event(Events.EPOCH_COMPLETED)
        networks.append(network)
        bests.append(best)
    again = BestWeights(tmp_path / "one", networks[0], HEADS, RECORD, {"seed": 0})
    again.load_state_dict(bests[0].state_dict())
    # As the other leaves them that is killed before its first checkpoint.
    weights_path(tmp_path / "other", "5x").replace(weights_path(tmp_path / "one", "5x"))
    with pytest.raises(SettingsError, match=r"model_5x\.pt: is of another training than the checkpoint to go on from"):
        again.load_state_dict(bests[0].state_dict())


def test_the_weights_of_the_global_head_are_model_pt(tmp_path):
    assert [weights_path(tmp_path, head).name for head in ["global", "5x", "12.5x"]] == [
        "model.pt", "model_5x.pt", "model_12.5x.pt",
    ]  # fmt: skip


def test_kept_weights_that_are_gone_are_missed_before_a_training_goes_on(tmp_path):
    Training(tmp_path, epochs=2).run()
    epoch = checkpoint(tmp_path)["best"]["epochs"]["5x"]
    weights_path(tmp_path, "5x").unlink()
    with pytest.raises(
        SettingsError,
        match=rf"model_5x\.pt: is gone: by the checkpoint, it contains the best weights for 5x so far, of epoch {epoch}"
        r"\. Put it back beside the checkpoint, or start anew\.",
    ):
        Training(tmp_path, epochs=3, resume=True).run()


def test_weights_of_another_training_that_would_stay_are_refused(tmp_path):
    weights_path(tmp_path, "20x").touch()
    best = BestWeights(tmp_path, torch.nn.Linear(1, 1), HEADS)
    with pytest.raises(SettingsError, match=r"model_20x.pt: is of another training, which this one would not replace"):
        best.attach(Engine(lambda engine, batch: None))
