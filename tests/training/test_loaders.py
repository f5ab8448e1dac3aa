import threading

import pytest
import torch
from monai.data import DataLoader, Dataset

from scripts.core.errors import SettingsError
from scripts.training.datasets import pad_bags
from scripts.training.loaders import PrefetchLoader
from scripts.training.sampler import BalancedSampler
from tests.trainings import random_bags


@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_gives_the_batches_of_monais_loader_epoch_by_epoch(batch_size):
    bags = random_bags(8, seed=1)
    loaders = []
    for kind in (DataLoader, PrefetchLoader):
        sampler = BalancedSampler(bags, bags, seed=3)
        loaders.append(kind(Dataset(bags), batch_size=batch_size, sampler=sampler, collate_fn=pad_bags))
    drawn = []
    for epoch in (1, 2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        plain, ahead = (list(loader) for loader in loaders)
        assert len(plain) == len(ahead) == len(loaders[1])
        for one, two in zip(plain, ahead, strict=True):
            assert one["slide"] == two["slide"]
            assert all(torch.equal(one[key], two[key]) for key in ("image", "log_weight", "label"))
        drawn.append([name for batch in ahead for name in batch["slide"]])
    assert drawn[0] != drawn[1]


def test_the_next_batch_is_made_while_one_is_used_and_no_more():
    made = [threading.Event() for _ in range(4)]

    def transform(index):
        made[index].set()
        return index

    batches = iter(PrefetchLoader(Dataset(range(4), transform), batch_size=1, collate_fn=list))
    for index in range(3):
        assert next(batches) == [index]
        assert made[index + 1].wait(10)
        assert index == 2 or not made[index + 2].is_set()


class Damaged(Dataset):
    def _transform(self, index):
        if index == 2:
            raise SettingsError("s2", "its bank is damaged", "Delete it.")
        return index


def test_a_batch_that_cannot_be_made_is_an_error_at_its_place():
    batches = iter(PrefetchLoader(Damaged(range(4)), batch_size=1, collate_fn=list))
    assert [next(batches), next(batches)] == [[0], [1]]
    with pytest.raises(SettingsError, match=r"s2: its bank is damaged"):
        next(batches)


def test_a_loop_that_breaks_off_leaves_no_thread():
    before = threading.active_count()
    for batch in PrefetchLoader(Dataset(range(4)), batch_size=1, collate_fn=list):
        assert batch == [0]
        break
    assert threading.active_count() == before
