"""From a bag's patches to features, reading and encoding at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scripts.bags.bag import Bag
from scripts.bags.blocks import Block, plan_blocks
from scripts.core.errors import SettingsError, fitting
from scripts.core.files import output_folder
from scripts.core.machine import CPU_BATCH
from scripts.core.setting_checks import AUTO
from scripts.core.settings import check_settings
from scripts.encoders.backbones import Backbone
from scripts.encoders.batch_trial import batch_for
from scripts.encoders.int8_networks import copy_int8
from scripts.encoders.runtimes import Forward, choose_runtime, get_forward
from scripts.features.int8 import Int8

__all__ = ["Encoded", "Encoder", "PatchTransform"]

# Blocks that are read while a batch is encoded, beside one for each thread. A GPU, which takes a batch in no time, is
# given the blocks of all threads at once. The limit bounds the memory whatever the slide's size: so many blocks, with
# their patches once for each view, and a batch for each view.
BLOCKS_AHEAD = 1

# From patches [n, 3, H, W], which stay as they are, to as many of the same shape.
PatchTransform = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

# The index of a scale and some of its patches [n]; and after the view's index, with their pixels [n, 3, H, W].
_Numbers = tuple[int, NDArray[np.int64]]
_Patches = tuple[int, int, NDArray[np.int64], NDArray[np.uint8]]
# Waits for features [n, F], float32.
_Fetch = Callable[[], NDArray[np.float32]]


class Encoded(NamedTuple):
    """Features of some patches of one view and scale.

    Args:
        view: the view, as its transform is counted among those that are encoded together.
        scale_index: the scale, counted from low to high.
        patches: ``[n]``, the patches, as they are numbered in the grid; not in order.
        features: ``[n, F]`` of the encoder's ``feature_dtype``.
    """

    view: int
    scale_index: int
    patches: NDArray[np.int64]
    features: NDArray[np.floating]


@dataclass(frozen=True)
class _Batch:
    """A batch of patches of one view.

    Args:
        view: the view's index.
        pixels: ``[batch_size, 3, H, W]``, of which the first are filled.
        numbers: the patches that fill them.
    """

    view: int
    pixels: Tensor
    numbers: list[_Numbers] = field(default_factory=list)

    @property
    def num_patches(self) -> int:
        return sum(len(patches) for _, patches in self.numbers)

    def take(self, scale_index: int, patches: NDArray[np.int64], pixels: NDArray[np.uint8]) -> int:
        """Add as many of some patches ``[n]``, with pixels ``[n, 3, H, W]``, as fit; how many these are."""
        filled = self.num_patches
        count = min(len(self.pixels) - filled, len(patches))
        self.pixels[filled : filled + count] = torch.from_numpy(pixels[:count])
        self.numbers.append((scale_index, patches[:count]))
        return count


class Encoder:
    """Encodes the patches of a bag, each unique patch once per scale.

    Slides are read in blocks (:func:`scripts.bags.blocks.plan_blocks`), and a batch has patches of any scale, because
    all share the backbone. Batches depend on the bag alone and have patches of one view, so on one machine a bag gives
    the same features to the last digit, into a bank or for a prediction, and whatever views are made with it.

    Args:
        backbone: the frozen backbone.
        device: where it runs.
        batch_size: patches that are encoded together; ``"auto"`` is :data:`scripts.core.machine.CPU_BATCH`, on a GPU
            what :func:`scripts.encoders.batch_trial.batch_for` finds.
        num_workers: threads that read patches meanwhile; 0 reads and encodes in turn.
        runtime: what computes the backbone, see :func:`scripts.encoders.runtimes.choose_runtime`.
        feature_dtype: ``"float32"``, or ``"float16"``, to which the features are then rounded, wherever they go.
        int8: of a backbone that is computed in INT8, its network.

    Raises:
        SettingsError: if a setting has no such value, or cannot be used here.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: str | torch.device = "cpu",
        batch_size: int | str = CPU_BATCH,
        num_workers: int = 2,
        runtime: str = "torch",
        feature_dtype: str = "float32",
        int8: Int8 | None = None,
    ) -> None:
        check_settings(encode_batch=batch_size, num_workers=num_workers, feature_dtype=feature_dtype)
        self.feature_dtype: np.dtype[np.floating] = np.dtype(feature_dtype)
        self.backbone, self.num_workers = backbone, num_workers
        self.tries_batches = batch_size == AUTO
        self.batch_size = CPU_BATCH if self.tries_batches else int(batch_size)
        self._wanted_runtime, self.int8 = runtime, int8
        self._forward: Forward | None = None
        self._prepared_for: tuple[torch.device, str] | None = None
        self.to(device)

    def to(self, device: str | torch.device) -> None:
        """Encode on this device from now on.

        A GPU is not touched until there are patches to encode: in exclusive mode it takes one process at a time, which
        keeps it until it ends.

        Raises:
            SettingsError: if there is no such device, or the runtime does not run there.
        """
        check_settings(device=device)
        self.device = torch.device(device)
        if self.device.type != "cuda":
            self.backbone.to(self.device)
        runtime = choose_runtime(self._wanted_runtime, self.device, self.backbone, self.precision)
        if (self.device, runtime) != self._prepared_for:
            self._prepared_for, self._forward = (self.device, runtime), None
        self.runtime = runtime

    @property
    def precision(self) -> str:
        """``"int8"``, or ``"amp"``: bfloat16 or float32, as the backbone's ``amp`` says."""
        return "amp" if self.int8 is None else "int8"

    @property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of what decides the features beside settings, by name, as records of weights store them."""
        int8 = {} if self.int8 is None else {"int8_sha256": self.int8.network.sha256}
        return {"backbone_sha256": self.backbone.weights_sha256, **int8}

    @property
    def num_features(self) -> int:
        """F, the features of a patch."""
        return self.backbone.num_features

    @property
    def feature_bytes(self) -> int:
        """The bytes that the features of a patch take in a bank."""
        return self.num_features * self.feature_dtype.itemsize

    def settings(self) -> dict[str, Any]:
        """What decides the features of a patch, as plain values that are stored with them.

        ``device``, ``"cpu"`` or ``"cuda"``, is one of them only with ``amp``: in bfloat16 a GPU rounds differently in
        every layer. In float32 the features differ in the last digits, as those of two processors do.
        """
        return {
            **self.backbone.settings(),
            "runtime": self.runtime,
            "precision": self.precision,
            **({} if self.int8 is None else {"int8_sha256": self.int8.network.sha256}),
            "feature_dtype": self.feature_dtype.name,
            **({"device": self.device.type} if self.backbone.amp else {}),
        }

    def encode(self, bag: Bag, transforms: Sequence[PatchTransform | None] = (None,)) -> Iterator[Encoded]:
        """Encode views of a bag, whose patches are read once for all of them.

        Args:
            bag: the slide's bag.
            transforms: for each view, what is applied to patches before they are encoded; ``None`` leaves them as they
                are. Several threads call them at once.

        Yields:
            features of some patches; each patch once for each view.

        Raises:
            SlideError: if the slide cannot be read, or, at the end, if it was changed since it was opened.
            SettingsError: if the runtime cannot compute the backbone, a batch does not fit into memory, or a feature
                into float16.
        """
        forward = self.prepare(bag.grid.scales[0].patch_size_px)
        # A GPU is given a batch before the features of the last one are fetched.
        in_flight = 1 if self.device.type == "cuda" else 0
        computing: deque[tuple[_Batch, _Fetch]] = deque()
        for batch in self._batches(bag, transforms, in_flight):
            computing.append((batch, self._compute(forward, batch.pixels[: batch.num_patches])))
            if len(computing) > in_flight:
                yield from self._fetched(*computing.popleft())
        while computing:
            yield from self._fetched(*computing.popleft())
        bag.slide.check_unchanged()

    def prepare(self, patch_px: int) -> Forward:
        """Get the backbone ready for patches of this side, once for each device.

        Raises:
            SettingsError: if the runtime cannot compute the backbone.
        """
        self.backbone.to(self.device)
        if self._forward is None:
            if self.tries_batches:
                on_gpu = self.device.type == "cuda"
                self.batch_size = batch_for(self.backbone, self.device, patch_px) if on_gpu else CPU_BATCH
            int8 = None if self.int8 is None else self.int8.network
            self._forward = get_forward(self.runtime, self.backbone, self.batch_size, int8)
        return self._forward

    def made_with(self) -> dict[str, int]:
        """How it computes on this machine, once it is prepared; unlike :meth:`settings` never compared."""
        threads = torch.get_num_threads()
        return {"encode_batch": self.batch_size, "num_workers": self.num_workers, "threads": threads}

    def keep_int8(self, folder: str | Path) -> None:
        """Store the INT8 network, if there is one, in a folder of banks, or of weights that are trained with it."""
        if self.int8 is not None:
            copy_int8(self.int8.network, output_folder(folder))

    def _compute(self, forward: Forward, batch: Tensor) -> _Fetch:
        with fitting("encode_batch"):
            # Not in inference mode, whose tensors are another kind to the compiler, which would compile anew for them.
            on_device = batch.to(self.device, non_blocking=True)
            # The caller may track gradients (MONAI Label does); a frozen backbone needs none.
            with torch.inference_mode():
                features = forward(on_device)
        if self.device.type != "cuda":
            return features.numpy
        # The copy is queued now: queued later, it would wait for the batches that the GPU was given since.
        on_cpu = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        on_cpu.copy_(features, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))

        def fetch() -> NDArray[np.float32]:
            arrived.synchronize()
            return on_cpu.numpy()

        return fetch

    def encode_rows(self, bag: Bag, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The features of a bag's rows, ``[N, S, F]``, in memory once.

        Args:
            bag: the slide's bag.
            out: an array of that shape to write into.
        """
        grid = bag.grid
        if out is None:
            out = np.empty((grid.num_rows, len(grid.scales), self.num_features), dtype=np.float32)
        order = [np.argsort(patches, kind="stable") for patches in grid.rows.T]
        by_patch = [patches[rows] for patches, rows in zip(grid.rows.T, order, strict=True)]
        for _, s, patches, features in self.encode(bag):
            first, last = (np.searchsorted(by_patch[s], patches, side) for side in ("left", "right"))
            rows = np.concatenate([order[s][i:j] for i, j in zip(first, last, strict=True)])
            out[rows, s] = np.repeat(features, last - first, axis=0)
        return out

    def _batches(self, bag: Bag, transforms: Sequence[PatchTransform | None], in_flight: int) -> Iterator[_Batch]:
        """Batches of one view each; the pixels of one are filled anew once ``in_flight`` others were given."""
        filling: list[_Batch | None] = [None] * len(transforms)
        given: deque[Tensor] = deque()
        for view, scale_index, patches, pixels in self._read(bag, transforms):
            while len(patches):
                is_free = len(given) > in_flight
                batch = filling[view] or _Batch(view, given.popleft() if is_free else self._buffer(pixels.shape[1:]))
                count = batch.take(scale_index, patches, pixels)
                patches, pixels = patches[count:], pixels[count:]
                filling[view] = batch
                if batch.num_patches == self.batch_size:
                    yield batch
                    filling[view] = None
                    given.append(batch.pixels)
        yield from (batch for batch in filling if batch is not None)

    def _buffer(self, shape: tuple[int, ...]) -> Tensor:
        # Only from pinned memory does a GPU copy while the processor goes on.
        with fitting("encode_batch"):
            return torch.empty(
                (self.batch_size, *shape),
                dtype=torch.uint8,
                memory_format=torch.channels_last,
                pin_memory=self.device.type == "cuda",
            )

    def _read(self, bag: Bag, transforms: Sequence[PatchTransform | None]) -> Iterator[_Patches]:
        def read(block: Block) -> list[_Patches]:
            parts = bag.read_block(block)
            return [
                (view, scale_index, patches, pixels if transform is None else transform(pixels))
                for view, transform in enumerate(transforms)
                for scale_index, patches, pixels in parts
            ]

        blocks = plan_blocks(bag.grid)
        ahead = max(BLOCKS_AHEAD, self.num_workers) if self.device.type == "cuda" else BLOCKS_AHEAD
        if self.num_workers == 0:
            yield from chain.from_iterable(map(read, blocks))
            return
        waiting: deque[Future[list[_Patches]]] = deque()
        with ThreadPoolExecutor(self.num_workers) as threads:
            for block in blocks:
                waiting.append(threads.submit(read, block))
                if len(waiting) > ahead + self.num_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _fetched(self, batch: _Batch, fetch: _Fetch) -> Iterator[Encoded]:
        features = self.rounded(fetch())
        for scale_index, patches in batch.numbers:
            yield Encoded(batch.view, scale_index, patches, features[: len(patches)])
            features = features[len(patches) :]

    def rounded(self, features: NDArray[np.float32]) -> NDArray[np.floating]:
        """Features in ``feature_dtype``.

        Raises:
            SettingsError: if a feature is no finite number, or does not fit into float16.
        """
        if not np.isfinite(features).all():
            cause = "gives features that are no finite numbers"
            remedy = "Use other weights, or switch `amp` off."
            raise SettingsError(f"backbone {self.backbone.name}", cause, remedy)
        if features.dtype == self.feature_dtype:
            return features
        most = float(np.finfo(self.feature_dtype).max)
        if (largest := float(np.abs(features).max(initial=0))) > most:
            cause = f"is {self.feature_dtype}, and a feature of {self.backbone.name} is {largest:g}, beyond {most:g}"
            raise SettingsError("feature_dtype", cause, "Set it to float32.")
        return features.astype(self.feature_dtype)
