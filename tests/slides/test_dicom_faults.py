"""DICOM slides that OpenSlide shows and should not: in false colours, or with a part of their levels."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pydicom
import pytest
import wsidicom

from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats
from scripts.slides.dicom_faults import dicom_fault
from scripts.slides.slide import Slide
from tests.dicoms import JPEG, JPEG2000, JPEG2000_LOSSLESS, SEGMENTATION, UNCOMPRESSED, write_dicom
from tests.pyramids import noise, write_pyramid

SIDE_PX = 512
# What lossy compression may change a pixel by, on average over a smooth image; a wrong transform changes it by 30.
LOSS = 4.0
DAMAGE = {"empty": b"", "cut off": b"\0" * 128 + b"DICM\2\0\0\0UL\4", "of something else": b"pixels" * 99}


@pytest.fixture(scope="module")
def image():
    """Soft patches of the colours of stained tissue, which every codec keeps."""
    coarse = noise(16, 16) // 2 + np.array((90, 40, 90), dtype=np.uint8)
    return cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)


def read_all(path):
    """The whole of level 0, once all levels can be read."""
    slide = Slide(path)
    regions = [slide.read_level_region((0, 0), size, level) for level, size in enumerate(slide.level_sizes)]
    return regions[0]


# What agrees with itself: the syntax, the tag, and what the frames store.
TRUE = [
    (JPEG, "YBR_FULL_422", "YCbCr"),
    (JPEG, "RGB", "RGB"),
    (JPEG2000, "YBR_ICT", "YCbCr"),
    (JPEG2000, "RGB", "RGB"),
    # Tags that converters leave as they were: decoders undo the transform that the data names.
    (JPEG2000, "RGB", "YCbCr"),
    (JPEG2000, "YBR_RCT", "YCbCr"),
    (JPEG2000_LOSSLESS, "RGB", "YCbCr"),
    (JPEG2000_LOSSLESS, "YBR_RCT", "YCbCr"),
    (JPEG2000_LOSSLESS, "RGB", "RGB"),
    (UNCOMPRESSED, "RGB", "RGB"),
]


ALL = itertools.product(
    [JPEG, JPEG2000, JPEG2000_LOSSLESS, UNCOMPRESSED],
    ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "MONOCHROME2"],
    ["RGB", "YCbCr", "plain YCbCr"],
)
# There is no codec that knows of uncompressed YCbCr, and no sign of YCbCr that calls itself RGB.
NONE = {(UNCOMPRESSED, "YCbCr"), ("RGB", "plain YCbCr")}


@pytest.mark.parametrize(
    ("syntax", "photometric", "stored"), [case for case in ALL if not {case[::2], case[1:]} & NONE]
)
def test_no_slide_is_shown_in_false_colours(tmp_path, image, syntax, photometric, stored):
    write_dicom(tmp_path, image, syntax=syntax, photometric=photometric, stored=stored)
    if (syntax, photometric, stored) not in TRUE:
        with pytest.raises(SlideError, match=rf"level_0\.dcm: .*{photometric}.*\. Convert "):
            Slide(tmp_path)
        return
    shown = read_all(tmp_path)
    assert np.abs(shown.astype(int) - image).mean() < LOSS
    with wsidicom.WsiDicom.open(tmp_path) as oracle:
        assert np.array_equal(shown, np.asarray(oracle.read_region((0, 0), 0, (SIDE_PX, SIDE_PX))))


@pytest.mark.parametrize(
    ("photometric", "stored", "cause"),
    [
        ("YBR_FULL_422", "RGB", "says that its pixels are YBR_FULL_422, and stores them as RGB: its colours would be"),
        ("RGB", "YCbCr", "says that its pixels are RGB, and stores them as YCbCr: its colours would be false"),
        ("YBR_FULL", "YCbCr", r"stores YBR_FULL pixels as JPEG Baseline \(Process 1\), which no reader here takes"),
    ],
)
def test_the_file_at_fault_is_named_whichever_is_opened(tmp_path, image, photometric, stored, cause):
    series = write_dicom(tmp_path, image, syntax=JPEG, photometric="YBR_FULL_422", stored="YCbCr")
    half = cv2.resize(image, (SIDE_PX // 2, SIDE_PX // 2))
    options = {"syntax": JPEG, "photometric": photometric, "stored": stored, "series": series}
    write_dicom(tmp_path, half, mpp=1.0, name="half.dcm", **options)
    for name, of_file in (("half.dcm", ""), ("level_0.dcm", r" \(half\.dcm\)")):
        with pytest.raises(SlideError, match=rf"{name}: {cause}.*{of_file}\."):
            Slide(tmp_path / name)


def test_other_dicom_files_are_called_what_they_are(tmp_path, image):
    write_dicom(tmp_path / "a", image, sop_class=SEGMENTATION)
    with pytest.raises(SlideError, match=r"level_0\.dcm: is a DICOM file, but no whole slide image\. Give a file of"):
        Slide(tmp_path / "a" / "level_0.dcm")
    write_dicom(tmp_path / "b", image, flavour="LABEL")
    with pytest.raises(SlideError, match=r"level_0\.dcm: is a DICOM series without a level of a slide\. Give"):
        Slide(tmp_path / "b" / "level_0.dcm")
    assert dicom_fault(write_pyramid(tmp_path / "s.svs", image)) is None


def test_a_slide_that_is_cut_off_is_refused_and_never_read_as_something_else(tmp_path, image):
    for syntax, photometric, stored in ((JPEG, "YBR_FULL_422", "YCbCr"), (UNCOMPRESSED, "RGB", "RGB")):
        write_dicom(tmp_path, image, downsamples=(1, 2), syntax=syntax, photometric=photometric, stored=stored)
        for name in ("level_0.dcm", "level_1.dcm"):
            whole = (tmp_path / name).read_bytes()
            for share in (0.1, 0.5, 0.9, 0.99):
                (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
                with pytest.raises(SlideError, match=r"level_[01]\.dcm: "):
                    read_all(tmp_path / "level_0.dcm")
            (tmp_path / name).write_bytes(whole)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.slides.slide._repeats", Repeats())
    write_dicom(tmp_path, noise(512, 640), mpp=0.25, downsamples=(1, 2, 4))
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("level", [0, 1])
def test_a_file_of_the_series_that_cannot_be_read_is_an_error_with_its_name(folder, level, damage):
    (folder / f"level_{level}.dcm").write_bytes(DAMAGE[damage])
    name = rf"level_{level}\.dcm{r' .empty.' if damage == 'empty' else ''}"
    with pytest.raises(SlideError, match=rf"whose folder has files that cannot be read as DICOM: {name}\. They may be"):
        Slide(folder / "level_2.dcm")


def test_a_link_whose_file_is_gone_is_such_a_file(folder):
    (folder / "level_0.dcm").unlink()
    (folder / "level_0.dcm").symlink_to(folder / "gone" / "level_0.dcm")
    with pytest.raises(SlideError, match=r"cannot be read as DICOM: level_0\.dcm \(a link to no file\)\. They may be"):
        Slide(folder)


def test_where_other_series_may_own_the_file_it_is_a_warning(folder, caplog):
    write_dicom(folder, noise(128, 128), name="other.dcm")
    (folder / "level_1.dcm").write_bytes(b"")
    assert Slide(folder / "level_0.dcm").level_sizes == [(640, 512), (160, 128)]
    assert (
        "level_0.dcm: its folder has files that cannot be read as DICOM, perhaps levels of it: level_1.dcm ("
        in caplog.text
    )


def test_a_series_without_its_finest_level_is_a_warning_and_has_the_resolution_of_what_is_left(folder, caplog):
    (folder / "level_0.dcm").unlink()
    slide = Slide(folder)
    assert (slide.level_sizes[0], slide.base_mpp) == ((320, 256), 0.5)
    assert (
        "level_1.dcm: each of its levels says that it was resampled from a finer one, which is not there" in caplog.text
    )


def test_of_a_whole_series_and_files_that_are_none_of_its_nothing_is_said(folder, caplog):
    for name in ("README", "notes.txt", "._level_0.dcm", "run.log.1", "_SUCCESS"):
        (folder / name).write_bytes(b"")
    write_dicomdir(folder / "DICOMDIR")
    assert len(Slide(folder).level_sizes) == 3
    assert not caplog.records


def write_dicomdir(path):
    """The list of a disk's files that archives write: it has no class of its own beside its head's."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["a"])
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    listing = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    listing.FileSetID = "DISK"
    listing.save_as(path, enforce_file_format=True)
