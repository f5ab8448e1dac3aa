import threading

import numpy as np
import pytest
import torch

from scripts.backbones import get_backbone
from scripts.encoding import BATCHES_AHEAD, Encoder
from scripts.errors import SettingsError, SlideError
from scripts.grid import LinkedGrid
from tests.cohorts import builder, draw_slide, tiny_backbone, tiny_encoder


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    bag = builder()({"image": draw_slide(tmp_path_factory.mktemp("encoding") / "s.tif")})
    assert [len(coords) for coords in bag.grid.coords] == [6, 20]
    return bag


class FlatBag:
    """A bag whose patch i of scale s is all (100 * s + i), which counts what is read of it."""

    def __init__(self, num_patches):
        self.grid = LinkedGrid((), tuple(np.zeros((n, 2)) for n in num_patches), np.zeros((0, 2), np.int64), 0)
        self.reads, self.lock = [], threading.Lock()

    def read_patches(self, scale_index, patches):
        with self.lock:
            self.reads.append((scale_index, tuple(patches.tolist())))
        colours = (100 * scale_index + np.asarray(patches)).astype(np.uint8)
        return np.broadcast_to(colours[:, None, None, None], (len(patches), 3, 4, 4)).copy()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_patch_is_encoded_once_and_in_order(batch_size, num_workers):
    bag = FlatBag([7, 12])
    batches = list(tiny_encoder(batch_size, num_workers).encode(bag))
    seen = [(s, start + i) for s, start, features in batches for i in range(len(features))]
    assert seen == [(0, i) for i in range(7)] + [(1, i) for i in range(12)]
    assert sorted(p for s, patches in bag.reads for p in [(s, i) for i in patches]) == seen
    assert max(len(features) for _, _, features in batches) == min(batch_size, 12)
    for s, start, features in batches:
        colours = 100 * s + start + np.arange(len(features))
        expected = np.repeat((colours[:, None] - 128.0) / 64.0, 12, axis=1)
        assert np.allclose(features, expected, atol=1e-6)


def test_features_are_the_backbone_of_the_patches(bag):
    backbone = tiny_backbone()
    for s, start, features in tiny_encoder(batch_size=5, num_workers=2).encode(bag):
        patches = bag.read_patches(s, np.arange(start, start + len(features)))
        assert np.array_equal(features, backbone(torch.from_numpy(patches)).numpy())
        assert features.dtype == np.float32


def test_the_number_of_threads_does_not_change_a_digit(bag):
    backbone = get_backbone("efficientnet_lite0")
    once, in_turn, threads = (Encoder(backbone, batch_size=8, num_workers=n).encode_rows(bag) for n in (2, 0, 4))
    assert once.shape == (20, 2, 1280)
    assert np.array_equal(once, in_turn)
    assert np.array_equal(once, threads)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_transform_changes_the_patches_before_they_are_encoded(num_workers):
    def brighter(patches):
        sizes.append(len(patches))
        return patches + 7

    sizes, plain, changed = [], FlatBag([7, 12]), FlatBag([7, 12])
    encoder = tiny_encoder(batch_size=5, num_workers=num_workers)
    for (s, start, features), (t, begin, seen) in zip(
        encoder.encode(plain), encoder.encode(changed, brighter), strict=True
    ):
        assert (s, start) == (t, begin)
        assert np.allclose(seen, features + 7 / 64, atol=1e-6)
    assert sorted(sizes) == [2, 2, 5, 5, 5]
    assert sorted(plain.reads) == sorted(changed.reads)


def test_rows_are_the_features_of_the_patches_that_they_go_through(bag):
    rows = tiny_encoder(batch_size=5).encode_rows(bag)
    backbone = tiny_backbone()
    assert rows.shape == (bag.grid.num_rows, 2, 12)
    for row, patches in zip(rows, bag.grid.rows, strict=True):
        for s, patch in enumerate(patches):
            expected = backbone(torch.from_numpy(bag.read_patches(s, [patch])))[0].numpy()
            assert np.allclose(row[s], expected, atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_no_more_than_a_few_batches_are_read_ahead(num_workers):
    bag = FlatBag([0, 200])
    limit = BATCHES_AHEAD + num_workers if num_workers else 0
    ahead = []
    for done, _ in enumerate(tiny_encoder(batch_size=2, num_workers=num_workers).encode(bag), start=1):
        # As many readers as there may be get the time to run away.
        if num_workers and done in (1, 50):
            wait_until(lambda bound=done + limit: len(bag.reads) >= bound)
        ahead.append(len(bag.reads) - done)
    assert len(bag.reads) == 100
    assert max(ahead) == limit


def wait_until(condition, seconds=5.0):
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            pause.wait(0.05)
            return
        pause.wait(0.01)
    raise AssertionError("nothing is read ahead")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_slide_that_breaks_off_is_an_error_of_the_caller(num_workers):
    class Broken(FlatBag):
        def read_patches(self, scale_index, patches):
            if 6 in patches:
                raise SlideError("a.svs", "cannot be read at (1, 2)", "Copy it again.")
            return super().read_patches(scale_index, patches)

    batches = tiny_encoder(batch_size=2, num_workers=num_workers).encode(Broken([20]))
    encoded = []
    with pytest.raises(SlideError, match=r"a\.svs: cannot be read at \(1, 2\)\. Copy it again"):
        encoded.extend(start for _, start, _ in batches)
    assert encoded == [0, 2, 4]  # all that was read before it


def test_a_caller_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    batches = tiny_encoder(batch_size=2, num_workers=3).encode(FlatBag([40]))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_gradient_mode_stays_as_it_is(bag, grad):
    with torch.set_grad_enabled(grad):
        for _ in tiny_encoder(batch_size=5).encode(bag):
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled() is grad
        # What comes out can be trained on.
        features = torch.from_numpy(tiny_encoder().encode_rows(bag))
        weight = torch.ones(12, requires_grad=True)
        (features @ weight).sum().backward() if grad else None
        assert weight.grad is None if not grad else bool((weight.grad != 0).any())


def test_settings_name_the_encoder():
    encoder = Encoder(tiny_backbone("tiny", "ab" * 32))
    assert encoder.settings() == {"backbone": "tiny", "weights_sha256": "ab" * 32, "amp": False}
    assert encoder.num_features == 12


@pytest.mark.parametrize(
    ("key", "value", "least"), [("batch_size", 0, 1), ("batch_size", 2.5, 1), ("num_workers", -1, 0)]
)
def test_wrong_settings_are_named(key, value, least):
    with pytest.raises(SettingsError, match=rf"{key}: got {value}\. Give a whole number from {least} up"):
        Encoder(tiny_backbone(), **{key: value})


def test_another_device_can_be_chosen_later_and_a_wrong_one_is_named():
    encoder = tiny_encoder()
    encoder.to("cpu")
    assert encoder.device == torch.device("cpu")
    with pytest.raises(SettingsError, match=r"device: tpu9 cannot be used \(.+\). Use `cpu`, or `cuda`"):
        encoder.to("tpu9")
