"""Each encoder with a name, at its real size: random weights under their published names give the features of timm.

`make test-encoders` runs these where timm is installed. An encoder is built with fewer layers where memory is short.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.encoders import vision_transformers
from scripts.encoders.backbones import get_backbone
from scripts.encoders.entry import IMAGENET_MEAN, IMAGENET_STD
from scripts.encoders.registry import ENCODERS
from scripts.encoders.runtimes import get_forward

timm = pytest.importorskip("timm", reason="timm is not installed: `make test-encoders` has an environment with it")

State = dict[str, Tensor]
# As the makers' cards and peers' loaders call timm (docs/encoders.md).
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
H_OPTIMUS = ("vit_giant_patch14_reg4_dinov2", {"init_values": 1e-5, "dynamic_img_size": False})
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_large_imagenet": ("vit_large_patch16_224", {}),
    "dinov2_vit_small": ("vit_small_patch14_dinov2", {"img_size": 518}),
    "dinov2_vit_base": ("vit_base_patch14_dinov2", {"img_size": 518}),
    "dinov2_vit_large": ("vit_large_patch14_dinov2", {"img_size": 518}),
    "uni": ("vit_large_patch16_224", {"patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True}),
    "uni2_h": (
        "vit_giant_patch14_224",
        {
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            **SWIGLU,
        },
    ),
    "virchow": ("vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, **SWIGLU}),
    "virchow2": ("vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, **SWIGLU}),
    "gigapath": (
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "init_values": 1e-5, "mlp_ratio": 5.33334},
    ),
    "h_optimus_0": H_OPTIMUS,
    "h_optimus_1": H_OPTIMUS,
    "h0_mini": ("vit_base_patch14_reg4_dinov2", {"init_values": 1e-5, "mlp_ratio": 5.33334, **SWIGLU}),
    "phikon": ("vit_base_patch16_224", {}),
    "phikon_v2": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "hibou_b": ("vit_base_patch14_reg4_dinov2", {"init_values": 1e-5, "mlp_ratio": 5.33334, **SWIGLU}),
    "hibou_l": ("vit_large_patch14_reg4_dinov2", {"init_values": 1e-5, "mlp_ratio": 5.34375, **SWIGLU}),
    "midnight": ("vit_giant_patch14_dinov2", {"img_size": 518}),
    "gpfm": ("vit_large_patch14_dinov2", {"init_values": 1e-5}),
    "conch": ("vit_base_patch16_224", {"img_size": 448}),
    "conch_v1_5": ("vit_large_patch16_224", {"img_size": 448, "init_values": 1.0}),
}
WITH_MEAN = {"virchow": 1, "virchow2": 5, "midnight": 1}
OPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
HIBOU = (0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816)
HALF = (0.5,) * 3, (0.5,) * 3
NORMALISATION = {
    **dict.fromkeys(("h_optimus_0", "h_optimus_1", "h0_mini"), OPTIMUS),
    **dict.fromkeys(("hibou_b", "hibou_l"), HIBOU),
    **dict.fromkeys(("midnight", "vit_large_imagenet"), HALF),
    "conch": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
LENGTHS = {
    **dict.fromkeys(("uni", "phikon_v2", "hibou_l", "gpfm", "vit_large_imagenet", "dinov2_vit_large"), 1024),
    **dict.fromkeys(("uni2_h", "gigapath", "h_optimus_0", "h_optimus_1"), 1536),
    **dict.fromkeys(("virchow", "virchow2"), 2560),
    **dict.fromkeys(("h0_mini", "phikon", "hibou_b", "conch_v1_5", "dinov2_vit_base"), 768),
    "conch": 512,
    "midnight": 3072,
    "dinov2_vit_small": 384,
}
TRANSFORMERS = {"phikon": "vit", "phikon_v2": "dinov2", "midnight": "dinov2", "hibou_b": "dinov2", "hibou_l": "dinov2"}
SMALL = "hibou_b"


def random_(module: nn.Module, seed: int = 0) -> State:
    """Numbers for a network on the meta device, small enough that no layer saturates."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) * 0.02 + (1.0 if key.endswith("norm.weight") else 0.0)
        for key, value in module.state_dict().items()
    }


def of_meta(name: str, **more: Any) -> nn.Module:
    timm_name, arguments = RECIPES[name]
    with torch.device("meta"):
        network: nn.Module = timm.create_model(timm_name, num_classes=0, **{"img_size": 224, **arguments, **more})
    return network.eval()


def in_transformers_names(state: State, kind: str, registers: bool) -> State:
    """A state dict of timm in the names of transformers' ViT or DINOv2."""
    out: State = {}
    swiglu = state["blocks.0.mlp.fc1.weight"].shape[0] != 4 * state["blocks.0.mlp.fc1.weight"].shape[1]
    names = {
        "vit": {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        "dinov2": {
            "norm1": "norm1",
            "norm2": "norm2",
            "mlp.fc1": "mlp.weights_in" if swiglu else "mlp.fc1",
            "mlp.fc2": "mlp.weights_out" if swiglu else "mlp.fc2",
        },
    }[kind]
    for key, value in state.items():
        if (block := re.fullmatch(r"blocks\.(\d+)\.(.+?)\.(weight|bias|gamma)", key)) is None:
            continue
        layer, part, end = f"encoder.layer.{block[1]}.", block[2], block[3]
        if part == "attn.qkv":
            for which, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{layer}attention.attention.{which}.{end}"] = third
        elif part == "attn.proj":
            out[f"{layer}attention.output.dense.{end}"] = value
        elif part in ("ls1", "ls2"):
            out[f"{layer}layer_scale{part[-1]}.lambda1"] = value
        else:
            out[f"{layer}{names[part]}.{end}"] = value
    for end in ("weight", "bias"):
        out[f"embeddings.patch_embeddings.projection.{end}"] = state[f"patch_embed.proj.{end}"]
        out[f"layernorm.{end}"] = state[f"norm.{end}"]
    out["embeddings.cls_token"], out["embeddings.position_embeddings"] = state["cls_token"], state["pos_embed"]
    if registers:
        # The class token's position is a row of its own here.
        row = torch.full_like(state["cls_token"], 0.01)
        out["embeddings.cls_token"] = state["cls_token"] - row
        out["embeddings.position_embeddings"] = torch.cat([row, state["pos_embed"]], dim=1)
        out["embeddings.register_tokens"] = state["reg_token"]
    if kind == "vit":
        out["pooler.dense.weight"], out["pooler.dense.bias"] = torch.zeros(4, 4), torch.zeros(4)
    else:
        out["embeddings.mask_token"] = torch.zeros_like(state["cls_token"])
    return out


def published(name: str, state: State) -> State:
    """Weights of timm under the names of the encoder's published file."""
    if name in TRANSFORMERS:
        return in_transformers_names(state, TRANSFORMERS[name], registers="reg_token" in state)
    if name == "conch":
        texts = {
            "text.transformer.weight": torch.zeros(3),
            "logit_scale": torch.zeros(()),
            "visual.proj_contrast": torch.zeros(2, 2),
        }
        return {f"visual.{key}": value for key, value in state.items()} | texts
    return state


def pooled_by_attention(tokens: Tensor, state: State, name: str) -> Tensor:
    """CONCH's pooling in plain products, 8 heads, and the layer norm after it."""
    own = {key.removeprefix("attn_pool_contrast."): value for key, value in state.items() if "trunk" not in key}

    def norm(x: Tensor, key: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], own[f"{key}.weight"], own[f"{key}.bias"])

    query, keys = norm(own["query"], "ln_q"), norm(tokens, "ln_k")
    if name == "conch":
        biases = own["attn.in_proj_bias"].chunk(3)
        q, k, v = (
            x @ own[f"attn.{part}_proj_weight"].T + bias
            for x, part, bias in zip((query, keys, keys), "qkv", biases, strict=True)
        )
    else:
        q = query @ own["to_q.weight"].T
        k, v = (keys @ half.T for half in own["to_kv.weight"].chunk(2))
    size = q.shape[-1] // 8
    heads = []
    for h in range(8):
        part = slice(h * size, (h + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / size**0.5).softmax(-1)  # [n, 1, T]
        heads.append(weights @ v[..., part])
    x = torch.cat(heads, dim=-1)
    x = x @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"] if name == "conch" else x @ own["to_out.weight"].T
    return norm(x[:, 0], "ln_contrast")


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """Two patches ``[2, 3, 224, 224]`` uint8: noise, and a slope of colours."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 224, 224), generator=generator)
    slope = torch.linspace(0, 255, 224).round().long()
    colours = torch.stack([slope.expand(224, 224), slope.expand(224, 224).T, 255 - slope.expand(224, 224)])
    return torch.stack([noise, colours]).to(torch.uint8)


@pytest.fixture
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Fewer layers where the encoder, its file and its oracle would not fit into memory."""
    name = request.getfixturevalue("name")
    own = sum(p.numel() for p in of_meta(name).parameters()) * 4
    more = {} if 4 * own < psutil.virtual_memory().available else {"depth": 4}
    real = vision_transformers.create_timm_model
    for module in ("vision_transformers", "conch"):
        monkeypatch.setattr(
            f"scripts.encoders.{module}.create_timm_model", lambda n, **args: real(n, **{**args, **more})
        )
    yield more
    gc.collect()


def expected_features(name: str, state: State, patches: Tensor, more: dict[str, int]) -> Tensor:
    """The features by timm's own model and plain functions."""
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATION.get(name, (IMAGENET_MEAN, IMAGENET_STD))
    )
    x = patches.float() / 255
    if name.startswith("conch"):
        mode = "bicubic" if name == "conch" else "bilinear"
        x = F.interpolate(x, size=(448, 448), mode=mode, antialias=True, align_corners=False)
    x = (x - mean) / std
    trunk = {
        key.removeprefix("trunk."): value
        for key, value in state.items()
        if name[:5] != "conch" or key.startswith("trunk.")
    }
    arguments = dict(more)
    if RECIPES[name][1].get("img_size") == 518:  # peers let timm interpolate positions when it is run
        arguments["dynamic_img_size"] = True
    network = of_meta(name, **arguments)
    if name == "midnight":
        grid = trunk["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
        rows = grid.permute(0, 2, 3, 1).reshape(1, 256, -1)
        trunk["pos_embed"] = torch.cat([trunk["pos_embed"][:, :1], rows], dim=1)
        network = of_meta(name, **{**more, "img_size": 224})
    network.load_state_dict(trunk, strict=True, assign=True)
    with torch.inference_mode():
        tokens = network.forward_features(x)
        if name.startswith("conch"):
            return pooled_by_attention(tokens, state, name)
        if name in WITH_MEAN:
            return torch.cat([tokens[:, 0], tokens[:, WITH_MEAN[name] :].mean(1)], dim=1)
        features: Tensor = network(x) if name not in TRANSFORMERS else tokens[:, 0]
    return features


def weights_of(name: str, more: dict[str, int]) -> State:
    """Random weights in timm's names; CONCH's with ``trunk.`` before, and those of its pooling."""
    if not name.startswith("conch"):
        return random_(of_meta(name, **more))
    state = {f"trunk.{key}": value for key, value in random_(of_meta(name, **more)).items()}
    size, tokens = (512, 768) if name == "conch" else (768, 1024)
    shapes = {"query": (1, size)} | {
        f"ln_{k}.{end}": (n,) for k, n in (("q", size), ("k", tokens)) for end in ("weight", "bias")
    }
    if name == "conch":
        shapes |= {f"attn.{k}_proj_weight": (size, n) for k, n in (("q", size), ("k", tokens), ("v", tokens))}
        shapes |= {
            "attn.in_proj_bias": (3 * size,),
            "attn.out_proj.weight": (size, size),
            "attn.out_proj.bias": (size,),
        }
    else:
        shapes |= {"to_q.weight": (size, size), "to_kv.weight": (2 * size, tokens), "to_out.weight": (size, size)}
    shapes = {f"attn_pool_contrast.{key}": shape for key, shape in shapes.items()}
    shapes |= {f"ln_contrast.{end}": (size,) for end in ("weight", "bias")}
    generator = torch.Generator().manual_seed(1)
    return state | {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_weights_under_their_published_names_give_the_features_of_the_published_recipe(
    name: str, layers: dict[str, int], patches: Tensor, tmp_path: Path
) -> None:
    print(f"{name}: {f'{layers} for want of memory' if layers else 'all layers'}")
    state = weights_of(name, layers)
    expected = expected_features(name, state, patches, layers)
    path = tmp_path / "weights.bin"
    torch.save(published(name, state), path)
    del state
    gc.collect()
    backbone = get_backbone(name, path)
    with torch.inference_mode():
        features = backbone(patches)
    path.unlink()
    assert features.shape == (2, LENGTHS[name]) == (2, ENCODERS[name].num_features)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert (features[0] - features[1]).abs().max() > 1e-3  # not the same for any patch


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """One layer, which a runtime computes as it does the others."""
    real, more = vision_transformers.create_timm_model, {"depth": 1}
    for module in ("vision_transformers", "conch"):
        monkeypatch.setattr(
            f"scripts.encoders.{module}.create_timm_model", lambda n, **args: real(n, **{**args, **more})
        )
    return more


@pytest.mark.parametrize("runtime", ["compile", "openvino"])
@pytest.mark.parametrize("name", RECIPES)
def test_each_runtime_computes_each_architecture(
    name: str, runtime: str, shallow: dict[str, int], patches: Tensor, tmp_path: Path
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    torch.save(published(name, weights_of(name, shallow)), tmp_path / "weights.bin")
    backbone = get_backbone(name, tmp_path / "weights.bin")
    batch = patches.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = backbone(batch)
    found = get_forward(runtime, backbone, len(batch))(batch)
    assert F.cosine_similarity(found, expected).min() > 0.9999


def test_each_encoder_that_timm_builds_is_tested() -> None:
    assert ENCODERS.keys() - {"efficientnet_lite0", "resnet34", "resnet50"} == RECIPES.keys()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file of the smallest encoder."""
    path = tmp_path_factory.mktemp("small") / "hibou.bin"
    torch.save(published(SMALL, weights_of(SMALL, {})), path)
    return path


def test_a_snapshot_folder_and_safetensors_give_the_same_features(small: Path, patches: Tensor, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = {key: value.contiguous().clone() for key, value in torch.load(small).items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with torch.inference_mode():
        expected = get_backbone(SMALL, small)(patches)
        for weights in (tmp_path, tmp_path / "model.safetensors"):
            torch.testing.assert_close(get_backbone(SMALL, weights)(patches), expected, rtol=0, atol=0)


def test_half_precision_weights_are_computed_in_float32(small: Path, patches: Tensor, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in torch.load(small).items()}, tmp_path / "half.bin")
    backbone = get_backbone(SMALL, tmp_path / "half.bin")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    with torch.inference_mode():
        cosine = F.cosine_similarity(backbone(patches), get_backbone(SMALL, small)(patches))
    assert cosine.min() > 0.9999


@pytest.mark.parametrize("name", ["uni", "phikon", "h0_mini", "conch", "gpfm"])
def test_weights_of_another_encoder_are_refused_in_one_line(small: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="the weights do not fit the backbone: .* is (missing|unknown)") as caught:
        get_backbone(name, small)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_head_too_many_is_refused(small: Path, tmp_path: Path) -> None:
    torch.save({**torch.load(small), "head.weight": torch.zeros(5, 768)}, tmp_path / "head.bin")
    with pytest.raises(SettingsError, match=r"do not fit the backbone: trunk\.head\.weight is unknown"):
        get_backbone(SMALL, tmp_path / "head.bin")


def test_half_a_download_is_refused(small: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    for source, name in ((small, "half.bin"), (tmp_path / "whole.safetensors", "half.safetensors")):
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(SettingsError, match=rf"{name}: not a readable weights file .* cut off"):
            get_backbone(SMALL, tmp_path / name)


def test_gpfm_is_read_from_both_of_its_releases(
    patches: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vision_transformers.create_timm_model
    monkeypatch.setattr(vision_transformers, "create_timm_model", lambda n, **args: real(n, **{**args, "depth": 4}))
    state = weights_of("gpfm", {"depth": 4})
    torch.save(state, tmp_path / "hub.pth")
    chunks = {
        re.sub(r"^blocks\.(\d)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", key): value
        for key, value in state.items()
    }
    github = {f"backbone.{key}": value for key, value in chunks.items()} | {"backbone.mask_token": torch.zeros(1, 1024)}
    torch.save({"teacher": {**github, "dino_head.mlp.0.weight": torch.zeros(2, 2)}}, tmp_path / "github.pth")
    with torch.inference_mode():
        of_hub, of_github = (get_backbone("gpfm", tmp_path / f"{file}.pth")(patches) for file in ("hub", "github"))
    torch.testing.assert_close(of_hub, of_github, rtol=0, atol=0)


def test_patches_of_another_size_are_resized_once(small: Path, patches: Tensor) -> None:
    backbone = get_backbone(SMALL, small)
    large = F.interpolate(patches.float(), size=(256, 256), mode="nearest").to(torch.uint8)
    resized = F.interpolate(large.float(), size=(224, 224), mode="bicubic", antialias=True, align_corners=False)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(large), backbone(resized))
