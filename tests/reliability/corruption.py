"""Damaged slides: what becomes of a bank when bytes of its slide's file are flipped, zeroed or missing.

Each variant is opened, its tissue found, its patches read and encoded, in a process that is watched from outside: a
variant that takes the process down, or never ends, is an outcome too.
"""

from __future__ import annotations

import json
import random
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile

from scripts.core.errors import BundleError, SlideError
from scripts.core.files import file_sha256
from scripts.slides.checksums import slide_sha256
from scripts.slides.slide import Slide
from tests.cohorts import builder, draw_slide, tiny_encoder
from tests.conftest import REAL_SLIDE, ROOT
from tests.reliability.counters import Counts

FAULTS = ("bits flipped", "bytes zeroed", "bytes at random", "cut off", "header damaged")
HANGS_AFTER_S = 120.0
TRIES = 600

# What may come of a damaged slide. Without a checksum, a file that still decodes cannot be distinguished from a sound
# one; with one, nothing but an error may come of it.
REFUSED, SAME, OTHER = "refused in one line", "the same bank", "another bank: nothing in the file tells"
CRASHED, HUNG, TRACEBACK, SEVERAL_LINES = "CRASHED", "HUNG", "TRACEBACK", "NOT ONE LINE WITH THE FILE"
DOUBTFUL = "ANOTHER BANK, AND OPENSLIDE SEES ANOTHER SLIDE"
BAD = (CRASHED, HUNG, TRACEBACK, SEVERAL_LINES, DOUBTFUL)


def run(counts: Counts, folder: Path, tries: int | None = None, seed: int = 0) -> None:
    """Damage slides, and count what comes of it.

    Args:
        counts: gets a row for each fault and slide, with and without a checksum in the datalist.
        folder: for the slides.
        tries: how many variants in all.
        seed: of the damage.
    """
    sources = slides(folder)
    for fault, source, outcome, with_sha256 in outcomes(sources, folder, tries or TRIES, seed):
        counts.add(f"slide ({source}): {fault}", outcome)
        counts.add("any of these, with `sha256` in the datalist", with_sha256)


def slides(folder: Path) -> dict[str, Path]:
    """What is damaged: a synthetic slide as JPEG and uncompressed, and a real one where it is at hand."""
    plain = draw_slide(folder / "uncompressed.tif")
    with tifffile.TiffFile(plain) as tiff, tifffile.TiffWriter(folder / "jpeg.tif") as target:
        for level, page in enumerate(tiff.pages):
            target.write(
                page.asarray(),
                photometric="rgb",
                tile=(128, 128),
                compression="jpeg",
                subfiletype=1 if level else 0,
                resolution=(2e4 / 4**level, 2e4 / 4**level),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    found = {"JPEG": folder / "jpeg.tif", "uncompressed": plain}
    if REAL_SLIDE.is_file():
        found["Aperio"] = REAL_SLIDE
    return found


def damaged(content: bytes, fault: str, draw: random.Random) -> bytes:
    """A file's content with a fault of :data:`FAULTS`."""
    data, size = bytearray(content), len(content)
    if fault == "bits flipped":
        for _ in range(draw.choice((1, 1, 2, 16, 256))):
            data[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif fault == "bytes zeroed":
        begin, count = draw.randrange(size), draw.choice((1, 16, 512, 4096, 65536))
        data[begin : begin + count] = bytes(min(count, size - begin))
    elif fault == "bytes at random":
        begin, count = draw.randrange(size), draw.choice((1, 16, 512, 4096))
        data[begin : begin + count] = draw.randbytes(min(count, size - begin))
    elif fault == "cut off":
        del data[draw.randrange(size) :]
    else:
        # The header, and the tags of a page, wherever the file has them.
        begin = draw.choice((0, *_tag_places(content)))
        for _ in range(draw.choice((1, 2, 4))):
            place = min(begin + draw.randrange(256), size - 1)
            data[place] = draw.randrange(256)
    return bytes(data)


def outcomes(sources: dict[str, Path], folder: Path, tries: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """Damage slides in turn, and give fault, slide, outcome, and outcome with a checksum, of each variant."""
    draw = random.Random(seed)
    contents = {name: path.read_bytes() for name, path in sources.items()}
    watched: _Watched | None = None
    for number in range(tries):
        name, fault = list(sources)[number % len(sources)], FAULTS[number // len(sources) % len(FAULTS)]
        variant = folder / f"variant_{number}{sources[name].suffix}"
        variant.write_bytes(damaged(contents[name], fault, draw))
        watched = watched or _Watched()
        found = watched.ask(sources[name], variant)
        if found in ((CRASHED,) * 2, (HUNG,) * 2):
            watched = None
        if set(found).isdisjoint(BAD):
            variant.unlink()  # what went wrong is kept to be looked at
        else:
            print(f"{variant}: {found[0]}", file=sys.stderr, flush=True)
        yield fault, name, *found
    if watched is not None:
        watched.close()


class _Watched:
    """A process that reads variants, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.corruption"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, source: Path, variant: Path) -> tuple[str, str]:
        """The outcomes of a variant, without and with a checksum."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(source), str(variant)]), file=self.process.stdin, flush=True)
        if not self.selector.select(HANGS_AFTER_S):
            self.process.kill()
            self.close()
            return HUNG, HUNG
        line = self.process.stdout.readline()
        if not line:
            self.close()
            return CRASHED, CRASHED
        without, with_sha256 = json.loads(line)
        return without, with_sha256

    def close(self) -> None:
        """End the process."""
        self.selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


def _tag_places(content: bytes) -> list[int]:
    with tempfile.NamedTemporaryFile(suffix=".tif") as file:
        file.write(content)
        file.flush()
        with tifffile.TiffFile(file.name) as tiff:
            return [int(page.offset) for page in tiff.pages]


def _outcome(variant: Path, sound: dict[Path, tuple[np.ndarray, ...]], source: Path, sha256: str | None) -> str:
    entry = {"slide": "s", "image": str(variant), **({"sha256": sha256} if sha256 else {})}
    try:
        if sha256:
            slide_sha256(entry)
        found = _bank(variant)
    except BundleError as error:
        message = str(error)
        return REFUSED if "\n" not in message and variant.name in message else SEVERAL_LINES
    except Exception:  # what a user would see as a traceback
        return TRACEBACK
    same = all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(found, sound[source], strict=True))
    if same:
        return SAME
    return OTHER if _is_what_openslide_reads(variant) else DOUBTFUL


def _is_what_openslide_reads(path: Path) -> bool:
    """Whether another reader sees the same at level 0, wherever ours reads it; what one makes up, it does not."""
    slide, step = Slide(path), 128
    columns, rows = slide.level_sizes[0]
    for top in range(0, rows, step):
        for left in range(0, columns, step):
            width, height = min(step, columns - left), min(step, rows - top)
            try:
                ours = slide.read_pixels(left, top, width, height, 0)
            except SlideError:
                continue
            try:
                # Opened for each, since after one that fails it reads nothing any more.
                with openslide.OpenSlide(path) as other:
                    theirs = np.asarray(other.read_region((left, top), 0, (width, height)))[..., :3]
            except openslide.OpenSlideError:
                return False
            if not np.array_equal(ours, theirs):
                return False
    return True


def _bank(slide: Path) -> tuple[np.ndarray, ...]:
    bag = builder()({"image": str(slide)})
    return (*bag.grid.coords, bag.grid.rows, tiny_encoder().encode_rows(bag))


def _answer() -> None:
    """Read the names of variants from standard input, line by line, and print the outcome of each."""
    sound: dict[Path, tuple[np.ndarray, ...]] = {}
    checksums: dict[Path, str] = {}
    for line in sys.stdin:
        source, variant = map(Path, json.loads(line))
        if source not in sound:
            sound[source], checksums[source] = _bank(source), file_sha256(source)
        print(
            json.dumps([_outcome(variant, sound, source, sha256) for sha256 in (None, checksums[source])]), flush=True
        )


if __name__ == "__main__":
    cv2.setNumThreads(1)
    _answer()
