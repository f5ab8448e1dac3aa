"""Network files: TorchScript, ``torch.export`` and ONNX."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256

__all__ = ["FILE_KINDS", "LOADERS", "network_sha256"]


def network_sha256(kind: str, path: Path) -> str:
    """The SHA-256 of a network's file, in hexadecimal; of an ONNX file also of the weights beside it."""
    sha256 = file_sha256(path)
    if kind == "onnx" and (data := _onnx_data(path)):
        sha256 = hashlib.sha256(f"{sha256}{file_sha256(data)}".encode()).hexdigest()
    return sha256


class _ExportedNetwork(nn.Module):
    """A program of ``torch.export``, which is in evaluation mode for good."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        logger = logging.getLogger("torch.export")
        level = logger.level
        # It logs its own traceback of a damaged file.
        logger.setLevel(logging.CRITICAL)
        try:
            self.program = torch.export.load(path).module()
        finally:
            logger.setLevel(level)

    def train(self, mode: bool = True) -> _ExportedNetwork:
        return self  # The program's own method refuses.

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.program(x)
        return features


def _onnx_data(path: Path) -> Path | None:
    """The file in which torch's exporter stores the weights of an ONNX file; ``None`` where they are in that itself."""
    data = path.with_name(f"{path.name}.data")
    return data if data.is_file() else None


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file.resolve(), to)
    except OSError:  # of another file system, or another user's
        shutil.copyfile(file, to)


class _OnnxNetwork(nn.Module):
    """A network of ONNX in onnxruntime, on the CPU, or on a GPU if it is given patches that are there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.path, self.runtime = path, onnxruntime
        self._sessions: dict[str, Any] = {}
        outputs = [output.name for output in self._session("cpu").get_outputs()]
        if len(outputs) > 1:
            cause = f"gives {len(outputs)} outputs ({', '.join(map(repr, outputs[:5]))})"
            raise SettingsError(f"backbone_weights {path}", cause, "Export it with one, the features.")

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
            # In a folder of their own it finds no weights in other files, which no checksum of ours covers.
            with tempfile.TemporaryDirectory() as folder:
                for file in filter(None, (self.path, _onnx_data(self.path))):
                    _link(file, Path(folder) / file.name)
                model = os.path.join(folder, self.path.name)
                self._sessions[device] = self.runtime.InferenceSession(model, options, providers=providers)
        return self._sessions[device]


LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "torchscript": lambda path: torch.jit.load(path, map_location="cpu"),
    "torch_export": _ExportedNetwork,
    "onnx": _OnnxNetwork,
}
"""What loads a file, by its kind; each raises what its library raises at a damaged file."""
FILE_KINDS = tuple(LOADERS)
