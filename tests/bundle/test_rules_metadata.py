"""Rules on the metadata: each fails for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.checked import Bundle, NotChecked
from bundle.rules_metadata import RULES
from bundle.verify import load_schema
from scripts.core.errors import SettingsError
from tests.bundles import change_json, copied, write
from tests.conftest import ROOT

Metadata = dict[str, Any]


@pytest.fixture
def root(trained_repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    folder = copied(trained_repository, tmp_path)
    for name in ("constraints.txt", "pyproject.toml", "CITATION.cff"):
        write(folder, name, (ROOT / name).read_text(encoding="utf-8"))
    return folder


def check(rule: str, root: Path) -> None:
    RULES[rule](Bundle(root, "repository", load_schema()))


def broken(rule: str, root: Path, change: Callable[[Metadata], object]) -> str:
    change_json(root, "configs/metadata.json", change)
    with pytest.raises(SettingsError) as error:
        check(rule, root)
    return str(error.value)


def pred(metadata: Metadata) -> Metadata:
    result: Metadata = metadata["network_data_format"]["outputs"]["pred"]
    return result


def image(metadata: Metadata) -> Metadata:
    result: Metadata = metadata["network_data_format"]["inputs"]["image"]
    return result


@pytest.mark.parametrize("rule", RULES)
def test_this_repository_keeps_every_rule(rule: str, root: Path) -> None:
    check(rule, root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("schema"), "'schema' is a required property"),
        (lambda m: m.pop("copyright"), "'copyright' is a required property"),
        (
            lambda m: m.update(version=1),
            "configs/metadata.json#version: does not meet MONAI's schema: 1 is not of type",
        ),
        (lambda m: m.update(references="a"), "#references"),
        (lambda m: m["references"].append(3), "#references#1"),
        (lambda m: m.update(required_packages_version=["torch"]), "#required_packages_version"),
        (lambda m: m["network_data_format"].pop("outputs"), "#network_data_format: does not"),
        (lambda m: m.update(teacher_data_format={}), "#teacher_data_format"),
        (lambda m: image(m).pop("dtype"), "#network_data_format#inputs#image"),
        (lambda m: image(m).update(num_channels="8"), "#network_data_format#inputs#image"),
        (lambda m: image(m).update(spatial_shape=[2.5]), "#network_data_format#inputs#image"),
        (lambda m: pred(m).update(value_range=["0"]), "#network_data_format#outputs#pred"),
    ],
)
def test_metadata_of_another_form_is_refused_at_its_place(
    root: Path, change: Callable[[Metadata], object], message: str
) -> None:
    text = broken("metadata", root, change)
    assert message in text
    assert len(text) < 400


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(more={"anything": None}),
        lambda m: m.pop("changelog"),
        lambda m: image(m).update(spatial_shape=["*", "16 * n", 3]),
        lambda m: m["network_data_format"]["inputs"].update(threshold=0.5, name="x", fast=True),
    ],
)
def test_what_monai_leaves_open_is_left_open(root: Path, change: Callable[[Metadata], object]) -> None:
    change_json(root, "configs/metadata.json", change)
    check("metadata", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version="1.0"), "configs/metadata.json#version: is '1.0'"),
        (lambda m: m.update(version="v1.0.0"), "Write it as MAJOR.MINOR.PATCH"),
        (lambda m: m.update(version="01.0.0"), "is '01.0.0'"),
        (lambda m: m["changelog"].pop(m["version"]), "configs/metadata.json#changelog: does not have"),
        (lambda m: m.pop("changelog"), "configs/metadata.json#changelog: does not have"),
    ],
)
def test_the_version_is_semantic_and_in_the_changelog(
    root: Path, change: Callable[[Metadata], object], message: str
) -> None:
    assert message in broken("version", root, change)


@pytest.mark.parametrize("number", ["9.10.11", "1.0.0-rc.1", "1.0.0+build.5"])
@pytest.mark.parametrize("name", ["scripts/__init__.py", "pyproject.toml", "CITATION.cff"])
def test_the_version_is_the_same_everywhere(root: Path, name: str, number: str) -> None:
    old = Bundle(root, "zip").metadata["version"]
    message = broken("version", root, lambda m: m.update(version=number, changelog={number: "new"}))
    assert message.startswith(f"scripts/__init__.py: has the version {old}, and configs/metadata.json {number}")
    for other in {"scripts/__init__.py", "pyproject.toml", "CITATION.cff"} - {name}:
        write(root, other, (root / other).read_text(encoding="utf-8").replace(old, number))
    with pytest.raises(SettingsError, match=f"{name}: has the version {old}"):
        check("version", root)
    write(root, name, (root / name).read_text(encoding="utf-8").replace(old, number))
    check("version", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(monai_version="1.0.0"), ", monai: has the version 1.0.0, and constraints.txt 1."),
        (lambda m: m["required_packages_version"].update(h5py="0.1"), ", h5py: has the version 0.1, and constraints"),
        (
            lambda m: m.update(optional_packages_version={"nothing": "1"}),
            ", nothing: has the version 1, and constraints.t",
        ),
        (lambda m: m["required_packages_version"].update(h5py=">=3"), ", h5py: has the version '>=3'. Write one exact"),
        (lambda m: m.pop("numpy_version"), ", numpy: has the version None"),
    ],
)
def test_package_versions_are_those_that_are_pinned(
    root: Path, change: Callable[[Metadata], object], message: str
) -> None:
    assert message in broken("packages", root, change)


def test_package_names_are_compared_as_registries_do(root: Path) -> None:
    change_json(root, "configs/metadata.json", lambda m: m["required_packages_version"].update({"PyYAML": "6.0.3"}))
    write(root, "constraints.txt", (root / "constraints.txt").read_text(encoding="utf-8") + "typing_extra==1\n")
    change_json(root, "configs/metadata.json", lambda m: m["required_packages_version"].update({"Typing.Extra": "1"}))
    check("packages", root)


def test_a_packed_bundle_has_no_pins_to_compare_with(root: Path) -> None:
    with pytest.raises(NotChecked, match=r"no constraints.txt"):
        RULES["packages"](Bundle(root, "zip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("network_data_format"), "configs/metadata.json#network_data_format: is missing"),
        (lambda m: m["network_data_format"].update(outputs={}), "#outputs: begins with 'nothing'. Put `pred` first."),
        (
            lambda m: m["network_data_format"].update(outputs={"attention": pred(m), "pred": pred(m)}),
            "#outputs: begins with 'attention'",
        ),
        (lambda m: pred(m).pop("channel_def"), "#outputs#pred#channel_def: is missing"),
        (lambda m: pred(m).update(channel_def={"1": "a", "2": "b"}), "has the keys 1, 2. Number the classes"),
        (lambda m: pred(m).update(channel_def={}), "has the keys none"),
        (lambda m: pred(m).update(channel_def={"0": "a", "1": "Background"}), "which MONAI Label drops"),
        (lambda m: pred(m).update(channel_def={"0": "Cancer", "1": "cancer"}), "names two classes alike"),
    ],
)
def test_monai_label_finds_the_classes(root: Path, change: Callable[[Metadata], object], message: str) -> None:
    assert message in broken("label names", root, change)
