"""The checkpoint of a training: what it contains, and which training goes on from it."""

import logging

import pytest
import torch
from ignite.engine import Events

from scripts.core.errors import SettingsError
from scripts.core.provenance import cohort_fingerprint
from scripts.training.resuming import LastCheckpoint, SameSettings, check_resumable
from scripts.weights.paths import weights_path
from scripts.weights.record import read_weights
from tests.trainings import Interrupt, Training, checkpoint, same

HEADS = ["global", "5x", "10x"]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let every tensor be saved as one on a GPU is, unless it was moved to the CPU."""
    to_cpu, moved = torch.Tensor.cpu, []

    def cpu(tensor):
        moved.append(to_cpu(tensor).clone())
        return moved[-1]

    def tag(storage):
        return "cpu" if storage.data_ptr() in {tensor.untyped_storage().data_ptr() for tensor in moved} else "cuda:0"

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.serialization, "location_tag", tag)
    return monkeypatch


def test_what_a_training_on_a_gpu_saves_loads_where_there_is_none(tmp_path, as_on_a_gpu):
    Training(tmp_path, epochs=1).run()
    as_on_a_gpu.undo()
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    Training(tmp_path / "cpu", epochs=1).run()
    for name in ("model", "optimizer", "best"):
        assert same(last[name], checkpoint(tmp_path / "cpu")[name]), name
    for head in HEADS:
        path = weights_path(tmp_path, head)
        state, wanted = (torch.load(file, weights_only=True) for file in (path, tmp_path / "cpu" / path.name))
        assert same(dict(state), dict(wanted))
        assert state._metadata.keys() == wanted._metadata.keys()


def test_what_older_versions_saved_from_a_gpu_is_read_all_the_same(tmp_path, as_on_a_gpu):
    as_on_a_gpu.setattr("scripts.weights.checkpoints._on_cpu", lambda content: content)
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, epochs=3, extra_handlers=[Interrupt(epoch=2)]).run()
    as_on_a_gpu.undo()
    for path in (tmp_path / "last.ckpt", weights_path(tmp_path, "global")):
        with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
            torch.load(path, weights_only=True)
    assert read_weights(weights_path(tmp_path, "global"))
    assert Training(tmp_path, epochs=3, resume=True).run().trainer.state.epoch == 3


@pytest.mark.parametrize("how", ["fewer epochs", "killed in epoch 3"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path, how):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Training(whole, epochs=4).run()
    if how == "fewer epochs":
        Training(parts, epochs=2).run()
    else:
        with pytest.raises(KeyboardInterrupt):
            Training(parts, epochs=4, extra_handlers=[Interrupt(epoch=3)]).run()
    assert checkpoint(parts)["trainer"]["iteration"] == 16  # two epochs of 8 bags
    assert not same(checkpoint(whole)["model"], checkpoint(parts)["model"])

    resumed = Training(parts, epochs=4, resume=True).run()
    assert resumed.trainer.state.epoch == 4
    for key in ("model", "optimizer", "best"):
        assert same(checkpoint(whole)[key], checkpoint(parts)[key]), key
    assert checkpoint(parts)["trainer"]["iteration"] == 32
    for head in HEADS:
        name = weights_path(whole, head).name
        assert same(checkpoint(whole, name), checkpoint(parts, name)), head


def test_the_checkpoint_holds_the_epoch_that_was_validated(tmp_path):
    seen = []

    class Look:
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

        def __call__(self, engine):
            last = checkpoint(tmp_path)
            seen.append((last["trainer"]["iteration"], last["best"]["losses"]["global"]))

    training = Training(tmp_path, epochs=3, extra_handlers=[Look()]).run()
    assert [iteration for iteration, _ in seen] == [8, 16, 24]
    losses = [loss for _, loss in seen]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == training.best.losses["global"]
    assert same(checkpoint(tmp_path)["model"], dict(training.network.state_dict()))


def test_without_resume_a_training_starts_anew(tmp_path):
    Training(tmp_path, epochs=1).run()
    once = checkpoint(tmp_path)
    again = Training(tmp_path, epochs=1, resume=False).run()
    assert all(same(checkpoint(tmp_path)[key], once[key]) for key in ("model", "optimizer", "best"))
    assert again.trainer.state.iteration == 8


def test_a_training_that_is_complete_is_left_as_it_is(tmp_path):
    Training(tmp_path, epochs=2).run()
    once = checkpoint(tmp_path)
    Training(tmp_path, epochs=2, resume=True).run()
    assert same(checkpoint(tmp_path), once)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(
        SettingsError, match=r"last\.ckpt: there is no checkpoint to resume from\. Run without `resume` first"
    ):
        Training(tmp_path, epochs=2, resume=True).run()


def test_a_checkpoint_ahead_of_the_epochs_asked_for_is_refused(tmp_path):
    Training(tmp_path, epochs=3).run()
    once = checkpoint(tmp_path)
    with pytest.raises(SettingsError, match=r"last\.ckpt: has 3 epochs, asked for are 2\. Raise `epochs`"):
        Training(tmp_path, epochs=2, resume=True).run()
    assert same(checkpoint(tmp_path), once)


def test_other_slides_than_those_of_the_checkpoint_are_refused(tmp_path):
    Training(tmp_path, epochs=1).run()
    more = Training(tmp_path, epochs=2, resume=True, num_bags=10)
    with pytest.raises(
        SettingsError, match=r"last\.ckpt: has epochs of 8 batches, now they have 10\. Resume with the same datalist"
    ):
        more.run()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Training(tmp_path, epochs=1).run()
    other = Training(tmp_path, epochs=2, resume=True, num_nodes=6)
    with pytest.raises(
        SettingsError, match=r"last\.ckpt: does not fit this training \(.*size mismatch.*\)\. Use the settings of its"
    ) as caught:
        other.run()
    assert "\n" not in str(caught.value)


def test_a_training_goes_on_with_its_own_settings_alone():
    kept = SameSettings({"lr": 0.1, "class_names": ["a", "b"], "magnifications": (5, 10)}).state_dict()
    SameSettings({"lr": 0.1, "class_names": ["a", "b"], "magnifications": [5, 10]}).load_state_dict(kept)
    with pytest.raises(SettingsError, match=r"resume: .* other settings \(lr 0\.1, now 0\.2\)\. Set them so, or start"):
        SameSettings({"lr": 0.2, "class_names": ["a", "b"], "magnifications": [5, 10]}).load_state_dict(kept)
    with pytest.raises(SettingsError, match=r"class_names \['a', 'b'\], now \['b', 'a'\]"):
        SameSettings({"lr": 0.1, "class_names": ["b", "a"], "magnifications": [5, 10]}).load_state_dict(kept)


def on(**labels):
    """The settings of a training on slides with these labels, validated on one that is always the same."""
    training = [{"slide": slide, "label": label} for slide, label in labels.items()]
    return SameSettings({
        "task": "multilabel",
        "data": cohort_fingerprint(training=training, validation=[{"slide": "v", "label": [1]}]),
    })  # fmt: skip


def test_a_training_does_not_go_on_with_other_slides_or_labels():
    kept = on(s1=[1, 0], s2=[0, 1]).state_dict()
    on(s1=[1, 0], s2=[0, 1]).load_state_dict(kept)
    for other, number in ((on(s1=[1, 0], s2=[0, 0]), 2), (on(s1=[1, 0], s2=[0, 1], s3=[1, 1]), 3)):
        before, now = (one["data"]["training"]["sha256"][:12] for one in (kept, other.settings))
        with pytest.raises(SettingsError) as caught:
            other.load_state_dict(kept)
        assert str(caught.value) == (
            "resume: the checkpoint is of a training on other slides or labels (training on 2 slides with SHA-256 "
            f"{before}..., now {number} slides with SHA-256 {now}...). "
            "Give the datalist that it was begun with, or start anew."
        )


def test_of_another_task_whose_labels_are_others_the_task_is_told():
    kept = on(s1=[1, 0]).state_dict()
    other = on(s1=[1])
    other.settings["task"] = "binary"
    with pytest.raises(SettingsError, match=r"other settings \(task 'multilabel', now 'binary'\)"):
        other.load_state_dict(kept)


def test_what_an_older_checkpoint_lacks_is_missed_aloud(caplog):
    old = {"task": "multilabel", "backbone_weights": "/home/a/resnet34.pth"}
    with caplog.at_level(logging.WARNING):
        on(s1=[1, 0]).load_state_dict(old)
    assert "the checkpoint does not contain data: whether it fits is not known" in caplog.text


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_a_checkpoint_of_version_0_3_0_has_the_positive_classes_of_the_paper(caplog, task):
    old = {"task": task, "class_names": ["cancer", "hgd", "normal"]}
    of_paper = {"multilabel": None, "binary": ["cancer", "hgd"]}[task]
    with caplog.at_level(logging.WARNING):
        SameSettings({**old, "positive_classes": of_paper}).load_state_dict(old)
    assert not caplog.records
    with pytest.raises(SettingsError, match=r"other settings \(positive_classes .*, now \['normal'\]\)"):
        SameSettings({**old, "positive_classes": ["normal"]}).load_state_dict(old)


def test_a_checkpoint_tells_what_made_it_and_does_not_ask_for_it(tmp_path):
    training = Training(tmp_path, epochs=1)
    LastCheckpoint(tmp_path / "last.ckpt", training.objects, {"seed": 3}).attach(training.trainer)
    training.run()
    assert checkpoint(tmp_path)["made_by"] == {"seed": 3}
    Training(tmp_path, epochs=2, resume=True).run()


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another kind", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    Training(tmp_path, epochs=1).run()
    path = tmp_path / "last.ckpt"
    content = {
        "truncated": path.read_bytes()[:2000], "empty": b"", "text": b"no checkpoint", "of another kind": None,
    }[damage]  # fmt: skip
    if content is None:
        torch.save({"model": torch.load(path, weights_only=True)["model"]}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"last\.ckpt: (is damaged|does not fit|is not a checkpoint of this training)"
    ):
        Training(tmp_path, epochs=2, resume=True).run()


@pytest.mark.parametrize("content", [{"model": {}}, {"settings": 3}, [1, 2]])
def test_a_checkpoint_without_settings_is_refused_before_the_training(tmp_path, content):
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.raises(
        SettingsError, match=r"last\.ckpt: is not the checkpoint of a training: it contains no settings"
    ):
        check_resumable(path, SameSettings({"seed": 0}))
