import cv2
import numpy as np
import pytest

from scripts.synthetic.tissue import CLASSES, MASK_STEP_PX, Stain, background, draw_tissue, sample_stain

STAIN = Stain(1.0, 1.0, (243.0, 243.0, 243.0))
SIDE = 96  # mask pixels: 0.77 mm


def drawn(name: str | None, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """A square full of one class, or of plain stroma, as RGB at 0.5 um/px."""
    rng = np.random.default_rng(seed)
    glass = background(side * MASK_STEP_PX, side * MASK_STEP_PX, STAIN, rng)
    labels = np.full((side, side), 0 if name is None else CLASSES.index(name) + 1, np.uint8)
    draw_tissue(glass, np.ones((side, side), np.float32), labels, STAIN, rng)
    return glass


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    size = (image.shape[1] // factor, image.shape[0] // factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float64)


def fine_detail(image: np.ndarray) -> float:
    """Spread, in grey levels, of what 10x shows of the inside of dark glands and 5x does not."""
    grey = shrunk(image, 2).mean(axis=2)
    coarse = cv2.resize(shrunk(image, 4).mean(axis=2), grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    inside = cv2.erode((coarse < 125).astype(np.uint8), np.ones((7, 7))) > 0
    return float((grey - coarse)[inside].std())


def large_crypts(image: np.ndarray) -> np.ndarray:
    """(x, y) of the wide, white lumina, in micrometres."""
    white = (shrunk(image, 8).min(axis=2) > 215).astype(np.uint8)
    _, _, stats, centres = cv2.connectedComponentsWithStats(white)
    wide = stats[:, cv2.CC_STAT_AREA] > np.pi * (20 / 4) ** 2
    wide[0] = False
    return centres[wide] * 4


def test_empty_glass_is_nearly_white_and_not_quite_even():
    glass = background(300, 200, STAIN, np.random.default_rng(0))
    assert glass.shape == (200, 300, 3)
    assert glass.mean() == pytest.approx(243, abs=1)
    assert 0.2 < glass.std() < 3


def test_stains_vary_mildly():
    stains = [sample_stain(np.random.default_rng(seed)) for seed in range(20)]
    assert len({stain.haematoxylin for stain in stains}) == 20
    assert all(0.93 <= stain.eosin <= 1.07 and min(stain.white) > 230 for stain in stains)


def test_nothing_is_painted_where_there_is_no_tissue():
    rng = np.random.default_rng(0)
    glass = background(640, 640, STAIN, rng)
    before = glass.copy()
    tissue = np.zeros((40, 40), np.float32)
    tissue[:, :20] = 1
    draw_tissue(glass, tissue, np.zeros((40, 40), np.uint8), STAIN, rng)
    assert (np.abs(glass[:, 340:].astype(int) - before[:, 340:]) <= 1).all()
    assert glass[:, :300, 1].mean() < 190


def test_stroma_is_pink_and_a_tumour_is_darker_and_bluer():
    stroma, cancer = drawn(None).mean(axis=(0, 1)), drawn("cancer").mean(axis=(0, 1))
    assert stroma[0] > stroma[2] > stroma[1]
    assert (cancer < stroma).all()
    assert cancer[2] / cancer[0] > stroma[2] / stroma[0]


def test_high_and_low_grade_differ_in_fine_detail_alone():
    hgd, lgd = drawn("hgd"), drawn("lgd")
    assert fine_detail(hgd) > 15
    assert fine_detail(hgd) > 2 * fine_detail(lgd)
    difference_at_5x = np.abs(shrunk(hgd, 4) - shrunk(lgd, 4))
    assert difference_at_5x.mean() < 1  # of 255 grey levels
    assert np.abs(hgd.mean(axis=(0, 1)) - lgd.mean(axis=(0, 1))).max() < 0.5


def test_hyperplastic_and_normal_have_as_many_large_crypts_differently_placed():
    places = {name: [large_crypts(drawn(name, seed, side=180)) for seed in range(4)] for name in CLASSES[3:]}
    counts = {name: sum(len(found) for found in drawings) for name, drawings in places.items()}
    assert counts["hyperplastic"] == pytest.approx(counts["normal"], rel=0.25)
    nearest = {}
    for name, drawings in places.items():
        for found in drawings:
            apart_um = np.abs(found[:, None] - found[None])
            np.fill_diagonal(apart_um[..., 0], np.inf)
            # No square of 224 um, a 10x patch, holds the middles of two.
            assert apart_um.max(axis=2).min() > 224
            nearest.setdefault(name, []).extend(np.hypot(*np.moveaxis(apart_um, 2, 0)).min(axis=1))
    assert np.median(nearest["hyperplastic"]) == pytest.approx(240, abs=12)
    assert np.median(nearest["normal"]) == pytest.approx(240 * 2**0.5, abs=12)
