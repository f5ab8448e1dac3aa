"""Decoding the same JPEG tiles of a slide: by threads, by cuCIM and by nvImageCodec, on the CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

__all__ = ["Tiles", "compare", "cucim_tiles", "jpeg_tiles", "nvimgcodec_tiles", "thread_tiles"]

BATCH = 256
# Yields batches [n, side, side, 3] uint8, RGB, in the order of the tiles, on the decoder's device.
Decoder = Callable[[], Iterator[torch.Tensor]]


class Tiles:
    """Whole tiles of a slide's level 0.

    Args:
        path: the slide.
        corners: ``[n]``, (x, y) of their top left corners in level-0 pixels.
        streams: ``[n]``, each tile as a JPEG file of its own.
        side_px: side of a tile.
    """

    def __init__(self, path: Path, corners: list[tuple[int, int]], streams: list[bytes], side_px: int) -> None:
        self.path, self.corners, self.streams, self.side_px = path, corners, streams, side_px


def jpeg_tiles(path: Path, number: int) -> Tiles:
    """The first tiles of a slide that lie within its border, at most so many."""
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page: Any = tiff.series[0].levels[0].pages[0]
        side, columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        corners, streams = [], []
        for index, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            x, y = index % columns * side, index // columns * side
            if len(streams) < number and x + side <= page.imagewidth and y + side <= page.imagelength:
                file.seek(offset)
                # The tables that all tiles share are a JPEG file without an image: one's end, the other's start go.
                tables = b"" if page.jpegtables is None else page.jpegtables[:-2]
                streams.append(tables + file.read(size)[2 if tables else 0 :])
                corners.append((x, y))
    return Tiles(path, corners, streams, side)


def thread_tiles(tiles: Tiles, threads: int) -> Decoder:
    """libjpeg-turbo, by OpenCV, in threads."""

    def decoded(stream: bytes) -> NDArray[np.uint8]:
        return np.asarray(cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)

    def decode() -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(tiles.streams), BATCH):
                yield torch.from_numpy(np.stack(list(pool.map(decoded, tiles.streams[first : first + BATCH]))))

    return decode


def cucim_tiles(tiles: Tiles, threads: int, device: torch.device) -> Decoder:
    """cuCIM's batches, which it decodes on the GPU where ``device`` is one."""
    from cucim import CuImage

    def decode() -> Iterator[torch.Tensor]:
        image, size = CuImage(str(tiles.path)), (tiles.side_px, tiles.side_px)
        places = {"batch_size": min(BATCH, len(tiles.corners)), "num_workers": threads, "device": device.type}
        for batch in image.read_region(tiles.corners, size, 0, **places):
            pixels = (
                torch.as_tensor(batch, device=device) if device.type == "cuda" else torch.from_numpy(np.array(batch))
            )
            yield pixels.reshape(-1, *size, 3)

    return decode


def nvimgcodec_tiles(tiles: Tiles, threads: int, device: torch.device) -> Decoder:
    """nvImageCodec, which takes the hardware or the kernels that it finds."""
    from nvidia import nvimgcodec

    is_gpu = device.type == "cuda"
    if is_gpu:
        decoder = nvimgcodec.Decoder(device_id=torch.cuda.current_device(), max_num_cpu_threads=threads)
    else:
        backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
        decoder = nvimgcodec.Decoder(nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, threads, backends)

    def decode() -> Iterator[torch.Tensor]:
        for first in range(0, len(tiles.streams), BATCH):
            streams = [nvimgcodec.CodeStream(stream) for stream in tiles.streams[first : first + BATCH]]
            images = decoder.decode(streams)
            if any(image is None for image in images):
                raise RuntimeError("it decodes no JPEG here")
            if is_gpu:
                yield torch.stack([torch.as_tensor(image, device=device) for image in images])
            else:
                yield torch.from_numpy(np.stack([np.asarray(image.cpu()) for image in images]))

    return decode


def compare(path: Path, number: int, threads: Sequence[int], device: torch.device) -> None:
    """Tiles a second of each decoder, and how far its pixels are from those of the first."""
    tiles = jpeg_tiles(path, number)
    print(f"{len(tiles.streams)} tiles of {tiles.side_px} px\n")
    print("| decoder | threads | tiles/s | mean difference of pixels |\n|---|---|---|---|", flush=True)
    exact = torch.cat(list(thread_tiles(tiles, threads[-1])()))
    for n in threads:
        print_rate("threads", n, tiles, lambda n=n: thread_tiles(tiles, n), exact)
    cpu = torch.device("cpu")
    for place in dict.fromkeys((cpu, device)):
        print_rate(
            f"cuCIM, {place.type}", threads[-1], tiles, lambda p=place: cucim_tiles(tiles, threads[-1], p), exact
        )
    name = f"nvImageCodec, {device.type}"
    print_rate(name, threads[-1], tiles, lambda: nvimgcodec_tiles(tiles, threads[-1], device), exact)


def print_rate(name: str, threads: int, tiles: Tiles, make: Callable[[], Decoder], exact: torch.Tensor) -> None:
    """One row; a decoder that is not installed, or fails, says so."""
    try:
        decode = make()
        next(decode())  # what is done once a process
        start = time.perf_counter()
        for _ in decode():
            pass
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        rate = len(tiles.streams) / (time.perf_counter() - start)
        differences = [
            (batch.cpu().int() - exact[i * BATCH : i * BATCH + len(batch)].int()).abs().float().mean()
            for i, batch in enumerate(decode())
        ]
        print(f"| {name} | {threads} | {rate:.1f} | {float(torch.stack(differences).mean()):.2f} |", flush=True)
    except ImportError as error:
        print(f"| {name} | | not installed ({error}) | |", flush=True)
    except Exception as error:  # another's library, on a GPU that nobody has tried it on
        print(f"| {name} | | {type(error).__name__}: {' '.join(str(error).split())[:100]} | |", flush=True)
