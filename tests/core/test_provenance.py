"""What made a file: nothing but what decides its content, the same for the same run, and nothing private."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import platform
import subprocess
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch

from scripts import __version__
from scripts.core import provenance
from scripts.core.errors import SettingsError
from scripts.core.provenance import cohort_fingerprint, git_state, made_by, software
from scripts.slides.backends import BACKENDS


def git(root: Path, *args: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *args], cwd=root, check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    ).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree with one commit."""
    for name in ("scripts/a.py", "configs/train.json", "docs/settings.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    """A process asks git once."""
    provenance._git_state.cache_clear()


def test_versions_are_those_of_what_runs() -> None:
    told = software()
    assert told["bundle"] == f"pathology-mustmil {__version__}"
    versions = told["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["monai"] == monai.__version__
    assert versions["numpy"] == np.__version__


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_reader_has_a_version(backend):
    known = set(software(backend)["versions"])
    assert any(name.partition("-")[0] == backend for name in known)


def test_of_the_readers_only_the_one_in_use_is_told() -> None:
    openslide, cucim = (software(name)["versions"].keys() for name in ("openslide", "cucim"))
    assert {name for name in openslide if "slide" in name or "cucim" in name} == {"openslide-python", "openslide-bin"}
    assert {name.split("-")[0] for name in cucim if "slide" in name or "cucim" in name} == {"cucim"}


def test_a_run_tells_its_configuration_seed_and_hashes(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"s1,1\n")
    told = made_by({"magnifications": (5, 10)}, 3, tmp_path / "list.csv", backbone_sha256="ab", data={"n": 1})
    assert told["configuration"] == {"magnifications": [5, 10]}
    assert told["seed"] == 3
    assert told["datalist_sha256"] == hashlib.sha256(b"s1,1\n").hexdigest()
    assert (told["backbone_sha256"], told["data"]) == ("ab", {"n": 1})
    assert told == json.loads(json.dumps(told))
    assert made_by({}, 0)["datalist_sha256"] is None
    with pytest.raises(SettingsError, match=r"none\.csv: cannot be read"):
        made_by({}, 0, tmp_path / "none.csv")


def test_it_is_the_same_every_time_and_names_no_place_machine_or_user(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"s1,1\n")
    told = [json.dumps(made_by({"lr": 0.1}, 0, tmp_path / "list.csv")) for _ in range(2)]
    assert told[0] == told[1]
    for private in (str(tmp_path), "/", platform.node(), f'"{getpass.getuser()}"'):
        assert private not in told[0]


def test_the_revision_is_gits_and_a_changed_tree_is_told(tree: Path) -> None:
    head = git(tree, "rev-parse", "HEAD")
    assert git_state(tree) == {"revision": head, "changed": False}
    (tree / "docs" / "settings.md").write_text("2\n")  # does not run
    asked_again(tree, {"revision": head, "changed": False})
    (tree / "configs" / "new.json").write_text("{}")
    asked_again(tree, {"revision": head, "changed": True})
    (tree / "configs" / "new.json").unlink()
    (tree / "scripts" / "a.py").write_text("2\n")
    asked_again(tree, {"revision": head, "changed": True})


def asked_again(tree: Path, wanted: dict[str, Any]) -> None:
    provenance._git_state.cache_clear()
    assert git_state(tree) == wanted


def test_a_hook_of_another_repository_does_not_lend_its_revision(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tree / "elsewhere"))
    state = git_state(tree)
    assert state is not None
    assert state["revision"] == git(tree, "rev-parse", "HEAD")


def test_a_bundle_that_was_unpacked_into_somebodys_repository_has_no_revision(tree: Path) -> None:
    (tree / "bundles" / "ours").mkdir(parents=True)
    assert git_state(tree / "bundles" / "ours") is None


def test_a_revision_that_git_does_not_tell_is_missed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".git").mkdir()  # no repository
    with caplog.at_level(logging.WARNING):
        assert git_state(tmp_path) is None
    assert "git does not tell the revision" in caplog.text


def entries(folder: str = "/a", **labels: list[int]) -> list[dict[str, Any]]:
    return [
        {"slide": name, "label": np.array(label, np.float32), "image": f"{folder}/{name}.svs", "patient": name}
        for name, label in labels.items()
    ]


def test_a_cohort_is_known_by_its_slides_labels_and_their_order_and_not_by_where_they_lie() -> None:
    told = cohort_fingerprint(training=entries(s1=[1, 0], s2=[0, 1]), validation=entries(s3=[1, 1]))
    text = '[["s1", [1.0, 0.0]], ["s2", [0.0, 1.0]]]'
    assert told["training"] == {"slides": 2, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert told["validation"]["slides"] == 1
    (here,) = cohort_fingerprint(t=entries(s1=[1, 0], s2=[0, 1])).values()
    (there,) = cohort_fingerprint(t=entries("/b", s1=[1, 0], s2=[0, 1])).values()
    assert here == there == told["training"]
    others = [entries(s1=[1, 0], s2=[1, 1]), entries(s2=[0, 1], s1=[1, 0]), entries(s1=[1, 0], s4=[0, 1])]
    assert len({here["sha256"], *(cohort_fingerprint(t=other)["t"]["sha256"] for other in others)}) == 4
