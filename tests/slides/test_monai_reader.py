import cv2
import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, PatchWSIDataset
from monai.data.wsi_reader import WSIReader
from monai.transforms import LoadImaged

from scripts.slides.monai_reader import MagnificationReader
from tests.pyramids import noise, write_pyramid


@pytest.fixture(scope="module")
def image():
    return cv2.GaussianBlur(noise(400, 600), (0, 0), 3)


@pytest.fixture(scope="module")
def slide(image, tmp_path_factory):
    """0.5 um/px (20x) and 2.0 um/px (5x): no level at 10x."""
    return write_pyramid(tmp_path_factory.mktemp("reader") / "s.tif", image, mpp=0.5, downsamples=(1, 4))


def halved(image, top, left, height, width):
    """The oracle of 10x: means of 2 x 2 pixels, channels first."""
    part = image[top : top + 2 * height, left : left + 2 * width].astype(float)
    return part.reshape(height, 2, width, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)


@pytest.mark.parametrize("asked", [{"power": 10}, {"mpp": 1.0}, {"mpp": (1.0, 1.0)}])
def test_a_magnification_between_the_levels_is_read_where_monai_refuses(slide, image, asked):
    reader = MagnificationReader()
    patch, meta = reader.get_data(reader.read(slide), location=(40, 100), size=(50, 60), **asked)
    assert np.abs(patch - halved(image, 40, 100, 50, 60)).max() <= 1
    assert meta["mpp"] == 1.0
    assert meta["level"] == 0  # the one that was read

    monai = WSIReader("openslide")
    with pytest.raises(ValueError, match="does not exist in this whole slide image|cannot be obtained for this file"):
        monai.get_data(monai.read(str(slide)), location=(40, 100), size=(50, 60), **asked)


@pytest.mark.parametrize("backend", ["cucim", "openslide"])
@pytest.mark.parametrize("read_level", ["nearest", "highest"])
def test_levels_are_read_as_monais_reader_reads_them(slide, backend, read_level):
    ours, monai = MagnificationReader(reader=backend, read_level=read_level), WSIReader(backend)
    for level, location, size in [(0, (12, 34), (64, 48)), (1, (80, 40), (60, 50)), (1, (0, 0), None)]:
        expected, expected_meta = monai.get_data(monai.read(str(slide)), location, size, level=level)
        patch, meta = ours.get_data(ours.read(slide), location, size, level=level)
        assert np.array_equal(patch, expected)
        assert meta["level"] == expected_meta["level"] == level
        for key in ("spatial_shape", "location", "size", "path"):
            assert np.array_equal(meta[key], expected_meta[key]), key


@pytest.mark.parametrize("read_level", ["nearest", "highest"])
def test_a_level_is_what_is_stored_there_not_what_could_be_made_of_a_finer_one(image, tmp_path, read_level):
    stored = 255 - cv2.resize(image, (150, 100), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for level, (pixels, mpp) in enumerate([(image, 0.5), (stored, 2.0)]):
            resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            tiff.write(pixels, photometric="rgb", tile=(128, 128), subfiletype=level, metadata=None, **resolution)
    reader = MagnificationReader(read_level=read_level)
    patch, meta = reader.get_data(reader.read(tmp_path / "s.tif"), (80, 40), (60, 50), level=1)
    assert np.array_equal(patch, stored[20:80, 10:60].transpose(2, 0, 1))
    assert (meta["level"], meta["mpp"]) == (1, 2.0)


def test_sizes_and_resolutions_of_the_levels_are_those_of_monais_reader(slide):
    ours, monai = MagnificationReader(), WSIReader("cucim")
    ours_slide, monai_slide = ours.read(slide), monai.read(str(slide))
    assert ours.get_level_count(ours_slide) == monai.get_level_count(monai_slide) == 2
    for level in range(2):
        assert ours.get_size(ours_slide, level) == tuple(monai.get_size(monai_slide, level))
        assert ours.get_downsample_ratio(ours_slide, level) == monai.get_downsample_ratio(monai_slide, level)
        assert ours.get_mpp(ours_slide, level) == pytest.approx((0.5 * 4**level,) * 2)
        assert ours.get_power(ours_slide, level) == pytest.approx(20 / 4**level)
    assert ours.get_file_path(ours_slide) == monai.get_file_path(monai_slide) == str(slide)


def test_the_whole_slide_comes_where_no_size_is_given(slide, image):
    reader = MagnificationReader()
    patch, meta = reader.get_data(reader.read(slide), power=10)
    assert np.abs(patch - halved(image, 0, 0, 200, 300)).max() <= 1
    assert meta["size"].tolist() == [200, 300]


def test_the_magnification_may_be_set_once_for_all(slide, image):
    for settings in ({"power": 10}, {"mpp": 1.0}):
        reader = MagnificationReader(**settings)
        patch, _ = reader.get_data(reader.read(slide), (40, 100), (50, 60))
        assert np.abs(patch - halved(image, 40, 100, 50, 60)).max() <= 1
        native, meta = reader.get_data(reader.read(slide), (40, 100), (50, 60), level=0)  # overrides it
        assert np.array_equal(native, image[40:90, 100:160].transpose(2, 0, 1))
        assert meta["mpp"] == 0.5


@pytest.mark.parametrize("asked", [{"mpp": 1.0, "power": 10}, {"mpp": 1.0, "level": 0}, {"power": 10, "level": 0}])
def test_more_than_one_resolution_is_refused(slide, asked):
    reader = MagnificationReader()
    with pytest.raises(ValueError, match="Only one of `level`, `mpp`, or `power` should be provided"):
        reader.get_data(reader.read(slide), size=(10, 10), **asked)


def test_a_level_that_is_not_there_is_refused(slide):
    reader = MagnificationReader()
    with pytest.raises(ValueError, match="maximum level of this image is 1 while level=2"):
        reader.get_data(reader.read(slide), level=2)


@pytest.mark.parametrize("asked", [{"level": 1}, {"power": 10}, {"mpp": 2.0}])
def test_several_slides_are_read_at_once(slide, image, tmp_path, asked):
    other = write_pyramid(tmp_path / "other.tif", image[::-1, ::-1].copy(), mpp=0.5)
    if "level" in asked:
        other = write_pyramid(tmp_path / "other.tif", image[::-1, ::-1].copy(), mpp=0.5, downsamples=(1, 4))
    reader = MagnificationReader()
    both, meta = reader.get_data(reader.read([slide, other]), (40, 100), (20, 30), **asked)
    alone = [reader.get_data(reader.read(path), (40, 100), (20, 30), **asked)[0] for path in (slide, other)]
    assert np.array_equal(both, np.concatenate(alone))  # along the channels, as MONAI's readers
    assert not np.array_equal(*alone)
    assert meta["path"] == [str(slide), str(other)]


def test_settings_of_monais_readers_act(slide, image):
    expected = halved(image, 0, 0, 30, 40)
    last = MagnificationReader(channel_dim=-1)
    patch, meta = last.get_data(last.read(slide), (0, 0), (30, 40), power=10)
    assert np.abs(patch.transpose(2, 0, 1) - expected).max() <= 1
    assert meta["original_channel_dim"] == 2
    floats = MagnificationReader(dtype=torch.float32)
    patch, _ = floats.get_data(floats.read(slide), (0, 0), (30, 40), power=10)
    assert patch.dtype == torch.float32
    assert np.abs(patch.numpy() - expected).max() <= 1
    rgba = MagnificationReader()
    with pytest.raises(ValueError, match="expected to have four color channels in 'RGBA' mode but has 3"):
        rgba.get_data(rgba.read(slide), (0, 0), (30, 40), power=10, mode="RGBA")


def test_the_base_resolution_may_be_given_where_the_file_has_none(image, tmp_path):
    path = write_pyramid(tmp_path / "bare.tif", image, mpp=None)
    reader = MagnificationReader()
    patch, _ = reader.get_data(reader.read(path, mpp=0.25), (0, 0), (40, 40), power=20)
    assert np.abs(patch - halved(image, 0, 0, 40, 40)).max() <= 1


def test_monais_patch_dataset_takes_it(slide):
    data = [{"image": str(slide), "location": [80, 40], "label": 1, "level": level} for level in (0, 1)]
    settings = {"patch_size": (30, 20), "center_location": False}
    expected = PatchWSIDataset(data, reader="openslide", **settings)
    for reader in (MagnificationReader, MagnificationReader()):
        dataset = PatchWSIDataset(data, reader=reader, **settings)
        for item, oracle in zip(dataset, expected, strict=True):
            assert torch.equal(item["image"].as_tensor(), oracle["image"].as_tensor())
            assert item["image"].meta["level"] == oracle["image"].meta["level"]
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert torch.equal(batch["image"][1].as_tensor(), expected[1]["image"].as_tensor())


def test_monais_load_transform_takes_it(slide, image):
    load = LoadImaged("image", reader=MagnificationReader(power=10), image_only=True, dtype=np.uint8)
    loaded = load({"image": str(slide)})["image"]
    assert np.abs(loaded.numpy() - halved(image, 0, 0, 200, 300)).max() <= 1
