"""Features that another tool extracted, in the place of an encoder: what they are is read from their banks."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.bags.bag import Bag
from scripts.core.errors import SettingsError, SlideError
from scripts.core.imported import IMPORTED
from scripts.core.settings import check_settings, is_same_value
from scripts.features.bank import bank_slides, stored_settings
from scripts.features.encoding import Encoded, Encoder, PatchTransform

__all__ = [
    "IDENTITY",
    "WEIGHTS",
    "ImportedBackbone",
    "ImportedFeatures",
    "difference",
    "identity_of",
    "imported_features",
    "options",
    "refuse_imported",
]

IDENTITY = ("backbone", "encoder", "num_features", "magnifications", "patch_size")
"""The settings of a bank that all imported banks of a run share."""
WEIGHTS = "weights_sha256"
"""The setting that they share where their files say it."""

RUN_IMPORTING = "Run `importing` into this `feature_dir` first: see docs/features.md."


@dataclass(frozen=True)
class ImportedBackbone:
    """What made imported features, in the place of a :class:`scripts.encoders.backbones.Backbone`.

    Args:
        num_features: F.
        weights_sha256: SHA-256 of the encoder's name, F, and the checksum of its weights where files say it.
        recorded: settings that records of weights store as the encoder states them.
    """

    num_features: int
    weights_sha256: str
    name: str = IMPORTED
    amp: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)


class ImportedFeatures(Encoder):
    """The encoder of a run whose features were imported: it knows what they are, and encodes nothing.

    Args:
        feature_dir: the banks.
        magnifications: the run's; ``None`` compares nothing.
        patch_size: the run's; ``None`` compares nothing.
        device: where a network runs.

    Raises:
        SettingsError: if there is no bank, one is of something else, two are of different features, or they are not
            those of the run's settings.
    """

    def __init__(
        self,
        feature_dir: str | Path | None,
        magnifications: Sequence[float] | None = None,
        patch_size: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        # Nothing of the encoder's own, which prepares to compute.
        if feature_dir is None:
            remedy = "Name the folder into which `importing` wrote: --feature_dir PATH."
            raise SettingsError("feature_dir", "is not given, and `backbone` is imported", remedy)
        self.feature_dir = Path(feature_dir)
        banks = list(bank_slides(self.feature_dir).values())
        if not banks:
            raise SettingsError("feature_dir", f"there is no feature bank in {feature_dir}", RUN_IMPORTING)
        self.identity = identity_of(banks)
        for key, wanted in (("magnifications", magnifications), ("patch_size", patch_size)):
            found = self.identity[key]
            if wanted is not None and not is_same_value(key, found, _plain(wanted)):
                cause = f"is {wanted!r}, and the features in {self.feature_dir} are of {found!r}"
                raise SettingsError(key, cause, f"Give {options({key: found})}.")
        known = [self.identity[key] for key in ("encoder", "num_features", WEIGHTS) if key in self.identity]
        name = json.dumps(known)
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        self.backbone = ImportedBackbone(int(self.identity["num_features"]), sha256)  # type: ignore[assignment]
        self.feature_dtype = np.dtype(np.float32)
        self.batch_size, self.num_workers, self.runtime, self.int8 = 1, 0, "torch", None
        self.to(device)

    def to(self, device: str | torch.device) -> None:
        """Remember the device.

        Raises:
            SettingsError: if there is no such device.
        """
        check_settings(device=device)
        self.device = torch.device(device)

    def settings(self) -> dict[str, Any]:
        """What a bank of these features stores of them, as plain values."""
        return {key: self.identity[key] for key in ("backbone", "encoder", "num_features")}

    def encode(self, bag: Bag, transforms: Sequence[PatchTransform | None] = (None,)) -> Iterator[Encoded]:
        """Refuse: what made the features is not here."""
        raise self.missing(bag.slide.path)

    def encode_rows(self, bag: Bag, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Refuse, as :meth:`encode`."""
        raise self.missing(bag.slide.path)

    def missing(self, slide: object) -> SlideError:
        """The error of a slide that has no bank."""
        return SlideError(slide, f"has no imported features in {self.feature_dir}", RUN_IMPORTING)


def imported_features(settings: Mapping[str, Any]) -> ImportedFeatures:
    """The imported features of a run.

    Args:
        settings: of the run, by name.

    Raises:
        SettingsError: as :class:`ImportedFeatures`, and if the run would read patches.
    """
    if settings.get("source") == "patches":
        raise refuse_imported("`source` patches reads slides", "Set `source` to bank, or choose another `backbone`.")
    for name in ("backbone_weights", "backbone_input"):
        if settings.get(name):
            raise refuse_imported(f"`{name}` is for encoders that run here", f"Leave `{name}` out.")
    if settings.get("precision", "amp") != "amp":
        raise refuse_imported("`precision` is for encoders that run here", "Leave `precision` out.")
    if settings.get("views"):
        raise refuse_imported("augmented `views` are encoded", "Set `views` to 0, or choose another `backbone`.")
    taken = {key: settings[key] for key in ("magnifications", "patch_size", "device") if key in settings}
    return ImportedFeatures(settings.get("feature_dir"), **taken)


def refuse_imported(what: str, remedy: str) -> SettingsError:
    """The error of what needs an encoder, where features are imported."""
    return SettingsError("backbone", f"is imported, and {what}", remedy)


def difference(one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any]) -> str | None:
    """How the features of two slides or banks differ, with their names; ``None`` if they do not."""
    for key in IDENTITY:
        if first.get(key) != second.get(key):
            return f"{key} {first.get(key)!r} of {one}, {second.get(key)!r} of {other}"
    if None not in (weights := (first.get(WEIGHTS), second.get(WEIGHTS))) and weights[0] != weights[1]:
        return f"{WEIGHTS} {weights[0]} of {one}, {weights[1]} of {other}"
    return None


def identity_of(banks: Sequence[Path]) -> dict[str, Any]:
    """What the features in some banks are, one at least: their settings of :data:`IDENTITY`.

    Raises:
        SettingsError: if a bank is damaged, or of features that were not imported, or two have different features.
    """
    first: dict[str, Any] = {}
    one = str(banks[0])
    for path in banks:
        settings = stored_settings(path)
        if settings.get("backbone") != IMPORTED:
            cause = f"{path} is a bank of {settings.get('backbone')}, not of imported features"
            raise SettingsError("feature_dir", cause, "Name a folder into which `importing` alone writes.")
        first = first or settings
        if (text := difference(one, first, str(path), settings)) is not None:
            raise SettingsError("feature_dir", f"has different features: {text}", "Keep one of the two there.")
        if WEIGHTS not in first and WEIGHTS in settings:  # Not all files say it.
            one, first = str(path), settings
    return {key: first.get(key) for key in IDENTITY} | ({WEIGHTS: first[WEIGHTS]} if WEIGHTS in first else {})


def options(values: Mapping[str, Any]) -> str:
    """Settings as options that can be pasted into a shell: ``--magnifications '[5,10]'``."""
    shown = {
        key: f"[{','.join(f'{one:g}' for one in v)}]" if isinstance(v, list) else str(v) for key, v in values.items()
    }
    return " ".join(f"--{key} {shlex.quote(value)}" for key, value in shown.items())


def _plain(value: Any) -> Any:
    return [float(one) for one in value] if isinstance(value, list | tuple) else value
