"""Rules on a bundle's files: each fails for its own reason."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.archive import unpack
from bundle.checked import Bundle, NotChecked
from bundle.rules_files import RULES, SECTIONS
from scripts.core.errors import SettingsError
from tests.bundles import copied, write


@pytest.fixture
def bundle(packed_zip: Path, tmp_path: Path) -> Bundle:
    """A packed bundle that a test may change."""
    return Bundle(unpack(packed_zip, tmp_path), "zip")


def broken(rule: str, bundle: Bundle) -> str:
    with pytest.raises(SettingsError) as error:
        RULES[rule](bundle)
    return str(error.value)


def change(name: str, edit: Callable[[str], str]) -> Callable[[Path], object]:
    """An edit of a text file of a bundle."""
    return lambda root: write(root, name, edit((root / name).read_text(encoding="utf-8")))


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def swap_sections(text: str) -> str:
    """A card with Data after Performance."""
    head, data, rest = re.split(r"(?=^## \*\*(?:Data|Performance)\*\*$)", text, flags=re.MULTILINE)
    return head + rest + data


@pytest.mark.parametrize("rule", RULES)
def test_a_packed_bundle_keeps_every_rule(bundle: Bundle, rule: str) -> None:
    RULES[rule](bundle)


@pytest.mark.parametrize(
    ("rule", "edit", "message"),
    [
        ("necessary files", remove("LICENSE"), "LICENSE: there is no such file"),
        ("necessary files", remove("configs/inference.json"), "configs/inference.json: there is no such file"),
        ("weights file", remove("models/model.pt"), "models/model.pt: there is no such file"),
        ("weights file", lambda r: write(r, "models/best.pt", "x"), "models/best.pt: has a name as short as model.pt"),
        ("weights file", lambda r: write(r, "models/other.pt", "x"), "models/other.pt: has a name as short as"),
        (
            "nothing else",
            lambda r: write(r, "models/last.ckpt", "x"),
            "models/last.ckpt: does not belong into a bundle.",
        ),
        ("nothing else", lambda r: write(r, "scripts/__pycache__/a.pyc", "x"), "a.pyc: does not belong"),
        ("checksums", remove("SHA256SUMS"), "SHA256SUMS: there is no such file"),
        ("checksums", remove("docs/settings.md"), "docs/settings.md: there is no such file, and SHA256SUMS lists it"),
        ("checksums", change("scripts/bags/bag.py", lambda t: t + "\n"), "scripts/bags/bag.py: is not what was packed"),
        ("checksums", lambda r: write(r, "scripts/new.py", ""), "scripts/new.py: is not listed in SHA256SUMS"),
        ("checksums", change("SHA256SUMS", lambda t: "abc  x\n" + t), "has the line 'abc  x'"),
        ("checksums", change("SHA256SUMS", lambda t: t + t), "SHA256SUMS: lists LICENSE more than once. Get the zip"),
        ("large_files.yml", remove("large_files.yml"), "large_files.yml: cannot be read"),
        ("licence", change("LICENSE", lambda t: t.replace("irrevocable", "revocable", 1)), "is not the text of"),
        ("licence", lambda r: write(r, "LICENSE", "MIT\n"), "is not the text of the Apache License 2.0"),
        ("data licence", remove("docs/data_license.txt"), "docs/data_license.txt: cannot be read"),
        ("data licence", lambda r: write(r, "docs/data_license.txt", " \n"), "docs/data_license.txt: is empty"),
        ("model card", change("docs/README.md", lambda t: t.replace("**Tags**", "**Words**")), "no section Tags."),
        (
            "model card",
            change("docs/README.md", swap_sections),
            "sections in the order Authors, Tags, Model Description, P",
        ),
        ("model card", lambda r: write(r, "docs/README.md", "text\n"), "docs/README.md: has no title"),
        ("model card", lambda r: write(r, "docs/README.md", "# Authors\n"), "docs/README.md: has no title"),
    ],
)
def test_a_broken_rule_says_what_is_wrong(
    bundle: Bundle, rule: str, edit: Callable[[Path], object], message: str
) -> None:
    edit(bundle.root)
    assert message in broken(rule, Bundle(bundle.root, "zip"))


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("main", "so MONAI Label would not serve it"),
        ("pathology_mustmil_segmentation_classification", "so MONAI Label would not serve it"),
        ("pathology_mustmil_classification_v0.3.0", "is not the bundle's name. Name the folder pathology_mustmil"),
    ],
)
def test_the_folder_has_the_name_that_monai_label_reads(bundle: Bundle, name: str, served: str) -> None:
    root = bundle.root.rename(bundle.root.with_name(name))
    assert served in broken("folder name", Bundle(root, "folder"))
    with pytest.raises(NotChecked, match="a repository's folder may have any name"):
        RULES["folder name"](Bundle(root, "repository"))


def test_large_weights_may_be_downloaded_instead(bundle: Bundle) -> None:
    (bundle.root / "models" / "model.pt").unlink()
    write(
        bundle.root, "large_files.yml", "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"
    )
    RULES["weights file"](bundle)


def test_a_file_is_too_large_unless_it_is_downloaded_from_elsewhere(bundle: Bundle) -> None:
    with open(bundle.root / "models" / "model.pt", "ab") as weights:
        weights.truncate(30 * 1024**2)
    assert "models/model.pt: has 30 MB, and the Model Zoo takes files of at most 25 MB" in broken("file sizes", bundle)
    write(
        bundle.root, "large_files.yml", "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"
    )
    RULES["file sizes"](bundle)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_checksum_of_a_large_file_has_to_be_true(bundle: Bundle, kind: str) -> None:
    entry = "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n  hash_val: {}\n"
    entry += "" if kind == "md5" else f"  hash_type: {kind}\n"
    content = (bundle.root / "models" / "model.pt").read_bytes()
    write(bundle.root, "large_files.yml", entry.format(hashlib.new(kind, content).hexdigest()))
    RULES["large_files.yml"](bundle)
    wrong = hashlib.new(kind, b"other").hexdigest()
    write(bundle.root, "large_files.yml", entry.format(f'"{wrong}"'))
    assert "its hash_val of models/model.pt is not the file's" in broken("large_files.yml", bundle)


def test_a_folder_that_was_used_may_have_more_files_but_none_that_was_changed(bundle: Bundle) -> None:
    folder = Bundle(bundle.root, "folder")
    write(bundle.root, "output/predictions.csv", "x")
    RULES["checksums"](folder)
    with pytest.raises(NotChecked, match="only a zip must have nothing beside"):
        RULES["nothing else"](folder)
    write(bundle.root, "LICENSE", "x")
    assert "LICENSE: is not what was packed" in broken("checksums", folder)


def test_a_repository_has_no_checksums_yet_and_its_other_files_do_not_count(
    trained_repository: Path, tmp_path: Path
) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, "bundle/contents.py", "")
    (root / "data").mkdir()
    with open(root / "data" / "slide.svs", "wb") as slide:
        slide.truncate(30 * 1024**2)
    repository = Bundle.of_folder(root, {})
    with pytest.raises(NotChecked, match="no SHA256SUMS; packing writes it"):
        RULES["checksums"](repository)
    RULES["file sizes"](repository)


def test_sections_in_a_code_block_are_none_and_optional_ones_may_be_left_out(bundle: Bundle) -> None:
    names = [name for name, needed in SECTIONS.items() if needed]
    card = "# Title\n" + "".join(f"## {name}\n\n```sh\n# Authors\n```\n" for name in names)
    write(bundle.root, "docs/README.md", card)
    RULES["model card"](bundle)
    write(bundle.root, "docs/README.md", card + "## **References** (Optional)\n## **Limitations**\n")
    assert "References, Limitations. Order them as" in broken("model card", bundle)


def test_a_licence_that_repeats_its_title_is_read_quickly(bundle: Bundle) -> None:
    write(bundle.root, "LICENSE", "Apache License Version 2.0 " * 200_000)
    start = time.perf_counter()
    assert "is not the text of" in broken("licence", bundle)
    assert time.perf_counter() - start < 5
