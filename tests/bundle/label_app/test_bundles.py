"""Which bundles the MONAI Label app serves, and that its environment has what they import."""

import json
import re
import tomllib

import pytest

from bundle.label_app.lib.bundles import check_configs, find_bundles
from bundle.label_app.lib.reasons import RequestError
from tests.conftest import ROOT

APP = ROOT / "bundle" / "label_app"


def add_bundle(model_dir, name, config="inference.json"):
    (model_dir / name / "configs").mkdir(parents=True)
    (model_dir / name / "configs" / config).write_text("{}", encoding="utf-8")


def test_every_bundle_of_the_folder_is_served_unless_some_are_named(tmp_path):
    for name in ("mustmil_v1", "mustmil_v2"):
        add_bundle(tmp_path, name)
    add_bundle(tmp_path, "no_bundle", config="other.json")
    (tmp_path / "mustmil_v1.zip").touch()
    v1, v2 = str(tmp_path / "mustmil_v1"), str(tmp_path / "mustmil_v2")
    assert find_bundles(tmp_path, {}) == {"mustmil_v1": v1, "mustmil_v2": v2}
    assert find_bundles(tmp_path, {"models": "mustmil_v2"}) == {"mustmil_v2": v2}
    assert list(find_bundles(tmp_path, {"models": "mustmil_v2, mustmil_v1"})) == ["mustmil_v2", "mustmil_v1"]


def test_a_bundle_that_is_not_there_is_told_and_never_downloaded(tmp_path):
    add_bundle(tmp_path, "mustmil_v1")
    with pytest.raises(RequestError, match="models: there is no 'spleen'. .* has mustmil_v1."):
        find_bundles(tmp_path, {"models": "spleen"})


def test_an_app_without_a_bundle_says_how_to_get_one(tmp_path):
    with pytest.raises(RequestError, match=r"holds no bundle. Download one into it: python -m monai.bundle download"):
        find_bundles(tmp_path, {})


FORMATS = {"network_data_format": {"inputs": {"image": {}}, "outputs": {"pred": {}}}}


@pytest.fixture
def bundle(tmp_path):
    add_bundle(tmp_path, "mustmil")
    (tmp_path / "mustmil" / "configs" / "metadata.json").write_text(json.dumps(FORMATS), encoding="utf-8")
    return tmp_path / "mustmil"


def test_a_bundle_whose_settings_can_be_read_passes(bundle):
    check_configs(bundle)
    check_configs(ROOT)


@pytest.mark.parametrize(
    ("file", "text", "cause"),
    [
        ("inference.json", "{", "cannot be read as JSON (Expecting property name"),
        ("inference.json", "[]", "holds a list, not a dictionary."),
        ("train.json", "no JSON", "cannot be read as JSON (Expecting value"),
        ("metadata.json", None, "there is no such file."),
        ("metadata.json", "{}", "has no network_data_format with inputs."),
        ("metadata.json", '{"network_data_format": {"inputs": {"image": {}}}}', "network_data_format with outputs."),
        ("metadata.json", '{"network_data_format": {"inputs": {"image": 1}}}', "network_data_format with inputs."),
    ],
)
def test_a_bundle_whose_settings_cannot_be_read_is_told_with_the_file(bundle, file, text, cause):
    path = bundle / "configs" / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as refusal:
        check_configs(bundle)
    assert str(refusal.value).startswith(f"{path}: ")
    assert cause in str(refusal.value)


def names(requirements):
    return {re.split(r"[<>=~; @]", line.strip())[0].lower().replace("_", "-") for line in requirements if line.strip()}


def plain(path):
    return [line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_environment_has_every_dependency_of_the_bundle():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert names(project["dependencies"]) <= names(plain(APP / "requirements.txt"))


def test_every_requirement_is_pinned_and_no_address_is_in_the_files():
    constraints = plain(APP / "constraints.txt")
    assert names(plain(APP / "requirements.txt")) <= names(constraints)
    assert all("==" in line for line in constraints if line.strip())
    for path in (APP / "requirements.txt", APP / "constraints.txt"):
        assert not re.search(r"://|@ |--index|/home|/opt|/tmp", path.read_text(encoding="utf-8"))
