"""The pictures of one slide in a report: its thumbnail, and see-through maps that lie over it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.core.files import replacing
from scripts.heatmaps.attention_maps import KINDS, PatchMap
from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.images import Thumbnail, read_thumbnail, shade_colours, shade_image
from scripts.heatmaps.legend import shade_limits, shade_text
from scripts.networks.methods import MapSpec
from scripts.slides.slide import Slide

__all__ = ["FOLDER", "remove_other_pictures", "write_pictures"]

FOLDER = "report"
"""The folder of the pictures, beside the page."""

# Enough to tell glands apart on a screen; a page of a thousand slides loads them as they come into view.
LONGEST_PX = 1000
SMALL_PX = 160
JPEG_QUALITY = 75
# Written first and removed last: a folder without it is not a report's.
MARK = "small.jpg"
PICTURE = re.compile(rf"{re.escape(MARK)}|slide\.jpg|\d+_\d+_(top\.jpg|({'|'.join(KINDS)})\.png)")
# Index 0 of an overlay's palette is transparent, where there is no patch.
SHADES = 255


def write_pictures(
    output_dir: Path,
    slide: str,
    opened: Slide,
    maps: BagMaps,
    specs: Sequence[MapSpec],
    class_names: Sequence[str],
    galleries: Mapping[tuple[int, int], NDArray[np.uint8]],
) -> dict[str, Any]:
    """Write the pictures of a slide into ``report/<slide>``.

    Args:
        output_dir: the folder of the page.
        slide: the slide's name.
        opened: the slide.
        maps: its maps.
        specs: their names, in order.
        class_names: the names of a head's K outputs.
        galleries: pictures of top patches (:func:`scripts.heatmaps.top_patches.gallery`), by the indices of map and
            class.

    Returns:
        Plain values for the page: ``folder``, the pictures' folder as a URL from the page; ``width``, ``height`` and
        ``um`` (the slide's size in micrometres); ``limits`` ``[maps, K, kinds, 2]``, the texts of the ends of each
        map's colours; and ``top``, the indices of map and class of each gallery. The page's script makes the names of
        the files from the indices.

    Raises:
        SlideError: if the slide cannot be read.
        SettingsError: if the folder cannot be written to.
    """
    thumbnail, folder = read_thumbnail(opened, LONGEST_PX), output_dir / FOLDER / slide
    # Patches are squares of many pixels: at half of the resolution their borders move by one.
    coarse = Thumbnail(thumbnail.pixels[::2, ::2], 2 * thumbnail.mpp, thumbnail.size_um)
    height, width = thumbnail.pixels.shape[:2]
    picture = Image.fromarray(thumbnail.pixels)
    small = picture.copy()
    small.thumbnail((SMALL_PX, SMALL_PX))
    written = {MARK: small, "slide.jpg": picture}
    limits: list[list[list[list[str]]]] = []
    for m in range(len(specs)):
        limits.append([])
        for k in range(len(class_names)):
            heats = [maps(m, k, kind) for kind in KINDS]
            written |= {f"{m}_{k}_{heat.kind}.png": _overlay(heat, coarse) for heat in heats}
            limits[m].append([[shade_text(value, heat.kind) for value in shade_limits(heat)] for heat in heats])
    written |= {f"{m}_{k}_top.jpg": Image.fromarray(gallery) for (m, k), gallery in galleries.items()}
    for name, image in written.items():
        with replacing(folder / name) as part:
            image.save(part, quality=JPEG_QUALITY) if name.endswith(".jpg") else image.save(
                part, transparency=0, optimize=True
            )
    for old in _pictures_in(folder):
        if old.name not in written:
            old.unlink(missing_ok=True)
    size = {"width": width, "height": height, "um": [round(side, 1) for side in thumbnail.size_um]}
    return {"folder": quote(f"{FOLDER}/{slide}"), **size, "limits": limits, "top": [list(of) for of in galleries]}


def remove_other_pictures(output_dir: Path, slides: Collection[str]) -> None:
    """Remove what an earlier report left of other slides: somebody else's slides would be handed on with the folder.

    Only pictures that a report wrote go, and their folders if nothing else is in them.

    Args:
        output_dir: the folder of the page.
        slides: those that stay.
    """
    root = output_dir / FOLDER
    # Not by name, since some file systems ignore case.
    stay = {(root / slide).stat().st_ino for slide in slides}
    for folder in root.glob("*"):
        if folder.is_symlink() or folder.stat().st_ino in stay or not (folder / MARK).is_file():
            continue
        # No rank of this run writes here: temporary files are those of a run that was killed. The mark goes last, so
        # that what an interrupted removal leaves goes with the next.
        old_files = [*_pictures_in(folder), *folder.glob(".*.part.*")]
        for old in sorted(old_files, key=lambda path: path.name == MARK):
            old.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def _pictures_in(folder: Path) -> list[Path]:
    """What a report wrote into the folder of a slide; no temporary file, which another rank may be writing."""
    return [path for path in folder.glob("*") if PICTURE.fullmatch(path.name)]


def _overlay(heat: PatchMap, thumbnail: Thumbnail) -> Image.Image:
    """A map in its colours, with a palette whose first entry is transparent."""
    shade = shade_image(heat, thumbnail)
    index = np.where(np.isnan(shade), 0, 1 + np.round(np.nan_to_num(shade) / 100 * (SHADES - 1))).astype(np.uint8)
    image = Image.fromarray(index, mode="P")
    colours: NDArray[np.uint8] = shade_colours(np.linspace(0, 100, SHADES), heat.kind)
    image.putpalette([0, 0, 0, *colours.reshape(-1).tolist()])
    return image
