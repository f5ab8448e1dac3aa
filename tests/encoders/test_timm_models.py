"""Any model of timm as an encoder: `make test-encoders` runs these where timm is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone, num_features

timm = pytest.importorskip("timm", reason="timm is not installed: `make test-encoders` has an environment with it")


@pytest.fixture
def timm_weights(tmp_path: Path) -> Any:
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False)  # with its classifier, as on the hub
    torch.save(network.state_dict(), tmp_path / "vit_tiny.pth")
    return network, tmp_path / "vit_tiny.pth"


def test_any_model_of_timm_is_an_encoder(timm_weights: Any) -> None:
    network, path = timm_weights
    backbone = get_backbone("timm/vit_tiny_patch16_224", path)
    assert backbone.num_features == num_features("timm/vit_tiny_patch16_224") == 192
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
