"""The bag of a patient: the rows of all slides, whose attention is that over the unique patches of all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import decollate_batch

from scripts.datalists.units import bags_of
from scripts.features.extraction import Extractor
from scripts.networks.methods import METHODS, get_network
from scripts.training.datasets import bag_dataset, pad_bags, training_views, views_of_slides
from scripts.training.joined_slides import join_slides
from scripts.training.sampler import BalancedSampler, SampledView
from tests.cohorts import builder, draw_cohort, tiny_backbone, tiny_encoder

NUM_FEATURES = 6
PATIENTS = ["P1", "P2", "P1"]
# Of bags: P1 has two, P2 one.
VIEWS = [2, 1]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    entries = draw_cohort(tmp_path_factory.mktemp("patients"), 3)
    return [{**entry, "patient": patient} for entry, patient in zip(entries, PATIENTS, strict=True)]


@pytest.fixture(scope="module")
def banks(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    Extractor(cohort, builder(), tiny_encoder(), folder, views=[2, 1, 2]).run()
    return folder


def dataset(cohort, banks, source="bank", unit="patient", **given):
    return bag_dataset(source, cohort, builder(), banks, unit=unit, **given)


# --- attention -------------------------------------------------------------------------------------------


def linked_slide(rng):
    """A slide of random features: of each scale some patches, and rows through them of which none is left out."""
    low, high = int(rng.integers(1, 4)), int(rng.integers(4, 9))
    parents = np.concatenate([np.arange(low), rng.integers(0, low, high - low)])
    features = [rng.standard_normal((count, NUM_FEATURES)).astype(np.float32) for count in (low, high)]
    return features, np.stack([parents, np.arange(high)], axis=1)


def as_item(features, rows):
    """By counting: c rows share a patch, whose log weight is -log(c)."""
    weights = [[-np.log(rows[:, s].tolist().count(patch)) for s, patch in enumerate(row)] for row in rows]
    return {
        "image": torch.from_numpy(np.stack([features[s][rows[:, s]] for s in range(2)], axis=1)),
        "log_weight": torch.tensor(weights, dtype=torch.float32),
        "corners": torch.from_numpy(np.repeat(rows[:, :, None], 2, axis=2).astype(np.float64)),
        "patch_level0": torch.tensor([2.0, 1.0], dtype=torch.float64),
        "base_mpp": 0.5,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4))
def test_attention_over_the_rows_of_all_slides_is_that_over_their_unique_patches(seed, num_slides):
    rng = np.random.default_rng(seed)
    slides = [linked_slide(rng) for _ in range(num_slides)]
    joined = join_slides([as_item(*slide) for slide in slides])
    torch.manual_seed(seed)
    network = get_network("ssmil", num_classes=2, num_scales=2, num_features=NUM_FEATURES, num_nodes=8).eval()
    with torch.no_grad():
        logits, attention = network.attend(joined["image"][None], joined["log_weight"][None])
    for s in range(2):
        # The paper's bag of one scale: each patch of the patient once. The other scale's branch looks elsewhere.
        unique = torch.from_numpy(np.concatenate([features[s] for features, _ in slides]))
        with torch.no_grad():
            expected, plain = network.attend(unique[None, :, None].expand(-1, -1, 2, -1))
        assert torch.allclose(logits[0, s], expected[0, s], atol=1e-5)
        starts = np.cumsum([0, *(len(features[s]) for features, _ in slides)])
        patch_of_row = np.concatenate([start + rows[:, s] for start, (_, rows) in zip(starts, slides, strict=False)])
        shared = np.zeros((len(unique), 2))
        np.add.at(shared, patch_of_row, attention[0, :, s].numpy().astype(np.float64))
        assert np.allclose(shared, plain[0, :, s].numpy(), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from([method for method in METHODS if method not in ("mil_att_trans", "transmil")]),
)
def test_the_order_of_slides_changes_no_score(seed, method):
    rng = np.random.default_rng(seed)
    items = [as_item(*linked_slide(rng)) for _ in range(3)]
    torch.manual_seed(seed)
    network = get_network(method, num_classes=2, num_scales=2, num_features=NUM_FEATURES, num_nodes=8).eval()
    with torch.no_grad():
        one, other = (
            network(bag["image"][None], bag["log_weight"][None]) for bag in map(join_slides, (items, items[::-1]))
        )
    assert torch.allclose(one, other, atol=1e-5)


# --- bags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["bank", "patches"])
def test_a_patients_bag_has_the_rows_of_all_slides(cohort, banks, source):
    own, slides = dataset(cohort, banks, source), dataset(cohort, banks, source, unit="slide")
    assert [item["slide"] for item in own] == ["P1", "P2"]
    for item, indices in zip(own, [(0, 2), (1,)], strict=True):
        of_slides = [slides[index] for index in indices]
        for key in ("image", "log_weight", "corners"):
            assert torch.equal(item[key], torch.cat([one[key] for one in of_slides]))
        assert item["slide_of_row"].tolist() == [i for i, one in enumerate(of_slides) for _ in one["image"]]
        assert item["patch_level0"].tolist() == [one["patch_level0"].tolist() for one in of_slides]
        assert item["base_mpp"].tolist() == [one["base_mpp"] for one in of_slides]
        assert item["label"].tolist() == np.max([one["label"].numpy() for one in of_slides], axis=0).tolist()


def test_a_view_of_a_patient_is_that_view_of_all_slides_from_both_sources(cohort, banks):
    banked, read = (dataset(cohort, banks, source, views=VIEWS) for source in ("bank", "patches"))
    slides = dataset(cohort, banks, unit="slide")
    for view in (0, 1, 2):
        item, patches = banked[SampledView(0, view)], read[SampledView(0, view)]
        assert torch.equal(item["image"], torch.cat([slides[SampledView(index, view)]["image"] for index in (0, 2)]))
        features = tiny_backbone()(patches["image"].flatten(0, 1)).reshape(item["image"].shape)
        assert torch.equal(item["image"], features)


def test_a_bag_of_the_bank_stays_in_memory_scale_by_scale(cohort, banks):
    own = dataset(cohort, banks)
    assert own[0]["image"].transpose(0, 1).is_contiguous()
    assert pad_bags(list(own))["image"].movedim(2, 0).is_contiguous()


def test_what_failed_is_left_out_of_its_patient(cohort, banks):
    (first, second) = dataset(cohort, banks, left_out=["s0"])
    assert torch.equal(first["image"], dataset(cohort, banks, unit="slide")[2]["image"])
    assert [first["slide"], second["slide"]] == ["P1", "P2"]


def test_patients_of_different_sizes_are_one_batch_with_the_scores_of_each(cohort, banks):
    items = list(dataset(cohort, banks))
    batch = pad_bags(items)
    torch.manual_seed(0)
    network = get_network("mustmil", num_classes=3, num_scales=2, num_features=12, num_nodes=8).eval()
    with torch.no_grad():
        together = network(batch["image"], batch["log_weight"])
        for one, item in zip(together, items, strict=True):
            assert torch.allclose(one, network(item["image"][None], item["log_weight"][None])[0], atol=1e-5)
    for back, item in zip(decollate_batch(batch), items, strict=True):
        rows, slides = len(item["image"]), len(item["base_mpp"])
        assert back["slide"] == item["slide"]
        assert torch.equal(back["slide_of_row"][:rows], item["slide_of_row"])
        assert (back["slide_of_row"][rows:] == -1).all()
        assert torch.equal(back["patch_level0"][:slides], item["patch_level0"])
        assert torch.equal(back["base_mpp"][:slides], item["base_mpp"])


# --- sampling --------------------------------------------------------------------------------------------


def labelled(label, patient):
    return {"slide": f"s{label}{patient}", "patient": patient, "label": np.array([label], np.float32)}


def test_views_are_counted_by_patient_and_all_slides_of_one_have_as_many():
    # Of four patients one is positive, by one of two slides.
    data = [labelled(1, "a"), labelled(0, "b"), labelled(0, "c"), labelled(0, "a"), labelled(0, "d")]
    assert training_views("bank", data, 3, unit="patient") == [3, 1, 1, 1]
    assert training_views("bank", data, 3, ["s1a", "s0c"], "patient") == [3, 1, 1]
    assert training_views("bank", data, 3, ["s1a", "s0a"], "patient") == [1, 1, 1]
    assert views_of_slides("bank", data, 3, "patient") == [3, 1, 1, 3, 1]
    assert views_of_slides("bank", data, 0, "patient") == [0] * 5


def test_an_epoch_samples_as_many_bags_as_there_are_patients(cohort, banks):
    own = dataset(cohort, banks, views=VIEWS)
    sampler = BalancedSampler(own, bags_of(cohort, "patient"), views=VIEWS)
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(own) == 2
