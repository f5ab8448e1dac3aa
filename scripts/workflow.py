"""What the expressions of the configs call: the one module that configs import.

Each name is imported when a config uses it, so that a workflow loads what it needs and no more.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pydoc import locate
from types import MappingProxyType
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.core.files import file_sha256
from scripts.core.imported import IMPORTED
from scripts.core.machine import chosen, log_chosen
from scripts.core.running import running_parser, settings_in
from scripts.core.setting_checks import AUTO
from scripts.core.settings import LATER, check_settings, with_role
from scripts.core.start import start, started
from scripts.datalists.cohort import Cohort
from scripts.datalists.labels import resolve_positive_classes

__all__ = [
    "BUNDLE_ROOT",
    "encoder_of",
    "from_settings",
    "network_of",
    "pretrained_of",
    "scoring_settings",
    "settings",
    "settings_of_trainings",
    "start",
    "started",
    "summary_writer",
]

logger = logging.getLogger(__name__)

_MODULES = {
    "scripts.core.files": ("lock", "unlock"),
    "scripts.core.imported": ("needs_slides",),
    "scripts.core.ranks": (
        "is_first_rank", "join", "join_others", "leave", "num_ranks", "own_device", "rank", "refuse_several",
    ),
    "scripts.checking.cohort": ("choose_source",),
    "scripts.checking.inspection": ("inspect_slide",),
    "scripts.core.tasks": ("get_task",),
    "scripts.core.provenance": ("cohort_fingerprint", "data_source"),
    "scripts.datalists.cohort": ("choose_slides",),
    "scripts.datalists.datalist": ("list_slides",),
    "scripts.datalists.labels": ("output_names",),
    "scripts.datalists.failures": ("FailedSlides", "without"),
    "scripts.encoders.registry": ("list_encoders",),
    "scripts.evaluation.board": ("EvaluationBoard",),
    "scripts.evaluation.metrics": ("head_metrics", "key_metric", "lower_is_better", "score_names"),
    "scripts.evaluation.predictions_file": ("internal_test",),
    "scripts.evaluation.same_split": ("warn_of_other_split",),
    "scripts.encoders.backbones": ("has_fast_bfloat16",),
    "scripts.features.exporting": ("export_banks",),
    "scripts.features.extraction": ("left_out",),
    "scripts.networks.methods": ("attention_maps", "result_heads", "trained_heads"),
    "scripts.slides.isolation": ("start_reader",),
    "scripts.training.curves": ("loss_and_metric_layout", "training_scalars", "write_validation"),
    "scripts.training.optimizers": ("optimizer_class",),
    "scripts.training.recalibration": ("refuse_others",),
    "scripts.training.resuming": ("check_resumable",),
    "scripts.weights.checkpoints": ("load_weights",),
    "scripts.weights.paths": ("serving_weights", "weights_path"),
    "scripts.weights.record": ("decision_settings", "trained_settings"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def settings() -> dict[str, Any]:
    """The settings of the running config, by name, as plain values that may be stored; what is ``auto``, decided.

    The batch on a GPU stays ``auto``: the encoder tries it.

    Raises:
        SettingsError: if some of them contradict the task, or no more features like those that are there can be made.
    """
    parser = running_parser()
    assert parser is not None, "settings() is for expressions of a config"
    found = settings_in(parser)
    if {"task", "class_names", "positive_classes"} <= found.keys():
        found["positive_classes"] = resolve_positive_classes(
            found["task"], found["class_names"], found["positive_classes"]
        )
        from scripts.weights.operating_point import check_rules

        check_rules(found)
    if "linking" in found:
        from scripts.bags.linking import Linking

        Linking(found["linking"], len(found["magnifications"]))  # refused before anything is extracted
    if "device" in found:
        found["device"] = str(found["device"])
    if found.get("precision") == "int8" and "amp" in found:
        found["amp"] = False  # what is not in INT8 is in float32
    # A training follows no weights that happen to lie where it will write its own.
    return {**found, **_decided_here(found if "trained" in parser else {**found, "ckpt_dir": None})}


def _decided_here(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``auto`` stands for, by setting."""
    from scripts.weights.same_runtime import check_precision, same_runtime

    check_precision(found)
    decided = chosen(found)
    if found.get("runtime") == AUTO:
        decided["runtime"] = same_runtime(found)
    log_chosen(decided)
    return decided


def from_settings(target: str, settings: Mapping[str, Any], **others: Any) -> Any:
    """Make an object of a class whose arguments are called like settings: a new setting needs no wiring.

    Args:
        target: the class, with its module.
        settings: by name.
        others: further arguments, which go before settings of their names.
    """
    made: Any = locate(target)
    taken = {name: settings[name] for name in inspect.signature(made).parameters if name in settings}
    return made(**{**taken, **others})


def encoder_of(settings: Mapping[str, Any], trained: Mapping[str, Any] = MappingProxyType({}), **others: Any) -> Any:
    """The encoder of the settings.

    Where features are imported, what stands for it (:class:`scripts.features.imported.ImportedFeatures`).

    Args:
        settings: by name.
        trained: what the record of the weights in use says (:func:`scripts.weights.record.trained_settings`).
        others: arguments of :class:`scripts.features.encoding.Encoder`.
    """
    if settings["backbone"] == IMPORTED and "backbone" not in others:
        from scripts.features.imported import imported_features

        return imported_features(settings)
    from scripts.encoders.backbones import get_backbone
    from scripts.features.encoding import Encoder

    precision = settings.get("precision", "amp")
    check_settings(precision=precision)
    is_int8 = precision == "int8"
    if "backbone" not in others:
        others["backbone"] = get_backbone(
            settings["backbone"], settings["backbone_weights"], settings["amp"], settings.get("backbone_input")
        )
    if is_int8:
        others.setdefault("int8", _int8_of(settings, trained))
    taken = {key: settings[key] for key in ("device", "num_workers", "runtime", "feature_dtype") if key in settings}
    return Encoder(**{**taken, "batch_size": settings["encode_batch"], **others})


def _int8_of(settings: Mapping[str, Any], trained: Mapping[str, Any]) -> Any:
    """Where the INT8 network is: beside the weights in use, or those that a training starts from, or the banks."""
    from scripts.features.int8 import Int8
    from scripts.weights.record import trained_settings

    folders = [settings["ckpt_dir"]] if trained else []
    if (path := settings.get("pretrained")) is not None:
        folders = [path if os.path.isdir(path) else os.path.dirname(path)]
        trained = trained_settings(folders[0])
    return Int8(settings.get("feature_dir"), settings.get("seed", 0), trained.get("int8_sha256"), folders)


def network_of(
    settings: Mapping[str, Any], num_classes: int, trained: Mapping[str, Any] = MappingProxyType({}), **others: Any
) -> Any:
    """The network of the settings; others are arguments of :class:`scripts.networks.mustmil.MuSTMIL`.

    Where ``num_features`` is not known, as of weights without a record, the encoder says it; one with a name does so
    without its weights.

    Args:
        settings: by name.
        num_classes: the number of logits of each head.
        trained: what the weights' record says of their network (:func:`scripts.weights.record.trained_settings`).
    """
    from scripts.encoders.registry import ENCODERS
    from scripts.networks.ensemble import Ensemble
    from scripts.networks.methods import get_network

    if others.setdefault("num_features", trained.get("num_features")) is None:
        named = ENCODERS.get(settings["backbone"])
        others["num_features"] = (named or encoder_of(settings)).num_features
    names = ("num_nodes", "class_attention", "attention_entropy", "classifier_init")
    taken = {name: {**LATER, **settings}[name] for name in names}
    taken["num_scales"] = len(settings["magnifications"])
    count = trained.get("members", 1)
    made = [get_network(settings["method"], num_classes=num_classes, **{**taken, **others}) for _ in range(count)]
    return made[0] if count == 1 else Ensemble(made, settings["task"])


def summary_writer(folder: str, anew: bool = False, layout: Mapping[str, Any] | None = None) -> Any:
    """TensorBoard's writer on the first rank; ``None`` on the others.

    Args:
        folder: of the events.
        anew: remove the events of an earlier call first.
        layout: of the Custom Scalars tab.
    """
    from torch.utils.tensorboard import SummaryWriter

    from scripts.core.events import remove_events
    from scripts.core.ranks import is_first_rank

    if not is_first_rank():
        return None
    if anew:
        remove_events(folder)
    writer = SummaryWriter(folder)
    if layout is not None:
        writer.add_custom_scalars(layout)
    return writer


def scoring_settings(settings: Mapping[str, Any], encoder: Any) -> dict[str, Any]:
    """What decides the meaning of scores, to be compared with the record of the weights."""
    from scripts.weights.record import recorded_settings

    return recorded_settings({**settings, **encoder.backbone.recorded}, encoder.checksums)


def pretrained_of(settings: Mapping[str, Any], encoder: Any, class_names: Sequence[str]) -> Any:
    """The weights from which a training starts; ``None`` where it starts anew, or goes on from its own checkpoint.

    Args:
        settings: of the training.
        encoder: of the training.
        class_names: the classes of its logits.
    """
    from scripts.weights.pretrained import read_pretrained

    path = settings["pretrained"]
    if path is not None and settings["resume"]:
        logger.info("`pretrained` is not read: the training goes on from its own checkpoint")
        return None
    return None if path is None else read_pretrained(path, scoring_settings(settings, encoder), class_names)


def settings_of_trainings(settings: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """What ``comparing`` and ``searching`` hand to each of their trainings."""
    folder, datalist = cohort.place
    own = {name: value for name, value in settings.items() if name not in with_role("own")}
    places = {"dataset_dir": str(folder), "datalist": str(datalist), "datalist_sha256": file_sha256(datalist)}
    return {**own, **places}
