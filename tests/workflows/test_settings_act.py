"""Every setting of every shipped config acts: what comes out of the config is another at another value.

A new setting needs an entry in :data:`EFFECTS`, under its config: a look at what the setting promises to change, and a
value. ``changes(look, value)`` asks that the look differs from that at the default. Where a setting must not change the
result, ``keeps(look, value, proof)`` asks that it stays as it is, and that the proof, what the setting is for, differs.
A look is a function of a :class:`World`, a config's name and its settings that returns plain values and arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from bundle.contents import base_config
from scripts.core.errors import mistake_in
from scripts.core.running import ADVANCED
from tests.conftest import ROOT
from tests.foreign import grid, random_features, write_trident
from tests.looks import (
    annotated,
    backend,
    bags,
    batches,
    coded,
    contents,
    copied,
    data,
    device,
    end,
    exported,
    extraction,
    features,
    figure,
    files,
    forward,
    heads,
    images,
    imported,
    intervals,
    last_epoch,
    levels,
    linked,
    names,
    opened,
    pixels,
    places,
    plans,
    points,
    precision,
    predictions,
    reads,
    room,
    rows,
    sections,
    shapes,
    source,
    threads,
    weights,
)
from tests.worlds import CLASSES, CONFIGS, World, load, settings_of


class Effect(NamedTuple):
    """See the head of this file."""

    look: Callable[..., Any]
    value: Any
    proof: Callable[..., Any] | None = None
    tolerance: float = 0.0
    others: Mapping[str, Any] = {}


def changes(look: Callable[..., Any], value: Any, **others: Any) -> Effect:
    return Effect(look, value, others=others)


def keeps(
    look: Callable[..., Any], value: Any, proof: Callable[..., Any], tolerance: float = 0.0, **others: Any
) -> Effect:
    return Effect(look, value, proof, tolerance, others)


def features_of_others(world: World) -> str:
    """A folder with features of a slide that is not in the world's cohort."""
    path = world.folder / "foreign" / "elsewhere.h5"
    return str(write_trident(path, grid(3, 2, 128), random_features(6)).parent)


# Settings that are numbers, or contain some, and whose defaults are none.
NUMBERS = ("split_seed", "mask_tissue", "overlap", "num_workers", "encode_batch", "cache_gb")

PLACES = {"bundle_root": changes(places, "elsewhere")}
COHORT = {
    "dataset_dir": changes(data, lambda world: str(world.other)),
    "datalist": changes(data, lambda world: world.fewest),
    "class_names": changes(data, CLASSES[::-1]),
    "task": changes(data, "binary"),
    "positive_classes": changes(data, ["lgd"], task="binary"),
    "split_seed": changes(data, 7, datalist=lambda world: world.unsplit),
    "leave_out": changes(data, ["s0", "s6"]),
}
BAG = {
    "magnifications": changes(rows, [10]),
    "patch_size": changes(rows, 32),
    "min_tissue": changes(rows, 1.0),
    "overlap": changes(rows, 0.5),
    "grid_origin": changes(rows, "tissue"),
    "tissue": changes(rows, {"threshold": [120, 120]}),
    "mask_tissue": changes(coded, [1]),
    "mask_excluded": changes(annotated, ["Pen"]),
    "read_level": changes(levels, "highest"),
    "reader": keeps(pixels, "openslide", backend, tolerance=8),
    "slide_cache": keeps(pixels, "OUT/cache", copied),
    "slide_cache_gb": changes(copied, 1e-9, slide_cache="OUT/cache"),
}
ENCODER = {
    "backbone": changes(features, "resnet34", backbone_weights=lambda world: str(world.resnet)),
    "backbone_weights": changes(features, lambda world: str(world.weights)),
    "backbone_input": changes(
        features, {"mean": [0.1] * 3}, backbone="torchscript", backbone_weights=lambda world: str(world.script)
    ),
    "encode_batch": keeps(features, 5, batches, tolerance=1e-5),
    "num_workers": keeps(features, 0, threads),
    "amp": changes(features, True),
    "runtime": changes(forward, "openvino"),
    "precision": changes(precision, "int8", runtime="openvino", feature_dir="OUT/features"),
    "feature_dtype": changes(features, "float16"),
    "device": changes(device, "cuda"),
}
BANKS = {"strict": changes(extraction, True)}
ALLOWED = {"allow_missing": changes(extraction, True)}
TRAINED = {
    key: changes(plans, value)
    for key, value in {
        "unit": "patient", "views": 2, "cache_gb": 1.0, "num_nodes": 64, "alpha": 0.5, "beta": 0.5,
        "instance_weight": 0.5, "linking": "shuffled", "class_attention": "separate", "attention_entropy": 0.5,
        "classifier_init": "zeros",
        "prior_correction": False, "calibration": "none", "threshold": "f1",
        "optimizer_name": "SGD", "lr": 0.01, "weight_decay": 0.1, "epochs": 2, "batch_size": 2, "num_processes": 2,
        "output_dir": "elsewhere",
        "feature_dir": "elsewhere",
    }.items()
}  # fmt: skip

EFFECTS: dict[str, dict[str, Effect]] = {
    "train": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS, **ALLOWED,
        "output_dir": changes(files, "OUT/elsewhere"),
        "ckpt_dir": changes(files, "OUT/elsewhere"),
        "feature_dir": changes(files, "OUT/elsewhere", datalist=lambda world: world.fewest),
        "method": changes(weights, "ssmil"),
        "unit": changes(weights, "patient", datalist=lambda world: world.paired),
        "source": keeps(weights, "patches", source, tolerance=5e-3),
        "views": changes(weights, 2, feature_dir="OUT/features", datalist=lambda world: world.fewer),
        "cache_gb": keeps(weights, 0.0, opened, epochs=2),
        "num_nodes": changes(weights, 64),
        "linking": changes(weights, "shuffled"),
        "class_attention": changes(weights, "separate"),
        "attention_entropy": changes(weights, -1.0),
        "classifier_init": changes(weights, "zeros"),
        "alpha": changes(weights, 0.5),
        "beta": changes(weights, 0.5),
        "instance_weight": changes(weights, 0.6, method="clam_sb"),
        "optimizer_name": changes(weights, "SGD"),
        "prior_correction": changes(points, False),
        "calibration": changes(points, "none"),
        "threshold": changes(points, "youden"),
        "lr": changes(weights, 0.01),
        "weight_decay": changes(weights, 0.1),
        "epochs": changes(last_epoch, 2),
        "val_interval": changes(last_epoch, 3, epochs=3),
        "batch_size": changes(weights, 2),
        "seed": changes(weights, 1, split_seed=0),
        "resume": changes(end, True),
        "report": changes(images, True),
        "pretrained": changes(weights, lambda world: str(world.trained / "models")),
    },
    "evaluate": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS, **ALLOWED,
        "partition": changes(predictions, "validation"),
        "internal": changes(sections, lambda world: str(world.run("evaluate"))),
        "output_dir": changes(files, "OUT/elsewhere"),
        "ckpt_dir": changes(end, "OUT/none"),
        "feature_dir": changes(files, "OUT/elsewhere", datalist=lambda world: world.fewest),
        "method": changes(heads, "ssmil"),
        "unit": changes(bags, "patient", datalist=lambda world: world.paired),
        "source": keeps(predictions, "patches", source, tolerance=5e-3, partition="validation"),
        "num_nodes": changes(shapes, 64),
        "linking": changes(linked, "pooled"),
        "class_attention": changes(shapes, "shared"),
        "batch_size": keeps(predictions, 2, bags, tolerance=1e-6),
        "seed": changes(intervals, 1, split_seed=0, partition="training"),
        "report": changes(files, True),
    },
    "inference": {
        **BAG, **ENCODER,
        "bundle_root": changes(places, "elsewhere"),
        "dataset_dir": changes(predictions, lambda world: str(world.cohort / "s1.tif")),
        "datalist": changes(data, lambda world: world.fewer, dataset_dir=lambda world: str(world.cohort)),
        "class_names": changes(shapes, CLASSES[:2]),
        "task": changes(shapes, "binary"),
        "positive_classes": changes(names, ["lgd"], task="binary"),
        "output_dir": changes(files, "OUT/elsewhere"),
        "ckpt_dir": changes(end, "OUT/none"),
        "feature_dir": keeps(predictions, "OUT/features", files),
        "method": changes(heads, "ssmil"),
        "num_nodes": changes(shapes, 64),
        "linking": changes(linked, "pooled"),
        "class_attention": changes(shapes, "shared"),
        "unit": changes(end, "patient"),
        "heatmaps": changes(files, False),
        "heatmap_classes": changes(files, CLASSES),
        "heatmap_kinds": changes(files, ["attention"]),
        "heatmap_formats": changes(files, ["plain", "geojson"]),
        "top_patches": changes(files, 0),
        "report": changes(files, False),
        "coordinates": changes(contents, "level0", heatmap_kinds=["attention"]),
        "strict": changes(contents, True, dataset_dir=lambda world: str(world.broken), heatmaps=False),
    },
    "extract": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS,
        "output_dir": changes(places, "elsewhere"),
        "feature_dir": changes(files, "OUT/elsewhere", datalist=lambda world: world.fewest),
        "views": changes(files, 2, feature_dir="OUT/features", datalist=lambda world: world.fewest),
        "seed": changes(data, 7, datalist=lambda world: world.unsplit),
        "export_formats": changes(exported, "pt"),
        "features": changes(imported, features_of_others),
        "features_are": changes(imported, {"mpp": 0.25}, features=features_of_others),
    },
    "inspect": {
        **PLACES, **BAG,
        "image": changes(contents, lambda world: str(world.cohort / "s1.tif")),
        "mpp": changes(contents, 0.25),
        "mask": changes(contents, lambda world: world.mask),
        "output_dir": changes(files, "OUT/elsewhere"),
    },
    "check": {
        **PLACES, **BAG, **ENCODER,
        "dataset_dir": changes(contents, lambda world: str(world.broken)),
        "datalist": changes(contents, lambda world: world.fewer),
        "class_names": changes(contents, CLASSES[:2]),
        "task": changes(contents, "binary"),
        "positive_classes": changes(contents, ["lgd"], task="binary"),
        "split_seed": changes(contents, 7, datalist=lambda world: world.unsplit),
        "seed": changes(contents, 7, datalist=lambda world: world.unsplit),
        "output_dir": changes(files, "OUT/elsewhere"),
        "feature_dir": changes(room, "elsewhere"),
        "min_rows": changes(contents, 1000),
        "read_all": changes(reads, True),
        "views": changes(room, 5),
        "leave_out": changes(contents, ["s0", "s6"]),
        "unit": changes(contents, "patient", datalist=lambda world: world.paired),
    },
    "compare": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS, **ALLOWED, **TRAINED,
        "methods": changes(plans, ["ssmil"]),
        "seeds": changes(plans, [3]),
        "figure_slides": changes(figure, ["s7"]),
        "folds": changes(plans, 3),
    },
    "cross_validate": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS, **ALLOWED, **TRAINED,
        "datalist": changes(data, lambda world: world.fewer),
        "method": changes(plans, "ssmil"),
        "folds": changes(plans, 3),
        "seed": changes(plans, 1),
    },
    "calibrate": {
        **PLACES, **COHORT, **BAG, **ENCODER,
        # A slide that cannot be read is none of those for validation.
        "strict": changes(extraction, True, data="$@cohort.partition('testing')"),
        "allow_missing": changes(extraction, True, data="$@cohort.partition('testing')"),
        "output_dir": changes(places, "elsewhere"),
        "ckpt_dir": changes(end, "OUT/none"),
        "feature_dir": changes(files, "OUT/elsewhere", datalist=lambda world: world.fewest),
        "method": changes(heads, "ssmil"),
        "unit": changes(bags, "patient", datalist=lambda world: world.paired),
        "num_nodes": changes(shapes, 64),
        "linking": changes(linked, "pooled"),
        "class_attention": changes(shapes, "shared"),
        "prior_correction": changes(points, False),
        "calibration": changes(points, "none"),
        "threshold": changes(points, "youden"),
        "leave_out": changes(data, ["s4"]),
        "seed": changes(data, 7, datalist=lambda world: world.unsplit),
    },
    "ensemble": {
        **PLACES,
        "members": changes(weights, lambda world: world.members([2, 1])),
        "ckpt_dir": changes(files, "OUT/elsewhere"),
    },
    "search": {
        **PLACES, **COHORT, **BAG, **ENCODER, **BANKS, **ALLOWED,
        **{key: effect for key, effect in TRAINED.items() if key in settings_of("search")},
        "method": changes(plans, "ssmil"),
        "grid": changes(plans, {"lr": [0.1]}),
        "seed": changes(plans, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_has_an_entry(config):
    assert set(EFFECTS[config]) == settings_of(config)


def test_every_config_with_settings_has_entries():
    names = {path.stem for path in (ROOT / "configs").glob("*.json")} - {"metadata"}
    assert {name for name in names if base_config(f"{name}.json") is None} == set(CONFIGS)


@pytest.mark.parametrize(
    ("config", "setting"), [(config, setting) for config in EFFECTS for setting in EFFECTS[config]]
)
def test_it_acts(world, config, setting):
    effect = EFFECTS[config][setting]
    default, other = seen(world, effect.look, config, effect, None), seen(world, effect.look, config, effect, setting)
    if effect.proof is None:
        assert not is_close(default, other, 0), f"{setting} changes nothing"
        return
    assert is_close(default, other, effect.tolerance), f"{setting} changes the result"
    proof = [seen(world, effect.proof, config, effect, which) for which in (None, setting)]
    assert not is_close(*proof, 0), f"{setting} does nothing"


def test_an_option_that_no_config_knows_ends_in_one_line(command, tmp_path):
    done = command("training", "train", epoch=10, output_dir=tmp_path)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "epoch" in line]
    assert told == ["error: epoch: the config has no such option. Did you mean epochs?"]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_workflow_that_no_config_has_ends_in_one_line(command, tmp_path):
    done = command("trainig", "train", output_dir=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == "error: trainig: the config has no such workflow. Did you mean training?"
    assert "Traceback" not in done.stderr


def test_a_part_of_a_workflow_may_be_run(workflow, tmp_path):
    with pytest.raises(RuntimeError) as refused:
        workflow("train#trainer", "train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert "contains neither datalist.json nor datalist.csv" in str(mistake_in(refused.value))


# The first config that has a setting.
FIRST_WITH = {setting: config for config in reversed(CONFIGS) for setting in settings_of(config)}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_value_of_another_kind_ends_in_one_line(world, config):
    # The trainings of others are not begun.
    made_last = {"compare": "comparison", "cross_validate": "cross_validation", "search": "search"}.get(config)
    parts = None if made_last is None else ["encoder", "extractor", made_last]
    faults = []
    for setting in sorted(settings_of(config) - {"grid"}):
        default = {**load(config), **load(config).get(ADVANCED, {})}[setting]
        is_number = isinstance(default, int | float) or setting in NUMBERS
        wrongs = [{"a": 1}, "yes" if isinstance(default, bool) else True if is_number else 2024]
        # What a setting takes is its own affair; that a config has it checked, one wrong value shows.
        for wrong in wrongs if FIRST_WITH[setting] == config else wrongs[1:]:
            try:
                made = world.start(config, **{setting: wrong})
                if parts is None:
                    made.run()
                for id_ in parts or []:
                    made.parser.get_parsed_content(id_)
                faults.append(f"{setting}={wrong!r} is taken")
            except Exception as error:
                if mistake_in(error) is None:
                    faults.append(f"{setting}={wrong!r}: {error.__cause__ or error!r}")
    assert not faults


def seen(world: World, look: Callable[..., Any], config: str, effect: Effect, setting: str | None) -> Any:
    key = (look, config, setting, tuple(effect.others.items()) and str(effect.others))
    if key not in world.seen or setting is not None:
        settings = dict(effect.others) | ({} if setting is None else {setting: effect.value})
        # Others may hang on the setting: a backbone that is not the default needs weights that fit it.
        if setting is None and "backbone" not in settings:
            settings.pop("backbone_weights", None)
        world.seen[key] = look(world, config, **settings)
    return world.seen[key]


def is_close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two looks saw the same, but for numbers that differ by so much."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_close(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(is_close(a, b, tolerance) for a, b in pairs)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=tolerance))
    return bool(one == other)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("network", None, "got None, which MONAI's runner ignores. Leave the option out"),
        ("val_intervall", 3, "the config has no such option. Did you mean val_interval?"),
        ("train#max_epochs", 3, "the config has no such option"),
    ],
)
def test_an_override_that_cannot_act_ends_in_one_line(command, tmp_path, key, value, told):
    done = command("training", "train", output_dir=tmp_path, **{key: value})
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {key}: {told}")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_the_config_for_several_ranks_adds_to_components_may_be_overridden(world):
    files = ["configs/train.json", "configs/multi_gpu_train.json"]
    own = {"train#sampler#rank": 0, "distributed_network#find_unused_parameters": False, "ranks": None}
    ConfigWorkflow(files, **world.settings_for("train"), **own).initialize()
