"""What is found in a slide, good or bad: against what the test has drawn, and hashlib."""

import hashlib
import os
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.checking.problems import BLOCKS, WARNS
from scripts.checking.slides import SlideChecker, find_duplicates
from scripts.core.errors import SettingsError
from tests.cohorts import builder, draw_slide
from tests.dicoms import write_dicom
from tests.limits import within
from tests.pyramids import PINK, noise, with_tissue, write_pyramid
from tests.servers import serving


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """1024 x 512 px at 0.5 um/px, two levels; 6 patches at 5x, 20 at 10x."""
    return draw_slide(tmp_path_factory.mktemp("checking") / "good.tif")


def look(
    path, magnifications=(5, 10), where="d.csv line 2", min_rows=10, read_all=False, read_level="nearest", **entry
):
    checker = SlideChecker(
        builder(magnifications, read_level=read_level),
        class_names=["cancer", "hgd", "normal"],
        min_rows=min_rows,
        read_all=read_all,
    )
    return checker({"image": str(path), "slide": "s", **entry}, where)


def told(facts):
    return [(p.severity, p.check) for p in facts.problems]


def test_of_a_good_slide_everything_is_known_and_nothing_is_wrong(good):
    facts = look(good, sha256=hashlib.sha256(good.read_bytes()).hexdigest().upper())
    assert facts.problems == []
    assert facts.is_usable
    assert facts.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
    assert facts.num_bytes == len(good.read_bytes())
    assert facts.resolution.mpp == pytest.approx(0.5)
    assert (facts.size_level0, facts.num_levels) == ((1024, 512), 2)
    assert (facts.num_patches, facts.num_rows) == ((6, 20), 20)
    assert facts.tissue_mm2 == pytest.approx(0.64 * 0.48 / 4, rel=0.05)  # (640 x 480 px) of (0.5 um)^2


def test_a_slide_that_is_not_there_is_told_with_its_line(tmp_path):
    (tmp_path / "link.svs").symlink_to(tmp_path / "gone.svs")
    for name, message in {
        "a.svs": "no file .*a.svs$",
        "a": "with a suffix like .svs",
        "link.svs": "which .* links to",
    }.items():
        facts = look(tmp_path / name)
        assert told(facts) == [(BLOCKS, "file")]
        assert facts.problems[0].where == "d.csv line 2"
        assert re.search(message, facts.problems[0].what)


def test_a_dicom_slide_without_its_finest_level_is_a_warning(tmp_path):
    write_dicom(tmp_path, with_tissue(1024, 1024, [(0, 0, 900, 900)]), mpp=0.25, downsamples=(1, 2))
    (tmp_path / "level_0.dcm").unlink()
    facts = look(tmp_path / "level_1.dcm", min_rows=1)
    assert told(facts)[0] == (WARNS, "pyramid")
    assert facts.resolution.mpp == pytest.approx(0.5)
    assert "resampled from a finer one, which is not there" in facts.problems[0].what


def test_what_is_no_slide_blocks(tmp_path, good):
    (tmp_path / "text.tif").write_text("no slide")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "half.tif").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    for name in ("text.tif", "empty.tif", "folder.tif", "half.tif"):
        facts = look(tmp_path / name)
        assert told(facts) == [(BLOCKS, "file")], name
        assert not facts.is_usable
        assert facts.problems[0].where == str(tmp_path / name)


@pytest.mark.parametrize("given", [{}, {"mpp": 0.5}, {"sha256": "0" * 64}])
def test_a_pipe_blocks_and_is_not_waited_for(tmp_path, given):
    os.mkfifo(tmp_path / "b.svs")
    with within(10):
        facts = look(tmp_path / "b.svs", **given)
    assert told(facts) == [(BLOCKS, "file")]
    assert facts.problems[0].what == "is a folder, a pipe or a device, not a slide"


@pytest.mark.parametrize("mpp", [2.5e-7, 0.00025, 1e-300, 353])
def test_a_resolution_that_no_microscope_has_blocks_and_hides_nothing_else(good, mpp):
    with within(60):
        facts = look(good, mpp=mpp, sha256="0" * 64)
    assert told(facts) == [(BLOCKS, "sha256"), (BLOCKS, "resolution")]
    assert facts.problems[1].what == f"`mpp` is {mpp!r}, not a number from 0.02 to 20"
    assert facts.size_level0 == (1024, 512)


def test_a_pyramid_that_lost_its_end_blocks(tmp_path, good):
    # The last tile of the small level is missing; the large one is whole.
    torn = tmp_path / "torn.tif"
    with tifffile.TiffFile(good) as tiff:
        last = max(page.dataoffsets[-1] for page in tiff.pages)
    torn.write_bytes(good.read_bytes()[: last + 100])
    assert BLOCKS in [problem.severity for problem in look(torn).problems]


def test_a_file_that_may_not_be_read_blocks(good, monkeypatch):
    def refused(path):  # as for root nothing is
        raise SettingsError(path, "cannot be read (Permission denied)", "Check the path.")

    monkeypatch.setattr("scripts.checking.slides.content_sha256", refused)
    assert told(look(good)) == [(BLOCKS, "file")]


def test_a_missing_resolution_blocks_and_hides_nothing_else(tmp_path):
    path = write_pyramid(tmp_path / "bare.tif", noise(600, 600), mpp=None)
    facts = look(path, sha256="0" * 64)
    assert told(facts) == [(BLOCKS, "sha256"), (BLOCKS, "resolution")]
    assert facts.size_level0 == (600, 600)
    assert "Set `mpp`" in facts.problems[1].what_to_do
    assert look(draw_slide(tmp_path / "s.tif", mpp=None), mpp=0.5).problems == []


@pytest.mark.parametrize(
    ("aperio", "tags", "given", "expected"),
    [
        ("|MPP = 0.5|AppMag = 20", 0.5, None, []),
        ("|MPP = 0.5|AppMag = 20", 0.52, None, []),  # 4%
        ("|MPP = 0.5|AppMag = 20", 0.53, None, [BLOCKS]),  # 6%
        ("|MPP = 0.5|AppMag = 40", None, None, [WARNS]),
        ("|MPP = 0.5|AppMag = 40", 1.0, None, [BLOCKS, WARNS]),
        ("|MPP = 0.5|AppMag = 20", None, 0.25, [WARNS, WARNS]),
        ("|AppMag = 20", None, 0.5, []),
    ],
)
def test_resolutions_that_contradict_each_other(tmp_path, aperio, tags, given, expected):
    pixels = with_tissue(512, 1024, [(368, 16, 1008, 496)])
    per_cm = {} if tags is None else {"resolution": (1e4 / tags, 1e4 / tags), "resolutionunit": "CENTIMETER"}
    path = tmp_path / "s.svs"
    description = f"Aperio Image Library v1.0\r\n1024x512 (128x128) {aperio}"
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", metadata=None, description=description, **per_cm)
    facts = look(path, min_rows=0, **({} if given is None else {"mpp": given}))
    # At 0.25 um/px the glass is so small that it passes for a hole in the tissue, which is told of as well.
    assert [one for one in told(facts) if one[1] != "tissue"] == [(severity, "resolution") for severity in expected]
    assert facts.resolution.mpp == (given or 0.5)


def test_both_resolutions_stand_in_the_problem(tmp_path):
    facts = look(draw_slide(tmp_path / "s.tif", mpp=0.5), mpp=0.25)
    assert facts.problems[0].what.startswith("0.25 um/px (datalist: mpp) is contradicted by 0.5 um/px (file: ")


def test_a_magnification_that_the_slide_lacks_blocks(good):
    facts = look(good, magnifications=(10, 40, 80))
    assert told(facts) == [(BLOCKS, "magnification")] * 2
    assert "coarser than the 0.25 um/px asked for (40x)" in facts.problems[0].what
    assert facts.num_rows is None


def test_a_magnification_that_is_upsampled_warns(good):
    facts = look(good, magnifications=(10, 40), read_level="upsample")
    assert told(facts) == [(WARNS, "magnification")]
    assert facts.problems[0].what == "40x is upsampled: the slide has 0.5 um/px, asked for are 0.25"
    assert facts.num_rows


def test_a_slide_without_tissue_blocks(tmp_path):
    path = write_pyramid(tmp_path / "blank.tif", np.full((512, 1024, 3), 244, dtype=np.uint8))
    facts = look(path)
    assert told(facts) == [(BLOCKS, "tissue")]
    assert (facts.num_rows, facts.is_usable) == (0, False)


@pytest.mark.parametrize(("min_rows", "expected"), [(20, []), (21, [(WARNS, "tissue")])])
def test_almost_no_tissue_is_a_warning(good, min_rows, expected):
    facts = look(good, min_rows=min_rows)
    assert told(facts) == expected
    assert facts.is_usable


@pytest.mark.parametrize(("width", "expected"), [(512, []), (508, []), (496, [(WARNS, "pyramid")])])
def test_a_level_that_is_squeezed_is_a_warning(tmp_path, width, expected):
    image = with_tissue(1024, 2048, [(400, 100, 1900, 900)])
    path, tags = tmp_path / "s.tif", {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate((image, cv2.resize(image, (width, 256)))):
            tiff.write(level, photometric="rgb", tile=(128, 128), subfiletype=index, metadata=None, **tags)
    facts = look(path)
    assert facts.num_levels == 2
    assert told(facts) == expected


@pytest.mark.parametrize(
    ("pixels", "photometric", "words"),
    [
        (with_tissue(512, 1024, [(368, 16, 1008, 496)])[..., 1], "minisblack", "1 channel of 8 bits, MINISBLACK"),
        (with_tissue(512, 1024, [(368, 16, 1008, 496)]).astype(np.uint16) * 257, "rgb", "3 channels of 16 bits, RGB"),
    ],
)
def test_images_that_are_no_rgb_block(tmp_path, pixels, photometric, words):
    path, tags = tmp_path / "s.tif", {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric=photometric, tile=(128, 128), metadata=None, **tags)
    found = [p for p in look(path).problems if p.check in ("colour", "file")]
    assert any(problem.blocks for problem in found)
    assert all(words in problem.what for problem in found if problem.check == "colour")
    assert "colour" in [problem.check for problem in found]


def test_masks_and_regions_that_do_not_fit_block(tmp_path, good):
    Image.fromarray(np.ones((64, 64), dtype=np.uint8)).save(tmp_path / "square.png")
    Image.fromarray(np.full((64, 128), 4, dtype=np.uint8)).save(tmp_path / "four.png")
    (tmp_path / "text.png").write_text("no mask")
    for mask in ("square.png", "text.png", "absent.png"):
        assert told(look(good, mask=str(tmp_path / mask))) == [(BLOCKS, "mask")], mask
        assert told(look(good, regions=str(tmp_path / mask))) == [(BLOCKS, "regions")], mask
    # There are three classes, hence no fourth value.
    assert told(look(good, regions=str(tmp_path / "four.png"))) == [(BLOCKS, "regions")]
    assert look(good, mask=str(tmp_path / "four.png")).num_rows > 20  # the glass counts as tissue now


@pytest.mark.parametrize(("sha256", "words"), [("f" * 64, "the datalist says ff"), ("12", "not 64 hexadecimal digits")])
def test_another_file_than_the_datalist_means_blocks(good, sha256, words):
    facts = look(good, sha256=sha256)
    assert told(facts) == [(BLOCKS, "sha256")]
    assert words in facts.problems[0].what


def test_a_tile_that_cannot_be_decoded_is_found_when_all_is_read(tmp_path):
    image = with_tissue(1024, 1024, [(64, 64, 960, 960)], PINK)
    path = write_pyramid(tmp_path / "s.tif", image, downsamples=(1, 4), compression="jpeg")
    assert look(path, read_all=True).problems == []
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        start, size = page.dataoffsets[27], page.databytecounts[27]  # row 3, column 3 of 8 x 8
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    assert look(path).problems == []  # not looked at: the promise of the setting
    facts = look(path, read_all=True)
    assert told(facts) == [(BLOCKS, "tiles")]
    assert "1 of 2 regions cannot be read; the first: " in facts.problems[0].what
    assert not facts.is_usable


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_slide_is_told_or_can_be_read_to_its_end(tmp_path, good, seed):
    random = np.random.default_rng(seed)
    content = bytearray(good.read_bytes())
    # Half of them in the directory that every image of the file begins with.
    start = int(random.integers(0, 600 if seed % 2 else len(content)))
    if seed % 3 == 0:
        content = content[: max(1, start)]
    else:
        some = slice(start, start + 64)
        content[some] = random.bytes(len(content[some])) if seed % 3 == 1 else bytes(len(content[some]))
    path = tmp_path / "damaged.tif"
    path.write_bytes(content)
    facts = look(path, read_all=True)
    assert facts.is_usable != any(problem.blocks for problem in facts.problems)
    assert facts.sha256 == hashlib.sha256(content).hexdigest()


def test_what_nobody_thought_of_is_a_problem_of_that_slide_alone(good, monkeypatch):
    def fail(*_):
        raise ValueError("what is this")

    checker = SlideChecker(bags := builder(), class_names=["cancer", "hgd", "normal"])
    monkeypatch.setattr(bags, "tissue_of", fail)
    facts = checker({"image": str(good), "slide": "s"})
    assert [p.what for p in facts.problems] == ["looking at its tissue failed (ValueError: what is this)"]


def test_copies_and_links_are_the_same_slide(tmp_path, good):
    shutil.copy(good, tmp_path / "copy.tif")
    (tmp_path / "link.tif").symlink_to(good)
    other = draw_slide(tmp_path / "other.tif", seed=1)
    facts = [look(path) for path in (good, tmp_path / "copy.tif", other, tmp_path / "link.tif", tmp_path / "no.tif")]
    problems = find_duplicates(facts, ["training", "testing", "training", "training", "training"])
    assert [(p.severity, p.check, p.where) for p in problems] == [
        (BLOCKS, "duplicate", str(tmp_path / "copy.tif")),
        (WARNS, "duplicate", str(tmp_path / "link.tif")),
    ]
    assert problems[0].what == f"has the same content as {good}, training and testing"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_rows": -1}, "min_rows: got -1"),
        ({"min_rows": True}, "min_rows"),
        ({"read_all": "yes"}, "read_all: got 'yes'"),
    ],
)
def test_a_wrong_setting_is_refused(setting, message):
    with pytest.raises(SettingsError, match=message):
        SlideChecker(builder(), ["a"], **setting)


def test_levels_that_are_not_used_and_long_slides_without_levels_are_warned_of(tmp_path, monkeypatch):
    image = with_tissue(600, 900, [(100, 100, 700, 500)])
    flat = write_pyramid(tmp_path / "flat.tif", image)
    assert told(look(flat)) == []
    monkeypatch.setattr("scripts.checking.slides.LONGEST_FLAT_PX", 899)
    facts = look(flat)
    assert told(facts) == [(WARNS, "pyramid")]
    assert facts.problems[0].what == "has one level of 900 x 600 px: every magnification is read from it, slowly"
    assert "vips tiffsave IN OUT.tif --tile --pyramid" in facts.problems[0].what_to_do
    assert told(look(write_pyramid(tmp_path / "deep.tif", image, downsamples=(1, 2)))) == []
    with tifffile.TiffWriter(tmp_path / "sub.ome.tif") as tiff:
        options = {"tile": (128, 128), "photometric": "rgb"}
        tiff.write(image, subifds=1, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options)
        tiff.write(image[::2, ::2], subfiletype=1, **options)
    assert told(look(tmp_path / "sub.ome.tif")) == []
    checker = SlideChecker(builder((5, 10), reader="openslide"), class_names=["cancer", "hgd", "normal"])
    problems = checker({"image": str(tmp_path / "sub.ome.tif"), "slide": "s"}).problems
    assert [(p.severity, p.what) for p in problems] == [
        (WARNS, "1 of its levels are SubIFDs, which openslide does not see")
    ]


def test_of_a_dicom_slide_all_files_count_and_copies_are_found_whichever_file_is_listed(tmp_path):
    image = with_tissue(600, 900, [(100, 100, 700, 500)])
    write_dicom(tmp_path / "a", image, downsamples=(1, 2))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = look(tmp_path / "a" / "level_0.dcm"), look(tmp_path / "b" / "level_1.dcm")
    assert told(one) == told(other) == []
    assert one.num_bytes == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert (one.num_levels, one.size_level0) == (2, (900, 600))
    (duplicate,) = find_duplicates([one, other], ["training", "testing"])
    assert (duplicate.severity, duplicate.check) == (BLOCKS, "duplicate")
    write_dicom(tmp_path / "c", image, mpp=None)
    assert told(look(tmp_path / "c" / "level_0.dcm")) == [(BLOCKS, "resolution")]
    write_dicom(tmp_path / "d", image, photometric="YBR_FULL")
    assert told(look(tmp_path / "d" / "level_0.dcm")) == [(BLOCKS, "colour")]


def test_a_grid_that_covers_less_than_half_of_the_tissue_is_warned_of(tmp_path):
    # A square that is a patch of 128 px at 10x; and a strip of which two rows of patches contain half each: 38% tissue.
    strip = with_tissue(512, 1024, [(64, 80, 960, 176), (512, 256, 640, 384)])
    path = write_pyramid(tmp_path / "thin.tif", strip, mpp=0.5, downsamples=(1, 4))
    facts, wanted = {}, {}
    for origin in ("slide", "tissue"):
        checker = SlideChecker(builder(min_tissue=0.5, grid_origin=origin), class_names=["a", "b", "c"], min_rows=0)
        facts[origin] = checker({"image": str(path), "slide": "s"})
        wanted[origin] = [p for p in facts[origin].problems if "cover" in p.what]
    assert facts["tissue"].covered_mm2 > 1.5 * facts["slide"].covered_mm2
    (problem,) = wanted["slide"]
    assert (problem.severity, problem.check) == (WARNS, "tissue")
    assert problem.what_to_do.startswith("To cover more set `grid_origin` to tissue or lower `min_tissue`")
    assert not wanted["tissue"]


def test_a_slide_behind_an_address_is_looked_at_like_its_file(good):
    with serving(good.parent) as server:
        found, expected = look(f"{server.url}/good.tif"), look(good)
        missing = look(f"{server.url}/none.tif")
    for key in ("num_bytes", "sha256", "resolution", "size_level0", "num_levels", "num_rows", "num_patches"):
        assert getattr(found, key) == getattr(expected, key)
    assert found.is_usable
    assert [(p.severity, p.check, p.what) for p in missing.problems] == [(BLOCKS, "file", "is not there (HTTP 404)")]
