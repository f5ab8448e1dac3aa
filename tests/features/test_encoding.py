import contextlib
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.bags.blocks import BLOCK_PX, plan_blocks
from scripts.bags.grid import LinkedGrid
from scripts.core import machine
from scripts.core.errors import SettingsError, SlideError
from scripts.core.machine import CPU_BATCH
from scripts.core.magnification import Scale
from scripts.encoders.backbones import get_backbone
from scripts.features import encoding
from scripts.features.augmentation import view_transform
from scripts.features.encoding import BLOCKS_AHEAD, Encoder
from tests.cohorts import builder, draw_slide, read_patches, tiny_backbone, tiny_encoder


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    bag = builder()({"image": draw_slide(tmp_path_factory.mktemp("encoding") / "s.tif")})
    assert [len(coords) for coords in bag.grid.coords] == [6, 20]
    return bag


class FlatBag:
    """A bag whose patch i of scale s is all (100 * s + i), which counts what is read of it.

    Its patches lie in a line, ``patches_a_block`` to a block, each scale in blocks of its own.
    """

    def __init__(self, num_patches, patches_a_block=4):
        side = BLOCK_PX // patches_a_block
        scales = tuple(Scale(10, side, base_mpp=1.0, level=level) for level in range(len(num_patches)))
        coords = tuple(np.stack([np.arange(n) * side, np.zeros(n)], axis=1) for n in num_patches)
        self.grid = LinkedGrid(scales, coords, np.zeros((1, len(scales)), np.int64), 0)
        self.slide = SimpleNamespace(check_unchanged=lambda: None)
        self.reads, self.lock = [], threading.Lock()

    def read_block(self, block):
        with self.lock:
            self.reads.append([(part.scale_index, tuple(part.patches.tolist())) for part in block.parts])
        return [(part.scale_index, part.patches, self._colours(part)) for part in block.parts]

    def _colours(self, part):
        colours = (100 * part.scale_index + part.patches).astype(np.uint8)
        return np.broadcast_to(colours[:, None, None, None], (len(colours), 3, 4, 4)).copy()


def blocks_of(bag):
    """What a bag that is read once is asked for."""
    return [
        [(part.scale_index, tuple(part.patches.tolist())) for part in block.parts] for block in plan_blocks(bag.grid)
    ]


def brighter_by(value):
    """A transform that raises each number."""
    return lambda patches: patches + np.uint8(value)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_patch_is_read_and_encoded_once(batch_size, num_workers):
    bag = FlatBag([7, 12])
    encoded = list(tiny_encoder(batch_size, num_workers).encode(bag))
    everyone = [(0, i) for i in range(7)] + [(1, i) for i in range(12)]
    assert [(s, i) for _, s, patches, _ in encoded for i in patches] == everyone
    assert sorted((s, i) for parts in bag.reads for s, patches in parts for i in patches) == everyone
    for _, s, patches, features in encoded:
        expected = np.repeat((100 * s + patches[:, None] - 128.0) / 64.0, 12, axis=1)
        assert np.allclose(features, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_batches_are_full_whatever_the_blocks_and_scales(batch_size):
    sizes = []
    encoder = tiny_encoder(batch_size)
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    list(encoder.encode(FlatBag([7, 12])))
    assert sizes == [batch_size] * (19 // batch_size) + ([19 % batch_size] if 19 % batch_size else [])


def test_features_are_the_backbone_of_the_patches(bag):
    backbone = tiny_backbone()
    for _, s, patches, features in tiny_encoder(batch_size=5, num_workers=2).encode(bag):
        expected = backbone(torch.from_numpy(read_patches(bag, s, patches))).numpy()
        assert np.allclose(features, expected, atol=1e-6)
        assert features.dtype == np.float32


def test_the_number_of_threads_does_not_change_a_digit(bag):
    backbone = get_backbone("efficientnet_lite0")
    once, in_turn, threads = (Encoder(backbone, batch_size=8, num_workers=n).encode_rows(bag) for n in (2, 0, 4))
    assert once.shape == (20, 2, 1280)
    assert np.array_equal(once, in_turn)
    assert np.array_equal(once, threads)


def test_what_is_chosen_for_a_machine_changes_no_digit(bag, monkeypatch):
    found = []
    for cores, blocks_ahead in ((1, 1), (2, 4), (64, 64)):
        monkeypatch.setattr(machine, "this_machine", lambda cores=cores: machine.Machine(cores, 1e11))
        monkeypatch.setattr(encoding, "BLOCKS_AHEAD", blocks_ahead)
        settings = machine.chosen({"num_workers": "auto", "encode_batch": "auto"})
        encoder = Encoder(get_backbone("efficientnet_lite0"), "cpu", settings["encode_batch"], settings["num_workers"])
        found.append(encoder.encode_rows(bag))
    assert encoder.num_workers == 21
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_transform_changes_the_patches_before_they_are_encoded(num_workers):
    encoder = tiny_encoder(batch_size=5, num_workers=num_workers)
    plain, changed = encoder.encode(FlatBag([7, 12])), encoder.encode(FlatBag([7, 12]), [brighter_by(7)])
    for (_, s, patches, features), (view, t, others, seen) in zip(plain, changed, strict=True):
        assert (view, s) == (0, t)
        assert np.array_equal(patches, others)
        assert np.allclose(seen, features + 7 / 64, atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_views_encoded_together_are_those_encoded_alone_and_read_each_block_once(batch_size, num_workers):
    encoder = tiny_encoder(batch_size, num_workers)
    transforms = [brighter_by(7), None, brighter_by(30)]
    bag, alone = FlatBag([7, 12]), [list(encoder.encode(FlatBag([7, 12]), [transform])) for transform in transforms]
    together = list(encoder.encode(bag, transforms))
    assert sorted(bag.reads) == sorted(blocks_of(bag))
    for view, expected in enumerate(alone):
        found = [encoded for encoded in together if encoded.view == view]
        for (_, s, patches, features), (_, t, others, seen) in zip(expected, found, strict=True):
            assert s == t
            assert np.array_equal(patches, others)
            assert np.array_equal(features, seen)


def test_views_made_together_have_the_batches_that_each_has_alone(bag):
    """A library may round otherwise in a batch of another size."""
    seen = []
    encoder = tiny_encoder(batch_size=8, num_workers=2)
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    transforms = [None, view_transform("s", 1), view_transform("s", 2)]
    for transform in transforms:
        list(encoder.encode(bag, [transform]))
    alone, views = seen[:], []
    seen.clear()
    for encoded in encoder.encode(bag, transforms):
        views.extend([encoded.view] * (len(seen) - len(views)))
    for view in range(3):
        found = [batch for batch, of_view in zip(seen, views, strict=True) if of_view == view]
        expected = alone[4 * view : 4 * view + 4]
        assert [len(batch) for batch in found] == [8, 8, 8, 2]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_batch_stays_as_it_is_while_a_gpu_may_still_take_it(monkeypatch, in_flight):
    """As many batches exist as views are filled, and one more on a GPU."""
    encoder, made = tiny_encoder(batch_size=3), []
    allocate = encoder._buffer
    monkeypatch.setattr(encoder, "_buffer", lambda shape: made.append(shape) or allocate(shape))
    kept = deque(maxlen=1 + in_flight)
    for batch in encoder._batches(FlatBag([7, 12]), [None, brighter_by(7), brighter_by(30)], in_flight):
        kept.append(batch)
        for view, pixels, numbers in ((b.view, b.pixels, b.numbers) for b in kept):
            colours = [100 * s + patch + (0, 7, 30)[view] for s, patches in numbers for patch in patches]
            assert (pixels[: len(colours)] == torch.tensor(colours)[:, None, None, None]).all()
    assert len(made) == 3 + in_flight


def test_rows_are_the_features_of_the_patches_that_they_go_through(bag):
    rows = tiny_encoder(batch_size=5).encode_rows(bag)
    backbone = tiny_backbone()
    assert rows.shape == (bag.grid.num_rows, 2, 12)
    for row, patches in zip(rows, bag.grid.rows, strict=True):
        for s, patch in enumerate(patches):
            expected = backbone(torch.from_numpy(read_patches(bag, s, [patch])))[0].numpy()
            assert np.allclose(row[s], expected, atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_no_more_than_a_few_blocks_are_read_ahead(num_workers):
    bag = FlatBag([100], patches_a_block=2)
    limit = BLOCKS_AHEAD + num_workers if num_workers else 0
    ahead = []
    for done, _ in enumerate(tiny_encoder(batch_size=2, num_workers=num_workers).encode(bag), start=1):
        # As many readers as there may be get the time to run away.
        if num_workers and done in (1, 25):
            wait_until(lambda bound=done + limit: len(bag.reads) >= bound)
        ahead.append(len(bag.reads) - done)
    assert len(bag.reads) == 50
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
        def read_block(self, block):
            if 6 in block.parts[0].patches:
                raise SlideError("a.svs", "cannot be read at (1, 2)", "Copy it again.")
            return super().read_block(block)

    encoded, batches = [], tiny_encoder(batch_size=2, num_workers=num_workers).encode(Broken([20], 2))
    with pytest.raises(SlideError, match=r"a\.svs: cannot be read at \(1, 2\)\. Copy it again"):
        encoded.extend(patch for _, _, patches, _ in batches for patch in patches)
    assert encoded == [0, 1, 2, 3, 4, 5]  # all that was read before it


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
    assert encoder.settings() == {
        "backbone": "tiny", "weights_sha256": "ab" * 32, "mean": [128.0] * 3, "std": [64.0] * 3,
        "input_px": None, "resize": None, "pooling": None,
        "amp": False, "runtime": "torch", "precision": "amp", "feature_dtype": "float32",
    }  # fmt: skip
    assert encoder.num_features == 12


def test_features_in_float16_are_those_in_float32_rounded_and_those_beyond_it_are_refused(bag):
    half = Encoder(tiny_backbone(), feature_dtype="float16")
    rounded = tiny_encoder().encode_rows(bag).astype(np.float16)
    assert np.array_equal(half.encode_rows(bag), rounded.astype(np.float32))
    assert {features.dtype for _, _, _, features in half.encode(bag)} == {np.dtype(np.float16)}
    half.backbone.std /= 1e6
    with pytest.raises(SettingsError, match="feature_dtype: is float16, and a feature of tiny is .*, beyond 65504"):
        half.encode_rows(bag)


def test_features_that_are_no_finite_numbers_are_refused(bag):
    encoder = tiny_encoder()
    encoder.backbone.mean += np.inf
    with pytest.raises(SettingsError, match="backbone tiny: gives features that are no finite numbers"):
        encoder.encode_rows(bag)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_with_amp_settings_name_the_kind_of_device(device):
    encoder = Encoder(tiny_backbone())
    encoder.device = torch.device(device)  # without a GPU nothing can be moved to it
    assert "device" not in encoder.settings()
    encoder.backbone.amp = True
    assert encoder.settings()["device"] == device.partition(":")[0]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("batch_size", 0, "encode_batch: got 0. Give a whole number from 1 to"),
        ("batch_size", 2.5, "encode_batch: got 2.5. Give a whole number"),
        ("num_workers", -1, "num_workers: got -1. Give a whole number from 0 up"),
    ],
)
def test_wrong_settings_are_named(key, value, says):
    with pytest.raises(SettingsError, match=f"^{says}"):
        Encoder(tiny_backbone(), **{key: value})


def test_another_device_can_be_chosen_later_and_a_wrong_one_is_named():
    encoder = tiny_encoder()
    encoder.to("cpu")
    assert encoder.device == torch.device("cpu")
    with pytest.raises(SettingsError, match="device: got 'tpu9'. Give cpu, cuda, or cuda:N"):
        encoder.to("tpu9")


@pytest.fixture
def one_gpu(monkeypatch):
    """The devices to which modules are moved, where torch sees one GPU."""
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def to(module, device=None, **_):
        if device is not None:
            moved.append(str(device))
        return module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return moved


def test_a_gpu_is_left_alone_until_there_is_something_to_encode(one_gpu, bag):
    encoder = Encoder(tiny_backbone(), "cuda:0")
    encoder.to("cuda")
    assert encoder.settings()["runtime"] == "torch"
    assert encoder.num_features == 12
    assert one_gpu == []
    with contextlib.suppress(RuntimeError):  # there is none, after all
        next(encoder.encode(bag))
    assert one_gpu == ["cuda"]
    with pytest.raises(SettingsError, match="device: got 'cuda:1', and torch sees 1 GPUs. Give cpu"):
        encoder.to("cuda:1")


def test_a_gpu_is_tried_once_for_its_batch_unless_one_is_given(one_gpu, bag, monkeypatch):
    tried = []
    monkeypatch.setattr(encoding, "batch_for", lambda backbone, device, patch_px: tried.append(patch_px) or 128)
    monkeypatch.setattr(encoding, "get_forward", lambda runtime, backbone, batch_size, int8: batch_size)
    given, auto, on_cpu = (
        Encoder(tiny_backbone(), *where) for where in (("cuda", 8), ("cuda", "auto"), ("cpu", "auto"))
    )
    assert [encoder.prepare(64) for encoder in (given, auto, auto, on_cpu)] == [8, 128, 128, CPU_BATCH]
    assert tried == [64]
    assert [encoder.made_with()["encode_batch"] for encoder in (given, auto, on_cpu)] == [8, 128, CPU_BATCH]


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "DefaultCPUAllocator: not enough"])
def test_a_batch_that_does_not_fit_into_memory_names_the_setting(bag, said):
    encoder = tiny_encoder()
    encoder.backbone.forward = lambda patches: (_ for _ in ()).throw(RuntimeError(said))
    with pytest.raises(
        SettingsError, match=r"^encode_batch: does not fit into .* memory \(.*\)\. Lower `encode_batch`"
    ):
        encoder.encode_rows(bag)
