"""What every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.made_once import made_once

if TYPE_CHECKING:
    from tests.preloaded import Preloaded

# Set before anything imports matplotlib or torch, and inherited by the processes that tests start: pictures
# need no display, small arrays on many threads are slower than on two, and threads that wait leave the cores to others.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# The same examples in every run: a failure by chance says nothing about the change that it falls on.
hypothesis.settings.register_profile("seeded", derandomize=True)
hypothesis.settings.load_profile("seeded")

ROOT = Path(__file__).resolve().parents[1]
REAL_SLIDE = ROOT.parent / "shared" / "slides" / "CMU-1-Small-Region.svs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole workflows first: a module of minutes that begins last leaves the other process with nothing to do."""
    items.sort(key=lambda item: item.path.parent.name != "workflows")


@pytest.fixture(autouse=True)
def same_import_path() -> Iterator[None]:
    """Leave no folder of one test to the next: MONAI adds ``.`` to the path, and Python remembers what that was."""
    path = list(sys.path)
    sys.path_importer_cache.pop(".", None)
    yield
    sys.path[:] = path
    sys.path_importer_cache.pop(".", None)


@pytest.fixture(scope="session")
def real_slide() -> Path:
    """A region of a real H&E slide: Aperio, 20x, 0.499 um/px, one level, 2220 x 2967 px."""
    if not REAL_SLIDE.is_file():
        pytest.skip(f"no file {REAL_SLIDE}: put OpenSlide's test slide {REAL_SLIDE.name} there")
    return REAL_SLIDE


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """A process that has torch and MONAI loaded, from which tests fork their commands."""
    from tests.preloaded import Preloaded

    with Preloaded(tmp_path_factory.mktemp("preloaded")) as process:
        yield process


@pytest.fixture(scope="session")
def trained_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this repository that are packed, with random weights; to be copied before it is changed."""
    # A helper that needs torch, which most tests of small parts do not.
    from tests.bundles import make_repository

    return make_repository(tmp_path_factory.mktemp("trained_repository"))


@pytest.fixture(scope="session")
def packed_zip(trained_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip of that repository."""
    from bundle.pack import pack

    models = trained_repository / "models"
    folder = made_once(tmp_path_factory, "packed", lambda folder: pack(trained_repository, models, folder))
    return next(folder.glob("*.zip"))
