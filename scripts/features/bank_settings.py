"""What decides the content of a slide's feature bank, and whether a bank that is there can be used."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.bags.annotation_files import is_annotation_file
from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import file_sha256, refuse_special
from scripts.core.imported import IMPORTED
from scripts.core.repeats import Repeats, first_names
from scripts.core.settings import LATER
from scripts.features.augmentation import augmentation_settings
from scripts.features.bank import BANK_FORMAT, stored_settings
from scripts.features.encoding import Encoder
from scripts.features.imported import ImportedFeatures
from scripts.slides.checksums import given_sha256
from scripts.slides.dicom_series import slide_parts
from scripts.slides.remote import ends, is_remote

__all__ = ["LACKING", "bank_settings", "is_banked", "of_view", "slide_fingerprint", "warn_of_older"]

logger = logging.getLogger(__name__)
_repeats = Repeats()

FINGERPRINT_BYTES = 1 << 20
# What older banks do not store because it follows from their backbone.
FROM_BACKBONE = ("mean", "std", "input_px", "resize", "pooling")
# Settings that older banks do not store: what that means, and what to do.
LACKING = {
    "slide_sha256": "do not store the `sha256` of their slides: delete them if in doubt",
    "ink": "were made before ink was left out of the tissue, and those of slides with ink contain it: `checking` names "
    "these slides; delete their banks to have them made again",
    "device": "do not store whether a CPU or a GPU made them, whose features differ slightly with `amp`: delete them "
    "if both did",
    "mask_sha256": "do not store the checksum of their masks: delete them if a mask was edited since",
    "mask_tissue": "were made before masks with several values were refused, and before masks of a slide's bounds were "
    "placed there: run `checking`, which looks at the masks; delete their banks in doubt",
}


def bank_settings(entry: Mapping[str, Any], bag_builder: BagBuilder, encoder: Encoder) -> dict[str, Any]:
    """All that decides the content of an entry's bank, as plain values.

    ``ink`` says that ink is left out of the tissue, where tissue is found and not given as an image. ``slide_sha256``
    is the checksum that the datalist gives; without one it is absent.

    A slide behind an address that is not copied here is known by the checksum that the datalist gives, or else by its
    size, start and end, which are fetched, if the server sends parts.

    Of imported features it is what their files say: slides need not be there, and no grid was laid.

    Raises:
        SlideError: if the slide or its mask cannot be read.
    """
    mask, sha256 = entry.get("mask"), given_sha256(entry)
    if isinstance(encoder, ImportedFeatures):
        own = {"magnifications": list(bag_builder.magnifications), "patch_size": bag_builder.patch_size}
        return {**own, **encoder.settings(), **({} if sha256 is None else {"slide_sha256": sha256})}
    of_encoder = encoder.settings()
    try:
        return {
            **bag_builder.settings(),
            **of_encoder,
            **_slide_identity(entry, bag_builder),
            "mask_fingerprint": None if mask is None else slide_fingerprint(mask),
            "mpp_given": entry.get("mpp"),
            # A mask's start and end are background, whatever was edited in it: its fingerprint is not enough.
            # Of a slide whose annotations are all excluded the tissue is found.
            **({"ink": "left out"} if mask is None or is_annotation_file(mask) else {}),
            **({} if mask is None else {"mask_sha256": file_sha256(mask)}),
            **({} if sha256 is None else {"slide_sha256": sha256}),
            **bag_builder.mask_settings(entry),
        }
    except OSError as error:
        cause, remedy = f"cannot be read ({error.strerror})", "Check its rights, or copy it again."
        raise SlideError(error.filename or entry["image"], cause, remedy) from error
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, error.remedy) from error


def of_view(settings: Mapping[str, Any], view: int) -> dict[str, Any]:
    """The settings of a view of the same entry; view 0 are the plain patches."""
    return {**settings, "view": view, **augmentation_settings()} if view else dict(settings)


def slide_fingerprint(path: str | Path) -> str:
    """Hash of a file's size, start and end: detects a replaced slide without reading gigabytes.

    That of a DICOM slide of several files is a hash of theirs.

    Raises:
        SettingsError: if it is a pipe, a device or a socket.
    """
    refuse_special(path)
    parts = slide_parts(path)
    if len(parts) > 1:
        return hashlib.sha256("".join(sorted(map(_file_fingerprint, parts))).encode()).hexdigest()
    return _file_fingerprint(path)


def is_banked(path: Path, settings: Mapping[str, Any], lacking: dict[str, list[Path]] | None = None) -> bool:
    """Whether there is a bank that was made with these settings.

    Args:
        path: the bank's file.
        settings: of :func:`bank_settings`.
        lacking: collects, for each key of :data:`LACKING`, the banks that are used although they do not store it.

    Raises:
        SettingsError: if there is one that was made with others; it is neither used nor replaced in silence.
    """
    if not path.exists():
        return False
    # Older banks, which do not store these, were made with them.
    made_with = {"runtime": "torch", **LATER, **stored_settings(path)}
    wanted = {"bank_format": BANK_FORMAT, **settings}
    made_with = {**{key: wanted[key] for key in FROM_BACKBONE if key in wanted}, **made_with}
    lacked = [key for key in LACKING if key in wanted and key not in made_with]
    if wanted.get("mask_tissue") is not None and "mask_tissue" in lacked:
        lacked.remove("mask_tissue")  # Such a bank took all values of a mask beside 0 as tissue.
    differs = [key for key in wanted if key not in lacked and made_with.get(key) != wanted[key]]
    if differs:
        both = ", ".join(f"{key} {made_with.get(key)!r}, now {wanted[key]!r}" for key in differs)
        raise SettingsError(
            path, f"was made otherwise ({both})", "Choose another `feature_dir`, or delete the file to make it again."
        )
    # Imported features lack the checksums of slides that were not at hand, whatever the version.
    if lacking is not None and made_with.get("backbone") != IMPORTED:
        for key in lacked:
            lacking.setdefault(key, []).append(path)
    return True


def warn_of_older(lacking: Mapping[str, Sequence[Path]], feature_dir: Path) -> None:
    """One warning for each setting that some banks do not store."""
    for key, older in lacking.items():
        names = first_names([path.relative_to(feature_dir) for path in older])
        logger.warning("%d feature banks of an older version (%s) %s", len(older), names, LACKING[key])


def _slide_identity(entry: Mapping[str, Any], bag_builder: BagBuilder) -> dict[str, str]:
    image = str(entry["image"])
    if not is_remote(image):
        return {"slide_fingerprint": slide_fingerprint(image)}
    if bag_builder.staging.is_here(entry):
        return {"slide_fingerprint": slide_fingerprint(bag_builder.staging.local(entry)["image"])}
    fingerprint = _remote_fingerprint(image) if given_sha256(entry) is None else None
    return {} if fingerprint is None else {"slide_fingerprint": fingerprint}


@functools.cache
def _remote_fingerprint(address: str) -> str | None:
    found = ends(address, FINGERPRINT_BYTES)
    if found is None:
        what = "its server sends no parts of files, so that a slide that was replaced is not noticed"
        _repeats.log(logger, logging.WARNING, f"{address}: {what}. Give its `sha256` in the datalist.", address)
    return None if found is None else _fingerprint(*found)


def _file_fingerprint(path: str | Path) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(FINGERPRINT_BYTES)
        file.seek(max(0, size - FINGERPRINT_BYTES))
        return _fingerprint(size, start, file.read(FINGERPRINT_BYTES))


def _fingerprint(size: int, start: bytes, end: bytes) -> str:
    return hashlib.sha256(f"{size}:".encode() + start + end).hexdigest()
