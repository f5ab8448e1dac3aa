"""The table of settings: what each one is, which values it takes, and what depends on it."""

from __future__ import annotations

from scripts.core import setting_checks as checks
from scripts.core.imported import features_are, folders
from scripts.core.setting_entry import Setting, entry
from scripts.core.setting_table_computing import COMPUTING, FEATURE_DTYPES, RUNTIMES
from scripts.core.setting_table_network import NETWORK
from scripts.core.tasks import TASKS

__all__ = ["EXPORT_FORMATS", "FEATURE_DTYPES", "OPTIMIZERS", "RUNTIMES", "SETTINGS"]

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop")
EXPORT_FORMATS = ("h5", "pt")

_FOLDER, _FILE = checks.path(is_joined=True), checks.path(is_optional=True)
_SEED = checks.number(0, 2**32 - 1)

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
        entry(
            "internal", "`output_dir` of the internal test: see [External validation](external_validation.md)", _FILE
        ),
        entry("image", "the slide that `inspecting` looks at", _FILE),
        entry("mpp", "micrometres per pixel of that slide, if its file does not state it", checks.resolution),
        entry("mask", "a tissue mask of that slide, an image or annotations", _FILE),
        entry("output_dir", "where results are written", _FOLDER, "own"),
        entry("ckpt_dir", "where weights are written and read", _FOLDER, "own"),
        entry(
            "feature_dir",
            "where the feature bank is; `inferring` reads and writes none unless it is given",
            checks.path(is_optional=True),
            "free",
        ),
        entry(
            "method",
            "what is trained: see [Methods](methods.md)",
            checks.choice(
                *("mustmil", "msmil", "ssmil", "mil_att", "mil_att_trans", "mean", "abmil", "abmil_linked"),
                *("late_fusion", "clam_sb", "clam_mb", "dsmil", "transmil"),
                packages={"transmil": "nystrom-attention"},
            ),
            "decides fixed provenance",
        ),
        entry("methods", "what `comparing` trains: methods, and [variants](methods.md#ablations) of them", None, "own"),
        entry(
            "task",
            "`multilabel`, `binary`, `multiclass` or `ordinal`: see [Tasks](methods.md#tasks)",
            checks.choice(*TASKS),
            "decides fixed provenance shared",
        ),
        entry(
            "class_names",
            r"the classes, in the labels' order, without `;`, `\|` and `#`; no numbers; not head, all, or a key of "
            "datalists (image, slide, id, label, partition, patient, mpp, mask, ...)",
            checks.names,
            "decides fixed provenance shared",
        ),
        entry(
            "positive_classes",
            "the classes that count as 1 in the binary task (high risk in the paper): "
            "`--positive_classes \"['malignant']\"`. By default cancer and hgd, where both are among the classes, or a "
            "class that is the only one; with other classes give it, unless labels are one 0 or 1 a slide",
            checks.names,
            "decides fixed provenance shared",
        ),
        entry(
            "unit",
            "what a bag is: a `slide`, or all slides of a `patient`: see [Patients](methods.md#patients)",
            checks.choice("slide", "patient"),
            "decides fixed provenance shared",
        ),
        entry(
            "magnifications",
            "one or more, in any order; 10x means 1 um/px",
            checks.magnifications,
            "decides fixed provenance shared",
        ),
        entry(
            "patch_size",
            "side of the patches in pixels, at every magnification",
            checks.number(1),
            "decides fixed provenance shared",
        ),
        entry(
            "min_tissue",
            "fraction of tissue that a patch needs at the highest magnification; a list gives one for each",
            None,
            "recorded fixed provenance shared",
        ),
        entry(
            "overlap",
            "fraction of a patch's side that neighbours share, from 0 to 0.9: see [Grid](methods.md#tissue-and-grid)",
            checks.number(0.0, 0.9),
            "recorded fixed provenance shared",
        ),
        entry(
            "grid_origin",
            "`slide`: one grid from the slide's corner; `tissue`: one for each piece of tissue, which covers more of "
            "small biopsies",
            checks.choice("slide", "tissue"),
            "recorded fixed provenance shared",
        ),
        entry(
            "tissue",
            "constants of tissue detection that you change, for example `{'closing_um': 16}`: see "
            "[Tissue](methods.md#tissue-and-grid)",
            None,
            "recorded fixed provenance shared",
        ),
        entry(
            "mask_tissue",
            "which values of mask images are tissue, where one has several: `[1]` for GrandQC's; which classes of "
            "annotations are: `['Tissue']`; see [Datalists](datalists.md)",
            None,
            "fixed provenance shared",
        ),
        entry(
            "mask_excluded",
            "which classes of annotations in masks are cut out of the tissue: `['Pen', 'Fold']`; see "
            "[Annotations](datalists.md#annotations)",
            None,
            "fixed provenance shared",
        ),
        entry("min_rows", "rows of a slide below which `checking` warns of almost no tissue", checks.number(0)),
        entry(
            "read_all",
            "whether `checking` reads every patch once: see [Checking a cohort](datalists.md#checking-a-cohort)",
            checks.switch,
        ),
        entry(
            "reader",
            "`cucim`, `openslide`, or `auto`: cuCIM where it can, OpenSlide where not, and tifffile for levels in "
            "SubIFDs",
            checks.choice("auto", "cucim", "openslide"),
            "provenance free",
        ),
        entry(
            "read_level",
            "`nearest` finer level of the pyramid, or the `highest` as the paper does; `upsample` is `nearest`, and "
            "interpolates slides that are coarser than a magnification, which fail otherwise (with a `feature_dir` of "
            "its own)",
            checks.choice("nearest", "highest", "upsample"),
            "recorded fixed provenance shared",
        ),
        entry(
            "source",
            "train on the feature `bank`, or on `patches` read from the slides in every epoch",
            checks.choice("bank", "patches"),
            "fixed provenance shared",
        ),
        entry(
            "views",
            "class-wise augmentation: see [Augmentation](methods.md#augmentation)",
            checks.number(0, 999),
            "fixed provenance",
        ),
        entry(
            "cache_gb",
            "banks are kept in memory once read, up to so many gigabytes for training and as many for validation; "
            "`auto` is a quarter of the free memory for each, at most 64",
            checks.number(0.0, or_auto=True),
            "free",
        ),
        entry("slide_cache", "a fast folder for copies: see [Slow storage](clusters.md#slow-storage)", _FILE, "free"),
        entry("slide_cache_gb", "gigabytes that a process's copies may take there", checks.number(0.0), "free"),
        entry(
            "backbone",
            "`efficientnet_lite0`, `resnet34` (the paper's), an encoder of pathology such as `uni2_h`, your own, or "
            "`imported`: see [Encoders](encoders.md) and [I already have features](features.md)",
            None,
            "decides fixed provenance shared",
        ),
        entry(
            "backbone_weights",
            "its weights: a file, or the folder of a downloaded snapshot; `hub` downloads what is not in the cache",
            _FILE,
        ),
        entry(
            "backbone_input",
            "`{'size': 224, 'mean': [...], 'std': [...]}`, in 0..1, of an encoder that does not say it itself",
            checks.backbone_input,
            "decides fixed provenance shared",
        ),
        entry("members", "the trainings of an ensemble: see [Ensembles](ensembles.md)", folders, "own"),
        entry("pretrained", "weights to start from: see [Going on](methods.md#going-on-from-weights)", _FILE, "own"),
        entry(
            "epochs",
            "of each phase of the training; an epoch samples as many slides as there are training slides, balanced "
            "over classes; raise it for small cohorts (the paper's have 1,826, the demo takes 40 epochs of 23)",
            checks.number(1),
            "provenance grid",
        ),
        entry(
            "optimizer_name", "`Adam`, `AdamW`, `SGD` or `RMSprop`", checks.choice(*OPTIMIZERS), "fixed provenance grid"
        ),
        entry("lr", "learning rate of the optimiser", checks.number(0.0), "fixed provenance grid"),
        entry("weight_decay", "weight decay of the optimiser", checks.number(0.0), "fixed provenance grid"),
        *NETWORK,
        entry(
            "val_interval",
            "epochs from one validation to the next; weights are kept at validations alone",
            checks.number(1),
            "fixed provenance",
        ),
        entry(
            "prior_correction",
            "whether balanced draws are taken back: see [Operating point](operating_point.md)",
            checks.switch,
            "fixed provenance",
        ),
        entry(
            "calibration",
            "`temperature`, `platt` or `none`: see [Operating point](operating_point.md)",
            checks.choice("none", "temperature", "platt"),
            "fixed provenance",
        ),
        entry(
            "threshold",
            "of decisions: a number, `f1`, `youden` or `sensitivity=0.95`: see [Operating point](operating_point.md)",
            checks.threshold,
            "fixed provenance",
        ),
        entry("batch_size", "bags a step", checks.number(1), "fixed provenance"),
        *COMPUTING,
        entry("seed", "of the initial weights, the sampling and the bootstrap", _SEED, "fixed"),
        entry("seeds", "the seeds with which `comparing` trains each method", None, "own"),
        entry(
            "split_seed",
            "of the split of a datalist without partitions, and of folds: keep it where `seed` changes",
            _SEED,
            "fixed provenance shared",
        ),
        entry(
            "folds",
            "into how many parts `cross_validating` divides the patients, and `comparing` if it is given; each part is "
            "tested once: see [Cross-validation](methods.md#cross-validation)",
            checks.number(2, 10**4, is_optional=True),
            "own provenance",
        ),
        entry("grid", "what `searching` tries: lists of values by setting", None, "own"),
        entry(
            "num_processes",
            "how many trainings of `comparing`, `cross_validating` and `searching` run at the same time",
            checks.number(1, 10**4),
            "own",
        ),
        entry("figure_slides", "slides in the figure of `comparing`; by default the first of each class", None, "own"),
        entry(
            "device",
            "`cpu`, `cuda`, `cuda:1`; by default a GPU if torch sees one, else the CPU, with a warning where the "
            "machine has a GPU that torch cannot use",
            checks.device,
            "provenance free",
        ),
        entry("resume", "continue from `ckpt_dir/last.ckpt`", checks.switch, "own"),
        entry(
            "strict",
            "stop at the first slide that fails: see [When a slide fails](troubleshooting.md)",
            checks.switch,
            "own",
        ),
        entry("allow_missing", "continue without slides that have no features", checks.switch, "own"),
        entry(
            "leave_out",
            "names of slides of the datalist that are not used (`--leave_out \"['a','b']\"`); the split stays as it is",
        ),
        entry("heatmaps", "whether `inferring` draws heatmaps", checks.switch),
        entry(
            "report",
            "whether `report.html` is written (`training` has none), and pictures for TensorBoard",
            checks.switch,
        ),
        entry("heatmap_kinds", "`attention`, `contribution`, or both: see [Heatmaps](heatmaps.md)"),
        entry(
            "heatmap_classes",
            "the classes that are shown; by default heatmaps of the predicted ones, or of the most probable where none "
            "is, and top patches of all",
        ),
        entry(
            "heatmap_formats",
            "`png` with a legend, `plain` PNG without, `geojson`, `mha`, or a list of these: see "
            "[Heatmaps](heatmaps.md)",
        ),
        entry(
            "export_formats",
            "`h5`, as TRIDENT, torchmil and MIL-Lab read it, `pt`, as CLAM's training does, or a list of these",
            checks.several(*EXPORT_FORMATS),
            "own",
        ),
        entry(
            "features",
            "folders with the features of another tool, one for each magnification: see "
            "[I already have features](features.md)",
            folders,
            "own",
        ),
        entry(
            "features_are",
            "what those files do not say, for example `{'encoder': 'uni', 'mpp': 0.25}`: see "
            "[What is asked for](features.md#what-is-asked-for)",
            features_are,
            "own",
        ),
        entry("top_patches", "how many patches galleries show of each kind; 0 writes none", checks.number(0, 100)),
        entry(
            "coordinates",
            "the frame of GeoJSON, galleries and `patches.csv`: `qupath`, or `level0`: see "
            "[Frames](heatmaps.md#frames)",
        ),
    ]
)
