"""Features and log weights as one tensor: what is joined comes apart again, and scores the same."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from scripts.inferers import LogWeightInferer, join_log_weight
from scripts.networks import MuSTMIL


def bag() -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(2, 4, 2, 6, generator=torch.Generator().manual_seed(0))
    log_weight = torch.zeros(2, 4, 2)
    log_weight[0, :3, 0] = -math.log(3)
    log_weight[1, 2:] = -math.inf
    return features, log_weight


@pytest.mark.parametrize("meta", [False, True])
def test_scores_as_with_two_tensors(meta: bool) -> None:
    network, (features, log_weight) = MuSTMIL(3, 2, 6, 4), bag()
    joined = join_log_weight(features, log_weight)
    assert joined.shape == (2, 4, 2, 7)
    inferer = LogWeightInferer()
    assert isinstance(inferer, Inferer)
    result = inferer(MetaTensor(joined, meta={"filename_or_obj": ["a.svs", "b.svs"]}) if meta else joined, network)
    assert torch.equal(torch.as_tensor(result), network(features, log_weight))


def test_further_arguments_reach_the_network() -> None:
    network, (features, log_weight) = MuSTMIL(3, 2, 6, 4), bag()
    joined = join_log_weight(features, log_weight)
    assert torch.equal(LogWeightInferer()(joined, network, no_head=True), features)
    assert torch.equal(LogWeightInferer()(joined, network, True), features)


def test_joins_one_bag_and_a_batch_in_the_dtype_of_the_features() -> None:
    features, log_weight = bag()
    joined = join_log_weight(features[0].half(), log_weight[0])
    assert joined.dtype == torch.float16
    assert torch.equal(joined[..., :-1], features[0].half())
    assert torch.equal(joined[..., -1], log_weight[0].half())
    assert torch.equal(join_log_weight(features, log_weight)[1, ..., -1], log_weight[1])


def test_a_wrong_shape_says_what_was_wanted_and_what_came() -> None:
    features, log_weight = bag()
    with pytest.raises(ValueError, match=r"\[B, N, S, F \+ 1\], got \[4, 2, 6\]"):
        LogWeightInferer()(features[0], MuSTMIL(3, 2, 6, 4))
    with pytest.raises(ValueError, match=r"got \[2, 4, 2, 6\] and \[4, 2\]"):
        join_log_weight(features, log_weight[0])
