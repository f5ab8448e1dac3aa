"""The phases of a training: what is trained when, what stands still, and what is told of it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events

from scripts.core.defaults import training_defaults
from scripts.core.errors import SettingsError
from scripts.networks.methods import METHODS, USED_BY
from scripts.training.phases import TrainingPhases
from scripts.training.warnings_of_training import warn_of_doubts, warn_of_unused
from scripts.weights.paths import weights_path
from scripts.weights.ranking import ranking_of
from tests.trainings import Interrupt, Training, checkpoint, same

EPOCHS = 3


class Snapshots:
    """The network's weights at the end of each epoch."""

    def __init__(self):
        self.states = []

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine):
        self.states.append({k: v.clone() for k, v in engine.network.state_dict().items()})


def moved(before, after):
    """The layers whose weights differ: ``"embed.0"``, ``"attention.1"``, ..."""
    return {".".join(key.split(".")[:2]) for key in before if not torch.equal(before[key], after[key])}


def test_each_phase_of_msmil_moves_its_own_weights_and_no_others(tmp_path):
    snapshots = Snapshots()
    training = Training(tmp_path, EPOCHS, method="msmil", extra_handlers=[snapshots])
    start = {k: v.clone() for k, v in training.network.state_dict().items()}
    training.run()
    states = [start, *snapshots.states]
    assert len(snapshots.states) == 3 * EPOCHS
    wanted = [{"embed.0", "attention.1", "myfc.1"}, {"embed.1", "attention.2", "myfc.2"}, {"attention.0", "myfc.0"}]
    for epoch in range(3 * EPOCHS):
        layers = moved(states[epoch], states[epoch + 1])
        phase = epoch // EPOCHS
        # Where a phase starts the best weights of the one before are taken.
        allowed = wanted[phase] | (wanted[phase - 1] if epoch % EPOCHS == 0 and phase else set())
        assert wanted[phase] <= layers <= allowed


def test_the_last_phase_of_msmil_builds_on_the_best_instance_layers_of_each_scale(tmp_path):
    training = Training(tmp_path, EPOCHS, method="msmil").run()
    kept = {head: checkpoint(tmp_path, weights_path(tmp_path, head).name) for head in ("global", "5x", "10x")}
    for s, head in enumerate(("5x", "10x")):
        for name in ("weight", "bias"):
            key = f"embed.{s}.{name}"
            assert torch.equal(kept["global"][key], kept[head][key])
            assert torch.equal(training.network.state_dict()[key], kept[head][key])


def test_the_phases_of_ssmil_are_msmils_first_ones(tmp_path):
    # The same branch, the same draws; only the start of the weights is another.
    one, other = (Training(tmp_path / m, EPOCHS, method=m) for m in ("ssmil", "msmil"))
    state = other.network.state_dict()
    start = {key: value.clone() for key, value in state.items() if key.startswith("embed")}
    for layer in ("attention", "myfc"):
        for s in range(2):
            start |= {
                key.replace(f"{layer}.{s + 1}.", f"{layer}.{s}."): value.clone()
                for key, value in state.items()
                if key.startswith(f"{layer}.{s + 1}.")
            }
    one.network.load_state_dict(start)
    one.run()
    other.run()
    for head in ("5x", "10x"):
        assert one.best.losses[head] == other.best.losses[head]
        assert one.best.epochs[head] == other.best.epochs[head]


def test_a_phase_scores_the_outputs_that_it_trains_and_no_others(tmp_path):
    training = Training(tmp_path, EPOCHS, method="msmil").run()
    assert len(training.validations) == 3 * EPOCHS
    for epoch, metrics in enumerate(training.validations):
        assert {name.split("_")[0] for name in metrics} == {["5x", "10x", "global"][epoch // EPOCHS]}
    assert {name.split("_")[0] for name in Training(tmp_path, 1).run().validations[0]} == {"global", "5x", "10x"}


@pytest.mark.parametrize("method", ["ssmil", "msmil"])
@pytest.mark.parametrize("epoch", [2, 4, 5])
def test_a_training_killed_in_any_phase_goes_on_as_if_it_had_not_been(tmp_path, method, epoch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Training(whole, EPOCHS, method=method).run()
    with pytest.raises(KeyboardInterrupt):
        Training(parts, EPOCHS, method=method, extra_handlers=[Interrupt(epoch)]).run()
    Training(parts, EPOCHS, method=method, resume=True).run()
    for key in ("model", "optimizer", "best"):
        assert same(checkpoint(whole)[key], checkpoint(parts)[key]), key


def test_training_json_says_what_was_trained_how_long_and_how_well(tmp_path):
    training = Training(tmp_path, EPOCHS, method="msmil").run()
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["method"] == "msmil"
    assert [(p["heads"], p["epochs"]) for p in told["phases"]] == [(["5x"], 3), (["10x"], 3), (["global"], 3)]
    assert all(0 < phase["seconds"] < 60 for phase in told["phases"])
    # 6 x 4 + 4 of IL, 4 x 2 + 2 and 2 x 2 of attention, 2 x 4 x 2 + 2 of the classifier.
    assert [phase["parameters"] for phase in told["phases"]] == [28 + 14 + 18, 28 + 14 + 18, 14 + 18]
    for index, head in enumerate(("5x", "10x", "global")):
        losses = [m[f"{head}_loss"] for m in training.validations[index * EPOCHS : (index + 1) * EPOCHS]]
        assert told["best"][head]["validation_loss"] == min(losses)
        assert told["best"][head]["epoch"] == 1 + losses.index(min(losses))
        assert told["best"][head]["weights"] == weights_path(tmp_path, head).name
    assert training.network(torch.randn(1, 3, 2, 6)).shape == (1, 1, 2)  # a result, no phase any more


def test_epochs_that_do_not_divide_among_the_phases_belong_to_the_last(tmp_path):
    training = Training(tmp_path, EPOCHS, method="msmil")
    training.trainer.state.max_epochs = 3 * EPOCHS + 1  # as MONAI Label sets it
    training.run()
    told = json.loads((tmp_path / "training.json").read_text())
    assert [phase["epochs"] for phase in told["phases"]] == [EPOCHS, EPOCHS, EPOCHS + 1]
    losses = [m["global_loss"] for m in training.validations[2 * EPOCHS :]]
    assert told["best"]["global"]["epoch"] == 1 + losses.index(min(losses))


def test_training_json_tells_what_made_it(tmp_path):
    training, path = Training(tmp_path, 1), tmp_path / "told.json"
    phases = TrainingPhases(training.network, training.heads, 1, training.best, path, made_by={"seed": 3})
    phases.attach(training.trainer)
    training.run()
    assert json.loads(path.read_text())["made_by"] == {"seed": 3}
    assert "made_by" not in json.loads((tmp_path / "training.json").read_text())


@pytest.mark.parametrize(("alpha", "beta", "told"), [(0.0, 1.0, "global"), (1.0, 0.0, "5x, 10x"), (1.0, 1.0, None)])
def test_a_head_whose_loss_weighs_nothing_is_told(tmp_path, caplog, alpha, beta, told):
    training = Training(tmp_path, 1)
    settings = {"method": "mustmil", "magnifications": [5, 10], "alpha": alpha, "beta": beta}
    TrainingPhases(training.network, training.heads, 1, training.best, tmp_path / "told.json", settings)
    warnings = [line for line in caplog.messages if "will learn nothing" in line]
    assert bool(warnings) == bool(told)
    assert not told or f": {told} will learn nothing." in warnings[0]


@pytest.mark.parametrize("start", ["random", "zeros"])
def test_of_a_head_that_learnt_nothing_what_was_done_already_is_not_advised(caplog, start):
    labels = np.arange(40)[:, None] % 2.0
    guess, right = ({"slides": 40, "ranking": ranking_of(logits, labels)} for logits in (0 * labels, labels))
    settings = {"method": "mustmil", "magnifications": [5, 10], "alpha": 1.0, "beta": 1.0}
    warn_of_doubts({"global": guess, "5x": right}, {**settings, "classifier_init": start})
    (told,) = caplog.messages
    assert told.startswith("the head global may have learnt nothing: ")
    assert ("`classifier_init` zeros" in told) == (start == "random")
    assert "another `seed`" in told


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_that_the_method_does_not_use_is_told_where_it_is_not_the_default(caplog, method):
    changed = {"alpha": 2.0, "attention_entropy": 0.5, "beta": 2.0, "class_attention": "separate"}
    changed |= {"instance_weight": 0.1, "linking": "pooled", "num_nodes": 64}
    assert changed.keys() == USED_BY.keys()
    warn_of_unused({**training_defaults(), "method": method})
    assert not caplog.messages
    warn_of_unused({"method": method, **changed})
    told = {line.split()[0] for line in caplog.messages if f"has no effect: {method} does not use it" in line}
    assert told == {name for name, methods in USED_BY.items() if method not in methods}


def test_one_phase_trains_everything_and_may_be_made_longer(tmp_path):
    Training(tmp_path, 1).run()
    training = Training(tmp_path, 2, resume=True).run()
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["phases"][0]["heads"] == ["global", "5x", "10x"]
    assert told["phases"][0]["parameters"] == sum(p.numel() for p in training.network.parameters())
    assert training.phases.seconds[0] > 0


def test_phases_of_another_length_are_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, 2, method="msmil", extra_handlers=[Interrupt(3)]).run()
    with pytest.raises(SettingsError, match=r"phases of 2 epochs, this training phases of 4\. Set `epochs`"):
        Training(tmp_path, 4, method="msmil", resume=True).run()


def test_the_log_says_which_phase_starts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Training(tmp_path, 1, method="msmil").run()
    told = [m for m in caplog.messages if m.startswith("phase ")]
    assert told == [f"phase {i} of 3: training the head {h}" for i, h in enumerate(("5x", "10x", "global"), start=1)]


def test_a_phase_without_any_validation_loss_is_not_built_upon(tmp_path):
    # An older training's file of that name must not stand in for it.
    Training(tmp_path, 1, method="msmil").run()
    training = Training(tmp_path, 1, method="msmil")
    training.trainer.state.epoch = 2
    with pytest.raises(SettingsError, match=r"5x: its validation loss was never a number\. Lower `lr`"):
        training.phases._start_epoch(training.trainer)
