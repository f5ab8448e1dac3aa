import logging

import cv2
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.linked_patches import linked_patches
from scripts.core.errors import SettingsError
from scripts.core.provenance import cohort_fingerprint
from scripts.networks.mustmil import MuSTMIL
from scripts.training.handlers import (
    BestWeights,
    LastCheckpoint,
    LinkedPatchImages,
    SameSettings,
    StopOnDivergence,
    check_resumable,
    training_scalars,
)
from scripts.weights.paths import weights_path
from scripts.weights.record import read_origin, read_record, read_weights
from tests.cohorts import builder, draw_cohort
from tests.trainings import Interrupt, Training, checkpoint, same
from tests.weights.test_record import RECORD

HEADS = ["global", "5x", "10x"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("handlers"), 2)


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(str(tmp_path / "events")) as opened:
        yield opened


def events_of(writer):
    writer.flush()
    events = EventAccumulator(writer.log_dir, size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


# --- the kept weights ------------------------------------------------------------------------------------


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


def test_each_output_keeps_the_weights_of_its_own_best_epoch(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights(tmp_path, network, HEADS)
    validate(best, network, [(0.9, 0.5, 0.8), (0.7, 0.6, 0.9), (0.8, 0.5, 0.7), (0.75, 0.9, 0.71)])
    # The lowest loss; the first of equal ones.
    assert [kept(tmp_path, head) for head in HEADS] == [2, 1, 3]
    assert best.losses == {"global": 0.7, "5x": 0.5, "10x": 0.7}
    assert best.epochs == {"global": 2, "5x": 1, "10x": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "model_10x.pt", "model_5x.pt"]


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
    as_on_a_gpu.setattr("scripts.training.handlers._on_cpu", lambda content: content)
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, epochs=3, extra_handlers=[Interrupt(epoch=2)]).run()
    as_on_a_gpu.undo()
    for path in (tmp_path / "last.ckpt", weights_path(tmp_path, "global")):
        with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
            torch.load(path, weights_only=True)
    assert read_weights(weights_path(tmp_path, "global"))
    assert Training(tmp_path, epochs=3, resume=True).run().trainer.state.epoch == 3


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


def test_kept_weights_tell_which_output_they_are_best_for_and_what_made_them(tmp_path):
    made_by, network = {"seed": 3, "versions": {"torch": "2"}}, MuSTMIL(2, 2, 6, 4)
    best, evaluator = BestWeights(tmp_path, network, HEADS, RECORD, made_by), Engine(lambda engine, batch: None)
    best.attach(evaluator)
    evaluator.state.metrics = {f"{head}_loss": 0.5 for head in HEADS}
    evaluator.fire_event(Events.EPOCH_COMPLETED)
    for head in HEADS:
        path = weights_path(tmp_path, head)
        assert read_origin(path) == {"best_for": head, "file": path.name, "made_by": made_by}
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


def test_the_weights_of_the_global_output_are_model_pt(tmp_path):
    assert [weights_path(tmp_path, head).name for head in ["global", "5x", "12.5x"]] == [
        "model.pt", "model_5x.pt", "model_12.5x.pt",
    ]  # fmt: skip


# --- going on --------------------------------------------------------------------------------------------


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
        SettingsError, match=r"last\.ckpt: does not fit this training \(.*size mismatch.*\)\. Use the settings that it"
    ) as caught:
        other.run()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_magnifications_is_refused(tmp_path):
    best = BestWeights(tmp_path, torch.nn.Linear(1, 1), ["global", "5x"])
    other = BestWeights(tmp_path, torch.nn.Linear(1, 1), ["global", "10x"])
    with pytest.raises(
        SettingsError, match=r"resume: the checkpoint has the outputs global, 5x, this training global, 10x\. Set the"
    ):
        other.load_state_dict(best.state_dict())


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


def test_what_an_older_checkpoint_does_not_tell_is_missed_aloud(caplog):
    old = {"task": "multilabel", "backbone_weights": "/home/a/resnet34.pth"}
    with caplog.at_level(logging.WARNING):
        on(s1=[1, 0]).load_state_dict(old)
    assert "the checkpoint does not tell data: whether it fits is not known" in caplog.text


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_a_checkpoint_of_version_0_3_0_has_the_positive_classes_of_the_paper(caplog, task):
    old = {"task": task, "class_names": ["cancer", "hgd", "normal"]}
    of_paper = {"multilabel": None, "binary": ["cancer", "hgd"]}[task]
    with caplog.at_level(logging.WARNING):
        SameSettings({**old, "positive_classes": of_paper}).load_state_dict(old)
    assert not caplog.records
    with pytest.raises(SettingsError, match=r"other settings \(positive_classes .*, now \['normal'\]\)"):
        SameSettings({**old, "positive_classes": ["normal"]}).load_state_dict(old)


def test_kept_weights_that_are_gone_are_missed_before_a_training_goes_on(tmp_path):
    Training(tmp_path, epochs=2).run()
    epoch = checkpoint(tmp_path)["best"]["epochs"]["5x"]
    weights_path(tmp_path, "5x").unlink()
    with pytest.raises(
        SettingsError,
        match=rf"model_5x\.pt: is gone: the checkpoint tells that the best weights for 5x so far, of epoch {epoch}, "
        r"were kept in it\. Put it back beside the checkpoint, or start anew\.",
    ):
        Training(tmp_path, epochs=3, resume=True).run()


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
    with pytest.raises(SettingsError, match=r"last\.ckpt: (is damaged|does not fit|is no checkpoint of this training)"):
        Training(tmp_path, epochs=2, resume=True).run()


@pytest.mark.parametrize("content", [{"model": {}}, {"settings": 3}, [1, 2]])
def test_a_checkpoint_that_tells_no_settings_is_refused_before_the_training(tmp_path, content):
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.raises(SettingsError, match=r"last\.ckpt: is no checkpoint of a training: it tells no settings"):
        check_resumable(path, SameSettings({"seed": 0}))


def test_a_training_that_diverges_is_stopped_and_says_where(tmp_path):
    training = Training(tmp_path, epochs=3, lr=1e30, extra_handlers=[StopOnDivergence()])
    with pytest.raises(SettingsError, match=r"lr: the loss is (nan|inf) in epoch 1, at s\d\. Lower `lr`"):
        training.run()


# --- TensorBoard -----------------------------------------------------------------------------------------


def test_scalars_are_the_losses_of_each_output_and_the_learning_rate():
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


def test_tensorboard_shows_linked_patches_when_a_training_starts(cohort, writer):
    trainer = Engine(lambda engine, batch: None)
    handler = LinkedPatchImages(writer, cohort, builder(), num_slides=1, num_rows=3)
    handler.attach(trainer)
    trainer.run([0], max_epochs=2)
    events = events_of(writer)
    assert events.Tags()["images"] == ["linked patches/s0"]
    (image,) = events.Images("linked patches/s0")  # once, not in each epoch
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decoded, linked_patches(builder()(cohort[0]), 3))
