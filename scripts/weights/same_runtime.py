"""The runtime that ``auto`` stands for: the one that made the features that are there."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scripts.core.errors import SettingsError
from scripts.core.imported import IMPORTED
from scripts.core.ranks import is_first_rank
from scripts.encoders.runtimes import OPENVINO, check_openvino
from scripts.features.bank import stored_settings
from scripts.weights.record import read_origin

__all__ = ["check_precision", "same_runtime"]

DEFAULT = "torch"

logger = logging.getLogger(__name__)


def same_runtime(settings: Mapping[str, Any]) -> str:
    """The runtime of the banks in ``feature_dir``, or of the features of the weights in ``ckpt_dir``, or else torch.

    What happens to be installed decides nothing, so that two machines make the same features.

    Args:
        settings: of a config, by name, with ``device``.

    Raises:
        SettingsError: if the banks were made with OpenVINO, which cannot compute here: others would not go with them.
    """
    device = torch.device(settings["device"])
    if settings.get("backbone") == IMPORTED:
        return DEFAULT
    if settings.get("precision") == "int8":
        return "openvino"
    folder, weights = settings.get("feature_dir"), settings.get("ckpt_dir")
    if folder is not None and (of_banks := _of_banks(Path(folder), "runtime", DEFAULT)) is not None:
        if of_banks == "openvino":
            try:
                check_openvino(device)
            except SettingsError as error:
                cause = f"the feature banks in {folder} were made with openvino, and {error.cause}"
                remedy = f"Run on a CPU with `pip install openvino=={OPENVINO}`, or choose another `feature_dir`."
                raise SettingsError("runtime", cause, remedy) from error
        return of_banks
    of_weights = None if weights is None else _of_weights(Path(weights))
    if of_weights is None and device.type == "cpu" and is_first_rank() and find_spec("openvino") is not None:
        _tell_faster()
    if of_weights == "openvino":
        try:
            check_openvino(device)
        except SettingsError as error:
            _warn_of_other(error.cause)
            return DEFAULT
    return of_weights or DEFAULT


def check_precision(settings: Mapping[str, Any]) -> None:
    """Refuse to mix INT8 and other banks before anything is made.

    Args:
        settings: of a config, by name.

    Raises:
        SettingsError: if the banks in ``feature_dir`` were made with another ``precision``.
    """
    folder, wanted = settings.get("feature_dir"), settings.get("precision")
    if folder is None or wanted is None or settings.get("backbone") == IMPORTED:
        return
    found = _of_banks(Path(folder), "precision", "amp")
    if found not in (None, wanted):
        cause = f"is {wanted}, and the feature banks in {folder} were made with {found}"
        remedy = f"Give --precision {found}, or choose another `feature_dir`; trained weights take those of their own."
        raise SettingsError("precision", cause, remedy)


def _of_banks(folder: Path, name: str, default: str) -> str | None:
    """A setting of the first bank that can be read: banks of a folder are never mixed.

    Args:
        folder: of the banks; it need not exist.
        name: of the setting.
        default: its value in the oldest banks, which do not store it.
    """
    try:
        entries = os.scandir(folder)
    except OSError:
        return None  # there is none yet; whoever reads or writes there says what else is wrong
    # Not by `glob`, which lists the whole folder, of perhaps 100,000 banks, before it gives the first.
    with entries:
        for entry in entries:
            # Files that begin with a dot are being written.
            if entry.name.startswith(".") or not entry.name.endswith(".h5"):
                continue
            try:
                return str(stored_settings(Path(entry.path)).get(name, default))
            except SettingsError:
                continue  # whoever reads it says what is wrong with it
    return None


def _of_weights(folder: Path) -> str | None:
    for path in sorted(folder.glob("model*.pt")):
        try:
            configuration = read_origin(path).get("made_by", {}).get("configuration", {})
        except SettingsError:
            continue  # loading them says why
        return str(configuration.get("runtime", DEFAULT))
    return None


@functools.cache
def _tell_faster() -> None:
    logger.info(
        "runtime: torch makes the features. openvino, which is installed, is faster on a CPU: give --runtime openvino "
        "before the first features of a study, and `auto` then stands for it"
    )


@functools.cache
def _warn_of_other(cause: str) -> None:
    logger.warning(
        "runtime: the weights were trained on features of openvino, and %s: torch encodes, and differs slightly",
        cause,
    )
