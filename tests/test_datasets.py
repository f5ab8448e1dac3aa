import numpy as np
import pytest
import torch
from monai.data import DataLoader
from torch import nn

from scripts.backbones import get_backbone
from scripts.datasets import BankBagDataset, PatchBagDataset, PatchGridDataset, bag_dataset, pad_bags
from scripts.encoding import Encoder
from scripts.errors import SettingsError
from scripts.extraction import Extractor
from scripts.networks import MuSTMIL
from scripts.slides import Slide
from tests.cohorts import builder, draw_cohort, tiny_backbone, tiny_encoder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("datasets"), 3)


@pytest.fixture(scope="module")
def banks(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    Extractor(cohort, builder(), tiny_encoder(), folder).run()
    return folder


# --- patches ---------------------------------------------------------------------------------------------


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
        assert np.array_equal(item["image"].numpy(), bag.read_patches(s, [meta["patch"]])[0])


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


# --- bags ------------------------------------------------------------------------------------------------


def test_a_bag_of_patches_holds_the_rows_of_the_grid(cohort):
    dataset = PatchBagDataset(cohort, builder(), num_workers=2)
    assert len(dataset) == 3
    for item, entry in zip(dataset, cohort, strict=True):
        bag = builder()(entry)
        assert item["image"].dtype == torch.uint8
        assert item["image"].shape[0] == bag.grid.num_rows
        for row, patches in zip(item["image"].numpy(), bag.grid.rows, strict=True):
            for s, patch in enumerate(patches):
                assert np.array_equal(row[s].transpose(1, 2, 0), bag.read_patch(s, patch))
        assert item["slide"] == entry["slide"]
        assert np.array_equal(item["label"], entry["label"])
        # -log(c) by counting.
        for s in range(2):
            column = bag.grid.rows[:, s].tolist()
            assert np.allclose(item["log_weight"][:, s], [-np.log(column.count(p)) for p in column], atol=1e-6)


def test_a_bag_of_patches_and_its_bank_are_the_same_bag(cohort, tmp_path):
    backbone = get_backbone("efficientnet_lite0")
    Extractor(cohort[:1], builder(), Encoder(backbone, batch_size=8), tmp_path).run()
    (patches,) = PatchBagDataset(cohort[:1], builder())
    (banked,) = BankBagDataset(cohort[:1], tmp_path, (5, 10))
    features = backbone(patches["image"].flatten(0, 1)).reshape(*patches["image"].shape[:2], -1)
    # Batches of other sizes round otherwise.
    assert (features - banked["image"]).abs().max() < 1e-5 * banked["image"].abs().max()
    assert banked["image"].std() > 0.1
    assert torch.equal(patches["log_weight"], banked["log_weight"])
    assert torch.equal(patches["label"], banked["label"])
    assert patches["slide"] == banked["slide"] == "s0"
    assert set(patches) == set(banked)


@pytest.mark.parametrize("source", ["bank", "patches"])
def test_the_source_decides_where_bags_come_from(cohort, banks, source):
    seen = []

    def transform(item):
        seen.append(item["slide"])
        return {**item, "log_weight": item["log_weight"] * 0}

    dataset = bag_dataset(source, cohort, builder(), banks, transform, num_workers=2)
    items = [dataset[i] for i in range(3)]
    assert seen == ["s0", "s1", "s2"]
    assert all((item["log_weight"] == 0).all() for item in items)
    patches = PatchBagDataset(cohort, builder())
    for item, expected in zip(items, patches, strict=True):
        if source == "bank":
            rows = tiny_backbone()(expected["image"].flatten(0, 1)).reshape(-1, 2, 12)
            assert torch.allclose(item["image"], rows, atol=1e-6)
        else:
            assert torch.equal(item["image"], expected["image"])


def test_a_source_that_is_not_there_is_named(cohort, banks):
    with pytest.raises(SettingsError, match=r"source: got 'hdf5'\. Choose one of bank, patches"):
        bag_dataset("hdf5", cohort, builder(), banks)


def test_all_missing_banks_are_one_error(cohort, banks, tmp_path):
    absent = [{**cohort[0], "slide": f"new{i}"} for i in range(7)]
    with pytest.raises(
        SettingsError,
        match=r"has no feature bank of 7 of 8 slides \(new0, new1, new2, new3, new4, \.\.\.\)\. Run `extracting`",
    ):
        BankBagDataset([cohort[0], *absent], banks, (5, 10))
    with pytest.raises(SettingsError, match=r"has no feature bank of 1 of 1 slides \(s0\)\. Run `extracting`"):
        BankBagDataset(cohort[:1], tmp_path, (5, 10))


def test_a_bank_of_other_magnifications_is_an_error(cohort, banks):
    dataset = BankBagDataset(cohort, banks, [10])
    with pytest.raises(SettingsError, match=r"s1\.h5: was made for magnifications \[5\.0, 10\.0\], asked for are \[10"):
        dataset[1]


# --- batches ---------------------------------------------------------------------------------------------


def test_shorter_bags_are_padded_with_rows_that_weigh_nothing(cohort, banks):
    items = list(BankBagDataset(cohort, banks, (5, 10)))
    rows = [len(item["image"]) for item in items]
    assert len(set(rows)) == 3
    batch = pad_bags(items)
    for b, item in enumerate(items):
        assert torch.equal(batch["image"][b, : rows[b]], item["image"])
        assert torch.equal(batch["log_weight"][b, : rows[b]], item["log_weight"])
        assert (batch["image"][b, rows[b] :] == 0).all()
        assert torch.isneginf(batch["log_weight"][b, rows[b] :]).all()
        assert torch.equal(batch["label"][b], item["label"])
    assert batch["image"].shape == (3, max(rows), 2, 12)
    assert batch["slide"] == ["s0", "s1", "s2"]


def test_padding_changes_no_logit(cohort, banks):
    torch.manual_seed(0)
    network = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8).eval()
    items = list(BankBagDataset(cohort, banks, (5, 10)))
    batch = pad_bags(items)
    together = network(batch["image"], batch["log_weight"])
    for b, item in enumerate(items):
        alone = network(item["image"][None], item["log_weight"][None])[0]
        assert torch.allclose(together[b], alone, atol=1e-6)


def test_bags_of_patches_are_padded_as_bytes(cohort):
    items = list(PatchBagDataset(cohort[:2], builder()))
    batch = next(iter(DataLoader(PatchBagDataset(cohort[:2], builder()), batch_size=2, collate_fn=pad_bags)))
    assert batch["image"].dtype == torch.uint8
    for b, item in enumerate(items):
        assert torch.equal(batch["image"][b, : len(item["image"])], item["image"])
        assert (batch["image"][b, len(item["image"]) :] == 0).all()


def test_bags_without_labels_make_a_batch_without(cohort, banks):
    bare = [{key: value for key, value in entry.items() if key != "label"} for entry in cohort]
    items = list(BankBagDataset(bare, banks, (5, 10)))
    assert "label" not in items[0]
    assert set(pad_bags(items)) == {"image", "log_weight", "slide"}


def test_a_network_on_patches_and_one_on_the_bank_score_alike(cohort, banks):
    torch.manual_seed(0)
    on_bank = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8)
    on_patches = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8, backbone=tiny_backbone())
    assert isinstance(on_patches.net, nn.Module)
    on_patches.load_state_dict(on_bank.state_dict())
    banked = pad_bags(list(BankBagDataset(cohort, banks, (5, 10))))
    patches = pad_bags(list(PatchBagDataset(cohort, builder())))
    scores = [net(batch["image"], batch["log_weight"]) for net, batch in ((on_bank, banked), (on_patches, patches))]
    assert torch.allclose(*scores, atol=1e-5)
