"""Feature banks in the layout of TRIDENT, which torchmil and MIL-Lab read; and in that of CLAM's training.

What the tools read: TRIDENT's ``coords`` and ``features`` with their attributes (0.3.0, ``wsi_objects/WSI.py``),
torchmil's ``TridentWSIDataset`` (1.0.2), and CLAM's ``Generic_MIL_Dataset``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from scripts.core.imported import IMPORTED
from scripts.core.magnification import magnification_of, scale_name
from scripts.core.settings import check_settings
from scripts.datalists.slide_files import safe_name
from scripts.features.bank import MAKE_FIRST, BankedBag, bank_slides, read_bank, stored_level0, stored_settings
from scripts.features.hdf5 import writing_hdf5
from scripts.slides.resolution import is_rounded

__all__ = ["export_banks"]

logger = logging.getLogger(__name__)

# What decides the features of a patch; other tools get the encoder's name and its weights alone.
OF_ENCODER = (
    "weights_sha256", "mean", "std", "input_px", "resize", "pooling", "amp", "runtime", "precision", "int8_sha256",
    "source_sha256", "device",
)  # fmt: skip


def export_banks(
    feature_dir: str | Path, folder: str | Path, export_formats: Sequence[str] | str = ("h5",)
) -> list[Path]:
    """Write each bank of a folder as other tools read features: one file a magnification, without augmented views.

    In ``<magnification>x_<patch size>px_<overlap>px_overlap`` of ``folder``:

    - ``h5``: ``features_<encoder>/<slide>.h5`` with ``features`` ``[n, F]`` in float32, and ``coords``
      int64 ``[n, 2]``, (x, y) of the patches' top left corners in level-0 pixels; ``patches/<slide>_patches.h5`` has
      ``coords`` alone.
    - ``pt``: ``features_<encoder>/pt_files/<slide>.pt``, the features as a tensor.

    Args:
        feature_dir: the banks.
        folder: gets the files; those that are there are replaced.
        export_formats: one of :data:`scripts.core.settings.EXPORT_FORMATS`, or a list of these.

    Returns:
        the folders ``features_<encoder>``.

    Raises:
        SettingsError: if there is no such format, there are no banks, one is damaged or of other weights, or ``folder``
            cannot be written to.
    """
    check_settings(export_formats=export_formats)
    formats = [export_formats] if isinstance(export_formats, str) else export_formats
    banks = bank_slides(feature_dir)
    if not banks:
        raise SettingsError("feature_dir", f"there is no feature bank in {feature_dir}", MAKE_FIRST)
    written: dict[Path, None] = {}
    made_by: dict[str, tuple[str, dict[str, Any]]] = {}
    for slide, path in tqdm(banks.items(), desc="exporting", unit="slide", dynamic_ncols=True):
        stored = stored_settings(path)
        of_encoder = {key: stored[key] for key in OF_ENCODER if key in stored}
        encoder = str(stored.get("encoder", stored["backbone"]))
        first, expected = made_by.setdefault(encoder, (slide, of_encoder))
        # Imported features do not all say of which weights they are.
        if differs := [key for key in of_encoder if key in expected and of_encoder[key] != expected[key]]:
            both = ", ".join(f"{key} {expected[key]!r} of {first}, {of_encoder[key]!r} of {slide}" for key in differs)
            raise SettingsError(path, f"has features of another kind ({both})", "Export banks that were made alike.")
        for scale in _scales(slide, path):
            features = Path(folder) / scale.folder / f"features_{safe_name(scale.encoder)}"
            if "h5" in formats:
                arrays = {"features": (scale.features, scale.of_features), "coords": (scale.coords, scale.of_coords)}
                _write_h5(features / f"{slide}.h5", arrays)
                coords = {"coords": arrays["coords"]}
                _write_h5(Path(folder) / scale.folder / "patches" / f"{slide}_patches.h5", coords)
            if "pt" in formats:
                _write_pt(features / "pt_files" / f"{slide}.pt", scale.features)
            written[features] = None
    for features in written:
        logger.info("exported to %s", features)
    logger.info("exported %d slides", len(banks))
    return list(written)


@dataclass(frozen=True)
class _Scale:
    """One magnification of a bank, as TRIDENT stores it."""

    encoder: str
    folder: str
    features: NDArray[np.floating]
    coords: NDArray[np.int64]
    of_features: dict[str, Any]
    of_coords: dict[str, Any]


def _scales(slide: str, path: Path) -> Iterator[_Scale]:
    settings, (size, source) = stored_settings(path), stored_level0(path)
    magnifications, patch_size = settings["magnifications"], int(settings["patch_size"])
    bank: BankedBag = read_bank(path, tuple(magnifications))
    overlap = round(settings.get("overlap", 0.0) * patch_size)
    # Imported features name what made them; of its weights not all files say anything.
    encoder = str(settings.get("encoder", settings["backbone"]))
    weights = {"weights_sha256": settings["weights_sha256"]} if "weights_sha256" in settings else {}
    for s, magnification in enumerate(magnifications):
        folder = f"{scale_name(magnification)}_{patch_size}px_{overlap}px_overlap"
        own = {"name": slide, "savetodir": folder}
        of_features = {**own, "encoder": encoder, **weights}
        of_coords = {
            **own,
            "patch_size": patch_size,
            "patch_size_level0": bank.patch_level0[s],
            "level0_magnification": round(magnification_of(bank.base_mpp)),
            "target_magnification": float(magnification),
            # Of imported features it is not known.
            **({} if settings["backbone"] == IMPORTED else {"overlap": overlap}),
            **({} if size is None else {"level0_width": size[0], "level0_height": size[1]}),
            # Magnifications of level 0 are rounded; this is not, and TRIDENT does not have it.
            **({} if is_rounded(source) else {"level0_mpp": bank.base_mpp}),
        }
        coords = np.rint(bank.coords[s]).astype(np.int64)
        # Which patch contains a centre on its border, whoever imports them cannot tell then.
        if not np.array_equal(coords, bank.coords[s]):
            of_coords["rounded"] = True
        # In float32, whatever the bank stores: the tools' own networks compute in it, and do not convert.
        yield _Scale(encoder, folder, bank.features[s], coords, of_features, of_coords)


def _write_h5(path: Path, arrays: dict[str, tuple[NDArray[Any], dict[str, Any]]]) -> None:
    with replacing(path) as part, writing_hdf5(part) as (file, check):
        for name, (array, attributes) in arrays.items():
            file[name] = array
            file[name].attrs.update(attributes)
            check()


def _write_pt(path: Path, features: NDArray[np.floating]) -> None:
    with replacing(path) as part:
        torch.save(torch.from_numpy(features), part)
