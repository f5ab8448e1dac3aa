import numpy as np
import pytest

from scripts.bags.linked_patches import linked_patches
from tests.cohorts import builder, draw_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("linked_patches"), 1)


def test_linked_patches_show_where_the_next_magnification_lies(cohort):
    bag = builder([5, 8, 10])(cohort[0])
    picture = linked_patches(bag, num_rows=4)
    last = bag.grid.num_rows - 1
    rows = [0, round(last / 3), round(2 * last / 3), last]
    assert picture.shape == (4 * 64, 3 * 64, 3)
    for i, row in enumerate(rows):
        for s in range(3):
            shown = picture[64 * i : 64 * (i + 1), 64 * s : 64 * (s + 1)]
            patch = bag.grid.rows[row, s]
            original = bag.read_patch(s, patch)
            changed = (shown != original).any(axis=-1)
            if s == 2:
                assert not changed.any()  # nothing is finer
                continue
            # By geometry, in um: where the next patch starts in this one, and how large it is.
            corner = bag.grid.coords[s + 1][bag.grid.rows[row, s + 1]] - bag.grid.coords[s][patch]
            left, top = corner * 0.5 / (10, 10) * bag.grid.scales[s].magnification
            side = 64 * bag.grid.scales[s].magnification / bag.grid.scales[s + 1].magnification
            yy, xx = np.mgrid[:64, :64] + 0.5
            distance = np.maximum(np.abs(xx - left - side / 2), np.abs(yy - top - side / 2)) - side / 2
            # Two pixels thick and, on a screen, one more; half a pixel is lost to rounding.
            frame = (distance > -3) & (distance < 1.25)
            assert changed.any()
            assert not (changed & ~frame).any()
            assert (shown[changed] == (0, 160, 0)).all()
            # All of the outermost line that lies in the patch is drawn.
            line = np.abs(distance + 0.5) < 0.5
            assert (shown[line] == (0, 160, 0)).all()


def test_a_bag_of_few_rows_is_shown_whole(cohort):
    bag = builder()(cohort[0])
    assert linked_patches(bag, num_rows=1000).shape == (64 * bag.grid.num_rows, 128, 3)
