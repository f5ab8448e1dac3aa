"""A slide's bag is linked alike in training, evaluating and inferring: from its bank, and from its patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.features.bank import bank_path, read_bank
from scripts.features.extraction import Extractor
from scripts.inference.transforms import EncodeSlided
from scripts.training.datasets import PatchBagDataset, bag_dataset
from scripts.training.sampler import SampledView
from tests.cohorts import builder, draw_cohort, tiny_encoder

LINKINGS = ("linked", "repeated", "shuffled", "pooled")
linkings = pytest.mark.parametrize("linking", LINKINGS)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return [{**entry, "patient": "P"} for entry in draw_cohort(tmp_path_factory.mktemp("linked"), 2)]


@pytest.fixture(scope="module")
def banks(cohort: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("banks")
    Extractor(cohort, builder(), tiny_encoder(), folder, views=[1, 1]).run()
    return folder


def dataset(cohort: list[dict[str, Any]], banks: Path, source: str = "bank", **given: Any) -> Any:
    return bag_dataset(source, cohort, builder(), banks, encoder=tiny_encoder(), **given)


@linkings
def test_every_way_to_a_bag_gives_the_same_rows(cohort: list[dict[str, Any]], banks: Path, linking: str) -> None:
    banked, read = (dataset(cohort, banks, source, linking=linking) for source in ("bank", "patches"))
    encode = [EncodeSlided("image", builder(), tiny_encoder(), folder, linking) for folder in (None, banks)]
    for index, entry in enumerate(cohort):
        bag, patches = banked[index], read[index]
        for key in ("image", "log_weight", "corners"):
            assert torch.allclose(bag[key], patches[key], atol=1e-6)
        joined = torch.cat([bag["image"], bag["log_weight"][..., None]], dim=-1)
        for served in (one(entry) for one in encode):
            assert torch.allclose(served["image"].as_tensor(), joined, atol=1e-6)
            assert torch.equal(served["corners"], bag["corners"])


def test_no_two_linkings_give_the_same_bag(cohort: list[dict[str, Any]], banks: Path) -> None:
    bags = [dataset(cohort, banks, linking=linking)[0] for linking in LINKINGS]
    joined = [torch.cat([bag["image"], bag["log_weight"][..., None]], dim=-1) for bag in bags]
    for i, one in enumerate(joined):
        assert not any(torch.equal(one, other) for other in joined[i + 1 :])
        # The highest magnification is as it is.
        assert torch.equal(one[:, -1], joined[0][:, -1])


def test_every_use_of_a_slide_and_each_of_its_views_is_shuffled_alike(
    cohort: list[dict[str, Any]], banks: Path
) -> None:
    bags = dataset(cohort, banks, linking="shuffled", views=[1, 1])
    plain, again, view = bags[1], bags[1], bags[SampledView(1, 1)]
    assert torch.equal(plain["image"], again["image"])
    assert torch.equal(plain["corners"], view["corners"])
    assert not torch.equal(plain["image"], view["image"])


@linkings
def test_the_rows_of_a_patient_are_linked_slide_by_slide(
    cohort: list[dict[str, Any]], banks: Path, linking: str
) -> None:
    (patient,) = dataset(cohort, banks, unit="patient", linking=linking)
    slides = list(dataset(cohort, banks, linking=linking))
    for key in ("image", "log_weight", "corners"):
        assert torch.equal(patient[key], torch.cat([slide[key] for slide in slides]))


def test_a_shuffled_row_says_where_its_patches_lie(cohort: list[dict[str, Any]], banks: Path) -> None:
    item, bank = dataset(cohort, banks, linking="shuffled")[0], read_bank(bank_path(banks, "s0"), (5.0, 10.0))
    for j, corners in enumerate(item["corners"].numpy()):
        for s, corner in enumerate(corners):
            (patch,) = np.flatnonzero((bank.coords[s] == corner).all(axis=1))
            assert np.array_equal(item["image"][j, s].numpy(), bank.features[s][patch])


def test_patches_without_features_are_not_pooled(cohort: list[dict[str, Any]]) -> None:
    with pytest.raises(SettingsError, match="linking: got 'pooled', and patches have no features yet"):
        PatchBagDataset(cohort, builder(), linking="pooled")
    shuffled, linked = (PatchBagDataset(cohort[:1], builder(), linking=one)[0] for one in ("shuffled", "linked"))
    assert shuffled["image"].dtype == torch.uint8
    assert torch.equal(shuffled["image"][:, 1], linked["image"][:, 1])
    assert not torch.equal(shuffled["image"][:, 0], linked["image"][:, 0])


@pytest.mark.parametrize("source", ["bank", "patches"])
def test_one_magnification_has_no_links_to_take_away(cohort: list[dict[str, Any]], banks: Path, source: str) -> None:
    with pytest.raises(SettingsError, match="with one magnification there are no links"):
        bag_dataset(source, cohort, builder((10,)), banks, encoder=tiny_encoder(), linking="shuffled")
