import h5py
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from torch import nn
from torch.utils.data import BatchSampler

from scripts.core.errors import SettingsError, SlideError
from scripts.encoders.backbones import get_backbone
from scripts.features.augmentation import view_transform
from scripts.features.bank import BankReader, bank_path, read_bank
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from scripts.networks.mustmil import MuSTMIL
from scripts.slides.slide import Slide
from scripts.training.datasets import (
    ENDLESS_VIEWS,
    BankBagDataset,
    PatchBagDataset,
    bag_dataset,
    pad_bags,
    training_views,
)
from scripts.training.sampler import BalancedSampler, SampledView
from tests.cohorts import builder, draw_cohort, tiny_backbone, tiny_encoder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("datasets"), 3)


@pytest.fixture(scope="module")
def banks(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    Extractor(cohort, builder(), tiny_encoder(), folder).run()
    return folder


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
    # Each patch once and in the bank's batches, nothing is left of that. A patch's corner tells which it is, and
    # the bank has them from top to bottom and left to right.
    for s in range(2):
        unique, place = np.unique(patches["corners"][:, s].flip(-1).numpy(), axis=0, return_inverse=True)
        first = [int(np.flatnonzero(place == i)[0]) for i in range(len(unique))]
        batches = patches["image"][first, s].split(8)
        assert torch.equal(torch.cat([backbone(batch) for batch in batches])[place], banked["image"][:, s])
    assert banked["image"].std() > 0.1
    assert torch.equal(patches["log_weight"], banked["log_weight"])
    assert torch.equal(patches["label"], banked["label"])
    assert patches["slide"] == banked["slide"] == "s0"
    assert set(patches) == set(banked)


def test_each_row_knows_where_its_patches_lie_in_the_slide(cohort):
    for item, entry in zip(PatchBagDataset(cohort, builder()), cohort, strict=True):
        slide = Slide(entry["image"])
        # 64 px at 2 and 1 um/px of a slide with 0.5 um/px.
        assert item["patch_level0"].tolist() == pytest.approx([256.0, 128.0])
        assert item["base_mpp"] == pytest.approx(0.5)
        assert item["corners"].shape == (*item["image"].shape[:2], 2)
        for row, corners in zip(item["image"].numpy(), item["corners"].tolist(), strict=True):
            for s, magnification in enumerate((5, 10)):
                expected = slide.read_patch(slide.scale(magnification, 64), corners[s])
                assert np.array_equal(row[s].transpose(1, 2, 0), expected)
            # The low patch holds the high one.
            (x, y), (low_x, low_y) = corners[1], corners[0]
            assert 0 <= x - low_x <= 128
            assert 0 <= y - low_y <= 128


def test_both_sources_say_that_patches_lie_in_the_same_places(cohort, tmp_path):
    data = [{**entry, "mpp": 0.3} for entry in cohort]
    Extractor(data, builder(min_tissue=0.2), tiny_encoder(), tmp_path).run()
    items = zip(BankBagDataset(data, tmp_path, (5, 10)), PatchBagDataset(data, builder(min_tissue=0.2)), strict=True)
    for banked, read in items:
        for key in ("corners", "patch_level0"):
            assert torch.equal(banked[key], read[key])
            assert banked[key].dtype == torch.float64
        assert banked["base_mpp"] == read["base_mpp"] == 0.3
        assert banked["patch_level0"].tolist() == pytest.approx([64 * 2 / 0.3, 64 / 0.3], rel=1e-12)


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


# --- views -----------------------------------------------------------------------------------------------

VIEWS = [2, 1, 1]


@pytest.fixture(scope="module")
def view_banks(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("view_banks")
    Extractor(cohort, builder(), tiny_encoder(), folder, views=VIEWS).run()
    return folder


@pytest.fixture(scope="module")
def sources(cohort, view_banks):
    """The same bags from the bank and from patches."""
    return bag_dataset("bank", cohort, builder(), view_banks, views=VIEWS), PatchBagDataset(cohort, builder())


def same(item, other):
    assert set(item) == set(other)
    return all(torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in item.items())


def test_the_same_view_is_the_same_bag_from_both_sources(sources):
    banked, read = sources
    for index, views in enumerate(VIEWS):
        for view in range(views + 1):
            one, two = banked[SampledView(index, view)], read[SampledView(index, view)]
            features = tiny_backbone()(two["image"].flatten(0, 1)).reshape(one["image"].shape)
            assert same(one, {**two, "image": features})  # to the last digit
            assert same({**two, "image": 0}, {**read[index], "image": 0})  # all but the pixels is the slide's


@pytest.mark.parametrize("num_workers", [0, 3])
def test_encoded_from_the_slides_it_is_the_banks_bag_and_each_patch_is_encoded_once(cohort, view_banks, num_workers):
    encoder, sizes = tiny_encoder(batch_size=5), []
    encoder.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    read = bag_dataset("patches", cohort, builder(), view_banks, num_workers=num_workers, encoder=encoder)
    banked = BankBagDataset(cohort, view_banks, (5, 10))
    for index, views in enumerate(VIEWS):
        for view in range(views + 1):
            sizes.clear()
            assert same(read[SampledView(index, view)], banked[SampledView(index, view)])  # to the last digit
            patches = sum(len(coords) for coords in builder()(cohort[index]).grid.coords)
            assert sizes == [5] * (patches // 5) + [patches % 5] * (patches % 5 > 0)


def test_patches_that_do_not_fit_into_memory_name_the_setting(cohort):
    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    encoder = tiny_encoder()
    encoder.backbone.register_forward_pre_hook(full)
    with pytest.raises(SettingsError, match=r"^encode_batch: does not fit into the GPU's memory \(Tried to allocate 2"):
        PatchBagDataset(cohort[:1], builder(), encoder=encoder)[0]


def test_in_patches_a_view_is_its_transform_of_every_patch(cohort, sources):
    _, read = sources
    threaded = PatchBagDataset(cohort, builder(), num_workers=3)
    changed = 0
    for view in (1, 2, 3, 4, 999, ENDLESS_VIEWS):
        plain, seen = read[0]["image"], read[SampledView(0, view)]["image"]
        expected = view_transform("s0", view)(plain.flatten(0, 1).numpy())
        assert np.array_equal(seen.flatten(0, 1), expected)
        assert torch.equal(threaded[SampledView(0, view)]["image"], seen)
        changed += not torch.equal(seen, plain)
    assert changed >= 4
    assert not torch.equal(read[SampledView(0, 1)]["image"], read[SampledView(0, 2)]["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("source", [0, 1])
def test_monais_loader_hands_on_the_views_that_the_sampler_draws(cohort, sources, source, num_workers):
    dataset = sources[source]
    sampler = BalancedSampler(dataset, cohort, seed=2, views=VIEWS)
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert any(draw.view for draw in drawn)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=list, num_workers=num_workers)
        items = [item for batch in loader for item in batch]
        assert all(same(item, dataset[draw]) for item, draw in zip(items, drawn, strict=True))
        batches = DataLoader(
            dataset, batch_sampler=BatchSampler(sampler, 2, False), collate_fn=pad_bags, num_workers=num_workers
        )
        names = [name for batch in batches for name in batch["slide"]]
        assert names == [cohort[draw.index]["slide"] for draw in drawn]


def test_plain_indices_slices_and_subsets_stay_monais(sources):
    for dataset in sources:
        plain = list(dataset)
        assert len(plain) == len(dataset) == 3
        assert all(same(dataset[SampledView(i, 0)], item) for i, item in enumerate(plain))
        assert same(dataset[-1], plain[2])
        assert [item["slide"] for item in dataset[1:]] == ["s1", "s2"]
        assert [item["slide"] for item in dataset[(2, 0)]] == ["s2", "s0"]
        assert same(dataset[[SampledView(0, 1), 2]][0], dataset[SampledView(0, 1)])


def test_a_transform_of_items_sees_views_too(cohort, view_banks):
    for source in ("bank", "patches"):
        dataset = bag_dataset(source, cohort, builder(), view_banks, lambda item: {"seen": item["slide"]})
        assert dataset[SampledView(1, 1)] == dataset[1] == {"seen": "s1"}


def test_all_missing_views_are_one_error(cohort, banks, view_banks):
    with pytest.raises(
        SettingsError, match=r"no feature bank of 3 of 3 augmented views \(s0 view 1, s0 view 2, s2 view 1\)\. Extract"
    ):
        BankBagDataset(cohort, banks, (5, 10), views=[2, 0, 1])
    with pytest.raises(SettingsError, match=r"of 1 of 5 augmented views \(s1 view 2\)"):
        bag_dataset("bank", cohort, builder(), view_banks, views=[2, 2, 1])
    BankBagDataset(cohort, banks, (5, 10), views=[0, 0, 0])
    with pytest.raises(SettingsError, match=r"views/s0/001\.h5: there is no feature bank"):
        BankBagDataset(cohort, banks, (5, 10))[SampledView(0, 1)]


def test_training_draws_from_the_banks_views_or_from_views_without_limit(cohort):
    data = [{"label": np.array([label], np.float32)} for label in (1, 0, 0, 0, 0)]
    assert training_views("bank", data, 4) == [4, 1, 1, 1, 1]
    assert training_views("patches", data, 4) == [2**31 - 1] * 5
    for source in ("bank", "patches"):
        assert training_views(source, data, 0) is None
        with pytest.raises(SettingsError, match=r"views: got -2\. Give a whole number from 0 to 999"):
            training_views(source, data, -2)
    with pytest.raises(SettingsError, match="source: got 'hdf5'"):
        training_views("hdf5", data, 0)


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
    assert set(pad_bags(items)) == {"image", "log_weight", "slide", "corners", "patch_level0", "base_mpp"}


def test_items_made_by_hand_need_no_more_than_rows_and_weights():
    bags = [{"image": torch.ones(n, 2, 4), "log_weight": torch.zeros(n, 2), "slide": str(n)} for n in (2, 3)]
    assert set(pad_bags(bags)) == {"image", "log_weight", "slide"}
    half = [{**bags[0], "corners": torch.zeros(2, 2, 2), "base_mpp": 0.5}, bags[1]]
    assert set(pad_bags(half)) == {"image", "log_weight", "slide"}


def test_where_padding_lies_is_not_a_number(cohort, banks):
    items = list(BankBagDataset(cohort, banks, (5, 10)))
    batch = pad_bags(items)
    rows = [len(item["image"]) for item in items]
    assert batch["corners"].dtype == batch["patch_level0"].dtype == batch["base_mpp"].dtype == torch.float64
    assert batch["corners"].shape == (3, max(rows), 2, 2)
    for b, item in enumerate(items):
        assert torch.equal(batch["corners"][b, : rows[b]], item["corners"])
        assert batch["corners"][b, rows[b] :].isnan().all()
        assert torch.equal(batch["patch_level0"][b], item["patch_level0"])
        assert batch["base_mpp"][b] == item["base_mpp"]


def test_monais_evaluator_hands_each_bag_its_places(cohort, banks):
    dataset, seen = BankBagDataset(cohort, banks, (5, 10)), []
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(dataset, batch_size=2, collate_fn=pad_bags),
        network=MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8),
        prepare_batch=PrepareBatchExtraInput({"log_weight": "log_weight"}),
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.batch))
    evaluator.run()
    for item, expected in zip(seen, dataset, strict=True):
        n = len(expected["corners"])
        assert item["slide"] == expected["slide"]
        assert torch.equal(item["corners"][:n], expected["corners"])
        assert item["corners"][n:].isnan().all()
        assert torch.equal(item["patch_level0"], expected["patch_level0"])
        assert float(item["base_mpp"]) == expected["base_mpp"]


@pytest.mark.parametrize("slides", [[0], [1, 0, 2]])
def test_banked_bags_are_batched_scale_by_scale(cohort, banks, slides):
    dataset = BankBagDataset(cohort, banks, (5, 10))
    batch = pad_bags([dataset[i] for i in slides])
    for s, name in enumerate(("5x", "10x")):
        # One block for each scale, so that no layer has to copy it.
        assert batch["image"][:, :, s].is_contiguous()
        for b, index in enumerate(slides):
            with h5py.File(bank_path(banks, cohort[index]["slide"])) as bank:
                features, rows = bank[name]["features"][:], bank["rows"][:, s]
            expected = np.zeros(batch["image"].shape[1::2], dtype=np.float32)
            for row, patch in enumerate(rows):
                expected[row] = features[patch]
            assert np.array_equal(batch["image"][b, :, s], expected)


def test_a_network_scores_a_bag_alike_however_it_lies_in_memory(cohort, banks):
    torch.manual_seed(0)
    network = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8)
    batch = pad_bags(list(BankBagDataset(cohort, banks, (5, 10))))
    assert not batch["image"].is_contiguous()
    results = []
    for image in (batch["image"], batch["image"].contiguous()):
        logits = network(image, batch["log_weight"])
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(network.parameters()))])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_network_on_patches_and_one_on_the_bank_score_alike(cohort, banks):
    torch.manual_seed(0)
    on_bank = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8)
    on_patches = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8, backbone=tiny_backbone())
    assert isinstance(on_patches.net, nn.Module)
    on_patches.load_state_dict(on_bank.state_dict())
    banked = pad_bags(list(BankBagDataset(cohort, banks, (5, 10))))
    patches = pad_bags(list(PatchBagDataset(cohort, builder())))
    scores = [net(batch["image"], batch["log_weight"]) for net, batch in ((on_bank, banked), (on_patches, patches))]
    # To the last digit: the tiny backbone gives a patch the same features in every batch.
    assert torch.equal(*scores)
    for one, two in zip(BankBagDataset(cohort, banks, (5, 10)), PatchBagDataset(cohort, builder()), strict=True):
        alone = on_bank(one["image"][None], one["log_weight"][None])
        assert torch.equal(alone, on_patches(two["image"][None], two["log_weight"][None]))
        assert alone.std() > 0.01


# --- banks in memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_bank_is_read_once_if_there_is_room_for_it_and_gives_the_same(cohort, banks, cache_gb, monkeypatch):
    read = []
    reads = BankReader.read
    monkeypatch.setattr(BankReader, "read", lambda self, path: (read.append(path), reads(self, path))[1])
    plain = BankBagDataset(cohort, banks, (5, 10))
    first = [plain[i] for i in range(len(cohort))]
    read.clear()
    dataset = BankBagDataset(cohort, banks, (5, 10), cache_gb=cache_gb)
    for _ in range(3):
        for i, item in enumerate(first):
            found = dataset[i]
            assert same(found, item)
            found["image"].zero_()  # what a training does to its batch is not done to the bank
    assert len(read) == len(cohort) * (1 if cache_gb else 3)


def test_banks_fill_the_room_that_they_are_given_and_no_more(cohort, banks, monkeypatch):
    sizes = [read_bank(bank_path(banks, e["slide"]), (5, 10)).nbytes for e in cohort]
    read = []
    reads = BankReader.read
    monkeypatch.setattr(BankReader, "read", lambda self, path: (read.append(path), reads(self, path))[1])
    dataset = BankBagDataset(cohort, banks, (5, 10), cache_gb=(sizes[0] + 1) / 1e9)
    for _ in range(2):
        for i in range(len(cohort)):
            dataset[i]
    assert read.count(bank_path(banks, cohort[0]["slide"])) == 1
    assert len(read) > len(cohort)


def test_slides_that_are_left_out_have_no_bag_and_no_views(cohort, banks):
    data = bag_dataset("bank", cohort, builder(), banks, left_out=["s1"])
    assert [item["slide"] for item in data] == [entry["slide"] for entry in cohort if entry["slide"] != "s1"]
    counts = training_views("bank", cohort, 4)
    assert training_views("bank", cohort, 4, ["s1"]) == [counts[0], *counts[2:]]
    assert training_views("patches", cohort, 4, ["s1"]) == [2**31 - 1] * (len(cohort) - 1)
    assert training_views("bank", cohort, 0, ["s1"]) is None


def test_a_bag_of_patches_is_of_the_file_that_the_datalist_means(cohort):
    with pytest.raises(SlideError, match=r"s1\.tif: its SHA-256 is .*the datalist says 0000"):
        PatchBagDataset([cohort[0], {**cohort[1], "sha256": "0" * 64}], builder())
