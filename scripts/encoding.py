"""From a bag's patches to features, reading and encoding at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.backbones import Backbone
from scripts.bags import Bag
from scripts.errors import SettingsError

__all__ = ["Encoder", "PatchTransform", "of_rows"]

# Batches that wait, read, while one is encoded: with it the memory is bounded whatever the slide's size.
BATCHES_AHEAD = 2

# From patches [n, 3, H, W] to as many of the same shape.
PatchTransform = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Encoder:
    """Encodes the patches of a bag, each unique patch once per scale.

    The batches depend on the bag alone, so a bag gives the same features to the last digit wherever it is
    encoded on the same machine: into a bank or for a prediction.

    Args:
        backbone: the frozen backbone.
        device: where it runs.
        batch_size: patches that are encoded together.
        num_workers: threads that read patches meanwhile; 0 reads them in turn with encoding.
    """

    def __init__(
        self, backbone: Backbone, device: str | torch.device = "cpu", batch_size: int = 32, num_workers: int = 2
    ) -> None:
        for key, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or value < least:
                raise SettingsError(key, f"got {value!r}", f"Give a whole number from {least} up.")
        self.backbone = backbone
        self.to(device)
        self.batch_size, self.num_workers = batch_size, num_workers

    def to(self, device: str | torch.device) -> None:
        """Encode on this device from now on.

        Raises:
            SettingsError: if there is no such device.
        """
        try:
            self.device = torch.device(device)
            self.backbone.to(self.device)
        except (RuntimeError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise SettingsError("device", f"{device} cannot be used ({reason})", "Use `cpu`, or `cuda`.") from error

    @property
    def num_features(self) -> int:
        """F, the features of a patch."""
        return self.backbone.num_features

    def settings(self) -> dict[str, Any]:
        """What decides the features of a patch, as plain values: stored with them."""
        return {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.weights_sha256,
            "amp": self.backbone.amp,
        }

    def encode(
        self, bag: Bag, transform: PatchTransform | None = None
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Encode a bag.

        Args:
            bag: the slide's bag.
            transform: applied to each batch of patches before it is encoded; several threads call it at once.

        Yields:
            the scale's index, the index of the batch's first patch in that scale, and features ``[n, F]``.
        """
        for scale_index, start, patches in self._read(bag, transform):
            # Whoever calls may track gradients (MONAI Label does): a frozen backbone needs none.
            with torch.inference_mode():
                features = self.backbone(torch.from_numpy(patches).to(self.device)).cpu().numpy()
            yield scale_index, start, features

    def encode_rows(self, bag: Bag) -> NDArray[np.float32]:
        """The features of a bag's rows, ``[N, S, F]``, in memory."""
        features = [np.empty((len(coords), self.num_features), dtype=np.float32) for coords in bag.grid.coords]
        for scale_index, start, batch in self.encode(bag):
            features[scale_index][start : start + len(batch)] = batch
        return of_rows(features, bag.grid.rows)

    def _read(self, bag: Bag, transform: PatchTransform | None) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        def read(scale_index: int, patches: NDArray[np.int64]) -> NDArray[np.uint8]:
            plain = bag.read_patches(scale_index, patches)
            return plain if transform is None else transform(plain)

        batches = [
            (scale_index, np.arange(start, min(start + self.batch_size, len(coords))))
            for scale_index, coords in enumerate(bag.grid.coords)
            for start in range(0, len(coords), self.batch_size)
        ]
        if self.num_workers == 0:
            for scale_index, patches in batches:
                yield scale_index, int(patches[0]), read(scale_index, patches)
            return
        waiting: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
        with ThreadPoolExecutor(self.num_workers) as threads:
            for scale_index, patches in batches:
                future = threads.submit(read, scale_index, patches)
                waiting.append((scale_index, int(patches[0]), future))
                if len(waiting) > BATCHES_AHEAD + self.num_workers:
                    scale_index, start, future = waiting.popleft()
                    yield scale_index, start, future.result()
            while waiting:
                scale_index, start, future = waiting.popleft()
                yield scale_index, start, future.result()


def of_rows(values: Sequence[NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[Any]:
    """What the patches of each row have, from what each unique patch has.

    Args:
        values: per scale ``[n_s, ...]``: features, corners or pixels of its unique patches.
        rows: ``[N, S]``, the patch of each scale that each row goes through.

    Returns:
        ``[N, S, ...]``.
    """
    return np.stack([scale[rows[:, s]] for s, scale in enumerate(values)], axis=1)
