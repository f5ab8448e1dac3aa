import pytest

from scripts.encoders.batch_trial import BATCHES, largest_batch

WEIGHTS, PATCH = 2.0, 0.125


class Gpu:
    """Memory that a batch takes: the network's, and so much for each patch."""

    def __init__(self, memory: float) -> None:
        self.memory, self.tried = memory, []

    def peak_bytes(self, size: int) -> float | None:
        self.tried.append(size)
        peak = WEIGHTS + PATCH * size
        return peak if peak <= self.memory else None


@pytest.mark.parametrize(
    ("budget", "batch", "tried"),
    [
        (100.0, 256, [32, 64, 128, 256]),
        (WEIGHTS + PATCH * 256, 256, [32, 64, 128, 256]),
        (WEIGHTS + PATCH * 255, 128, [32, 64, 128, 256]),
        (WEIGHTS + PATCH * 64, 64, [32, 64, 128]),
        (1.0, 32, [32]),
    ],
)
def test_the_largest_that_stays_within_the_budget(budget, batch, tried):
    gpu = Gpu(1000.0)
    assert (largest_batch(gpu.peak_bytes, budget), gpu.tried) == (batch, tried)


@pytest.mark.parametrize(("memory", "batch"), [(WEIGHTS + PATCH * 200, 128), (WEIGHTS + PATCH * 33, 32), (0.5, 32)])
def test_nothing_larger_is_tried_once_the_memory_was_not_enough(memory, batch):
    gpu = Gpu(memory)
    assert largest_batch(gpu.peak_bytes, 1000.0) == batch
    assert gpu.tried == [size for size in BATCHES if size <= 2 * batch][: len(gpu.tried)]
    assert gpu.tried[-1] == (2 * batch if memory > WEIGHTS + PATCH * 32 else 32)
