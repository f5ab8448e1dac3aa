import numpy as np
import pytest

from scripts.bags.bag import BagBuilder
from scripts.bags.tissue import _stained
from scripts.bags.tissue_settings import TissueSettings, tissue_settings
from scripts.core.errors import SettingsError


def found(stain, **changed):
    return _stained(np.asarray(stain, np.uint8), 10.0, tissue_settings(changed))


def with_square(start, stop, value=60, size=60):
    stain = np.zeros((size, size), np.uint8)
    stain[start:stop, start:stop] = value
    return stain


def test_nothing_changed_are_the_defaults():
    assert tissue_settings({}) == TissueSettings()
    assert TissueSettings().changed() == {}
    assert BagBuilder(tissue={"closing_um": 32, "mpp": 4}).tissue.changed() == {"mpp": 4.0}


def test_an_object_smaller_than_the_smallest_is_removed():
    square = with_square(20, 30)  # 10 x 10 px of 10 um: 10,000 um2, and a little more when smoothed
    assert found(square, closing_um=0).any()
    assert not found(square, closing_um=0, smallest_um2=20_000).any()


def test_a_hole_smaller_than_the_largest_is_filled():
    ring = with_square(10, 50)
    ring[25:35, 25:35] = 0
    assert found(ring, closing_um=0)[30, 30]
    assert not found(ring, closing_um=0, largest_hole_um2=5_000)[30, 30]


def test_a_gap_narrower_than_the_disc_is_closed():
    halves = with_square(10, 50)
    halves[:, 28:32] = 0
    assert found(halves)[30, 29]
    assert not found(halves, closing_um=0)[30, 29]


def test_the_threshold_keeps_out_what_is_paler():
    pale = with_square(10, 50, value=25)
    assert found(pale)[30, 30]
    assert not found(pale, threshold=[40, 50]).any()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"closing": 16}, "there is no 'closing'. It takes mpp, threshold, closing_um, smallest_um2, largest_hole_um2"),
        ({"closing_um": -1}, "closing_um is -1. Give a number from 0 to 1000"),
        ({"closing_um": True}, "closing_um is True. Give a number"),
        ({"closing_um": [1]}, r"closing_um is \[1\]. Give a number"),
        ({"mpp": float("nan")}, "mpp is nan. Give a number from 1 to 64"),
        ({"mpp": "8"}, "mpp is '8'. Give a number"),
        ({"smallest_um2": float("inf")}, "smallest_um2 is inf. Give a number from 0 up"),
        ({"threshold": [30, 12]}, r"threshold is \[30, 12\]. Give two numbers, the lower first, from 0 to 255"),
        ({"threshold": 12}, "threshold is 12. Give two numbers"),
        ([1], "got .*Give a mapping"),
    ],
)
def test_what_it_does_not_take_is_one_line(changed, told):
    with pytest.raises(SettingsError, match=f"tissue: {told}"):
        BagBuilder(tissue=changed)


@pytest.mark.parametrize(("name", "value"), [("overlap", 1.0), ("overlap", -0.1), ("grid_origin", "corner")])
def test_so_it_is_for_overlap_and_grid_origin(name, value):
    with pytest.raises(SettingsError, match=name):
        BagBuilder(**{name: value})
