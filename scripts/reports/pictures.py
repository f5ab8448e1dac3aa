"""The pictures of one slide in a report: its thumbnail, and see-through maps that lie over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from scripts.networks.methods import MapSpec
from scripts.slides.slide import Slide

__all__ = ["FOLDER", "write_pictures"]

FOLDER = "report"
"""The folder of the pictures, beside the page."""

# Enough to tell glands apart on a screen; a page of a thousand slides loads them as they come into view.
LONGEST_PX = 1000
SMALL_PX = 160
JPEG_QUALITY = 75
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
        Plain values for the page: ``thumbnail``, ``small``, ``width``, ``height`` and ``um`` (the slide's size in
        micrometres), and for each map ``overlays`` with ``map``, ``head``, ``class``, ``kind``, ``src``, and the values
        ``low`` and ``high`` of its colour scale's ends; for each gallery ``top`` with ``map``, ``class`` and ``src``.
        Paths start from the page.

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
    written = {"slide.jpg": picture, "small.jpg": small}
    overlays = []
    for m, spec in enumerate(specs):
        for k, class_name in enumerate(class_names):
            for kind in KINDS:
                heat, name = maps(m, k, kind), f"{m}_{k}_{kind}.png"
                written[name] = _overlay(heat, coarse)
                low, high = _ends(heat)
                overlays.append(
                    {"map": spec.name, "head": spec.head, "class": class_name, "kind": kind, "low": low}
                    | {"high": high, "src": _url(slide, name)}
                )
    top = []
    for (m, k), gallery in galleries.items():
        written[f"{m}_{k}_top.jpg"] = Image.fromarray(gallery)
        top.append({"map": specs[m].name, "class": class_names[k], "src": _url(slide, f"{m}_{k}_top.jpg")})
    for old in folder.glob("*"):
        if old.name not in written:
            old.unlink()
    for name, image in written.items():
        with replacing(folder / name) as part:
            image.save(part, quality=JPEG_QUALITY) if name.endswith(".jpg") else image.save(
                part, transparency=0, optimize=True
            )
    sources = {"thumbnail": _url(slide, "slide.jpg"), "small": _url(slide, "small.jpg")}
    size = {"width": width, "height": height, "um": [round(side, 1) for side in thumbnail.size_um]}
    return {**sources, **size, "overlays": overlays, "top": top}


def _overlay(heat: PatchMap, thumbnail: Thumbnail) -> Image.Image:
    """A map in its colours, with a palette whose first entry is transparent."""
    shade = shade_image(heat, thumbnail)
    index = np.where(np.isnan(shade), 0, 1 + np.round(np.nan_to_num(shade) / 100 * (SHADES - 1))).astype(np.uint8)
    image = Image.fromarray(index, mode="P")
    colours: NDArray[np.uint8] = shade_colours(np.linspace(0, 100, SHADES), heat.kind)
    image.putpalette([0, 0, 0, *colours.reshape(-1).tolist()])
    return image


def _ends(heat: PatchMap) -> tuple[str, str]:
    """What the two ends of the colour scale stand for."""
    if heat.kind == "attention":
        return "0", "100"
    most = float(np.abs(heat.values).max())
    return f"{-most:.3g}", f"+{most:.3g}"


def _url(slide: str, name: str) -> str:
    return quote(f"{FOLDER}/{slide}/{name}")
