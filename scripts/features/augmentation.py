"""Class-wise augmentation by views: the one module that knows Albumentations."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.settings import check_settings
from scripts.datalists.classes import balanced_weights

__all__ = ["augmentation_settings", "count_views", "view_transform"]

# Raised when the same settings would give other views: banks of older views are then made again.
VIEW_FORMAT = 1
PROBABILITY = 0.5
# Limits of the shifts, either way, in the units of OpenCV's HSV: hue 0..179 (two degrees each), saturation and
# value 0..255. In hue, haematoxylin's violet and eosin's pink are about 50 degrees apart; 16 degrees move both as
# another laboratory's stain or scanner does, and turn neither into the other. A tenth of the range of saturation
# is a paler or a stronger stain. Value is kept closer, since above it glass and lumens clip to white, and a darker
# nucleus is itself a sign of dysplasia.
HUE_SHIFT = 8
SATURATION_SHIFT = 25
VALUE_SHIFT = 15

Patches = NDArray[np.uint8]


def view_transform(slide: str, view: int) -> Callable[[Patches], Patches] | None:
    """The transform of a view of a slide, the same for all patches and scales of its bag.

    It depends on the slide's name and the view's number alone: it is the same in every process, and uses
    no random numbers but its own.

    Args:
        slide: the slide's name in the datalist.
        view: the view's number; 0 are the plain patches.

    Returns:
        From RGB patches ``[n, 3, H, H]``, squares because they may be turned, to a new array of the same shape. Several
        threads may call it at once. ``None`` for view 0.

    Raises:
        ValueError: if ``view`` is negative.
    """
    if view < 0:
        raise ValueError(f"a view's number is 0 or more, got {view}")
    if view == 0:
        return None
    # At import the library asks PyPI for a newer version, and warns where there is no network; not if told so.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    pipeline = albumentations.ReplayCompose(
        [
            albumentations.RandomRotate90(p=PROBABILITY),
            albumentations.HorizontalFlip(p=PROBABILITY),
            albumentations.VerticalFlip(p=PROBABILITY),
            albumentations.HueSaturationValue(HUE_SHIFT, SATURATION_SHIFT, VALUE_SHIFT, p=PROBABILITY),
        ]
    )
    seed = int.from_bytes(hashlib.sha256(f"{view}:{slide}".encode(errors="surrogatepass")).digest()[:8], "big")
    # One generator for all: `set_random_seed` would give each transform one of its own from the same seed, and
    # either all of them would be applied or none.
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    records = pipeline(image=np.zeros((1, 1, 3), dtype=np.uint8))["replay"]["transforms"]
    # `ReplayCompose.replay` would build the pipeline again at each call, for each patch. The transforms' own
    # `apply` is what it comes to: it uses no random numbers and keeps no state.
    steps = [
        (step.apply, record["params"])
        for step, record in zip(pipeline.transforms, records, strict=True)
        if record["applied"]
    ]

    def transform(patches: Patches) -> Patches:
        transformed = np.empty_like(patches, order="C")
        for index, patch in enumerate(patches):
            image = np.ascontiguousarray(patch.transpose(1, 2, 0))
            for apply, params in steps:
                # A turned image is a view into the old one, which OpenCV would copy at each of its calls.
                image = np.ascontiguousarray(apply(image, **params))
            transformed[index] = image.transpose(2, 0, 1)
        return transformed

    return transform


def augmentation_settings() -> dict[str, Any]:
    """What decides the views, as plain values: stored with the features of a view."""
    return {
        "view_format": VIEW_FORMAT,
        "albumentations": version("albumentations"),
        "probability": PROBABILITY,
        "hue_shift": HUE_SHIFT,
        "saturation_shift": SATURATION_SHIFT,
        "value_shift": VALUE_SHIFT,
    }


def count_views(labels: NDArray[np.float32], views: int) -> list[int]:
    """How many augmented views each slide has: the rarer its classes, the more.

    Args:
        labels: ``[n, K]`` of 0 and 1.
        views: the number for the slides that :func:`scripts.datalists.classes.balanced_weights` weighs most;
            others have as many in proportion to their weight, rounded, and at least one. 0 is none for all.

    Raises:
        SettingsError: if ``views`` is no whole number from 0 up.
    """
    check_settings(views=views)
    if views == 0:
        return [0] * len(labels)
    weights = balanced_weights(labels)
    # Whole multiples of a weight may come out a hair off in floats.
    counts = np.round(views * weights / weights.max(), 9)
    return [max(1, int(np.floor(count + 0.5))) for count in counts]
