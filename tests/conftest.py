"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports matplotlib or torch, and inherited by the processes that tests start: pictures
# need no display, and small arrays on many threads are slower than on two.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).resolve().parents[1]
REAL_SLIDE = ROOT.parent / "shared" / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def real_slide() -> Path:
    """A region of a real H&E slide: Aperio, 20x, 0.499 um/px, one level, 2220 x 2967 px."""
    if not REAL_SLIDE.is_file():
        pytest.skip(f"no file {REAL_SLIDE}: put OpenSlide's test slide {REAL_SLIDE.name} there")
    return REAL_SLIDE
