"""Quantising an encoder: from a float32 network to one in INT8, by NNCF's post-training quantisation for OpenVINO."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.core.errors import SettingsError, reason_of
from scripts.encoders.backbones import Backbone
from scripts.encoders.network_trials import in_one_line
from scripts.encoders.runtimes import converted, import_openvino

__all__ = ["quantise"]

logger = logging.getLogger(__name__)

# Of these a network with attention has at least one, and NNCF quantises such by rules of their own.
ATTENTION = {"ScaledDotProductAttention", "Softmax"}


def quantise(backbone: Backbone, patches: Tensor) -> tuple[bytes, bytes]:
    """An encoder in INT8: weights for each output channel, activations by the ranges that they have on some patches.

    On one machine the same patches give the same bytes.

    Args:
        backbone: on the CPU, in float32.
        patches: ``[n, 3, H, W]`` uint8.

    Returns:
        OpenVINO's description of the network, and its constants. It takes patches ``[n, H, W, 3]`` uint8.

    Raises:
        SettingsError: if NNCF is not installed, or cannot quantise the network.
    """
    if find_spec("nncf") is None:
        remedy = "Run: pip install --constraint constraints.txt '.[int8]'."
        raise SettingsError("precision", "int8 needs NNCF to quantise the encoder, and it is not installed", remedy)
    openvino = import_openvino()
    try:
        import nncf
    except ImportError as error:
        cause, remedy = f"NNCF cannot be imported ({reason_of(error)})", "Install '.[int8]' anew."
        raise SettingsError("precision", cause, remedy) from error

    # Not by its own function, which changes the handlers, too, and these may be another's.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    x = patches.permute(0, 2, 3, 1).contiguous()  # [n, H, W, 3]
    with in_one_line(backbone.name, patches.shape):
        model = converted(backbone, x)
    has_attention = any(node.get_type_name() in ATTENTION for node in model.get_ops())
    dataset = nncf.Dataset([one[None] for one in x.numpy()])  # each [1, H, W, 3]
    try:
        # Its progress bars go to standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            model = nncf.quantize(
                model,
                dataset,
                # Symmetric ranges for weights, asymmetric ones for activations, which ReLU6 and others make lopsided.
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(x),
                # Twice as long, once a cohort, for features that are closer to float32.
                fast_bias_correction=False,
                model_type=nncf.ModelType.TRANSFORMER if has_attention else None,
            )
    except (RuntimeError, ValueError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        cause = f"{backbone.name} cannot be quantised ({reason_of(error)})"
        raise SettingsError("precision", cause, "Set it to amp.") from error
    _name_by_order(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:
            cause = f"the INT8 network cannot be written into {folder} ({reason_of(error)})"
            raise SettingsError("precision", cause, "Make room there, or set TMPDIR to another folder.") from error
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _name_by_order(model: Any) -> None:
    """Name the parts of a model of OpenVINO by their order; their names count what the process made before."""
    model.set_friendly_name("encoder")
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
