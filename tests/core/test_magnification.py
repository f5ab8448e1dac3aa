import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scripts.core.errors import SettingsError
from scripts.core.magnification import (
    Scale,
    check_magnifications,
    magnification_of,
    mean_downsamples,
    mpp_of,
    scale_name,
    scale_names,
    squeezed_levels,
)


def test_ten_x_is_one_micrometre_per_pixel():
    assert [mpp_of(m) for m in (5, 10, 20, 40)] == [2.0, 1.0, 0.5, 0.25]
    assert magnification_of(mpp_of(12.5)) == 12.5


def test_outputs_are_named_global_then_low_to_high():
    assert scale_names([10, 5, 12.5]) == ["5x", "10x", "12.5x"]
    assert scale_name(1.25) == "1.25x"


@pytest.mark.parametrize(
    "wrong", [[], [0, 5], [-1], [1e9], [1e-9], ["a"], ["5"], "5", [True], None, [float("nan")], [None], {5: 10}, 5]
)
def test_magnifications_must_be_positive_and_different(wrong):
    with pytest.raises(SettingsError, match=r"magnifications: got .* Give positive numbers, each once"):
        check_magnifications(wrong)


@pytest.mark.parametrize("wrong", [[5, 5.0], [5, 5.0000001], [10, 5, 10]])
def test_two_scales_cannot_have_one_name(wrong):
    # Their weights and maps would be the same files.
    with pytest.raises(SettingsError, match=r"magnifications: got .*, of which two have one name"):
        check_magnifications(wrong)


def test_magnifications_come_from_low_to_high():
    assert check_magnifications([10, 2.5, np.float32(5)]) == (2.5, 5.0, 10.0)
    assert check_magnifications(np.array([10, 5])) == (5.0, 10.0)


def test_a_patch_is_read_in_the_papers_proportion():
    # p : s = ps : Mm. 224 px at 10x from a level at 20x (0.25 um/px slide, downsample 2) are 448 px there.
    scale = Scale(10, 224, base_mpp=0.25, level=1, downsample=2.0)
    assert (scale.patch_read_px, scale.patch_level0, scale.patch_um) == (448, 896.0, 224.0)
    assert scale.pixel_level0 == 4.0


def test_the_same_patch_covers_the_same_micrometres_on_every_slide():
    for base_mpp in (0.12, 0.2525, 0.499, 1.0):
        assert Scale(5, 224, base_mpp).patch_level0 * base_mpp == pytest.approx(448.0)


@example((65, 399), math.ceil, 4)
@given(st.tuples(*[st.integers(64, 200_000)] * 2), st.sampled_from([math.floor, math.ceil, round]), st.integers(2, 4))
def test_a_level_rounded_to_whole_pixels_is_not_squeezed(size, rounded, factor):
    levels = [tuple(max(1, rounded(side / factor**level)) for side in size) for level in range(4)]
    assert squeezed_levels(levels, rtol=0.0) == []
    assert mean_downsamples(levels)[1] == pytest.approx(factor, rel=0.1)


def test_a_level_reduced_more_along_one_side_is_squeezed():
    levels = [(4000, 2000), (2000, 1000), (500, 500)]
    assert mean_downsamples(levels) == [1.0, 2.0, 6.0]
    assert squeezed_levels(levels, rtol=0.05) == [(2, 8.0, 4.0)]
    assert squeezed_levels(levels, rtol=0.5) == []
