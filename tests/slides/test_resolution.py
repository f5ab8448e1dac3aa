import numpy as np
import pytest
import tifffile

from scripts.core.errors import SlideError
from scripts.slides import slide as slides
from scripts.slides.slide import Slide
from tests.dicoms import write_dicom
from tests.pyramids import noise, write_pyramid


def test_the_datalist_comes_first(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", noise(256, 256), mpp=0.5)
    found = Slide(path, mpp=0.25).resolution
    assert (found.mpp, found.source) == (0.25, "datalist: mpp")


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        -1.0,
        float("nan"),
        float("inf"),
        "0.5",
        2.5e-7,
        0.00025,
        1e-300,
        0.0199,
        20.1,
        353,
        pytest.param(10**400, id="huge"),
    ],
)
def test_a_datalist_mpp_must_be_what_a_microscope_may_have(tmp_path, wrong):
    path = write_pyramid(tmp_path / "a.tif", noise(256, 256))
    message = rf"a\.tif: `mpp` is {wrong!r}, not a number from 0\.02 to 20\. Give micrometres per pixel at full"
    with pytest.raises(SlideError, match=message):
        Slide(path, mpp=wrong)


@pytest.mark.parametrize("mpp", [0.02, 1, 20.0])
def test_a_datalist_mpp_may_be_what_a_file_may_say(tmp_path, mpp):
    assert Slide(write_pyramid(tmp_path / "a.tif", noise(256, 256)), mpp=mpp).base_mpp == mpp


@pytest.mark.parametrize("mpp", [0.1213, 0.25, 0.499, 1.0, 4.0])
def test_the_files_own_resolution_is_next(tmp_path, mpp):
    found = Slide(write_pyramid(tmp_path / "a.tif", noise(256, 256), mpp=mpp)).resolution
    assert found.mpp == pytest.approx(mpp, rel=1e-5)
    assert found.source.startswith("file: ")


def test_an_aperio_slide_says_its_own(real_slide):
    found = Slide(real_slide).resolution
    assert (found.mpp, found.source) == (0.499, "file: openslide.mpp-x, openslide.mpp-y")


def test_objective_power_is_the_last_resort(tmp_path):
    path = tmp_path / "power.svs"
    tifffile.imwrite(
        path, noise(256, 256), tile=(128, 128), photometric="rgb", metadata=None,
        description="Aperio Image Library v1.0\r\n256x256 (128x128) |AppMag = 40",
    )  # fmt: skip
    found = Slide(path).resolution
    assert (found.mpp, found.source) == (0.25, "file: objective power 40")


def test_a_file_without_a_resolution_is_an_error_that_names_the_key(tmp_path):
    # cuCIM says 1.0 for this file: 10x, silently wrong.
    path = write_pyramid(tmp_path / "none.tif", noise(256, 256), mpp=None)
    with pytest.raises(SlideError, match=r"none\.tif: the file carries no resolution .* Set `mpp`"):
        Slide(path)


@pytest.mark.parametrize(("dpi", "said"), [(72, "72 dpi = 352.8 um/px"), (96, "96 dpi = 264.6 um/px"), (1, "1 dpi = ")])
def test_a_printers_resolution_is_called_what_it_is(tmp_path, dpi, said):
    path = write_pyramid(tmp_path / "dpi.tif", noise(256, 256), mpp=25_400 / dpi)
    message = rf"dpi\.tif: the file says {said}.* \(TIFF tags .*\), which image programs write by default: no slide's"
    with pytest.raises(SlideError, match=f"{message} resolution. Set `mpp`"):
        Slide(path)
    assert Slide(path, mpp=0.5).stated_resolutions == []


@pytest.mark.parametrize("mpp", [0.001, 0.019])
def test_pixels_that_are_too_fine_are_not_called_a_printers(tmp_path, mpp):
    path = write_pyramid(tmp_path / "fine.tif", noise(256, 256), mpp=mpp)
    with pytest.raises(
        SlideError, match=rf"the file says {mpp} um/px \(TIFF tags .*\), which is outside 0\.02 to 20 um/px"
    ):
        Slide(path)


@pytest.mark.parametrize("side", [(300, 300), (0.5, 300)])
def test_nor_is_an_implausible_size_in_ome_xml(tmp_path, side):
    path = write_ome(tmp_path / "a.ome.tif", *side, "µm", "µm")
    message = r"the file says 300 um/px \(OME-XML .*\), which is outside 0\.02 to 20 um/px\. Set `mpp`"
    with pytest.raises(SlideError, match=message):
        Slide(path)


def test_nor_one_in_dicom(tmp_path):
    write_dicom(tmp_path, noise(256, 256), mpp=50.0)
    with pytest.raises(
        SlideError, match=r"the file says 50 um/px \(openslide\.mpp-x.*\), which is outside 0\.02 to 20"
    ):
        Slide(tmp_path / "level_0.dcm")


def write_ome(path, x, y, x_unit, y_unit, size=(256, 256), tags_mpp=None):
    """An OME-TIFF that gives its pixels' size in these units; ``None`` leaves a unit out."""
    sizes = "".join(
        f' PhysicalSize{side}="{value}"' + (f' PhysicalSize{side}Unit="{unit}"' if unit else "")
        for side, value, unit in (("X", x, x_unit), ("Y", y, y_unit))
    )
    pixels = f'<Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="{size[0]}" SizeY="{size[1]}" SizeC="3"{sizes}/>'
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">{pixels}</Image></OME>'
    tags = {} if tags_mpp is None else {"resolution": (1e4 / tags_mpp,) * 2, "resolutionunit": "CENTIMETER"}
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, noise(256, 256), **options, description=xml.encode(), **tags)
    return path


@pytest.mark.parametrize(
    ("size", "unit"), [(0.25, None), (0.25, "µm"), (0.25, "\u03bcm"), (250, "nm"), (0.00025, "mm"), (0.000025, "cm")]
)
def test_ome_xml_gives_the_resolution_in_any_unit(tmp_path, size, unit):
    found = Slide(write_ome(tmp_path / "a.ome.tif", size, size, unit, unit)).resolution
    assert (round(found.mpp, 9), found.source) == (0.25, "file: OME-XML PhysicalSizeX, PhysicalSizeY")
    assert Slide(tmp_path / "a.ome.tif").stated_resolutions == [found]


def test_the_sides_of_ome_xml_may_differ_in_unit_and_not_in_size(tmp_path):
    assert Slide(write_ome(tmp_path / "a.ome.tif", 0.5, 500, "µm", "nm")).base_mpp == pytest.approx(0.5)
    with pytest.raises(SlideError, match=r"b\.ome\.tif: its pixels are not square \(0\.5 x 0\.6 um\)"):
        Slide(write_ome(tmp_path / "b.ome.tif", 0.5, 0.6, "µm", "µm"))


@pytest.mark.parametrize(
    ("size", "unit", "pixels"),
    [(0.5, "pixel", (256, 256)), (0.5, "reference frame", (256, 256)), ("x", "µm", (256, 256)), (0.5, "µm", (99, 256))],
)
def test_ome_xml_of_another_image_or_without_a_length_gives_none(tmp_path, size, unit, pixels):
    with pytest.raises(SlideError, match="carries no resolution"):
        Slide(write_ome(tmp_path / "a.ome.tif", size, size, unit, unit, pixels))


def test_ome_xml_comes_after_the_tags_and_contradicts_them_aloud(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", 1.0, 1.0, "µm", "µm", tags_mpp=0.5)
    assert [round(found.mpp, 6) for found in Slide(path).stated_resolutions] == [0.5, 0.5, 1.0]
    assert Slide(path).base_mpp == pytest.approx(0.5)


def test_pixels_must_be_square(tmp_path):
    path = write_pyramid(tmp_path / "flat.tif", noise(256, 256), mpp=(0.5, 0.6))
    with pytest.raises(SlideError, match=r"flat\.tif: its pixels are not square \(0\.5 x 0\.6 um\)"):
        Slide(path)
    nearly = Slide(write_pyramid(tmp_path / "nearly.tif", noise(256, 256), mpp=(0.5, 0.502))).resolution
    assert nearly.mpp == pytest.approx(np.sqrt(0.5 * 0.502), rel=1e-5)


def write_aperio(path, tags_mpp, said):
    """An Aperio file with TIFF tags of its own."""
    per_cm = {"resolution": (1e4 / tags_mpp, 1e4 / tags_mpp), "resolutionunit": "CENTIMETER"}
    description = f"Aperio Image Library v1.0\r\n256x256 (128x128) {said}"
    tifffile.imwrite(
        path, noise(256, 256), tile=(128, 128), photometric="rgb", metadata=None, description=description, **per_cm
    )
    return path


def test_all_that_a_file_says_of_its_resolution(tmp_path):
    path = write_aperio(tmp_path / "s.svs", 1.0, "|MPP = 0.5|AppMag = 40")
    assert [(round(found.mpp, 6), found.source) for found in Slide(path).stated_resolutions] == [
        (0.5, "file: openslide.mpp-x, openslide.mpp-y"),
        (1.0, "file: TIFF tags XResolution, YResolution"),
        (0.25, "file: objective power 40"),
    ]
    assert Slide(path).resolution == Slide(path).stated_resolutions[0]


def test_a_file_that_says_nothing_has_no_source(tmp_path):
    assert Slide(write_pyramid(tmp_path / "none.tif", noise(256, 256), mpp=None), mpp=0.5).stated_resolutions == []


def test_tags_of_another_image_than_level_0_do_not_count(tmp_path, monkeypatch):
    path, do = write_aperio(tmp_path / "s.svs", 1.0, "|MPP = 0.5"), slides.open_slide
    monkeypatch.setattr(slides, "open_slide", lambda *args: do(*args)._replace(tiff_size_px=(5000, 256)))
    assert [found.mpp for found in Slide(path).stated_resolutions] == [0.5]
