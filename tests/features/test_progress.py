import pytest
from tqdm import tqdm

from scripts.features.progress import ExtractionProgress, SlideToExtract

TODO = [SlideToExtract(0, [0], 100), SlideToExtract(1, [0, 1], 50), SlideToExtract(2, [0], 300)]


@pytest.fixture
def bar():
    with tqdm(total=0, disable=False) as shown:
        yield shown


def test_the_bar_counts_the_bytes_of_each_slide_once_for_each_view(bar):
    progress = ExtractionProgress(TODO, bar)
    assert bar.total == 100 + 2 * 50 + 300
    progress.begin("a")
    progress.end(TODO[0])
    assert bar.n == 100
    progress.begin("b")
    progress.add(12.5)
    progress.add(12.5)
    progress.show()
    assert bar.n == 125
    progress.name("b view 1")
    assert bar.postfix == "slide 2/3 b view 1"


def test_a_slide_that_fails_has_had_its_turn(bar):
    progress = ExtractionProgress(TODO, bar)
    for slide, encoded in zip(TODO, (100, 20, 0), strict=True):
        progress.begin("s")
        progress.add(encoded)
        progress.end(slide)
    assert bar.n == bar.total
