"""What is missing of a DICOM series is said by name: OpenSlide shows what is left of it."""

from __future__ import annotations

import pydicom
import pytest

from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats
from scripts.slides.slide import Slide
from tests.dicoms import write_dicom
from tests.pyramids import noise

DAMAGE = {"empty": b"", "cut off": b"\0" * 128 + b"DICM\2\0\0\0UL\4", "of something else": b"pixels" * 99}


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
