"""What is packed: the files of a bundle that git knows, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bundle.contents import NAME, belongs, is_repository, shared_files
from scripts.core.errors import SettingsError
from tests.bundles import write
from tests.conftest import ROOT

JUNK = (
    "configs/.train.json.swp",
    "scripts/__pycache__/bags.cpython-311.pyc",
    "scripts/bags.pyc",
    "scripts/notes.txt",
    "docs/.DS_Store",
    "docs/guide.md~",
    "models/last.ckpt",
    "models/last.pt",
    "models/encoders/model.pt",
    "bundle/pack.py",
    "tests/bundle/test_pack.py",
    "eval/schema.json",
    "LICENSE.orig",
    "model.pt",
    "scripts",
    "",
)
FILES = (
    "configs/train.json",
    "configs/logging.conf",
    "scripts/bags/bag.py",
    "docs/README.md",
    "docs/pictures/map.png",
    "docs/data_license.txt",
    "models/README.md",
    "models/model.pt",
    "models/model_12.5x.pt",
    "LICENSE",
    "large_files.yml",
    "SHA256SUMS",
)


def test_monai_label_takes_the_name_for_a_classification() -> None:
    assert "classification" in NAME
    assert not any(task in NAME for task in ("deepedit", "deepgrow", "detection", "segmentation"))


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_bundle_belong(name: str) -> None:
    assert belongs(name)


@pytest.mark.parametrize("name", JUNK)
def test_everything_else_does_not(name: str) -> None:
    assert not belongs(name)


def test_without_git_all_that_belongs_is_packed_and_the_rest_beside_it_is_named(tmp_path: Path) -> None:
    for name in (*FILES, *JUNK[:-2]):
        write(tmp_path, name, "x")
    packed, left_out = shared_files(tmp_path)
    assert packed == sorted(name for name in FILES if not name.endswith(".pt") and name != "SHA256SUMS")
    assert left_out == ["docs/guide.md~", "scripts/bags.pyc", "scripts/notes.txt"]


def test_in_a_git_work_tree_only_tracked_files_are_packed(tmp_path: Path) -> None:
    for name in ("scripts/bags/bag.py", "scripts/tried.py", "docs/größe.md", "LICENSE", "large_files.yml"):
        write(tmp_path, name, "x")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "scripts/bags/bag.py", "docs", "LICENSE"], cwd=tmp_path, check=True)
    packed, left_out = shared_files(tmp_path)
    assert packed == ["LICENSE", "docs/größe.md", "scripts/bags/bag.py"]
    assert left_out == ["large_files.yml", "scripts/tried.py"]


def test_a_work_tree_that_git_cannot_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    write(tmp_path, ".git", "gitdir: nowhere\n")
    with pytest.raises(SettingsError, match="git cannot list its files") as error:
        shared_files(tmp_path)
    assert "\n" not in str(error.value)


def test_this_repository_is_told_from_a_bundle(tmp_path: Path) -> None:
    assert is_repository(ROOT)
    assert not is_repository(tmp_path)


@pytest.mark.parametrize("name", ["docs/a\udcffb.md", "docs/a\nb.md", "docs/a\\b.md", "docs/a:b.md"])
@pytest.mark.parametrize("in_git", [False, True])
def test_a_name_that_not_every_system_can_have_is_refused(tmp_path: Path, name: str, in_git: bool) -> None:
    write(tmp_path, name, "x")
    if in_git:
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
        subprocess.run(["git", "add", "docs"], cwd=tmp_path, check=True)
    with pytest.raises(SettingsError, match="has a name that not every system can have") as error:
        shared_files(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("link", ["docs/secret.txt", "docs"])
def test_a_link_is_refused(tmp_path: Path, link: str) -> None:
    write(tmp_path, "outside/secret.txt", "x")
    root = tmp_path / "root"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(tmp_path / "outside" / ("secret.txt" if "/" in link else ""))
    with pytest.raises(SettingsError, match=r"docs/secret.txt: is a link, or in a folder that is one"):
        shared_files(root)
