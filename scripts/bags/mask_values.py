"""Which values of a mask are tissue: the only one beside 0, or those that the user lists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats, first_names

__all__ = ["OtherValues", "distinct_values", "tissue_in"]

# Codes of tissue and artefacts are few. Lossy compression and smoothed edges leave more.
MOST_CODES = 16
PIXELS_AT_ONCE = 1 << 24
ONE_CHANNEL = "Save it with one channel: 0, and a value for each kind of tissue."
NO_MORE_SHOWN = (
    "masks of more slides have values that are left out, which are not shown here: `inspecting` outlines them"
)

logger = logging.getLogger(__name__)
_repeats = Repeats()


def tissue_in(
    pixels: NDArray[Any],
    mask_tissue: tuple[int, ...] | None,
    subject: object,
    path: str | Path,
    is_lossy: bool = False,
) -> NDArray[np.bool_]:
    """Where a mask has tissue, ``[h, w]``.

    A mask with one value beside 0 has tissue where it is. The values of one with several may be codes of tissue,
    artefacts and background, as GrandQC's are: it is refused unless ``mask_tissue`` is given. One line is logged of
    those that are left out, for the first few slides.

    Args:
        pixels: ``[h, w]``, or RGB or RGBA ``[h, w, 3]`` or ``[h, w, 4]``.
        mask_tissue: the values that are tissue, see :func:`scripts.datalists.values.check_mask_tissue`. A mask
            need not have all of them.
        subject: the slide, which an error names first.
        path: of the mask.
        is_lossy: whether its format changes values, as JPEG does: then only a single value beside 0 can be trusted.

    Raises:
        SlideError: if the mask has several values and ``mask_tissue`` is not given, or has none of its values; if
            compression changed them; if its transparency contradicts its colours.
    """

    def refusal(cause: str, remedy: str) -> SlideError:
        return SlideError(subject, f"its mask {path} {cause}", remedy)

    if pixels.ndim == 3 and _is_transparent_elsewhere(pixels):
        raise refusal("is transparent in other places than those where its colours are 0", ONE_CHANNEL)
    pixels = _without_channels(pixels)
    if pixels.ndim == 3:
        return _painted(pixels[..., :3], mask_tissue, refusal)
    values = distinct_values(pixels)
    codes = values[values != 0]
    is_changed = len(codes) > 1 and is_lossy
    if mask_tissue is not None and not is_changed:
        if not np.isin(values, mask_tissue).any():
            cause = f"has none of the values {list(mask_tissue)} of `mask_tissue` (it has {_listed(values)})"
            raise refusal(cause, "Correct `mask_tissue`, or the mask.")
        others = codes[~np.isin(codes, mask_tissue)]
        if len(others):
            text = f"{subject}: of its mask {path}, all with another value ({_listed(others)}) is left out, "
            text += f"as `mask_tissue` is {[*mask_tissue]}"
            _repeats.log(logger, logging.INFO, text, str(subject), NO_MORE_SHOWN)
        return np.isin(pixels, mask_tissue)
    if is_changed or len(codes) > MOST_CODES:
        cause = f"has {len(codes)} values beside 0, as lossy compression and smoothed edges leave them"
        raise refusal(cause, "Save it as PNG or TIFF, with 0 and one other value.")
    if len(codes) > 1:
        raise refusal(
            f"has the values {_listed(codes)} beside 0, and not all of them need be tissue",
            "List those that are as `mask_tissue`, a setting or a key of the datalist (of GrandQC's masks: 1).",
        )
    return pixels != 0


class OtherValues(Mapping[str, NDArray[np.bool_]]):
    """The values of a mask beside 0 that are not tissue, such as those of folds and pen marks, for pictures.

    Each is a mask ``[h, w]``, by ``"value 3"``, made when it is asked for: masks may be large, and most runs show none.

    Args:
        pixels: of the mask.
        mask_tissue: the values that are tissue; without it there are no others.
    """

    def __init__(self, pixels: NDArray[Any], mask_tissue: Sequence[int] | None) -> None:
        self._pixels, self._tissue = pixels, () if mask_tissue is None else tuple(mask_tissue)

    @cached_property
    def _values(self) -> dict[str, Any]:
        if not self._tissue:
            return {}
        self._pixels = _without_channels(self._pixels)
        if self._pixels.ndim != 2:
            return {}
        values = distinct_values(self._pixels)
        others = values[~np.isin(values, (0, *self._tissue))]
        return {f"value {_listed(others[i : i + 1])}": others[i] for i in range(min(len(others), MOST_CODES))}

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return np.asarray(self._pixels == self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _without_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    """A mask ``[h, w]`` of one in grey that was saved as RGB or RGBA; masks in colours stay as they are."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = np.moveaxis(pixels[..., :3], -1, 0)
    return red if np.array_equal(red, green) and np.array_equal(green, blue) else pixels


def _is_transparent_elsewhere(pixels: NDArray[Any]) -> bool:
    """Whether the transparency of RGBA contradicts its colours, of which either may be the mask."""
    alpha = pixels[..., 3:]
    if not alpha.size or alpha.min() == alpha.max() != 0:
        return False
    return not np.array_equal(alpha[..., 0] != 0, (pixels[..., :3] != 0).any(axis=-1))


def _painted(
    pixels: NDArray[Any], mask_tissue: tuple[int, ...] | None, refusal: Callable[[str, str], SlideError]
) -> NDArray[np.bool_]:
    """The tissue of a mask in colours, RGB ``[h, w, 3]``."""
    painted = (pixels != 0).any(axis=-1)
    first = pixels[np.unravel_index(np.argmax(painted), painted.shape)]
    others = painted & (pixels != first).any(axis=-1)
    if mask_tissue is None and not others.any():
        return painted
    colours = f"the colour {tuple(first.tolist())}"
    if others.any():
        second = pixels[np.unravel_index(np.argmax(others), others.shape)]
        colours = f"several colours, such as {tuple(first.tolist())} and {tuple(second.tolist())}"
    raise refusal(f"has {colours}, and colours are no values of `mask_tissue`", ONE_CHANNEL)


def distinct_values(pixels: NDArray[Any]) -> NDArray[Any]:
    """The values of an image, each once, ascending."""
    # A mask may have hundreds of millions of pixels, which are not sorted all at once.
    found = pixels[:0, 0]
    rows = max(1, PIXELS_AT_ONCE // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        found = np.union1d(found, pixels[top : top + rows])
    return found


def _listed(values: NDArray[Any]) -> str:
    shown = [f"{value:g}" if isinstance(value, float) else str(int(value)) for value in values[:MOST_CODES].tolist()]
    return first_names(shown, len(values), MOST_CODES)
