"""How the rows of a bag are made of a slide's unique patches: linked as they lie, or otherwise, as an ablation.

The one place for training, evaluating and inferring, whether features come from a bank or from the slide. A patient's
bag joins the rows of slides (:func:`scripts.training.joined_slides.join_slides`), so links stay within a slide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bags.grid import of_rows, row_log_weight
from scripts.core.errors import SettingsError
from scripts.core.settings import check_settings

__all__ = ["Linking"]

Rows = NDArray[np.int64]


class Linking:
    """Makes the rows of bags, by a rule:

    - ``linked``: a row is a patch of the highest magnification and its ancestors. A patch that c rows share has the log
      weight -log(c) in each.
    - ``repeated``: the same rows without log weights, as the reference code (github.com/ilmaro8/MuSTMIL) repeats the
      patches of lower magnifications.
    - ``shuffled``: the patches of the lower magnifications are those of another row of the slide, with their log
      weights. One random cycle through all rows says of which; it depends on the slide's name alone, so it is the same
      in every epoch and in evaluation. Attention at one magnification sees the same patches; only the links are lost,
      but for rows whose new patch is their own, because they share it with the row that they drew.
    - ``pooled``: a patch of a lower magnification has the mean features of the highest magnification's patches inside
      it, those in the bag, in place of its own encoding. The links are kept; only what a lower magnification sees by
      itself is lost.

    Args:
        name: of the rule.
        num_scales: S, the number of magnifications.

    Raises:
        SettingsError: if there is no such rule, or the rule needs a second magnification.
    """

    def __init__(self, name: str, num_scales: int) -> None:
        check_settings(linking=name)
        if num_scales < 2 and name in ("shuffled", "pooled"):
            remedy = "Give two or more `magnifications`, or `linking` linked."
            raise SettingsError("linking", f"got {name!r}, and with one magnification there are no links", remedy)
        self.name = name

    def rows_of(
        self,
        slide: str,
        rows: Rows,
        coords: Sequence[NDArray[np.float64]],
        values: Callable[[Rows], NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """What a slide's bag has of its rows.

        Args:
            slide: the slide's name in the datalist.
            rows: ``[N, S]``, the patch of each scale, from low to high, that each row goes through.
            coords: per scale ``[n_s, 2]``, (x, y) of the unique patches' top left corners in level-0 pixels.
            values: gives the features ``[N, S, F]``, or anything else ``[N, S, ...]``, of such rows. With ``pooled``
                they are changed in place.

        Returns:
            ``image``, the values ``[N, S, ...]``; ``log_weight`` ``[N, S]`` float32; and ``corners`` ``[N, S, 2]``, of
            the patches whose values and log weights these are.
        """
        if self.name == "shuffled":
            rows = _shuffled(rows, slide)
        image = values(rows)
        if self.name == "pooled":
            _pool(image, rows)
        weight = np.zeros(rows.shape, dtype=np.float32) if self.name == "repeated" else row_log_weight(rows)
        return {"image": image, "log_weight": weight, "corners": of_rows(coords, rows)}


def _shuffled(rows: Rows, slide: str) -> Rows:
    seed = int.from_bytes(hashlib.sha256(slide.encode(errors="surrogatepass")).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(len(rows))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # a cycle through all rows: none keeps its own
    shuffled = rows.copy()
    shuffled[:, :-1] = rows[other, :-1]
    return shuffled


def _pool(image: NDArray[Any], rows: Rows) -> None:
    """Give each lower scale's patch the mean of the highest scale's values in its rows, each patch of these once."""
    for s in range(rows.shape[1] - 1):
        pairs, row_of_pair = np.unique(rows[:, [s, -1]], axis=0, return_index=True)
        patches, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        means = np.add.reduceat(image[row_of_pair, -1], starts, axis=0) / counts[:, None]
        image[:, s] = means[np.searchsorted(patches, rows[:, s])]
