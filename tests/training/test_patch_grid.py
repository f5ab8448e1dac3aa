"""The grid's patches as a MONAI dataset: which, in which order, with which pixels; and the guide's example of it."""

import re
import runpy

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from scripts.slides.slide import Slide
from scripts.training.patch_grid import PatchGridDataset
from tests.cohorts import builder, draw_cohort, draw_slide
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("patch_grid"), 3)


def test_the_patch_dataset_has_every_patch_of_every_slide_once(cohort):
    dataset = PatchGridDataset(cohort, builder())
    grids = [builder()(entry).grid for entry in cohort]
    expected = {
        (entry["image"], scale.magnification, float(y), float(x))
        for entry, grid in zip(cohort, grids, strict=True)
        for scale, coords in zip(grid.scales, grid.coords, strict=True)
        for x, y in coords
    }
    metas = [item["image"].meta for item in dataset]
    assert len(dataset) == len(expected) == len(metas)
    assert {(m["path"], m["magnification"], *map(float, m["location"])) for m in metas} == expected


def test_its_patches_are_those_of_the_slide_at_their_magnification(cohort):
    dataset = PatchGridDataset(cohort, builder([5, 8, 10]))
    slides = {entry["image"]: Slide(entry["image"]) for entry in cohort}
    labels = {entry["image"]: entry["label"] for entry in cohort}
    for item in dataset:
        meta = item["image"].meta
        slide, (top, left) = slides[meta["path"]], meta["location"]
        expected = slide.read_patch(slide.scale(meta["magnification"], 64), (left, top))
        assert np.array_equal(item["image"].numpy(), expected.transpose(2, 0, 1))
        assert meta["level"] == slide.level_for(10 / meta["magnification"])
        assert np.array_equal(item["label"], labels[meta["path"]])


def test_a_patch_knows_its_place_in_the_grid(cohort):
    bag = builder()(cohort[0])
    for item in PatchGridDataset(cohort[:1], builder()):
        meta = item["image"].meta
        s = (5.0, 10.0).index(meta["magnification"])
        assert np.array_equal(bag.grid.coords[s][meta["patch"]], meta["location"][::-1])
        assert np.array_equal(item["image"].numpy(), bag.read_patch(s, meta["patch"]).transpose(2, 0, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_monais_loader_batches_it(cohort, num_workers):
    dataset = PatchGridDataset(cohort[:1], builder(), transform=lambda item: {**item, "seen": True})
    batches = list(DataLoader(dataset, batch_size=7, num_workers=num_workers))
    assert torch.equal(
        torch.cat([batch["image"].as_tensor() for batch in batches]),
        torch.stack([dataset[i]["image"].as_tensor() for i in range(len(dataset))]),
    )
    assert all(batch["seen"].all() for batch in batches)
    locations = torch.cat([batch["image"].meta["location"] for batch in batches])
    coords = builder()(cohort[0]).grid.coords
    assert np.array_equal(locations.numpy()[:, ::-1], np.concatenate(coords))


def test_slides_without_labels_can_be_read_too(cohort):
    data = [{key: value for key, value in entry.items() if key != "label"} for entry in cohort[:1]]
    assert set(PatchGridDataset(data, builder(), include_label=False)[0]) == {"image"}


def test_an_entrys_mpp_counts(cohort):
    dataset = PatchGridDataset([{**cohort[0], "mpp": 0.25}], builder(min_tissue=0.2))
    slide = Slide(cohort[0]["image"], mpp=0.25)
    item = dataset[len(dataset) - 1]
    top, left = item["image"].meta["location"]
    expected = slide.read_patch(slide.scale(10, 64), (left, top))
    assert np.array_equal(item["image"].numpy(), expected.transpose(2, 0, 1))


def test_a_slide_that_is_listed_twice_with_another_resolution_is_read_at_both(cohort):
    dataset = PatchGridDataset([cohort[0], {**cohort[0], "mpp": 0.25}], builder(min_tissue=0.2))
    for index, mpp in ((0, 0.5), (len(dataset) - 1, 0.25)):
        slide, item = Slide(cohort[0]["image"], mpp=mpp), dataset[index]
        scale = slide.scale(item["image"].meta["magnification"], 64)
        expected = slide.read_patch(scale, tuple(item["image"].meta["location"][::-1]))
        assert np.array_equal(item["image"].numpy(), expected.transpose(2, 0, 1))


def test_the_guides_example_does_what_it_says(tmp_path):
    section = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8").split("\n## The parts with plain MONAI\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    path = draw_slide(tmp_path / "a.tif", (1600, 1024))
    (tmp_path / "example.py").write_text(code.replace('"a.tif"', repr(str(path))), encoding="utf-8")
    shown = runpy.run_path(str(tmp_path / "example.py"))
    slide = Slide(path)
    assert np.array_equal(shown["region"], slide.read_region((500, 200), (300, 200), 1.0).transpose(2, 0, 1))
    assert shown["meta"]["mpp"] == 1.0
    grid = shown["builder"](shown["entries"][0]).grid
    assert len(shown["patches"]) == sum(map(len, grid.coords)) > 5
    assert shown["features"].shape == (len(shown["patches"]), 1280)
    assert shown["features"].std() > 0.1
    assert shown["logits"].shape == (1, 3, 2)
    assert shown["logits"].isfinite().all()
    # What the network pools is what the single images gave.
    rows = shown["network"](shown["bag"]["image"], no_head=True)[0]  # [N, S, F]
    for s, of_scale in enumerate(shown["features"].split([len(coords) for coords in grid.coords])):
        assert torch.allclose(rows[:, s], of_scale[grid.rows[:, s]], atol=1e-4)
