"""The knobs that are numbers, switches or paths, and the device: checked before anything is read or built."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from scripts.core.errors import SettingsError
from scripts.core.ranks import check_device

__all__ = ["OPTIMIZERS", "check_settings", "optimizer_class"]

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop")
SWITCHES = ("allow_missing", "amp", "heatmaps", "resume", "strict")

# Knobs that are paths, and whether they may be left out. Configs add the rest of a path to those that are folders of
# theirs, so that these are texts alone.
JOINED_PATHS = ("bundle_root", "output_dir", "ckpt_dir")
PATHS: dict[str, bool] = {
    **dict.fromkeys((*JOINED_PATHS, "feature_dir"), False),
    **dict.fromkeys(("dataset_dir", "datalist", "backbone_weights", "image", "mask"), True),
}

# Smallest value, and largest; whole numbers where both are written as such.
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**9),
    "views": (0, 999),
    "num_processes": (1, 10**4),
    "val_interval": (1, 10**9),
    "cache_gb": (0.0, math.inf),
    "batch_size": (1, 10**9),
    "encode_batch": (1, 4096),
    "num_nodes": (2, 10**9),
    "num_workers": (0, 10**9),
    "patch_size": (1, 10**9),
    "seed": (0, 2**32 - 1),
    "split_seed": (0, 2**32 - 1),
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "alpha": (0.0, math.inf),
    "beta": (0.0, math.inf),
}


def check_settings(**settings: Any) -> None:
    """Check a config's numbers, switches, paths and device.

    Args:
        settings: knobs by name: those of :data:`LIMITS`, of :data:`PATHS`, ``device``, ``mpp``, and switches
            (:data:`SWITCHES`).

    Raises:
        SettingsError: if a knob has no such value.
        KeyError: if this function knows no such knob.
    """
    for key, value in settings.items():
        if key == "device":
            _check_device(value)
        elif key in SWITCHES:
            if not isinstance(value, bool):
                raise SettingsError(key, f"got {value!r}", "Give True or False.")
        elif key in PATHS:
            _check_path(key, value)
        elif key == "mpp":
            _check_mpp(value)
        else:
            _check_number(key, value, *LIMITS[key])


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser of torch by its name, of those that take ``lr`` and ``weight_decay`` and need nothing else.

    It is torch's fused form where there is one, which passes over the weights once a step.

    Raises:
        SettingsError: if there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise SettingsError("optimizer_name", f"got {name!r}", f"Choose one of {', '.join(OPTIMIZERS)}.")
    optimizer: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
    return optimizer if name == "RMSprop" else partial(optimizer, fused=True)


def _check_number(key: str, value: Any, least: float, most: float) -> None:
    whole = isinstance(least, int)
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not (math.isfinite(value) and least <= value <= most):
        kind = "a whole number" if whole else "a number"
        upper = f" to {most:g}" if key in ("seed", "split_seed", "encode_batch") else " up"
        raise SettingsError(key, f"got {value!r}", f"Give {kind} from {least:g}{upper}.")


def _check_path(key: str, value: Any) -> None:
    if value is None and PATHS[key]:
        return
    if not isinstance(value, str if key in JOINED_PATHS else str | os.PathLike) or not os.fspath(value):
        # `--output_dir 2024` is a number.
        example = f", for example ./{value}" if isinstance(value, int) else ""
        raise SettingsError(key, f"got {value!r}", f"Give a path as text{example}.")


def _check_mpp(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise SettingsError("mpp", f"got {value!r}", "Give micrometres per pixel at full resolution, such as 0.25.")


def _check_device(value: Any) -> None:
    remedy = "Give cpu, cuda, or cuda:N with a GPU that is there."
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise SettingsError("device", f"got {value!r}", remedy) from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError("device", f"got {value!r}", remedy)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError("device", f"got {value!r}, and torch sees {torch.cuda.device_count()} GPUs", remedy)
    check_device(device)
