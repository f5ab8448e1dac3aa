import hashlib
import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from monai.data import WSIReader

from scripts.core.errors import SettingsError
from scripts.synthetic import cohort as demo
from scripts.synthetic.cohort import CLASSES, PARTITIONS, SlidePlan, ensure_cohort, main, make_cohort, plan_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A folder with three drawn slides."""
    return make_cohort(tmp_path_factory.mktemp("demo"), num_slides=3, seed=5).parent


@pytest.fixture(scope="module")
def entries(cohort) -> list[dict]:
    parts = json.loads((cohort / "datalist.json").read_text())
    return [entry for name in PARTITIONS for entry in parts[name]]


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_of(plans: list[SlidePlan], partition: str) -> np.ndarray:
    return np.array([plan.label for plan in plans if plan.partition == partition])


# The plan


@pytest.mark.parametrize("seed", range(5))
def test_every_partition_has_slides_with_and_without_every_class(seed):
    plans = plan_cohort(40, seed)
    for partition in PARTITIONS:
        share = labels_of(plans, partition).mean(axis=0)
        assert ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_patients_slides_stay_in_one_partition(seed):
    partitions: dict[str, set[str]] = {}
    for plan in plan_cohort(40, seed):
        partitions.setdefault(plan.patient, set()).add(plan.partition)
    assert all(len(found) == 1 for found in partitions.values())
    assert len(partitions) == 36  # four of them have two slides


def test_most_slides_are_for_training_and_a_quarter_for_testing():
    sizes = [len(labels_of(plan_cohort(40), partition)) for partition in PARTITIONS]
    assert sizes == pytest.approx([24, 6, 10], abs=1)


def test_a_slide_has_one_to_three_classes_and_they_are_imbalanced():
    labels = np.array([plan.label for plan in plan_cohort(400)])
    assert set(labels.sum(axis=1)) == {1, 2, 3}
    frequency = dict(zip(CLASSES, labels.mean(axis=0), strict=True))
    assert frequency["cancer"] > 1.3 * frequency["hgd"]
    assert frequency["normal"] > 1.1 * frequency["hyperplastic"]


def test_knowing_the_class_frequencies_does_not_help_much():
    labels = np.array([plan.label for plan in plan_cohort(400)])
    together = np.corrcoef(labels.T)
    assert np.abs(together[~np.eye(5, dtype=bool)]).max() < 0.5


@pytest.mark.parametrize("num_slides", [1, 2, 3, 6])
def test_the_smallest_cohorts_are_planned_too(num_slides):
    plans = plan_cohort(num_slides)
    assert len(plans) == num_slides
    assert len({plan.partition for plan in plans}) == min(num_slides, 3)


def test_another_seed_makes_another_plan():
    assert plan_cohort(40, 0) == plan_cohort(40, 0)
    assert plan_cohort(40, 0) != plan_cohort(40, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slides": 0}, "num_slides: got 0. Give 1 or more."),
        ({"num_slides": 1, "seed": -1}, "seed: got -1. Give 0 or more."),
        ({"num_slides": 1, "num_workers": 0}, "num_workers: got 0. Give 1 or more."),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, settings, message):
    with pytest.raises(SettingsError, match=message):
        make_cohort(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


# The slides


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(cohort, tmp_path):
    again = make_cohort(tmp_path, num_slides=3, seed=5, num_workers=1).parent
    assert fingerprints(again) == fingerprints(cohort)


def test_another_seed_gives_another_slide(cohort, tmp_path):
    other = fingerprints(make_cohort(tmp_path, num_slides=1, seed=6, num_workers=1).parent)
    assert other["slides/demo_000.tiff"] != fingerprints(cohort)["slides/demo_000.tiff"]


def test_openslide_sees_a_pyramid_of_three_levels_at_20x(cohort, entries):
    for entry in entries:
        slide = openslide.OpenSlide(cohort / entry["image"])
        assert slide.level_downsamples == (1.0, 4.0, 16.0)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert 2.5 < slide.dimensions[0] * 0.5 / 1000 < 3.5
        assert any(side % 256 for side in slide.dimensions)


def test_every_level_carries_its_own_resolution_in_pixels_per_centimetre(cohort, entries):
    with tifffile.TiffFile(cohort / entries[0]["image"]) as tiff:
        tags = [page.tags for page in tiff.pages]
    per_cm = [page["XResolution"].value[0] / page["XResolution"].value[1] for page in tags]
    assert [1e4 / value for value in per_cm] == pytest.approx([0.5, 2.0, 8.0])
    assert {page["ResolutionUnit"].value for page in tags} == {3}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_cucim_and_openslide_see_the_same_pixels(cohort, entries, level):
    pytest.importorskip("cucim")
    patches = []
    for backend in ("cucim", "openslide"):
        reader = WSIReader(backend)
        wsi = reader.read(str(cohort / entries[0]["image"]))
        assert reader.get_level_count(wsi) == 3
        assert reader.get_mpp(wsi, level) == pytest.approx((0.5 * 4**level,) * 2)
        patches.append(reader.get_data(wsi, location=(1024, 768), size=(200, 200), level=level)[0].astype(int))
    assert np.abs(patches[0] - patches[1]).max() <= 2


def test_each_level_is_the_area_average_of_the_one_before(cohort, entries):
    with tifffile.TiffFile(cohort / entries[0]["image"]) as tiff:
        levels = [page.asarray() for page in tiff.pages]
    for fine, coarse in pairwise(levels):
        averaged = cv2.resize(fine, coarse.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(averaged.astype(int) - coarse).mean() < 5  # what JPEG changes


# The regions


def test_the_label_is_what_the_regions_show(cohort, entries):
    for entry in entries:
        regions = cv2.imread(str(cohort / entry["regions"]), cv2.IMREAD_UNCHANGED)
        assert regions.dtype == np.uint8
        assert [int((regions == value).any()) for value in range(1, 6)] == entry["label"]


def test_regions_lie_on_tissue_and_cover_whole_5x_patches(cohort, entries):
    for entry in entries:
        regions = cv2.imread(str(cohort / entry["regions"]), cv2.IMREAD_UNCHANGED)
        with tifffile.TiffFile(cohort / entry["image"]) as tiff:
            overview = tiff.pages[2].asarray()
        assert overview.shape[:2] == regions.shape
        saturation = np.ptp(overview.astype(int), axis=2)
        outside = saturation[cv2.dilate(regions, np.ones((15, 15))) == 0]
        assert np.median(saturation[regions > 0]) > 30
        assert np.median(outside) < 10
        for value in np.unique(regions[regions > 0]):
            # A square of 448 um fits in, wherever the grid may start.
            inside = cv2.erode((regions == value).astype(np.uint8), np.ones((90, 90)), borderValue=0)
            assert inside.any()


# The cohort


def test_entries_say_what_a_datalist_needs(cohort, entries):
    assert len(entries) == 3
    for entry in entries:
        assert set(entry) == {"image", "label", "patient", "regions", "sha256"}
        assert hashlib.sha256((cohort / entry["image"]).read_bytes()).hexdigest() == entry["sha256"]
        assert len(entry["label"]) == len(CLASSES)


def test_a_cohort_that_is_there_is_not_drawn_again(cohort, caplog):
    before = fingerprints(cohort)
    assert ensure_cohort(cohort, num_slides=40, seed=9) == cohort / "datalist.json"
    assert fingerprints(cohort) == before
    assert caplog.text == ""


def test_a_folder_without_a_datalist_gets_slides_and_says_so(tmp_path, caplog):
    datalist = ensure_cohort(tmp_path / "data", num_slides=1, num_workers=1)
    assert datalist.is_file()
    (line,) = caplog.messages
    assert "making 1 synthetic demonstration slides" in line
    assert str(tmp_path / "data") in line


def test_half_a_cohort_does_not_count_as_one(cohort, tmp_path, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    (tmp_path / "datalist.json").write_bytes((cohort / "datalist.json").read_bytes())
    monkeypatch.setattr(demo, "ProcessPoolExecutor", stop)
    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path, num_slides=3)
    assert not (tmp_path / "datalist.json").exists()


def test_nothing_but_the_cohort_is_left_in_the_folder(cohort):
    names = {path.name for path in cohort.rglob("*") if path.is_file()}
    assert names == {"datalist.json", *(f"demo_00{i}.{kind}" for i in range(3) for kind in ("tiff", "png"))}


def test_the_command_draws_a_cohort_and_prints_where(tmp_path, capsys):
    main(["--dataset_dir", str(tmp_path), "--num_slides", "1", "--num_workers", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "datalist.json")
