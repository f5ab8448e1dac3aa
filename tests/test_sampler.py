import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer

from scripts.sampler import BalancedSampler, balanced_weights

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


def test_ranks_share_the_slides_and_draw_apart():
    labels = [[i % 2] for i in range(40)]
    ranks = [sampler_of(labels, num_replicas=2, rank=rank) for rank in range(2)]
    drawn = [draws(sampler, 1) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [20, 20]
    assert not set(drawn[0]) & set(drawn[1])


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
