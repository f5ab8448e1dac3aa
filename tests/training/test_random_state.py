from types import SimpleNamespace

import pytest
import torch
from torch.amp import GradScaler

from scripts.training.random_state import TrainingState
from tests.trainings import Interrupt, Training, checkpoint, same

EPOCHS = 4


def training_with_dropout(folder, resume=False, extra_handlers=()):
    training = Training(folder, EPOCHS, resume=resume, extra_handlers=extra_handlers)
    for layer in training.network.embed:
        layer.register_forward_hook(lambda layer, inputs, outputs: torch.dropout(outputs, 0.5, train=layer.training))
    return training


def test_a_network_that_draws_is_resumed_as_if_it_had_not_been_interrupted(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training_with_dropout(whole).run()
    with pytest.raises(KeyboardInterrupt):
        training_with_dropout(parts, extra_handlers=[Interrupt(epoch=3)]).run()
    torch.rand(7)  # what else the process may have drawn
    training_with_dropout(parts, resume=True).run()
    Training(tmp_path / "plain", EPOCHS).run()
    one, other, plain = (checkpoint(folder) for folder in (whole, parts, tmp_path / "plain"))
    for name in ("model", "optimizer", "best"):
        assert same(one[name], other[name]), name
    assert not same(one["model"], plain["model"])  # else nothing was dropped


@pytest.mark.parametrize("scaler", [GradScaler("cpu", init_scale=64.0), GradScaler("cpu", enabled=False)])
def test_a_checkpoint_that_holds_a_gradient_scaler_is_gone_on_from_without_it(tmp_path, scaler):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Training(whole, EPOCHS).run()
    with pytest.raises(KeyboardInterrupt):
        Training(parts, EPOCHS, extra_handlers=[Interrupt(epoch=3)]).run()
    assert set(checkpoint(parts)["training_state"]) == {"random"}
    old = checkpoint(parts)  # as version 0.3 wrote it on a GPU, and with `amp` switched off
    old["training_state"]["scaler"] = scaler.state_dict()
    torch.save(old, parts / "last.ckpt")
    Training(parts, EPOCHS, resume=True).run()
    one, other = checkpoint(whole), checkpoint(parts)
    for name in ("model", "optimizer", "best", "training_state"):
        assert same(one[name], other[name]), name


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_a_training_with_monais_own_amp_is_the_same_to_the_last_digit(tmp_path, monkeypatch, cast):
    one = Training(tmp_path / "plain", epochs=2).run()
    other, autocast, used = Training(tmp_path / "amp", epochs=2), torch.autocast, []

    def on_cpu(device_type, enabled=True):  # where MONAI's engine asks for one on a GPU
        used.append((device_type, enabled))
        return autocast("cpu", dtype=cast, enabled=enabled)

    monkeypatch.setattr(torch, "autocast", on_cpu)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: GradScaler("cpu", init_scale=64.0))
    other.trainer.amp = True
    other.run()
    assert used.count(("cuda", True)) == 16
    assert same(checkpoint(tmp_path / "plain")["model"], checkpoint(tmp_path / "amp")["model"])
    assert one.validations == other.validations


@pytest.fixture
def two_gpus(monkeypatch):
    """What the random numbers of two GPUs are at, in place of the GPUs."""
    generators = {torch.device("cuda", index): torch.tensor([index]) for index in range(2)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[torch.device(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generators.update({device: state}))
    return generators


def trainer_on(device):
    return SimpleNamespace(state=SimpleNamespace(device=device))


@pytest.mark.parametrize("used", ["cuda:0", torch.device("cuda:1")])
@pytest.mark.parametrize("going_on", ["cuda:0", "cuda:1"])
def test_the_random_numbers_of_the_gpu_in_use_go_on(two_gpus, used, going_on):
    state = TrainingState(trainer_on(used)).state_dict()
    (kept,) = state["random_cuda"].tolist()
    assert kept == torch.device(used).index
    two_gpus.update(dict.fromkeys(two_gpus, torch.tensor([7])))
    TrainingState(trainer_on(going_on)).load_state_dict(state)  # perhaps another one than before
    assert {str(gpu): int(at) for gpu, at in two_gpus.items()} == {"cuda:0": 7, "cuda:1": 7, going_on: kept}


def test_on_the_cpu_no_gpu_is_asked(monkeypatch):
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("a process on the CPU needs no GPU"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    state = TrainingState(trainer_on("cpu")).state_dict()
    assert "random_cuda" not in state
    # What went on from a GPU, or an older version wrote, goes on here.
    TrainingState(trainer_on("cpu")).load_state_dict({**state, "random_cuda": torch.tensor([1])})


def test_a_checkpoint_of_an_older_version_without_it_is_gone_on_from(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, EPOCHS, extra_handlers=[Interrupt(epoch=3)]).run()
    old = {name: state for name, state in checkpoint(tmp_path).items() if name != "training_state"}
    torch.save(old, tmp_path / "last.ckpt")
    assert Training(tmp_path, EPOCHS, resume=True).run().trainer.state.epoch == EPOCHS
