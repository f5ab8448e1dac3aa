"""The maps of a patient's slides: of one bag, and so under one scale."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from scipy.stats import rankdata

from scripts.core.errors import SlideError
from scripts.datalists.failures import FailedSlides
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.legend import shade_limits
from scripts.heatmaps.mapped_slides import MappedSlides
from scripts.heatmaps.writer import HeatmapWriter
from scripts.inference.patients import passing_bags
from scripts.inference.transforms import EncodeSlided
from scripts.networks.methods import attention_maps
from scripts.networks.mustmil import MuSTMIL
from scripts.training.datasets import pad_bags
from scripts.training.joined_slides import join_slides
from tests.cohorts import NUM_TINY_FEATURES, builder, draw_cohort, tiny_encoder

SPECS = attention_maps("mustmil", [5, 10])
SIDES = (200.0, 100.0)
HEADS, CLASSES = ["global", "5x", "10x"], ["a", "b", "c"]


def a_network(num_features=6, num_classes=2, seed=0):
    torch.manual_seed(seed)
    return MuSTMIL(num_classes, 2, num_features, num_nodes=4).eval()


def a_slide(num_rows, base_mpp=0.5):
    """Random features in rows of four 10x patches; all slides have patches in the same places."""
    grid = np.array([(i % 4 * 100.0, i // 4 * 100.0) for i in range(num_rows)])
    corners = torch.from_numpy(np.stack([np.floor(grid / side) * side for side in SIDES], axis=1))
    sides = torch.tensor(SIDES, dtype=torch.float64)
    image = torch.randn(num_rows, 2, 6)
    weights = torch.zeros(num_rows, 2)
    return {"image": image, "log_weight": weights, "corners": corners, "patch_level0": sides, "base_mpp": base_mpp}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_attention_sums_to_1_and_contribution_to_the_logit_over_all_slides(seed, sizes):
    network, items = a_network(seed=seed), [a_slide(size) for size in sizes]
    joined = join_slides(items)
    maps = BagMaps(network, SPECS, joined)
    with torch.no_grad():
        logits = network(joined["image"][None], joined["log_weight"][None])[0].numpy()
    for m in range(3):
        for k in range(2):
            attention, contribution = ([maps.of_slide(i)(m, k, kind) for i in range(len(sizes))] for kind in KINDS)
            assert sum(heat.values.sum() for heat in attention) == pytest.approx(1, abs=1e-5)
            bias = network.myfc[m].bias[k].item()
            assert sum(heat.values.sum() for heat in contribution) == pytest.approx(logits[m, k] - bias, abs=1e-4)
            values = np.concatenate([heat.values for heat in attention])
            if np.diff(np.sort(values)).min(initial=1) > 1e-4:  # no ties
                found = np.concatenate([heat.percentile for heat in attention])
                assert found == pytest.approx(100 * rankdata(values) / len(values))
            most = max(np.abs(heat.values).max() for heat in contribution)
            assert {shade_limits(heat) for heat in contribution} == {(-most, most)}
            for heat in contribution:
                assert heat.shade == pytest.approx(50 + 50 * heat.values / most)
    assert sum(maps.of_slide(i).share for i in range(len(sizes))) == pytest.approx(1)


def test_each_slide_has_its_own_patches_and_resolution():
    items = [a_slide(4, 0.5), a_slide(9, 0.25)]
    batch = pad_bags([join_slides(items) | {"slide": "P1"}, join_slides([a_slide(20)]) | {"slide": "P2"}])
    padded = {key: value[0] for key, value in batch.items()}
    for item in (join_slides(items), padded):
        maps = BagMaps(a_network(), SPECS, item)
        for index, one in enumerate(items):
            own = maps.of_slide(index)
            assert np.array_equal(own.corners, one["corners"])
            assert own.base_mpp == own(0, 0, "attention").base_mpp == one["base_mpp"]
            assert len(own(0, 0, "attention").values) == len(one["image"])
    assert maps.of_slide(1, 0.26)(0, 0, "attention").base_mpp == 0.26


def test_a_slide_that_is_a_bag_of_its_own_has_the_maps_that_it_has_as_a_patients_only_slide():
    item, network = a_slide(11), a_network()
    alone, only = BagMaps(network, SPECS, item), BagMaps(network, SPECS, join_slides([item]))
    for m in range(3):
        for kind in KINDS:
            assert np.array_equal(alone(m, 0, kind).values, only(m, 0, kind).values)
            assert np.array_equal(alone(m, 0, kind).shade, only(m, 0, kind).shade)


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    entries = draw_cohort(tmp_path_factory.mktemp("patients"), 3)
    return [
        {"image": entry["image"], "slide": entry["slide"], "patient": patient}
        for entry, patient in zip(entries, ["P1", "P2", "P1"], strict=True)
    ]


def predict(folder, data, **given):
    bags, network = builder(), a_network(NUM_TINY_FEATURES, 3)
    failures = FailedSlides(folder, "inferring")
    failures.start()
    mapped = MappedSlides(network, SPECS, bags, data, unit="patient")
    writer = HeatmapWriter(folder, mapped, HEADS, CLASSES, heatmap_classes=["a"], failures=failures, **given)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(
            passing_bags(data, EncodeSlided("image", bags, tiny_encoder()), failures, "patient"), batch_size=1
        ),
        network=network,
        postprocessing=Activationsd("pred", sigmoid=True),
        val_handlers=[writer],
    )
    seen = []
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.extend(item["slide"] for item in engine.state.batch)
    )
    evaluator.run()
    return seen, failures


def test_every_slide_of_a_patient_has_its_heatmaps_and_the_attention_sums_to_1_over_them(cohort, tmp_path):
    assert predict(tmp_path, cohort)[0] == ["P1", "P2"]
    folder = tmp_path / "heatmaps"
    assert sorted(path.name for path in folder.iterdir()) == ["s0", "s1", "s2"]
    assert all((folder / slide / "global_a.png").is_file() for slide in ("s0", "s1", "s2"))
    percentiles = {}
    for patient in (["s0", "s2"], ["s1"]):
        total = 0.0
        for slide in patient:
            with open(folder / slide / "patches.csv", newline="") as file:
                lines = [line for line in csv.DictReader(file) if line["scale"] == "10x"]
            total += sum(float(line["global_a_attention"]) for line in lines)
            percentiles[slide] = [float(line["global_a_attention_percentile"]) for line in lines]
        assert total == pytest.approx(1, abs=1e-4)
    # One patch of the patient has the highest attention, on one of the slides.
    assert sorted([max(percentiles["s0"]), max(percentiles["s2"])])[1] == 100
    assert min(max(percentiles["s0"]), max(percentiles["s2"])) < 100
    assert max(percentiles["s1"]) == 100


def test_a_patient_of_whom_a_slide_fails_is_not_predicted(cohort, tmp_path, caplog):
    broken = {**cohort[0], "image": str(tmp_path / "gone.tif")}
    seen, failures = predict(tmp_path, [broken, *cohort[1:]], heatmaps=False)
    assert seen == ["P2"]
    assert failures.names() == ["s0"]
    assert "patient P1 is not predicted: 1 of 2 slides failed (s0)" in caplog.text


def test_a_slide_that_is_gone_after_the_prediction_costs_its_own_heatmaps_alone(cohort, tmp_path):
    mapped = MappedSlides(a_network(NUM_TINY_FEATURES, 3), SPECS, builder(), cohort, unit="patient")
    encode = EncodeSlided("image", builder(), tiny_encoder())
    item = {**join_slides([encode(cohort[0]), encode(cohort[2])]), "slide": "P1"}
    assert mapped.slides_of(item) == ["s0", "s2"]
    assert mapped.title_of(item, "s2") == "s2, patient P1"
    mapped.entries["s0"] = {**cohort[0], "image": str(tmp_path / "gone.tif")}
    with pytest.raises(SlideError):
        mapped(item, 0)
    assert mapped(item, 1).opened.size_level0 == (768, 640)
