import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer

from scripts.datalists.classes import balanced_weights
from scripts.training.sampler import BalancedSampler, SampledView

LABELS = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


def sampler_of(labels, seed=0, **ranks):
    data = [{"label": np.array(label, dtype=np.float32), "index": i} for i, label in enumerate(labels)]
    return BalancedSampler(data, data, seed=seed, **ranks)


def draws(sampler, epoch):
    sampler.set_epoch(epoch)
    return [int(i) for i in sampler]


def test_weights_are_inverse_class_frequencies_by_hand():
    # Class 0 has 4 slides, class 1 has 2, class 2 none, and 2 slides are of no class.
    by_hand = np.array([1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 4 + 1 / 2, 1 / 2, 1 / 2])
    assert balanced_weights(np.array(LABELS)) == pytest.approx(by_hand / 3.0)
    assert by_hand.sum() == 3.0


def test_a_binary_label_has_two_classes():
    weights = balanced_weights(np.array([[1], [0], [0], [0]], dtype=np.float32))
    assert weights == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_one_class_alone_is_drawn_evenly():
    for labels in ([[1], [1]], [[0], [0]], [[0, 1], [0, 1]]):
        assert balanced_weights(np.array(labels)) == pytest.approx([0.5, 0.5])


def test_each_slide_is_drawn_as_often_as_its_weight_says():
    sampler, epochs = sampler_of(LABELS), 2000
    counts = np.bincount([i for epoch in range(epochs) for i in draws(sampler, epoch)], minlength=len(LABELS))
    weights, total = balanced_weights(np.array(LABELS)), epochs * len(LABELS)
    assert counts.sum() == total
    sd = np.sqrt(total * weights * (1 - weights))
    assert (np.abs(counts - total * weights) < 4 * sd).all()
    # Far from even drawing, so that the test can tell.
    assert (np.abs(counts - total / len(LABELS)) > 4 * sd)[[0, 4]].all()


def test_an_epoch_draws_as_many_slides_as_there_are_and_some_more_than_once():
    sampler = sampler_of(LABELS)
    assert len(sampler) == len(draws(sampler, 1)) == len(LABELS)
    assert any(len(set(draws(sampler, epoch))) < len(LABELS) for epoch in range(5))


def test_an_epochs_draws_depend_on_the_seed_and_the_epoch_alone():
    fresh = [draws(sampler_of(LABELS, seed=3), epoch) for epoch in range(6)]
    one = sampler_of(LABELS, seed=3)
    assert [draws(one, epoch) for epoch in range(6)] == fresh  # after earlier epochs
    assert [draws(one, epoch) for epoch in (5, 1, 5)] == [fresh[5], fresh[1], fresh[5]]  # in any order
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    assert draws(one, 2) == fresh[2]  # whatever the process's own random numbers are
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({tuple(d) for d in fresh}) == 6
    assert draws(sampler_of(LABELS, seed=4), 1) != fresh[1]
    # A seed and its epochs are not those of the next seed, one later.
    assert draws(sampler_of(LABELS, seed=4), 0) != fresh[1]


@pytest.mark.parametrize("views", [None, [3] * 7])
def test_ranks_are_dealt_in_turn_what_one_would_draw(views):
    for epoch in range(3):
        alone = drawn_views(sampler_of(LABELS, seed=5, views=views), epoch)
        assert len(alone) == 7
        for num_ranks in (2, 3, 7, 9):
            ranks = [sampler_of(LABELS, 5, num_replicas=num_ranks, rank=r, views=views) for r in range(num_ranks)]
            dealt = [drawn_views(sampler, epoch) for sampler in ranks]
            share = {2: 4, 3: 3, 7: 1, 9: 1}[num_ranks]
            assert [len(sampler) for sampler in ranks] == [len(draws) for draws in dealt] == [share] * num_ranks
            in_turn = [draws[step] for step in range(share) for draws in dealt]
            assert in_turn == [*alone, *alone][: share * num_ranks]  # where it does not come out even, from the start


# --- views -----------------------------------------------------------------------------------------------

VIEWS = [0, 1, 2, 3, 5, 1, 8]


def drawn_views(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_slides_drawn_are_the_same_with_and_without_views():
    for ranks in ({}, {"num_replicas": 2, "rank": 1}):
        plain, with_views = sampler_of(LABELS, seed=5, **ranks), sampler_of(LABELS, seed=5, views=VIEWS, **ranks)
        for epoch in range(20):
            drawn = drawn_views(with_views, epoch)
            assert all(isinstance(draw, SampledView) for draw in drawn)
            assert [draw.index for draw in drawn] == draws(plain, epoch)
            assert all(0 <= draw.view <= VIEWS[draw.index] for draw in drawn)
        assert len(with_views) == len(plain)


@pytest.mark.parametrize("views", [None, [0] * len(LABELS)])
def test_without_views_indices_are_drawn(views):
    drawn = drawn_views(sampler_of(LABELS, seed=5, views=views), 3)
    assert all(type(index) is int for index in drawn)
    assert drawn == draws(sampler_of(LABELS, seed=5), 3)


def test_slides_are_drawn_by_their_weight_and_each_view_of_one_alike():
    sampler, epochs = sampler_of(LABELS, seed=1, views=VIEWS), 3000
    counts = {(i, v): 0 for i, n in enumerate(VIEWS) for v in range(n + 1)}
    for epoch in range(epochs):
        for draw in drawn_views(sampler, epoch):
            counts[draw.index, draw.view] += 1
    total, weights = epochs * len(LABELS), balanced_weights(np.array(LABELS))
    for (index, _), count in counts.items():
        p = weights[index] / (VIEWS[index] + 1)
        # Binomial: 4.5 standard deviations happen by chance once in 5,000 runs of these 27 comparisons.
        assert abs(count - total * p) < 4.5 * np.sqrt(total * p * (1 - p))


def test_the_views_drawn_depend_on_the_seed_and_the_epoch_alone():
    views = [1000] * len(LABELS)
    fresh = [drawn_views(sampler_of(LABELS, seed=3, views=views), epoch) for epoch in range(6)]
    one = sampler_of(LABELS, seed=3, views=views)
    assert [drawn_views(one, epoch) for epoch in range(6)] == fresh  # after earlier epochs
    assert [drawn_views(one, epoch) for epoch in (5, 1, 5)] == [fresh[5], fresh[1], fresh[5]]  # in any order
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    assert drawn_views(one, 2) == fresh[2]
    assert torch.equal(torch.random.get_rng_state(), state)

    def numbers(drawn):
        return tuple(draw.view for draw in drawn)

    apart = [numbers(drawn) for drawn in [*fresh, drawn_views(sampler_of(LABELS, seed=4, views=views), 1)]]
    assert len({drawn[:3] for drawn in apart}) == len(apart)


def test_of_views_without_limit_hardly_any_is_drawn_twice():
    sampler = sampler_of(LABELS, views=[2**31 - 1] * len(LABELS))
    views = [draw.view for epoch in range(200) for draw in drawn_views(sampler, epoch)]
    assert len(set(views)) >= len(views) - 1
    assert 0.4 < np.mean(views) / 2**31 < 0.6


def test_each_slide_needs_its_number_of_views():
    with pytest.raises(ValueError, match="views has 2 numbers for 7 slides"):
        sampler_of(LABELS, views=[1, 2])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_monais_trainer_draws_epochs_1_2_3_in_turn(num_workers):
    sampler = sampler_of(LABELS, seed=7)
    dataset = Dataset([{"image": torch.tensor([float(i)]), "label": torch.zeros(1)} for i in range(len(LABELS))])
    seen = []

    class Network(torch.nn.Linear):
        def forward(self, x):
            seen.extend(int(v) for v in x.flatten())
            return super().forward(x)

    network = Network(1, 1)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=num_workers),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0),
        loss_function=torch.nn.MSELoss(),
    )
    trainer.run()
    oracle = sampler_of(LABELS, seed=7)
    assert seen == [*draws(oracle, 1), *draws(oracle, 2), *draws(oracle, 3)]
