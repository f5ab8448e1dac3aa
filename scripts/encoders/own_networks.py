"""Encoders without a name in the registry: models of timm, network files, and Python functions."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scripts.core.errors import SettingsError, reason_of
from scripts.core.files import refuse_special
from scripts.core.setting_checks import backbone_input as check_input
from scripts.encoders.downloads import HUB, download
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.network_files import FILE_KINDS, LOADERS, network_sha256
from scripts.encoders.network_trials import TIMM, in_one_line
from scripts.encoders.vision_transformers import create_timm_model
from scripts.encoders.weight_files import load_weights, weights_file

__all__ = ["OwnNetwork", "is_own", "own_network"]

SUFFIXES = {".pt": "torchscript", ".ts": "torchscript", ".pt2": "torch_export", ".onnx": "onnx"}
EXAMPLE = "{'size': 224, 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}"
AS_TORCHSCRIPT = "Save torch.jit.script(network) or torch.jit.trace(network, patches) with torch.jit.save."


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the registry does not know, with what it was trained on.

    Args:
        network: normalised patches ``[n, 3, H, W]`` to features ``[n, F]``.
        backbone_input: ``mean`` and ``std`` of R, G and B, in 0..1, and ``size``, the side of the patches that it
            takes, in pixels, where it takes only one; wherever these were given.
        weights_sha256: of its file, or of its weights where it has none.
        runtime: the one runtime that can compute it, or ``None`` for any.
        resize: the interpolation of patches of another size.
        source_sha256: of the source of the Python function that made it.
    """

    network: nn.Module
    backbone_input: dict[str, Any]
    weights_sha256: str
    runtime: str | None = None
    resize: str = "bicubic"
    source_sha256: str | None = None


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
        SettingsError: if it cannot be loaded, or nothing says what it was trained on.
    """
    if name.startswith(TIMM):
        return _of_timm(name, weights, given)
    return _of_file(name, weights, given) if name in FILE_KINDS else _of_python(name, weights, given)


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _timm_network(name: str, given: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any], str]:
    """A model of timm, what it was trained on, and the interpolation of its patches."""
    # Many of timm's networks have constants beside their weights, such as tables of relative positions.
    network = create_timm_model(name.removeprefix(TIMM), "cpu")
    own: Any = network.pretrained_cfg
    size = {"size": own["input_size"][-1]} if own.get("fixed_input_size") else {}
    backbone_input = {**size, "mean": own["mean"], "std": own["std"], **given}
    return network, backbone_input, "bilinear" if own.get("interpolation") == "bilinear" else "bicubic"


def _resize_timm(name: str, network: Any, backbone_input: Mapping[str, Any]) -> None:
    """Let a model of timm take patches of another size: timm interpolates its position embeddings."""
    px = backbone_input.get("size")
    # A model without this method takes any size, or refuses it when it is tried.
    if px in (None, network.pretrained_cfg["input_size"][-1]) or not hasattr(network, "set_input_size"):
        return
    with in_one_line(name, (1, 3, px, px)):
        network.set_input_size(img_size=(px, px))


def _of_timm(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    network, backbone_input, resize = _timm_network(name, given)
    own: Any = network.pretrained_cfg
    # The classifier's weights are those that the model has only with one.
    whole = create_timm_model(name.removeprefix(TIMM), num_classes=1).state_dict()
    entry = EncoderEntry(
        name=name,
        title=name,
        num_features=0,
        build=lambda: network,
        dropped=tuple(whole.keys() - network.state_dict().keys()),
        hub=own.get("hf_hub_id"),
    )
    if weights is None:
        remedy = "Give the path of a file as backbone_weights, or --backbone_weights hub to download timm's."
        raise SettingsError(f"backbone {name}", "needs weights", remedy)
    path = download(entry) if weights == HUB else weights_file(weights, entry)
    sha256 = load_weights(network, path, entry)
    _resize_timm(name, network, backbone_input)
    return OwnNetwork(network, backbone_input, sha256, None, resize)


def _of_file(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    if weights is None or weights == HUB:
        raise SettingsError(f"backbone {name}", "needs its network's file", "Give --backbone_weights PATH.")
    path = Path(os.path.expanduser(weights))
    refuse_special(path)
    if not os.path.isfile(path):
        cause = "is a folder" if os.path.isdir(path) else "no such file"
        raise SettingsError(f"backbone_weights {path}", cause, "Give the path of the network's own file.")
    backbone_input = _input_of(name, given, path)
    sha256 = network_sha256(name, path)
    try:
        network = LOADERS[name](path)
    except ImportError as error:
        raise SettingsError(f"backbone {name}", str(error), "Run: pip install onnxruntime.") from error
    except SettingsError:
        raise
    except Exception as error:  # neither torch nor onnxruntime documents what it raises on a damaged file
        # Of an ONNX file without the folder that it was linked into.
        reason = re.sub(rf"\S*/(?={re.escape(path.name)})", "", reason_of(error))
        cause, remedy = f"is not a readable {name} file ({reason})", "Give a whole file of that kind."
        if name == "torchscript" and "constants.pkl" in reason:
            cause, remedy = "is a file of torch.save, not of torch.jit.save", AS_TORCHSCRIPT
        if name == "onnx" and re.search("External (data|initializer)", reason):
            data = f"{path.name}.data"
            cause = f"has weights that are neither in it nor whole in {data} beside it"
            remedy = f"Export it again, with its weights in itself or in {data}."
        raise SettingsError(f"backbone_weights {path}", cause, remedy) from error
    return OwnNetwork(network, backbone_input, sha256, "torch" if name == "onnx" else None)


def _of_python(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> OwnNetwork:
    module_name, _, function_name = name.rpartition(".")
    remedy = "Give the dotted name of a function that can be imported and gives a torch module."
    try:
        with _torch_as_before():
            function = getattr(importlib.import_module(module_name), function_name)
            network = function()
    except (Exception, SystemExit) as error:  # whatever a function of others raises
        if (kind := SUFFIXES.get(name[name.rfind(".") :])) is not None:
            remedy = f"Of a network's file say --backbone {kind} --backbone_weights {name}."
        raise SettingsError(f"backbone {name}", f"cannot be made ({reason_of(error)})", remedy) from error
    if not isinstance(network, nn.Module):
        raise SettingsError(f"backbone {name}", f"gives {type(network).__name__} and no torch module", remedy)
    if any(is_lazy(value) or (value.is_meta and weights is None) for value in _values(network)):
        cause = "gives a network whose weights have no values yet (lazy, or on the meta device)"
        raise SettingsError(f"backbone {name}", cause, "Run it on a batch, or build it on the CPU, in the function.")
    if extra := [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]:
        cause = f"gives a network whose state {extra[0]!r} is no tensor, so that nobody could tell two of them apart"
        raise SettingsError(f"backbone {name}", cause, "Give a network whose state dict has tensors alone.")
    backbone_input, source = _input_of(name, given, None), _source_sha256(module_name, function)
    if weights is None:
        return OwnNetwork(network, backbone_input, _sha256_of(network), source_sha256=source)
    entry = EncoderEntry(name=name, title=name, num_features=0, build=lambda: network)
    sha256 = load_weights(network, weights_file(weights, entry), entry)
    return OwnNetwork(network, backbone_input, sha256, source_sha256=source)


@contextmanager
def _torch_as_before() -> Iterator[None]:
    """Take back what a module of others sets for all of torch when it is imported."""
    dtype = torch.get_default_dtype()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _values(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _source_sha256(module_name: str, function: Any) -> str | None:
    """SHA-256 of the Python file that names a function, and of the one that defines it; ``None`` without sources.

    All of a file counts: a function may call others that are beside it, or be given other arguments there.
    """
    while isinstance(function, functools.partial):
        function = function.func
    sources: dict[str, None] = {}
    for module in (sys.modules[module_name], inspect.getmodule(function)):
        with suppress(OSError, TypeError):
            sources[inspect.getsource(module)] = None  # type: ignore[arg-type]
    return hashlib.sha256("".join(sources).encode()).hexdigest() if sources else None


def _input_of(name: str, given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """Mean, standard deviation and size, of the settings or else of the file beside the network's."""
    beside = path.with_suffix(".json") if path is not None else None
    backbone_input: dict[str, Any] = {}
    if beside is not None and not {"mean", "std", "size"} <= given.keys() and beside.is_file():
        try:
            backbone_input = json.loads(beside.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            cause = f"is not JSON ({reason_of(error)})"
            raise SettingsError(beside, cause, "Mend it, or set mean, std and size in backbone_input.") from error
        check_input(str(beside), backbone_input)
    backbone_input = {**backbone_input, **given}
    if missing := [key for key in ("mean", "std") if key not in backbone_input]:
        where = f" or in {beside.name} beside the file" if beside is not None else ""
        remedy = f'Set --backbone_input "{EXAMPLE}"{where}.'
        raise SettingsError(f"backbone {name}", f"does not say its {' and '.join(missing)}", remedy)
    return backbone_input


def _sha256_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    # Buffers that the state dict leaves out decide features as well.
    left_out = {key: value for key, value in network.named_buffers() if key not in network.state_dict()}
    for key, value in sorted({**network.state_dict(), **left_out}.items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
