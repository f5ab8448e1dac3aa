import colorsys
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import albumentations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import SettingsError
from scripts.features.augmentation import augmentation_settings, count_views, view_transform
from tests.conftest import ROOT

# Colours of a slide, as (hue in degrees, saturation, value) in 0..1: violet, pink, purple, and light purple.
STAINS = [(260, 0.45, 0.55), (330, 0.35, 0.8), (290, 0.6, 0.65), (280, 0.3, 0.75)]


def noise(n=3, side=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def patch_of(colours):
    """A patch ``[1, 3, n, n]`` whose columns have these RGB colours, in 0..1, and whose rows are alike."""
    rows = np.round(255 * np.array([colours] * len(colours))).astype(np.uint8)
    return np.ascontiguousarray(rows.transpose(2, 0, 1)[None])


def dihedral(patches):
    """The eight ways to turn and mirror patches: (mirrored left to right after turning, quarter turns)."""
    turned = {(False, k): np.rot90(patches, k, axes=(2, 3)) for k in range(4)}
    return turned | {(True, k): image[..., ::-1] for (_, k), image in turned.items()}


def drawn(slide, view, side=5):
    """What a view does: how it turns and mirrors, and whether it changes colours."""
    # Mid grey tones keep their order when colours shift.
    marker = np.broadcast_to(
        np.arange(60, 60 + side * side, dtype=np.uint8).reshape(1, 1, side, side), (1, 3, side, side)
    )
    coloured = patch_of([(0.8, 0.3, 0.6)] * side)
    seen = view_transform(slide, view)(np.concatenate([marker, coloured]))
    ranks = np.argsort(np.argsort(seen[0, 0], axis=None)).reshape(side, side) + 60
    (how,) = [key for key, image in dihedral(marker).items() if np.array_equal(image[0, 0], ranks)]
    return how, not np.array_equal(seen[1], coloured[0])


def test_view_0_are_the_plain_patches():
    assert view_transform("s", 0) is None
    with pytest.raises(ValueError, match="a view's number is 0 or more, got -1"):
        view_transform("s", -1)


def test_each_turn_flip_and_colour_is_drawn_with_probability_a_half_and_apart_from_the_others():
    draws = 3000
    counts = Counter(drawn(f"slide {i % 50}", 1 + i // 50) for i in range(draws))
    half = Fraction(1, 2)
    expected: Counter[tuple[tuple[bool, int], bool]] = Counter()
    for turned in (False, True):
        for k in range(4) if turned else [0]:
            for left_right in (False, True):
                for up_down in (False, True):
                    for colour in (False, True):
                        # Up and down is left and right after half a turn.
                        how = (left_right != up_down, (k + 2 * up_down) % 4)
                        expected[how, colour] += half**4 * (Fraction(1, 4) if turned else 1)
    assert sum(expected.values()) == 1
    assert len(expected) == 16
    for outcome, share in expected.items():
        p = float(share)
        assert abs(counts[outcome] - draws * p) < 4.5 * np.sqrt(draws * p * (1 - p)), outcome
    # Far from all or nothing, which is what one seed for each of the library's transforms comes to.
    assert sum(colour for _, colour in counts.elements()) < 0.6 * draws


@settings(max_examples=40, deadline=None)
@given(slide=st.text(max_size=12), view=st.integers(1, 2**31 - 1))
def test_a_view_does_the_same_to_every_patch(slide, view):
    patches, transform = noise(n=4), view_transform(slide, view)
    before = patches.copy()
    together = transform(patches)
    assert np.array_equal(patches, before)
    assert together.shape == patches.shape
    assert together.dtype == np.uint8
    assert together.flags.c_contiguous
    for i in (2, 0, 3, 1):
        assert np.array_equal(transform(patches[i : i + 1])[0], together[i])
        # Drawn again, it is the same, whatever else was drawn in between.
        assert np.array_equal(view_transform(slide, view)(patches[i : i + 1])[0], together[i])
    assert transform(patches[:0]).shape == (0, 3, 12, 12)


def test_patches_that_are_no_contiguous_array_are_transformed_alike():
    patches = noise(n=6)
    for view in range(1, 12):
        transform = view_transform("s", view)
        assert np.array_equal(transform(patches[::-2]), transform(np.ascontiguousarray(patches[::-2])))
        channels_last = np.ascontiguousarray(patches.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        assert np.array_equal(transform(channels_last), transform(patches))


def test_it_is_what_albumentations_replays(monkeypatch):
    records = []

    class Recorded(albumentations.ReplayCompose):
        def __call__(self, *args, **kwargs):
            result = super().__call__(*args, **kwargs)
            records.append(result["replay"])
            return result

    monkeypatch.setattr("albumentations.ReplayCompose", Recorded)
    patches = noise(n=5, side=20)
    for view in range(1, 25):
        transformed, record = view_transform("s", view)(patches), records[-1]
        for patch, seen in zip(patches, transformed, strict=True):
            image = np.ascontiguousarray(patch.transpose(1, 2, 0))
            expected = albumentations.ReplayCompose.replay(record, image=image)["image"]
            assert np.array_equal(seen.transpose(1, 2, 0), expected)
    names = [t["__class_fullname__"] for t in records[0]["transforms"]]
    assert names == ["RandomRotate90", "HorizontalFlip", "VerticalFlip", "HueSaturationValue"]
    assert all(t["p"] == 0.5 for record in records for t in record["transforms"])


def test_colours_shift_as_one_and_within_the_limits():
    limits, patch = augmentation_settings(), patch_of([colorsys.hsv_to_rgb(h / 360, s, v) for h, s, v in STAINS])
    shifts = []
    for view in range(1, 80):
        # The four colours, wherever the view has moved them: the order of the columns or rows, either way.
        image = view_transform("s", view)(patch)[0].transpose(1, 2, 0)
        line = image[0] if (image[0] == image[1]).all() else image[:, 0]
        hsv = np.array([colorsys.rgb_to_hsv(*(colour / 255)) for colour in line]) * [180, 255, 255]
        stains = np.array(STAINS) * [0.5, 255, 255]
        shift = min((ordered - stains for ordered in (hsv, hsv[::-1])), key=lambda d: np.abs(d).sum())
        # Hue and saturation of a colour are rounded with its three bytes, in OpenCV and here.
        assert (np.ptp(shift, axis=0) <= [3, 6, 3]).all()
        shifts.append(shift.mean(axis=0))
    most = np.abs(shifts).max(axis=0)
    bounds = np.array([limits["hue_shift"], limits["saturation_shift"], limits["value_shift"]])
    assert (most <= bounds + np.array([1.5, 3, 1.5])).all()
    assert (most > 0.7 * bounds).all()  # and reach far


def test_grey_stays_grey():
    greys = np.repeat(noise(n=1, seed=3)[:, :1], 3, axis=1)
    for view in range(1, 30):
        seen = view_transform("glass", view)(greys)
        assert np.array_equal(seen[:, 0], seen[:, 1])
        assert np.array_equal(seen[:, 0], seen[:, 2])


def test_the_processs_own_random_numbers_neither_matter_nor_move():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    once = [view_transform("s", view)(noise()) for view in range(1, 9)]
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = [view_transform("s", view)(noise()) for view in range(1, 9)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert np.array_equal(once, again)


def test_many_threads_draw_and_transform_as_one_does():
    patches = noise(n=8, side=64)
    expected = [view_transform("s", view)(patches) for view in range(1, 9)]
    shared = [view_transform("s", view) for view in range(1, 9)]

    def work(i):
        view = i % 8
        transform = shared[view] if i % 2 else view_transform("s", view + 1)
        return np.array_equal(transform(patches), expected[view])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(200)))


def test_another_process_sees_the_same_view_and_asks_nobody_for_updates():
    script = (
        "import sys, urllib.request, numpy as np\n"
        "def refuse(*args, **kwargs): raise SystemExit('went to the network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "from scripts.features.augmentation import view_transform\n"
        "patches = np.load(sys.argv[1])\n"
        "np.save(sys.argv[1], [view_transform('Fall 7 \\u00e4', v)(patches) for v in range(1, 20)])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, noise())
        command = [sys.executable, "-W", "error:Error fetching:UserWarning", "-c", script, file.name]
        subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONHASHSEED": "1"}, check=True)
        seen = np.load(file.name)
    assert np.array_equal(seen, [view_transform("Fall 7 \u00e4", view)(noise()) for view in range(1, 20)])


def test_settings_are_plain_values():
    values = augmentation_settings()
    assert json.loads(json.dumps(values)) == values
    assert values["albumentations"] == albumentations.__version__
    assert values["probability"] == 0.5


def test_rare_classes_have_more_views_by_hand():
    # Weights 1/4, 1/4, 1/4, 1/2, 1/4 + 1/2, 1/2, 1/2 before they are scaled: tests/training/test_sampler.py.
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert count_views(labels, 6) == [2, 2, 2, 4, 6, 4, 4]
    assert count_views(labels, 2) == [1, 1, 1, 1, 2, 1, 1]  # 2/3, 4/3 and 2, rounded
    assert count_views(labels, 0) == [0] * 7


def test_every_slide_has_a_view_and_halves_are_rounded_up():
    rare = np.array([[1, 0]] * 20 + [[0, 1]])
    assert count_views(rare, 4) == [1] * 20 + [4]  # 4/20 would be none
    assert count_views(np.array([[1, 0], [1, 0], [0, 1]]), 5) == [3, 3, 5]
    assert count_views(np.array([[1, 0], [0, 1]]), 7) == [7, 7]


@pytest.mark.parametrize("views", [-1, 1.5, True, "3"])
def test_a_number_of_views_that_is_none_is_named(views):
    with pytest.raises(SettingsError, match=rf"views: got {views!r}\. Give a whole number from 0 to 999"):
        count_views(np.array([[1], [0]]), views)
