"""What a run will cost: against a bank that was written, and a clock that is set by hand."""

import h5py
import numpy as np
import pytest

from scripts.checking.cost import Rate, bank_bytes, measure_rate
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoded
from tests.cohorts import NUM_TINY_FEATURES, builder, draw_slide, tiny_encoder


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return builder()({"image": draw_slide(tmp_path_factory.mktemp("cost") / "s.tif")})


def test_a_bank_holds_as_many_bytes_as_reckoned(bag, tmp_path):
    path = tmp_path / "s.h5"
    write_bank(path, bag, tiny_encoder(), {})
    sizes = []
    with h5py.File(path) as bank:
        bank.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    num_patches = [len(coords) for coords in bag.grid.coords]
    reckoned = bank_bytes(num_patches, bag.grid.num_rows, 4 * NUM_TINY_FEATURES)
    assert reckoned == sum(sizes) == (6 + 20) * (12 * 4 + 16) + 20 * 2 * 8
    assert 0 < path.stat().st_size - reckoned < 20_000


class TimedEncoder:
    """Ten batches of 4 patches, each in two parts; a batch takes a second, the first ever ten."""

    batch_size = 4

    def __init__(self, clock):
        self.clock, self.started = clock, False

    def encode(self, bag):
        for _ in range(10):
            self.clock.now += 1 if self.started else 10
            self.started = True
            for part in (3, 1):
                yield Encoded(0, 0, np.arange(part), np.zeros((part, 2), np.float32))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("seconds", "patches"), [(1.0, 4), (2.5, 12), (99.0, 40)])
def test_the_rate_is_of_whole_batches_after_the_start(bag, monkeypatch, seconds, patches):
    clock = Clock()
    monkeypatch.setattr("scripts.checking.cost.time.perf_counter", clock)
    rate = measure_rate(TimedEncoder(clock), bag, seconds)
    assert rate == Rate("s.tif", patches, patches / 4)
    assert rate.per_second == 4


def test_a_real_encoder_is_measured_on_its_bag(bag):
    rate = measure_rate(tiny_encoder(), bag)
    assert rate.patches == 26
    assert rate.seconds > 0
