"""What ranks made of a dataset, put together in its order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from scripts.core.shards import gather_results, gather_shards, shard


def engine(length: int | None = None, order: list[str] | None = None) -> SimpleNamespace:
    """An engine at the end of its run, over a dataset with a length or with an order."""
    members = {} if length is None else {"__len__": lambda self: length}
    dataset = type("Dataset", (), members)()
    if order is not None:
        dataset.order = order
    return SimpleNamespace(state=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)))


def ranks(monkeypatch: pytest.MonkeyPatch, *of_ranks: list) -> None:
    """Let each gathering give what the ranks have, whatever this process has."""

    def gather(shards: list, _own: list) -> None:
        shards[:] = of_ranks

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(of_ranks))
    monkeypatch.setattr(dist, "all_gather_object", gather)


def test_shards_come_back_in_the_order_of_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list("abcde")
    ranks(monkeypatch, *(shard(items, of_rank, 2) for of_rank in range(2)))
    assert gather_shards([], len(items)) == items


def test_results_of_slides_from_a_queue_are_sorted_and_those_that_failed_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks(monkeypatch, [("d", 4), ("a", 1), ("e", 5)], [("c", 3)], [])
    assert gather_results([], [], engine(order=list("abcde"))) == [1, 3, 4, 5]


def test_results_of_a_divided_dataset_stay_in_its_order_and_what_wraps_around_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks(monkeypatch, [("b", 1), ("a", 3)], [("c", 2), ("b", 1)])
    assert gather_results([], [], engine(length=3)) == [1, 2, 3]


def test_one_process_has_all_and_nothing_is_nothing() -> None:
    assert gather_results([1, 2], ["b", "a"], engine(length=2)) == [1, 2]
    assert gather_results([1, 2], ["b", "a"], engine(order=["a", "b"])) == [2, 1]
    assert gather_results([], ["b", "a"], engine(order=["a", "b"])) == []
