"""A bundle that is checked: its files, and its own `scripts` in the place of the repository's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bundle.checked import Bundle, NotChecked, own_scripts
from scripts.core import errors
from scripts.core.errors import SettingsError
from tests.bundles import write
from tests.conftest import ROOT


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A folder whose `scripts` has two modules of its own."""
    write(tmp_path, "scripts/__init__.py", "")
    write(tmp_path, "scripts/other.py", "from scripts.core.errors import NAME\n")
    write(tmp_path, "scripts/core/errors.py", "NAME = 'of the bundle'\n")
    return Bundle(tmp_path, "folder")


def test_a_bundle_uses_its_own_scripts_and_the_repository_has_its_own_again(bundle: Bundle) -> None:
    path = list(sys.path)
    with own_scripts(bundle.root):
        import scripts.other  # type: ignore[import-not-found]

        assert scripts.other.NAME == "of the bundle"
        assert not hasattr(sys.modules["scripts.core.errors"], "SettingsError")
        with pytest.raises(ModuleNotFoundError):
            import scripts.bags.bag
    assert sys.modules["scripts.core.errors"] is errors
    assert "scripts.other" not in sys.modules
    assert sys.path == path


def test_the_repository_has_its_scripts_again_after_an_error(bundle: Bundle) -> None:
    with pytest.raises(ZeroDivisionError), own_scripts(bundle.root):
        raise ZeroDivisionError
    assert sys.modules["scripts.core.errors"] is errors


def test_two_bundles_do_not_share_a_module(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    second = tmp_path_factory.mktemp("second")
    write(second, "scripts/__init__.py", "")
    write(second, "scripts/core/errors.py", "NAME = 'of the second'\n")
    names = []
    for root in (bundle.root, second, bundle.root):
        with own_scripts(root):
            import scripts.core.errors

            names.append(scripts.core.errors.NAME)  # type: ignore[attr-defined]
    assert names == ["of the bundle", "of the second", "of the bundle"]


def test_a_bundle_without_the_package_does_not_get_the_repositorys(bundle: Bundle) -> None:
    (bundle.root / "scripts" / "__init__.py").unlink()
    with pytest.raises(SettingsError, match=r"scripts/__init__.py: there is no such file"), own_scripts(bundle.root):
        pass


def test_checking_leaves_no_caches(bundle: Bundle) -> None:
    before = bundle.files
    with own_scripts(bundle.root):
        import scripts.other  # noqa: F401
    assert Bundle(bundle.root, "folder").files == before


def test_a_folder_is_a_bundle_and_this_one_a_repository(tmp_path: Path) -> None:
    assert Bundle.of_folder(ROOT, {}).kind == "repository"
    assert Bundle.of_folder(tmp_path, {}).kind == "folder"


def test_of_a_repository_only_what_is_packed_counts(tmp_path: Path) -> None:
    for name in ("bundle/contents.py", "scripts/a.py", "models/model.pt", "models/last.ckpt", "data/slide.svs"):
        write(tmp_path, name, "x")
    assert Bundle.of_folder(tmp_path, {}).files == ["models/model.pt", "scripts/a.py"]
    assert "data/slide.svs" in Bundle(tmp_path, "zip").files


def test_files_that_cannot_be_read_are_named_in_one_line(bundle: Bundle) -> None:
    write(bundle.root, "configs/metadata.json", "[1]")
    write(bundle.root, "configs/train.json", "{,")
    write(bundle.root, "configs/deep.json", "[" * 100_000)
    (bundle.root / "LICENSE").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"configs/metadata.json: holds no JSON object"):
        _ = bundle.metadata
    with pytest.raises(SettingsError, match=r"configs/train.json: is not JSON"):
        bundle.config("train")
    with pytest.raises(SettingsError, match=r"configs/deep.json: is not JSON"):
        bundle.config("deep")
    with pytest.raises(SettingsError, match=r"configs/inference.json: cannot be read \(No such file"):
        bundle.config("inference")
    with pytest.raises(SettingsError, match=r"LICENSE: is not UTF-8"):
        bundle.text("LICENSE")


def test_only_a_zip_has_to_have_weights(bundle: Bundle) -> None:
    with pytest.raises(NotChecked, match=r"no models/model.pt. Run training: python -m monai.bundle run training"):
        bundle.weights()
    with pytest.raises(SettingsError, match=r"models/model.pt: there is no such file"):
        Bundle(bundle.root, "zip").weights()
    write(bundle.root, "models/model.pt", "x")
    assert bundle.weights() == bundle.root / "models" / "model.pt"


def test_a_pipe_in_the_place_of_a_text_is_an_error_and_no_endless_wait(bundle: Bundle) -> None:
    os.mkfifo(bundle.root / "LICENSE")
    with pytest.raises(SettingsError, match="LICENSE: is a pipe, a device or a socket, not a file"):
        bundle.text("LICENSE")
