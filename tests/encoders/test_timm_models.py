"""Any model of timm as an encoder: `make test-encoders` runs these where timm is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone

timm = pytest.importorskip("timm", reason="timm is not installed: `make test-encoders` has an environment with it")


@pytest.fixture
def timm_weights(tmp_path: Path) -> Any:
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False)  # with its classifier, as on the hub
    torch.save(network.state_dict(), tmp_path / "vit_tiny.pth")
    return network, tmp_path / "vit_tiny.pth"


def test_any_model_of_timm_is_an_encoder(timm_weights: Any) -> None:
    network, path = timm_weights
    backbone = get_backbone("timm/vit_tiny_patch16_224", path)
    assert backbone.num_features == 192
    network.reset_classifier(0)
    patches = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network.eval()((patches.float() / 255 - mean) / std)
        torch.testing.assert_close(backbone(patches), expected, rtol=1e-3, atol=1e-4)


def test_a_model_that_timm_lacks_is_told(timm_weights: Any) -> None:
    with pytest.raises(SettingsError, match=r"backbone: timm .* cannot build vit_nano .*timm\.list_models"):
        get_backbone("timm/vit_nano", timm_weights[1])
    with pytest.raises(SettingsError, match=r"backbone timm/resnet18: needs weights\. Give the path"):
        get_backbone("timm/resnet18")


def test_a_size_that_a_model_does_not_take_is_told_with_what_to_do(tmp_path: Path) -> None:
    torch.save(timm.create_model("levit_128s", pretrained=False).state_dict(), tmp_path / "weights.pth")
    told = r"cannot compute patches \[2, 3, 256, 256\] .*\)\. Give a size that it takes as backbone_input, or none; or"
    with pytest.raises(SettingsError, match=told):
        get_backbone("timm/levit_128s", tmp_path / "weights.pth", given={"size": 256})


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "coatnet_nano_rw_224", "swin_tiny_patch4_window7_224"])
def test_constants_that_no_file_has_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = get_backbone(f"timm/{name}", tmp_path / "weights.pth")
    network.reset_classifier(0)
    patches = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network.eval()((patches.float() / 255 - mean) / std)
        torch.testing.assert_close(backbone(patches), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["levit_128s", "efficientvit_m0", "efficientvit_b0", "convnext_atto", "deit_tiny_distilled_patch16_224"]
)
def test_a_classifier_is_dropped_whatever_its_parts_are_called(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = get_backbone(f"timm/{name}", tmp_path / "weights.pth")
    features_alone = timm.create_model(name, pretrained=False, num_classes=0)
    features_alone.load_state_dict(network.state_dict(), strict=False)
    patches = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = features_alone.eval()((patches.float() / 255 - mean) / std)
        torch.testing.assert_close(backbone(patches), expected, rtol=1e-3, atol=1e-4)


def test_what_is_neither_the_network_nor_its_classifier_is_refused(timm_weights: Any, tmp_path: Path) -> None:
    state = timm_weights[0].state_dict()
    torch.save({**state, "head_dist.weight": state["head.weight"]}, tmp_path / "more.pth")
    with pytest.raises(SettingsError, match=r"do not fit the backbone: head_dist\.weight is unknown"):
        get_backbone("timm/vit_tiny_patch16_224", tmp_path / "more.pth")


def test_positions_are_interpolated_for_patches_of_another_size(timm_weights: Any) -> None:
    network, path = timm_weights
    backbone = get_backbone("timm/vit_tiny_patch16_224", path, given={"size": 256})
    assert backbone.num_features == 192
    assert backbone.settings()["input_px"] == 256
    # timm interpolates at every forward pass of a network of any size.
    free = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    free.load_state_dict(network.state_dict(), strict=False)
    patches = torch.randint(0, 256, (2, 3, 256, 256), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = free((patches.float() / 255 - mean) / std)
        torch.testing.assert_close(backbone(patches), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["levit_128s", "mixer_s32_224"])
def test_a_size_that_a_model_cannot_take_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SettingsError, match=rf"timm/{name}: cannot compute patches \[2, 3, 256, 256\] \(") as caught:
        get_backbone(f"timm/{name}", tmp_path / "weights.pth", given={"size": 256})
    assert "\n" not in str(caught.value)


def test_a_repository_is_not_asked_for_a_model() -> None:
    with pytest.raises(SettingsError, match=r"cannot build hf-hub:somebody/model .it has no such model"):
        get_backbone("timm/hf-hub:somebody/model")
