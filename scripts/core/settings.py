"""The registry of settings: what each one is, which values it takes, and what depends on it.

A setting has one entry here and one line in each config that has it. Checks, resuming, the records of weights, the
provenance of files, the grid of ``searching`` and docs/settings.md follow from these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scripts.core.setting_checks import choice, device, magnifications, names, number, path, resolution, several, switch
from scripts.core.setting_entry import Setting, entry

__all__ = [
    "EXPORT_FORMATS",
    "FEATURE_DTYPES",
    "LATER",
    "OPTIMIZERS",
    "RUNTIMES",
    "SETTINGS",
    "check_settings",
    "is_same_value",
    "values_with_role",
    "with_role",
]

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop")
LATER: dict[str, Any] = {"overlap": 0.0, "grid_origin": "slide", "tissue": {}, "feature_dtype": "float32"}
"""Settings that files of earlier versions do not store, with the values with which those were made."""
RUNTIMES = ("torch", "compile", "openvino")
EXPORT_FORMATS = ("h5", "pt")
FEATURE_DTYPES = ("float32", "float16")
# Settings that are lists whose order has no meaning.
UNORDERED = ("magnifications", "positive_classes")


_FOLDER, _FILE = path(is_joined=True), path(is_optional=True)
_SEED = number(0, 2**32 - 1)

SETTINGS: dict[str, Setting] = dict(
    [
        entry("bundle_root", "the bundle's folder", _FOLDER, "own"),
        entry(
            "dataset_dir", "folder that the paths in the datalist start from; by default the datalist's", _FILE, "free"
        ),
        entry(
            "datalist",
            "the slides and their labels; by default the one in `dataset_dir`; without both, the demonstration's",
            _FILE,
            "free",
        ),
        entry("partition", "the partition that `evaluating` evaluates", None, "provenance"),
        entry("image", "the slide that `inspecting` looks at", _FILE),
        entry("mpp", "micrometres per pixel of that slide, if its file does not state it", resolution),
        entry("mask", "a tissue mask of that slide, an image or annotations", _FILE),
        entry("output_dir", "where results are written", _FOLDER, "own"),
        entry("ckpt_dir", "where weights are written and read", _FOLDER, "own"),
        entry(
            "feature_dir",
            "where the feature bank is; `inferring` reads and writes none unless it is given",
            path(is_optional=True),
            "free",
        ),
        entry(
            "method",
            "what is trained: see [Methods](methods.md)",
            choice("mustmil", "msmil", "ssmil", "mil_att", "mil_att_trans"),
            "decides fixed provenance",
        ),
        entry("methods", "what `comparing` trains", None, "own"),
        entry(
            "task",
            "`multilabel`, or `binary`: the classes of `positive_classes` against the rest",
            choice("multilabel", "binary"),
            "decides fixed provenance",
        ),
        entry(
            "class_names",
            r"the classes, in the labels' order, without `;`, `\|` and `#`; no numbers; not head, all, or a key of "
            "datalists (image, slide, id, label, partition, patient, mpp, mask, ...)",
            names,
            "decides fixed provenance",
        ),
        entry(
            "positive_classes",
            "the classes that count as 1 in the binary task (high risk in the paper): "
            "`--positive_classes \"['malignant']\"`. By default cancer and hgd, where both are among the classes, or a "
            "class that is the only one; with other classes give it, unless labels are one 0 or 1 a slide",
            names,
            "decides fixed provenance",
        ),
        entry(
            "magnifications",
            "one or more, in any order; 10x means 1 um/px",
            magnifications,
            "decides fixed provenance",
        ),
        entry(
            "patch_size",
            "side of the patches in pixels, at every magnification",
            number(1),
            "decides fixed provenance",
        ),
        entry(
            "min_tissue",
            "fraction of tissue that a patch needs at the highest magnification; a list gives one for each",
            None,
            "recorded fixed provenance",
        ),
        entry(
            "overlap",
            "fraction of a patch's side that neighbours share, from 0 to 0.9: see [Grid](methods.md#tissue-and-grid)",
            number(0.0, 0.9),
            "recorded fixed provenance",
        ),
        entry(
            "grid_origin",
            "`slide`: one grid from the slide's corner; `tissue`: one for each piece of tissue, which covers more of "
            "small biopsies",
            choice("slide", "tissue"),
            "recorded fixed provenance",
        ),
        entry(
            "tissue",
            "constants of tissue detection that you change, for example `{'closing_um': 16}`: see "
            "[Tissue](methods.md#tissue-and-grid)",
            None,
            "recorded fixed provenance",
        ),
        entry(
            "mask_tissue",
            "which values of mask images are tissue, where one has several: `[1]` for GrandQC's; which classes of "
            "annotations are: `['Tissue']`; see [Datalists](datalists.md)",
            None,
            "fixed provenance",
        ),
        entry(
            "mask_excluded",
            "which classes of annotations in masks are cut out of the tissue: `['Pen', 'Fold']`; see "
            "[Annotations](datalists.md#annotations)",
            None,
            "fixed provenance",
        ),
        entry("min_rows", "rows of a slide below which `checking` warns of almost no tissue", number(0)),
        entry(
            "read_all",
            "whether `checking` reads every patch once: see [Checking a cohort](datalists.md#checking-a-cohort)",
            switch,
        ),
        entry(
            "reader",
            "`cucim`, `openslide`, or `auto`: cuCIM where it can, OpenSlide where not, and tifffile for levels in "
            "SubIFDs",
            choice("auto", "cucim", "openslide"),
            "provenance free",
        ),
        entry(
            "read_level",
            "`nearest` finer level of the pyramid, or the `highest` as the paper does; `upsample` is `nearest`, and "
            "interpolates slides that are coarser than a magnification, which fail otherwise (with a `feature_dir` of "
            "its own)",
            choice("nearest", "highest", "upsample"),
            "recorded fixed provenance",
        ),
        entry(
            "source",
            "train on the feature `bank`, or on `patches` read from the slides in every epoch",
            choice("bank", "patches"),
            "fixed provenance",
        ),
        entry(
            "views",
            "class-wise augmentation: see [Augmentation](methods.md#augmentation)",
            number(0, 999),
            "fixed provenance",
        ),
        entry(
            "cache_gb",
            "banks are kept in memory once read, up to so many gigabytes for training and as many for validation",
            number(0.0),
            "free",
        ),
        entry("backbone", "`efficientnet_lite0`, or `resnet34`, the paper's", None, "decides fixed provenance"),
        entry("backbone_weights", "a weights file, instead of the official one", _FILE),
        entry(
            "epochs",
            "of each phase of the training; an epoch samples as many slides as there are training slides, balanced "
            "over classes; raise it for small cohorts (the paper's have 1,826, the demo takes 40 epochs of 23)",
            number(1),
            "provenance grid",
        ),
        entry("optimizer_name", "`Adam`, `AdamW`, `SGD` or `RMSprop`", choice(*OPTIMIZERS), "fixed provenance grid"),
        entry("lr", "learning rate of the optimiser", number(0.0), "fixed provenance grid"),
        entry("weight_decay", "weight decay of the optimiser", number(0.0), "fixed provenance grid"),
        entry(
            "num_nodes",
            "size of an instance's embedding; MONAI's `MILModel` has sizes of its own",
            number(2),
            "decides fixed provenance grid",
        ),
        entry(
            "alpha",
            "weight of MuSTMIL's global loss; other methods have one loss at a time",
            number(0.0),
            "fixed provenance grid",
        ),
        entry("beta", "weight of the loss of each of MuSTMIL's scales", number(0.0), "fixed provenance grid"),
        entry(
            "val_interval",
            "epochs from one validation to the next; weights are kept at validations alone",
            number(1),
            "fixed provenance",
        ),
        entry("batch_size", "bags a step", number(1), "fixed provenance"),
        entry("encode_batch", "patches that the backbone encodes at once", number(1, 4096), "provenance free"),
        entry("num_workers", "threads that read patches", number(0), "free"),
        entry(
            "amp",
            "bfloat16 in the backbone, by default where `device` is fast at it, else float32 without TF32; the heads "
            "compute in float32 always",
            switch,
            "provenance",
        ),
        entry("runtime", "what computes the backbone: see [Speed](clusters.md#speed)", choice(*RUNTIMES), "provenance"),
        entry(
            "feature_dtype",
            "`float32`, or `float16`: features of half the size, rounded where they are made; training computes in "
            "float32 with either. See [Half the disk](clusters.md#half-the-disk)",
            choice(*FEATURE_DTYPES),
            "recorded fixed provenance",
        ),
        entry("seed", "of the initial weights, the sampling and the bootstrap", _SEED, "fixed"),
        entry("seeds", "the seeds with which `comparing` trains each method", None, "own"),
        entry(
            "split_seed",
            "of the split of a datalist without partitions: keep it where `seed` changes",
            _SEED,
            "fixed provenance",
        ),
        entry("grid", "what `searching` tries: lists of values by setting", None, "own"),
        entry(
            "num_processes",
            "how many trainings of `comparing` and `searching` run at the same time",
            number(1, 10**4),
            "own",
        ),
        entry(
            "figure_slides",
            "slides of the figure of `comparing`, by name; by default the first of each class",
            None,
            "own",
        ),
        entry(
            "device",
            "`cpu`, `cuda`, `cuda:1`; by default a GPU if torch sees one, else the CPU, with a warning where the "
            "machine has a GPU that torch cannot use",
            device,
            "provenance free",
        ),
        entry("resume", "continue from `ckpt_dir/last.ckpt`", switch, "own"),
        entry(
            "strict", "stop at the first slide that fails: see [When a slide fails](troubleshooting.md)", switch, "own"
        ),
        entry("allow_missing", "continue without slides that have no features", switch, "own"),
        entry(
            "leave_out",
            "names of slides of the datalist that are not used (`--leave_out \"['a','b']\"`); the split stays as it is",
        ),
        entry("heatmaps", "whether `inferring` draws heatmaps", switch),
        entry("report", "whether `report.html` is written, with pictures of each slide", switch),
        entry("heatmap_kinds", "`attention`, `contribution`, or both: see [Heatmaps](heatmaps.md)"),
        entry(
            "heatmap_classes",
            "the classes whose heatmaps are drawn; by default the predicted ones, or the most probable where none is",
        ),
        entry(
            "heatmap_formats",
            "`png` with a legend, `plain` PNG without, `geojson`, `mha`, or a list of these: see "
            "[Heatmaps](heatmaps.md)",
        ),
        entry(
            "export_formats",
            "`h5`, as TRIDENT, torchmil and MIL-Lab read it, `pt`, as CLAM's training does, or a list of these",
            several(*EXPORT_FORMATS),
            "own",
        ),
        entry(
            "top_patches",
            "how many patches the galleries show of each kind; 0 writes no galleries",
            number(0, 100),
        ),
        entry(
            "coordinates",
            "the frame of GeoJSON, galleries and `patches.csv`: `qupath`, or `level0`: see "
            "[Frames](heatmaps.md#frames)",
        ),
    ]
)


def with_role(role: str) -> tuple[str, ...]:
    """The names of the settings with a role of :class:`scripts.core.setting_entry.Setting`, in the registry's order."""
    return tuple(name for name, setting in SETTINGS.items() if role in setting.roles)


def values_with_role(settings: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Those of some settings that have a role, by name."""
    return {name: settings[name] for name in with_role(role) if name in settings}


def is_same_value(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same: the order of magnifications and of positive classes does not."""
    one, other = json.loads(json.dumps([one, other], default=str))
    if name in UNORDERED and isinstance(one, list) and isinstance(other, list):
        return sorted(one, key=str) == sorted(other, key=str)
    return bool(one == other)


def check_settings(**settings: Any) -> None:
    """Check values of settings, given by name.

    Raises:
        SettingsError: if a setting has no such value.
        KeyError: if there is no such setting.
    """
    for name, value in settings.items():
        check = SETTINGS[name].check
        if check is not None:
            check(name, value)
