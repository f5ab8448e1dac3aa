"""DICOM slides in folders: a series is one slide, whichever of its files or folders is named."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess

import numpy as np
import pytest
import wsidicom

from scripts.core.errors import DatalistError, SlideError
from scripts.datalists.cohort import choose_slides
from scripts.datalists.datalist import list_slides, load_datalist
from scripts.datalists.slide_files import SlideFolder
from scripts.features.bank_settings import slide_fingerprint
from scripts.slides.checksums import content_sha256, stamp_of
from scripts.slides.dicom_series import dicom_slides, folder_slides, instance_of, is_dicom, may_be_dicom, series_files
from scripts.slides.slide import Slide
from tests.conftest import ROOT
from tests.dicoms import SEGMENTATION, write_dicom
from tests.limits import within
from tests.pyramids import noise, write_pyramid

SHARED = ROOT.parent / "shared" / "cases" / "dicom_series"
LEVELS = (1, 2, 4)


@pytest.fixture(scope="module")
def image():
    return noise(512, 640)


@pytest.fixture
def series(tmp_path, image):
    """A folder that holds one slide of three levels and a photograph of its label, and nothing else."""
    uid = write_dicom(tmp_path / "case 1.2", image, downsamples=LEVELS)
    write_dicom(tmp_path / "case 1.2", image[:128, :128], flavour="LABEL", name="a_label.dcm", series=uid)
    return tmp_path / "case 1.2"


def names(listed):
    return [(entry["slide"], os.path.basename(entry["image"])) for entry in listed]


@pytest.mark.parametrize("named", ["", "level_0.dcm", "level_1.dcm", "level_2.dcm"])
def test_every_level_has_the_pixels_and_the_resolution_that_wsidicom_reads(series, named):
    slide = Slide(series / named)
    assert (slide.backend, slide.base_mpp) == ("openslide", 0.5)
    with wsidicom.WsiDicom.open(series) as oracle:
        sizes = [(level.size.width, level.size.height) for level in oracle.levels]
        assert slide.level_sizes == sizes == [(640, 512), (320, 256), (160, 128)]
        for index, level in enumerate(oracle.levels):
            assert slide.base_mpp * slide.downsamples[index] == pytest.approx(level.mpp.width)
            expected = np.asarray(oracle.read_region((0, 0), level.level, sizes[index]))
            assert np.array_equal(slide.read_level_region((0, 0), sizes[index], index), expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")
def test_so_it_is_on_a_slide_of_scanned_pixels():
    with wsidicom.WsiDicom.open(SHARED) as oracle:
        for named in ("", "level_0.dcm", "level_3.dcm"):
            slide = Slide(SHARED / named)
            assert (len(slide.level_sizes), slide.base_mpp) == (4, 0.5)
            for index, level in enumerate(oracle.levels):
                size = slide.level_sizes[index]
                expected = np.asarray(oracle.read_region((0, 0), level.level, size))
                assert np.array_equal(slide.read_level_region((0, 0), size, index), expected)


def test_pixels_that_are_not_square_or_have_no_size_are_refused_until_mpp_is_given(tmp_path, image):
    write_dicom(tmp_path / "none", image, mpp=None)
    with pytest.raises(SlideError, match=r"level_0\.dcm: the file carries no resolution .* Set `mpp`"):
        Slide(tmp_path / "none")
    assert Slide(tmp_path / "none", mpp=0.25).base_mpp == 0.25
    write_dicom(tmp_path / "flat", image, mpp=(0.5, 0.6))
    with pytest.raises(SlideError, match=r"its pixels are not square \(0\.5 x 0\.6 um\)"):
        Slide(tmp_path / "flat")


def test_a_folder_of_instances_is_one_slide_and_is_named_after_it(series):
    expected = [("case 1.2", "level_0.dcm")]
    for source in (series, series.parent, series / "level_2.dcm", series / "a_label.dcm"):
        assert names(list_slides(source)) == expected
    assert SlideFolder(series.parent).not_looked_at() is None
    for name in ("case 1.2", "case 1.2/level_0", "case 1.2/level_1.dcm", str(series)):
        assert names(list_slides([name], series.parent)) == expected
    # An id is found in subfolders, too.
    shutil.copytree(series, series.parent / "deep" / "er" / "case 9")
    assert names(list_slides(["case 9"], series.parent)) == [("case 9", "level_0.dcm")]


def test_two_series_in_a_folder_are_two_slides_and_their_folder_is_neither(series, image):
    write_dicom(series, image, name="other_{}.dcm", downsamples=LEVELS)
    for source in (series, series.parent):
        assert names(list_slides(source)) == [("level_0", "level_0.dcm"), ("other_0", "other_0.dcm")]
    assert folder_slides(series) == [str(series / "level_0.dcm"), str(series / "other_0.dcm")]
    with pytest.raises(DatalistError, match=r"slide case 1\.2: is a folder of 2 DICOM slides. Name a file of the one"):
        list_slides(["case 1.2"], series.parent)
    with pytest.raises(SlideError, match=r"case 1\.2: is a folder of 2 DICOM slides. Give a file of the one"):
        Slide(series)
    assert Slide(series / "other_1.dcm").level_sizes == Slide(series / "level_0.dcm").level_sizes


def test_slides_of_one_file_and_those_beside_other_slides_keep_the_names_of_their_files(tmp_path, image):
    for name in ("b.dcm", "1.2.840.55", "IM0001"):
        write_dicom(tmp_path, image, name=name)
    write_pyramid(tmp_path / "c.svs", image)
    write_dicom(tmp_path, image, name="many_{}.dcm", downsamples=LEVELS)
    expected = ["1.2.840.55", "IM0001", "b", "c", "many_0"]
    assert [entry["slide"] for entry in list_slides(tmp_path)] == expected


def test_what_is_no_slide_is_left_out_by_name_and_what_is_damaged_is_not(series, image):
    write_dicom(series, image, name="segmentation.dcm", sop_class=SEGMENTATION)
    write_dicom(series, image, name="lone_label.dcm", flavour="LABEL")
    (series / "damaged.dcm").write_bytes((series / "level_0.dcm").read_bytes()[:200])
    (series / "notes").write_text("no DICOM")
    folder = SlideFolder(series)
    assert [os.path.basename(path) for path in folder.slides] == ["damaged.dcm", "level_0.dcm"]
    left = folder.not_looked_at()
    assert left is not None
    assert left.startswith("1 file does not end in .svs")
    assert left.endswith("(notes); 2 DICOM files belong to no whole slide image (lone_label.dcm, segmentation.dcm)")


def split_files(series, other):
    (series / "level_1.dcm").rename(other / "level_1.dcm")


def copy_files(series, other):
    shutil.copytree(series, other, dirs_exist_ok=True)


def link_files(series, other):
    for path in series.iterdir():
        (other / path.name).symlink_to(path)


@pytest.mark.parametrize("spread", [split_files, copy_files])
def test_a_series_in_two_folders_is_refused_with_both_and_is_never_two_slides(series, spread):
    other = series.parent / "z"
    other.mkdir()
    spread(series, other)
    (series.parent / "list.csv").write_text("image,cancer,partition\ncase 1.2,1,training\nz,1,testing\n")
    message = (
        rf"the DICOM series of {other}/level_[01]\.dcm has files in {series}, too\. Put all files of the series in"
    )
    with pytest.raises(DatalistError, match=message):
        list_slides(series.parent)
    with pytest.raises(DatalistError, match=rf"line 3, .*: {message}"):
        load_datalist(series.parent / "list.csv", None, "multilabel", ["cancer"])


def test_links_to_the_files_of_a_slide_are_no_second_slide_and_a_datalist_that_names_both_is_refused(series):
    other = series.parent / "z"
    other.mkdir()
    link_files(series, other)
    assert names(list_slides(series.parent)) == [("case 1.2", "level_0.dcm")]
    (series.parent / "list.csv").write_text("image,cancer,partition\ncase 1.2,1,training\nz,1,testing\n")
    with pytest.raises(DatalistError, match=r"line 3, .*: the DICOM series of .* has files in .*, too"):
        load_datalist(series.parent / "list.csv", None, "multilabel", ["cancer"])


def test_a_link_to_the_folder_of_a_slide_is_no_second_slide(series):
    (series.parent / "z").symlink_to(series)
    assert names(list_slides(series.parent)) == [("case 1.2", "level_0.dcm")]


def test_a_datalist_that_names_two_files_of_a_slide_is_refused(series):
    (series.parent / "list.csv").write_text("image,cancer\ncase 1.2/level_0.dcm,1\ncase 1.2/level_1.dcm,0\n")
    message = r"line 3, .*: of the same DICOM series, also listed at .*line 2, .* List each slide once\."
    with pytest.raises(DatalistError, match=message):
        load_datalist(series.parent / "list.csv", None, "multilabel", ["cancer"])
    (series.parent / "twice.csv").write_text("image,cancer\ncase 1.2,1\ncase 1.2/level_1.dcm,0\n")
    with pytest.raises(DatalistError, match=message):
        load_datalist(series.parent / "twice.csv", None, "multilabel", ["cancer"])


def test_the_checksum_is_that_of_all_files_whichever_is_named(series):
    found = {content_sha256(path) for path in series.iterdir()}
    sums = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in series.iterdir())
    assert found == {hashlib.sha256("".join(f"{line}\n" for line in sums).encode()).hexdigest()}
    shell = "sha256sum * | cut -c 1-64 | LC_ALL=C sort | sha256sum"
    if shutil.which("sha256sum"):
        told = subprocess.run(shell, shell=True, cwd=series, capture_output=True, text=True, check=True).stdout
        assert found == {told.split()[0]}
    fingerprint = {slide_fingerprint(path) for path in series.iterdir()}
    assert len(fingerprint) == 1
    (series / "level_2.dcm").rename(series / "z.dcm")
    assert {content_sha256(path) for path in series.iterdir()} == found
    with open(series / "z.dcm", "ab") as file:
        file.write(b"\0\0")
    assert content_sha256(series / "level_0.dcm") not in found
    assert slide_fingerprint(series / "level_0.dcm") not in fingerprint


@pytest.mark.parametrize("name", [".level_0.dcm", "level_0.tif", "level_0.svs"])
def test_checksum_and_stamp_are_of_all_that_openslide_reads_whatever_its_name(series, name):
    of_all = content_sha256(series / "level_0.dcm")
    (series / "level_0.dcm").rename(series / name)
    assert Slide(series / "level_1.dcm").level_sizes[0] == (640, 512)
    assert content_sha256(series / "level_1.dcm") == of_all
    assert len(stamp_of(series / "level_1.dcm")) == 4 * 4
    assert str(series / "level_1.dcm") in SlideFolder(series).slides
    assert folder_slides(series) == [str(series / "level_1.dcm")]


@pytest.mark.parametrize("suffix", [".svs", ".tif", ".ndpi", ".SVS"])
def test_a_dicom_file_named_as_another_format_is_refused_with_its_right_name(tmp_path, image, suffix):
    write_dicom(tmp_path, image, name=f"level_{{}}{suffix}", downsamples=LEVELS)
    for entry in list_slides(tmp_path):
        message = (
            rf"level_.{suffix}: is a DICOM file, and is not named as one\. Rename all files of its series to end in"
        )
        with pytest.raises(SlideError, match=message):
            Slide(entry["image"])


def test_a_file_that_is_dicom_and_tiff_at_once_is_what_openslide_takes_it_for(tmp_path, image):
    write_dicom(tmp_path, image)
    whole = (tmp_path / "level_0.dcm").read_bytes()
    for name, expected in (("a.dcm", True), ("a.tif", False)):
        (tmp_path / name).write_bytes(b"II*\0" + whole[4:])
        assert is_dicom(tmp_path / name) is expected


def test_a_slide_of_one_file_has_the_checksum_and_the_stamp_of_that_file(tmp_path, image):
    write_dicom(tmp_path, image)
    path = tmp_path / "level_0.dcm"
    assert content_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(stamp_of(path)) == 4


def test_a_level_that_is_replaced_while_the_slide_is_read_is_noticed(series):
    slide = Slide(series / "level_0.dcm")
    assert len(stamp_of(series / "level_0.dcm")) == 4 * 4
    (series / "level_1.dcm").write_bytes((series / "level_1.dcm").read_bytes())
    os.utime(series / "level_1.dcm", ns=(1, 1))
    with pytest.raises(SlideError, match="was changed while it was read"):
        slide.check_unchanged()


@pytest.mark.parametrize("named", ["level_0.dcm", "level_2.dcm", "a_label.dcm"])
def test_one_file_as_dataset_dir_is_the_slide_that_it_is_of(series, named):
    listed, folder = choose_slides(series / named, None, ".")
    assert names(list_slides(listed, folder)) == [("case 1.2", "level_0.dcm")]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")
def test_so_it_is_on_a_slide_of_scanned_pixels_too():
    listed, folder = choose_slides(SHARED / "level_2.dcm", None, ".")
    assert names(list_slides(listed, folder)) == [("dicom_series", "level_0.dcm")]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_file_that_could_not_be_read_once_is_read_the_next_time(series, monkeypatch, number):
    path = series / "level_1.dcm"

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("pydicom.filereader.read_partial", fail)
        assert instance_of(path) is None
    found = instance_of(path)
    assert found is not None
    assert found.is_level


def test_what_is_asked_of_a_file_that_is_no_dicom(tmp_path):
    slide = write_pyramid(tmp_path / "s.svs", noise(256, 256))
    os.mkfifo(tmp_path / "pipe")
    with within(10):
        assert not is_dicom(tmp_path / "pipe")
        assert stamp_of(tmp_path / "pipe")
    assert (instance_of(slide), series_files(slide), instance_of(tmp_path / "gone")) == (None, [], None)
    assert dicom_slides([str(slide), str(tmp_path / "gone.dcm")]) == {}
    assert series_files(tmp_path / "no\0file") == []
    known = {"a.dcm": True, "A.DCM": True, "a.dicom": True, "IM1": True, "1.2.3.4": True, "a.svs": False, "a.b1": False}
    assert {name: may_be_dicom(f"/x.y/{name}") for name in known} == known
