"""A small cohort of drawn slides, and the shipped configs run on it as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from scripts.synthetic.cohort import make_cohort
from tests.conftest import ROOT
from tests.made_once import made_once
from tests.worlds import World

NUM_SLIDES = 6


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """The folder of a drawn cohort with its datalist."""
    return made_once(tmp_path_factory, "cohort", lambda folder: make_cohort(folder, NUM_SLIDES, seed=0))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> World:
    """Made once for all modules: none of them changes what another uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def world(small_world) -> Iterator[World]:
    """Eight small slides and a training on them; a module runs the shipped configs on them from the bundle's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield small_world


@pytest.fixture
def workflow(monkeypatch) -> Callable[..., None]:
    """Run a workflow of a shipped config in this process, from the bundle's root."""
    monkeypatch.chdir(ROOT)

    def run(run_id: str, config: str, **settings: Any) -> None:
        monai.bundle.run(run_id=run_id, config_file=f"configs/{config}.json", **settings)

    return run


@pytest.fixture
def command(preloaded) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a workflow by the command that the README gives, in a forked process; from the root if not told where.

    Words stand at the end of the command.
    """

    def run(
        run_id: str, config: str, *words: str, folder: Path = ROOT, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        options = [f"--{key}={value}" for key, value in settings.items()]
        file = Path("configs", f"{config}.json") if folder == ROOT else ROOT / "configs" / f"{config}.json"
        return preloaded.run("monai.bundle", "run", run_id, f"--config_file={file}", *options, *words, folder=folder)

    return run


@pytest.fixture
def typed() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a workflow as a user does, by a Python that has nothing loaded: seconds more than ``command`` takes."""

    def run(run_id: str, config: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        options = [f"--config_file=configs/{config}.json", *(f"--{key}={value}" for key, value in settings.items())]
        call = [sys.executable, "-m", "monai.bundle", "run", run_id, *options]
        return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)

    return run


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder that is not the bundle's, with another package of the name ``scripts`` in it."""
    folder = tmp_path / "elsewhere"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").write_text("OTHER = True\n")
    return folder


@pytest.fixture(scope="session")
def trained(cohort, tmp_path_factory) -> Path:
    """An output folder after ``training`` from the feature bank: weights in ``models``, the banks of all slides."""

    def make(output: Path) -> None:
        settings = {"dataset_dir": str(cohort), "output_dir": str(output)}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            monai.bundle.run(run_id="extracting", config_file="configs/extract.json", **settings)
            settings["ckpt_dir"] = str(output / "models")
            monai.bundle.run(run_id="training", config_file="configs/train.json", epochs=3, **settings)

    return made_once(tmp_path_factory, "trained", make)
