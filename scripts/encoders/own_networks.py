"""Encoders without a name in the registry: models of timm, network files, and Python functions."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError, reason_of
from scripts.core.files import refuse_special
from scripts.core.setting_checks import backbone_input as check_input
from scripts.encoders.downloads import HUB, download
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.vision_transformers import create_timm_model
from scripts.encoders.weight_files import check_hash, load_into, read_state, weights_file

__all__ = ["FILE_KINDS", "OwnNetwork", "feature_length", "is_own", "own_network", "timm_length"]

FILE_KINDS = ("torchscript", "torch_export", "onnx")
TIMM = "timm/"
EXAMPLE = "{'size': 224, 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}"
# A network is tried on patches of this size if it takes any.
TRIED_PX = 224


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the registry does not know, with what it was trained on.

    Args:
        network: normalised patches ``[n, 3, H, W]`` to features ``[n, F]``.
        mean: of R, G and B, in 0..1.
        std: standard deviation of R, G and B, in 0..1.
        input_px: side of the patches that it takes, or ``None``.
        weights_sha256: of its file, or of its weights where it has none.
        runtime: the one runtime that can compute it, or ``None`` for any.
        resize: the interpolation of patches of another size.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_px: int | None
    weights_sha256: str
    runtime: str | None = None
    resize: str = field(default="bicubic")


def is_own(name: Any) -> bool:
    """Whether a ``backbone`` is a network file's kind, a model of timm, or the dotted name of a Python function."""
    if not isinstance(name, str):
        return False
    return name in FILE_KINDS or name.startswith(TIMM) or _is_dotted(name)


def own_network(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    """Load an encoder that the registry does not know.

    Args:
        name: ``"torchscript"``, ``"torch_export"`` or ``"onnx"``, whose file ``weights`` is; ``"timm/<model>"``; or the
            dotted name of a Python function that is called without arguments and gives a module.
        weights: a file; of a model of timm also ``"hub"``.
        given: ``size`` in pixels, ``mean`` and ``std`` in 0..1, of the setting ``backbone_input``. A JSON file of these
            beside a network's file, of the same name, does as well.

    Raises:
        SettingsError: if it cannot be loaded, or what it was trained on is not said.
    """
    if name.startswith(TIMM):
        return _of_timm(name, weights, given)
    return _of_file(name, weights, given) if name in FILE_KINDS else _of_python(name, weights, given)


def feature_length(name: str, network: nn.Module, input_px: int | None) -> int:
    """Length of a network's features, by running it once on two black patches.

    Raises:
        SettingsError: if it cannot be run, or gives anything but one vector of floats a patch.
    """
    px = input_px or TRIED_PX
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            features = network(torch.zeros(2, 3, px, px, device=device))
    except Exception as error:  # whatever a network of others raises
        cause = f"cannot compute patches [2, 3, {px}, {px}] ({reason_of(error)})"
        raise SettingsError(f"backbone {name}", cause, "Give the size that it takes as backbone_input.") from error
    is_table = isinstance(features, Tensor) and features.ndim == 2 and len(features) == 2 and features.shape[1] > 0
    if not is_table or not features.is_floating_point():
        found = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        cause = f"gives {found} for 2 patches, and not one vector of floats for each"
        raise SettingsError(f"backbone {name}", cause, "Give a network that ends in pooling, without a classifier.")
    return int(features.shape[1])


def timm_length(name: str, given: Mapping[str, Any]) -> int:
    """:func:`feature_length` of a model of timm, without its weights."""
    network, normalisation = _timm_network(name, given, "cpu")
    return feature_length(name, network.eval(), normalisation["size"])


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _timm_network(name: str, given: Mapping[str, Any], device: str) -> tuple[nn.Module, dict[str, Any]]:
    network = create_timm_model(name.removeprefix(TIMM), device)
    own: Any = network.pretrained_cfg
    size = own["input_size"][-1] if own.get("fixed_input_size") else None
    normalisation = {"size": size, "mean": own["mean"], "std": own["std"], **given}
    return network, {**normalisation, "resize": "bilinear" if own.get("interpolation") == "bilinear" else "bicubic"}


def _of_timm(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    # Many of timm's networks have constants beside their weights, such as tables of relative positions.
    network, normalisation = _timm_network(name, given, "cpu")
    own: Any = network.pretrained_cfg
    classifier = own.get("classifier") or ()
    entry = EncoderEntry(
        name=name,
        title=name,
        num_features=0,
        build=lambda: network,
        dropped=tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier)),
        hub=own.get("hf_hub_id"),
    )
    if weights is None:
        remedy = "Give the path of a file as backbone_weights, or --backbone_weights hub to download timm's."
        raise SettingsError(f"backbone {name}", "needs weights", remedy)
    path = download(entry) if weights == HUB else weights_file(weights, entry)
    sha256 = check_hash(path)
    load_into(network, read_state(path), path, entry)
    mean, std = tuple(normalisation["mean"]), tuple(normalisation["std"])
    return OwnNetwork(network, mean, std, normalisation["size"], sha256, None, normalisation["resize"])


def _of_file(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    if weights is None or weights == HUB:
        raise SettingsError(f"backbone {name}", "needs its network's file", "Give --backbone_weights PATH.")
    path = Path(weights).expanduser()
    refuse_special(path)
    if not path.is_file():
        raise SettingsError(f"backbone_weights {path}", "no such file", f"Give the path of a {name} file.")
    mean, std, size = _said(name, given, path)
    sha256 = check_hash(path)
    if (mean, std, size) != _of_given(given):
        # What only the file beside it says has to be the same wherever the network is used.
        sha256 = hashlib.sha256(json.dumps([sha256, mean, std, size]).encode()).hexdigest()
    try:
        network = _LOADERS[name](path)
    except ImportError as error:
        raise SettingsError(f"backbone {name}", str(error), "Run: pip install onnxruntime.") from error
    except Exception as error:  # neither torch nor onnxruntime documents what it raises on a damaged file
        cause = f"is not a readable {name} file ({reason_of(error)})"
        raise SettingsError(f"backbone_weights {path}", cause, "Give a whole file of that kind.") from error
    return OwnNetwork(network, mean, std, size, sha256, "torch" if name == "onnx" else None)


def _of_python(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    module_name, _, function_name = name.rpartition(".")
    remedy = "Give the dotted name of a function that can be imported and gives a torch module."
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        network = function()
    except (Exception, SystemExit) as error:  # whatever a function of others raises
        raise SettingsError(f"backbone {name}", f"cannot be made ({reason_of(error)})", remedy) from error
    if not isinstance(network, nn.Module):
        raise SettingsError(f"backbone {name}", f"gives a {type(network).__name__}", remedy)
    mean, std, size = _said(name, given, None)
    if weights is None:
        return OwnNetwork(network, mean, std, size, _sha256_of(network))
    entry = EncoderEntry(name=name, title=name, num_features=0, build=lambda: network)
    path = weights_file(weights, entry)
    sha256 = check_hash(path)
    load_into(network, read_state(path), path, entry)
    return OwnNetwork(network, mean, std, size, sha256)


def _said(
    name: str, given: Mapping[str, Any], path: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """Mean, standard deviation and size, of the settings or of the file beside the network's."""
    beside = path.with_suffix(".json") if path is not None else None
    said: dict[str, Any] = {}
    if beside is not None and beside.is_file():
        try:
            said = json.loads(beside.read_text("utf-8"))
        except (OSError, ValueError) as error:
            cause = f"is not JSON ({reason_of(error)})"
            raise SettingsError(beside, cause, "Mend it, or set backbone_input.") from error
        check_input(str(beside), said)
    said = {**said, **given}
    if missing := [key for key in ("mean", "std") if key not in said]:
        where = f" or in {beside.name} beside the file" if beside is not None else ""
        remedy = f'Set --backbone_input "{EXAMPLE}"{where}.'
        raise SettingsError(f"backbone {name}", f"does not say its {' and '.join(missing)}", remedy)
    return tuple(said["mean"]), tuple(said["std"]), said.get("size")


def _of_given(given: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(given.get("mean", ())), tuple(given.get("std", ())), given.get("size")


def _sha256_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _ExportedNetwork(nn.Module):
    """A program of ``torch.export``, which is in evaluation mode for good."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.program = torch.export.load(path).module()

    def train(self, mode: bool = True) -> _ExportedNetwork:
        return self  # The program's own method refuses.

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.program(x)
        return features


class _OnnxNetwork(nn.Module):
    """A network of ONNX in onnxruntime, on the CPU, or on a GPU if it is given patches that are there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.path, self.runtime = path, onnxruntime
        self._sessions: dict[str, Any] = {}
        self._session("cpu")

    def forward(self, x: Tensor) -> Tensor:
        session = self._session(x.device.type)
        inputs = {session.get_inputs()[0].name: np.ascontiguousarray(x.float().cpu().numpy())}
        return torch.from_numpy(np.asarray(session.run(None, inputs)[0])).to(x.device)

    def _session(self, device: str) -> Any:
        if device not in self._sessions:
            wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
            providers = [name for name in wanted if name in self.runtime.get_available_providers()]
            options = self.runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._sessions[device] = self.runtime.InferenceSession(str(self.path), options, providers=providers)
        return self._sessions[device]


_LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "torchscript": lambda path: torch.jit.load(path, map_location="cpu"),
    "torch_export": _ExportedNetwork,
    "onnx": _OnnxNetwork,
}
