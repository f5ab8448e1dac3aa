"""``training``, as shipped."""

import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.core.errors import mistake_in
from tests.locks import locked_by_another
from tests.worlds import PARTITIONS

HEADS = ("global", "5x", "10x")
TRAINING = 3  # slides of the cohort


def base_settings(cohort, output):
    return {"dataset_dir": str(cohort), "output_dir": str(output), "ckpt_dir": str(output / "models")}


def weights(path):
    state = torch.load(path, weights_only=True)
    state = state.get("model", state)
    assert not any(key.startswith("net.") for key in state)  # a frozen backbone is no part of a checkpoint
    return state


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_keeps_the_best_weights_of_each_output_and_the_last(trained):
    models = trained / "models"
    names = sorted(path.name for path in models.glob("[!.]*"))
    assert names == ["last.ckpt", "model.pt", "model_10x.pt", "model_5x.pt"]
    best = torch.load(models / "last.ckpt", weights_only=True)["best"]["losses"]
    assert set(best) == set(HEADS)
    assert all(0 < loss < 2 for loss in best.values())


def test_tensorboard_shows_losses_metrics_learning_rate_and_linked_patches(trained):
    events = EventAccumulator(str(trained / "tensorboard" / "training"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"loss/training", "rate/learning_rate"} <= scalars
    assert {f"loss/{head}/{of}" for head in HEADS for of in ("training", "validation")} <= scalars
    assert {f"metrics/{head}/{name}" for head in HEADS for name in ("micro_f1", "micro_accuracy")} <= scalars
    assert {tag.split("/")[0] for tag in scalars} == {"loss", "metrics", "rate"}
    assert [event.value for event in events.Scalars("rate/learning_rate")] == pytest.approx([1e-3] * (3 * TRAINING))
    # A validation lies on the axis of the training: at its last iteration.
    for tag in ("metrics/global/micro_f1", "loss/5x/validation"):
        assert [event.step for event in events.Scalars(tag)] == [TRAINING, 2 * TRAINING, 3 * TRAINING]
    curves = [events.Scalars(tag) for tag in ("loss/training", *(f"loss/{head}/training" for head in HEADS))]
    for total, *heads in zip(*curves, strict=True):
        assert total.value == pytest.approx(sum(head.value for head in heads), rel=1e-5)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    images = events.Tags()["images"]
    assert len(images) == 3
    assert all(tag.startswith("linked patches/demo_") for tag in images)


def test_the_same_seed_gives_the_same_weights_to_the_last_digit(workflow, cohort, trained, tmp_path):
    for seed, name in ((0, "again"), (1, "other")):
        settings = base_settings(cohort, tmp_path / name) | {"feature_dir": str(trained / "features"), "seed": seed}
        workflow("training", "train", epochs=3, **settings)
    for file in ("model.pt", "model_5x.pt", "model_10x.pt", "last.ckpt"):
        assert same(weights(tmp_path / "again" / "models" / file), weights(trained / "models" / file))
    assert not same(weights(tmp_path / "other" / "models" / "last.ckpt"), weights(trained / "models" / "last.ckpt"))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(workflow, cohort, trained, tmp_path):
    settings = base_settings(cohort, tmp_path) | {"feature_dir": str(trained / "features")}
    workflow("training", "train", epochs=1, **settings)
    workflow("training", "train", epochs=3, resume=True, **settings)
    for file in ("model.pt", "model_5x.pt", "model_10x.pt", "last.ckpt"):
        assert same(weights(tmp_path / "models" / file), weights(trained / "models" / file))


def test_it_trains_from_patches_as_well_and_says_which(world, tmp_path, caplog):
    # logging.conf takes over the root logger; the datasets' own must still reach this test.
    logger = logging.getLogger("scripts.training.datasets")
    logger.addHandler(caplog.handler)
    try:
        settings = base_settings(world.cohort, tmp_path) | {"feature_dir": str(tmp_path / "features")}
        world.run("train", source="patches", **settings)
        assert "bags of patches, read from the slides" in caplog.text
        assert not (tmp_path / "features").exists()
        shutil.move(tmp_path / "models", tmp_path / "from_patches")
        caplog.clear()
        world.run("train", source="bank", **settings)
        assert "bags of features, from the feature bank" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    patches, bank = (weights(tmp_path / folder / "last.ckpt") for folder in ("from_patches", "models"))
    # In bfloat16 a patch's features depend a little on which patches it is encoded with.
    for key, value in bank.items():
        assert torch.allclose(patches[key], value, atol=5e-3), key


@pytest.mark.parametrize(
    ("setting", "value", "key", "shape"),
    [
        ("num_nodes", 32, "embed.0.weight", (32, 1280)),
        ("task", "binary", "myfc.0.weight", (1, 256)),
        ("magnifications", [10], "myfc.0.weight", (3, 384)),
        ("magnifications", [5, 10, 20], "myfc.0.weight", (3, 1152)),
    ],
)
def test_task_magnifications_and_size_are_settings(world, setting, value, key, shape):
    places = {"feature_dir": "OUT/features"} if setting == "magnifications" else {}
    folder = world.train(batch_size=3, **places, **{setting: value})
    assert weights(folder / "model.pt")[key].shape == shape


def test_weights_are_kept_at_validations_alone_and_one_has_to_come(workflow, cohort, trained, tmp_path):
    settings = base_settings(cohort, tmp_path) | {"feature_dir": str(trained / "features"), "epochs": 3}
    workflow("training", "train", **settings, val_interval=2)
    best = torch.load(tmp_path / "models" / "last.ckpt", weights_only=True)["best"]
    assert set(best["epochs"].values()) == {2}
    with pytest.raises(RuntimeError) as caught:
        workflow("training", "train", **settings, val_interval=4)
    assert "val_interval: is 4: no weights are kept, as 3 epochs would end without a validation" in str(
        mistake_in(caught.value)
    )


def test_two_trainings_do_not_write_into_one_folder(workflow, cohort, trained, tmp_path):
    given = {"dataset_dir": str(cohort), "feature_dir": str(trained / "features"), "output_dir": str(tmp_path)}
    given |= {"ckpt_dir": str(tmp_path / "models"), "epochs": 1}
    with locked_by_another(tmp_path / "models"), pytest.raises(RuntimeError) as refused:  # MONAI's, around it
        workflow("training", "train", **given)
    assert "models: another process is writing into it. Wait for it to end" in str(mistake_in(refused.value))
    workflow("training", "train", **given)
    with locked_by_another(tmp_path / "models"):
        assert (tmp_path / "models" / "model.pt").is_file()


def test_a_datalist_of_ones_own_needs_no_edit_of_any_file(typed, cohort, trained, tmp_path):
    # The paper's headerless CSV: id, cancer, hgd, lgd, hyperplastic, normal; slides found by their names.
    partitions = json.loads((cohort / "datalist.json").read_text()).values()
    entries = [entry for partition in partitions for entry in partition]
    rows = [",".join([entry["image"][7:-5], *map(str, entry["label"])]) for entry in entries]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    done = typed(
        "training", "train",
        dataset_dir=cohort / "slides", datalist=tmp_path / "labels.csv", epochs=1,
        output_dir=tmp_path, ckpt_dir=tmp_path / "models", feature_dir=trained / "features",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "model.pt").is_file()
    assert "split" in done.stderr  # it names no partitions
    assert np.isfinite(sum(value.sum().item() for value in weights(tmp_path / "models" / "model.pt").values()))


def test_views_are_extracted_of_training_slides_alone_and_drawn(world, tmp_path):
    shutil.copytree(world.trained / "features", tmp_path / "features")
    settings = base_settings(world.cohort, tmp_path) | {"feature_dir": str(tmp_path / "features"), "epochs": 3}
    world.run("train", views=2, **settings)
    views = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "features" / "views").iterdir()}
    assert set(views) == {f"s{i}" for i, partition in enumerate(PARTITIONS) if partition == "training"}
    assert set(views.values()) <= {1, 2}
    assert 2 in views.values()  # of the rarest class
    assert not same(weights(tmp_path / "models" / "last.ckpt"), weights(world.train(epochs=3) / "last.ckpt"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.h5")}
    first = weights(tmp_path / "models" / "last.ckpt")
    world.run("train", views=2, **settings)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.h5")} == times
    assert same(weights(tmp_path / "models" / "last.ckpt"), first)  # the same seed draws the same views


def test_patches_are_augmented_anew_each_time_and_alike_for_a_seed(world, tmp_path):
    for name, more in (("plain", {}), ("one", {"views": 1}), ("again", {"views": 1})):
        places = base_settings(world.cohort, tmp_path / name)
        world.run("train", **places, source="patches", magnifications=[5], **more)
    plain, one, again = (weights(tmp_path / name / "models" / "last.ckpt") for name in ("plain", "one", "again"))
    assert same(one, again)
    assert not same(one, plain)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ssmil", "msmil", "mil_att", "late_fusion", "clam_sb", "transmil"])
def test_a_baseline_goes_from_training_to_prediction_by_the_same_configs(workflow, cohort, trained, tmp_path, method):
    of_scales = {"ssmil": ["5x", "10x"], "msmil": ["global"], "late_fusion": ["global"]}
    heads = of_scales.get(method, ["10x"])
    settings = base_settings(cohort, tmp_path) | {"feature_dir": str(trained / "features"), "method": method}
    workflow("training", "train", epochs=2, **settings)
    # Drawn where it is special: without a global head, and without maps.
    drawn = method in ("ssmil", "transmil")
    workflow("evaluating", "evaluate", report=drawn, **settings)
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == [*heads, "slides", "patients", "made_by"]
    places = {"output_dir": str(tmp_path / "inference"), "ckpt_dir": str(tmp_path / "models"), "method": method}
    (tested,) = json.loads((cohort / "datalist.json").read_text())["testing"]
    places |= {"dataset_dir": str(cohort / tested["image"]), "heatmaps": False, "report": False}
    workflow("inferring", "inference", **places)
    tables = []
    for folder in (tmp_path, tmp_path / "inference"):
        with open(folder / "predictions.csv", newline="") as file:
            rows = {(row["slide"], row["head"]): float(row["cancer"]) for row in csv.DictReader(file)}
        tables.append(rows)
    evaluated, predicted = tables
    assert {head for _, head in predicted} == set(heads)
    assert predicted == pytest.approx(evaluated, abs=1e-6)
