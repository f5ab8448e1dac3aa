"""What is read of a mask's file: the stored values, or a refusal where they may not be what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.bags.mask_files import read_mask_pixels
from scripts.core.errors import SlideError
from scripts.evaluation.localisation import read_regions
from tests.conftest import ROOT

CODES = np.zeros((20, 40), np.uint8)
CODES[5:15, 10:25] = 1
CODES[5:15, 25:30] = 3
TISSUE = (CODES == 1).astype(np.uint8)
WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def with_palette(path: Path, values: np.ndarray, colours: list[tuple[int, ...]]) -> Path:
    if path.suffix == ".tif":
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colours)] = np.transpose(colours).astype(np.uint16) * 257
        tifffile.imwrite(path, values, photometric="palette", colormap=table)
    else:
        image = Image.fromarray(values).convert("P")
        image.putpalette([channel for colour in colours for channel in colour])
        image.save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize(
    "colours",
    [[BLACK, RED, BLUE, WHITE], [WHITE, RED, BLUE, (9, 9, 9)], [(k, k, k) for k in range(4)],
     [(85 * k,) * 3 for k in range(4)], [BLUE] * 4],
)  # fmt: skip
def test_a_palette_is_read_by_its_indices(tmp_path, suffix, colours):
    assert np.array_equal(read_mask_pixels(with_palette(tmp_path / f"m.{suffix}", CODES, colours)).pixels, CODES)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize(
    ("values", "colours"),
    [
        (TISSUE, [WHITE, BLACK]),
        (TISSUE, [RED, BLACK]),
        # Codes 0, 3 and 1 in the order in which a program that saves space met them.
        (np.minimum(CODES, 2), [BLACK, (3, 3, 3), (1, 1, 1)]),
    ],
)
def test_a_palette_that_contradicts_its_indices_is_refused(tmp_path, suffix, values, colours):
    path = with_palette(tmp_path / f"m.{suffix}", values, colours)
    with pytest.raises(ValueError, match=r"its palette shows the stored values in other colours \(0 as \("):
        read_mask_pixels(path)
    with pytest.raises(SlideError, match=r"its palette shows .*Save it as"):
        read_regions(path, "s", (400, 200), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("pages", "options", "cause"),
    [
        (2, {}, "it has 2 pages that are no levels"),
        (3, {"imagej": True}, "it has 3 pages"),
        (2, {"metadata": None}, "it has 2 pages"),
        (2, {"planarconfig": "separate"}, "it has 2 channels that are not RGB"),
        (3, {"planarconfig": "separate"}, "it has 3 channels that are not RGB"),
    ],
)
def test_a_tiff_of_several_images_is_refused(tmp_path, pages, options, cause):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, np.stack([TISSUE] * pages), photometric="minisblack", **options)
    with pytest.raises(ValueError, match=cause):
        read_mask_pixels(path)


@pytest.mark.parametrize("subifds", [0, 2])
@pytest.mark.parametrize(("last", "is_level"), [(TISSUE[::4, ::4][:, :-1], True), (TISSUE[:10, :10], False)])
def test_a_tiff_of_one_image_in_smaller_and_smaller_levels_is_that_image(tmp_path, subifds, last, is_level):
    path = tmp_path / "m.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(TISSUE, subifds=subifds, metadata=None)
        for level in (TISSUE[::2, ::2], last):
            tiff.write(level, subfiletype=1, metadata=None)
    if is_level:
        assert np.array_equal(read_mask_pixels(path).pixels, TISSUE)
    else:
        with pytest.raises(ValueError, match="it has 3 pages that are no levels of a pyramid"):
            read_mask_pixels(path)


def test_a_tiff_whose_zeros_are_white_is_read_if_its_writer_is_known_to_mean_0(tmp_path):
    for name, options in {"known": {}, "other": {"software": "other"}}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", TISSUE.astype(bool), photometric="miniswhite", **options)
    assert np.array_equal(read_mask_pixels(tmp_path / "known.tif").pixels, TISSUE)
    with pytest.raises(ValueError, match="its zeros are shown white"):
        read_mask_pixels(tmp_path / "other.tif")


@pytest.mark.parametrize("name", ["m.jpg", "m.jpeg", "m.jp2", "jpeg.tif"])
def test_what_is_lossy_is_known_by_the_format(tmp_path, name):
    if name == "jpeg.tif":
        tifffile.imwrite(tmp_path / name, CODES, compression="jpeg")
    else:
        Image.fromarray(CODES).save(tmp_path / name)
    assert read_mask_pixels(tmp_path / name).is_lossy
    with pytest.raises(SlideError, match="has a format that may be lossy"):
        read_regions(tmp_path / name, "s", (400, 200), ["a", "b", "c"])


def test_grey_with_transparency_is_refused(tmp_path):
    Image.fromarray(np.stack([TISSUE, TISSUE * 255], axis=-1), "LA").save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="it has 2 channels"):
        read_mask_pixels(tmp_path / "m.png")


def test_reading_a_mask_leaves_the_working_folder_as_it_is(tmp_path):
    """Else a thread that reads a bank or a slide by a relative path meanwhile does not find it."""
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "m.png")
    program = (
        "import sys; from pathlib import Path; from scripts.bags.mask_files import read_mask_pixels\n"
        "sys.addaudithook(lambda event, _: sys.exit(event) if event == 'os.chdir' else None)\n"
        f"print(read_mask_pixels(Path({str(tmp_path / 'm.png')!r})).pixels.sum())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
