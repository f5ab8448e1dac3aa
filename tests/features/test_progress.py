from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from scripts.features.progress import ExtractionProgress, SlideToExtract


def bag(patches, orphans=0):
    """A bag of so many patches, in two scales."""
    coords = [np.zeros((1, 2)), np.zeros((patches - 1, 2))]
    return SimpleNamespace(grid=SimpleNamespace(coords=coords, orphans=orphans))


@pytest.fixture
def bar():
    with tqdm(total=0, disable=False) as shown:
        yield shown


def test_what_is_left_is_estimated_by_the_bytes_of_the_files(bar):
    todo = [SlideToExtract(0, [0], 100), SlideToExtract(1, [0, 1], 50), SlideToExtract(2, [0], 300)]
    progress = ExtractionProgress(todo, bar)
    progress.open(todo[0], bag(10))
    assert bar.total == 10 / 100 * (100 + 2 * 50 + 300)
    progress.open(todo[1], bag(20))
    assert bar.total == (10 + 2 * 20) / 200 * 500


def test_a_slide_that_cannot_be_opened_is_expected_no_more(bar):
    todo = [SlideToExtract(0, [0], 100), SlideToExtract(1, [0], 300), SlideToExtract(2, [0], 100)]
    progress = ExtractionProgress(todo, bar)
    progress.open(todo[0], bag(10))
    progress.lose(todo[1])
    progress.open(todo[2], bag(20))
    assert bar.total == 10 + 20
    assert progress.slides.add() == 3


def test_what_was_encoded_of_a_slide_that_breaks_off_counts_no_more(bar):
    todo = [SlideToExtract(0, [0, 1, 2], 100), SlideToExtract(1, [0], 100)]
    progress = ExtractionProgress(todo, bar)
    progress.open(todo[0], bag(10, orphans=4))
    progress.start_view()
    progress.add(10)
    progress.end_view(0)
    progress.start_view()
    progress.add(3)
    progress.show()
    progress.add(2)
    progress.give_up(todo[0], bag(10, orphans=4), views=2)
    assert bar.n == 10
    assert progress.patches.add() == 10
    assert (progress.plain_banks.add(), progress.view_banks.add()) == (1, 0)
    assert progress.orphans.add() == 4  # of the bank that is there
    progress.open(todo[1], bag(30, orphans=1))
    assert bar.total == 10 + 30
    progress.start_view()
    progress.give_up(todo[1], bag(30, orphans=1), views=1)
    assert progress.orphans.add() == 4
