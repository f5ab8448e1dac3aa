"""What computes a backbone's forward pass: PyTorch as it is, PyTorch compiled, or OpenVINO."""

from __future__ import annotations

import copy
import functools
import logging
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scripts.core.errors import SettingsError, reason_of
from scripts.core.setting_checks import AUTO
from scripts.core.settings import check_settings
from scripts.encoders.backbones import Backbone
from scripts.encoders.int8_networks import Int8Network
from scripts.encoders.network_trials import in_one_line
from scripts.encoders.own_networks import is_own
from scripts.encoders.prepared import cache_folder, file_name, key_of, read_prepared, write_prepared

__all__ = [
    "OPENVINO",
    "Forward",
    "adds_int8_exactly",
    "check_openvino",
    "choose_runtime",
    "converted",
    "get_forward",
    "import_openvino",
]

OPENVINO = "2026.4.1"
"""The version of OpenVINO that the bundle was tested with."""

# From patches ``[batch_size, 3, H, W]`` uint8, channels last in memory, to features ``[batch_size, F]`` float32.
Forward = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)

INDUCTOR_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def choose_runtime(runtime: str, device: torch.device, backbone: Backbone | None = None, precision: str = "amp") -> str:
    """The runtime to use: the one asked for, or ``"torch"``, with a warning, where nothing can be compiled.

    Args:
        runtime: ``"torch"``; ``"compile"``, which is ``torch.compile``; ``"openvino"``, for CPUs; or ``"auto"``, which
            is ``"torch"``: of two machines one may lack OpenVINO, and their features would differ.
        device: where the backbone runs.
        backbone: what is to be computed.
        precision: ``"int8"`` is for ``"openvino"`` alone.

    Raises:
        SettingsError: if there is no such runtime or precision, it is not installed, or it does not run on this device
            or compute this backbone.
    """
    check_settings(runtime=runtime, precision=precision)
    if runtime == AUTO:
        runtime = "openvino" if precision == "int8" else "torch"
    if precision == "int8":
        _check_int8(runtime, device, backbone)
    if backbone is not None and backbone.runtime not in (None, runtime):
        cause = f"{runtime} cannot compute an {backbone.name} file, which onnxruntime does"
        raise SettingsError("runtime", cause, f"Set it to {backbone.runtime}.")
    if runtime == "openvino":
        check_openvino(device)
    if runtime == "compile" and (missing := _missing_to_compile(device)):
        logger.warning("runtime: nothing can be compiled here (%s is missing): going on with torch", missing)
        return "torch"
    return runtime


def check_openvino(device: torch.device) -> None:
    """Refuse OpenVINO where it cannot compute.

    Raises:
        SettingsError: if it does not run on this device, or is not installed.
    """
    if device.type != "cpu":
        raise SettingsError("runtime", f"openvino does not run on {device}", "Set it to torch or compile.")
    if find_spec("openvino") is None:
        raise SettingsError("runtime", "openvino is not installed", f"Run: pip install openvino=={OPENVINO}.")


def _check_int8(runtime: str, device: torch.device, backbone: Backbone | None) -> None:
    if device.type != "cpu":
        cause = f"is int8, which is for CPUs, and `device` is {device}"
        raise SettingsError("precision", cause, "Set `precision` to amp, or `device` to cpu.")
    if backbone is not None and backbone.runtime is not None:
        cause = f"is int8, and an {backbone.name} file is computed by {backbone.runtime}, as it is"
        raise SettingsError("precision", cause, "Set `precision` to amp.")
    if runtime != "openvino":
        cause = f"is int8, which openvino alone computes, and `runtime` is {runtime}"
        raise SettingsError("precision", cause, "Set `runtime` to openvino, or `precision` to amp.")


def get_forward(runtime: str, backbone: Backbone, batch_size: int, int8: Int8Network | None = None) -> Forward:
    """The forward pass of a backbone.

    ``"compile"`` and ``"openvino"`` prepare the network for patches of one size at the first batch, which takes
    seconds, and fold batch norms into convolutions; ``"compile"`` does so in encoders with a name alone. What they
    prepared is kept for later runs (:mod:`scripts.encoders.prepared`); ``"openvino"`` keeps nothing of the user's own
    networks, whose code may have changed.

    Args:
        runtime: of :func:`choose_runtime`.
        backbone: on the device where it is to run.
        batch_size: patches of a full batch, for which ``"compile"`` compiles; smaller batches are filled up.
        int8: the backbone in INT8, which ``"openvino"`` then computes in its place.

    Returns:
        a function that raises a :class:`SettingsError` if it cannot compute a network that is the user's own.
    """
    forward: Forward = backbone
    if runtime == "openvino":
        forward = _openvino(backbone, int8)
    elif runtime == "compile":
        _log_preparing(backbone, runtime)
        forward = _full_batches(_compiled(backbone), batch_size)
    if not is_own(backbone.name):
        return forward

    def compute(patches: Tensor) -> Tensor:
        with in_one_line(backbone.name, patches.shape):
            return forward(patches)

    return compute


def _log_preparing(backbone: Backbone, runtime: str) -> None:
    logger.info("preparing %s for runtime %s, which takes seconds, on busy cores a minute", backbone.name, runtime)


def _full_batches(forward: Forward, batch_size: int) -> Forward:
    """Fill the last batch up, because another batch size would be compiled anew."""

    def fill(patches: Tensor) -> Tensor:
        missing = batch_size - len(patches)
        if missing == 0:
            return forward(patches)
        # The compiler treats a tensor made in inference mode as another kind, and would compile anew for it.
        with torch.inference_mode(False):
            full = torch.cat([patches, patches.new_zeros(missing, *patches.shape[1:])])
            full = full.contiguous(memory_format=torch.channels_last)
        return forward(full)[: len(patches)]

    return fill


def _compiled(backbone: Backbone) -> Forward:
    folded = copy.deepcopy(backbone)
    # Other networks may have a layer between the two that nothing but their code shows.
    if not is_own(backbone.name):
        _fold_batch_norms(folded.network)
        folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Else it keeps what it compiles in the folder for temporary files, which is emptied at the next start.
    if INDUCTOR_FOLDER not in os.environ and (folder := cache_folder("compile")) is not None:
        os.environ[INDUCTOR_FOLDER] = str(folder)
    # With frozen weights as constants, oneDNN chooses their layout once.
    module = torch.compile(folded, dynamic=False, options={"freezing": True})

    def forward(patches: Tensor) -> Tensor:
        try:
            return module(patches)
        except torch._inductor.exc.InductorError as error:
            reason = reason_of(error)
            raise SettingsError("runtime", f"the backbone cannot be compiled ({reason})", "Set it to torch.") from error

    return forward


def import_openvino() -> Any:
    """OpenVINO's package, without what reports its use to its maker when it is imported.

    Raises:
        SettingsError: if it cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        cause, remedy = f"openvino cannot be imported ({reason_of(error)})", f"Run: pip install openvino=={OPENVINO}."
        raise SettingsError("runtime", cause, remedy) from error

    return openvino


def _openvino(backbone: Backbone, int8: Int8Network | None) -> Forward:
    """A backbone in OpenVINO, on as many threads as PyTorch has."""
    compiled: Callable | None = None

    def forward(patches: Tensor) -> Tensor:
        nonlocal compiled
        x = patches.permute(0, 2, 3, 1)  # [n, H, W, 3], which is how they lie in memory
        if compiled is None:
            compiled = _compile_openvino(backbone, x) if int8 is None else _compile_int8(int8)
        # A copy, because the next call writes into the same memory.
        return torch.from_numpy(compiled(x.numpy())[0].copy())

    return forward


def _compile_openvino(backbone: Backbone, example: Tensor) -> Callable:
    precision = "bf16" if backbone.amp else "f32"
    config = _config(precision)
    core, compiled = import_openvino().Core(), None
    # OpenVINO has a cache of its own, but the seconds go into the conversion before it.
    folder = None if is_own(backbone.name) else cache_folder("openvino")
    if folder is not None:
        height, width = example.shape[1:3]
        path = folder / file_name(backbone, f"{height}x{width}", precision)
        key = key_of(backbone, patch=[height, width], device=core.get_property("CPU", "FULL_DEVICE_NAME"))
        compiled = _kept_openvino(core, path, key, config)
    if compiled is None:
        _log_preparing(backbone, "openvino")
        compiled = core.compile_model(converted(backbone, example), "CPU", config)
        if folder is not None:
            write_prepared(path, key, compiled.export_model().getvalue())
    return compiled


def _compile_int8(int8: Int8Network) -> Callable:
    _warn_of_saturation()
    core = import_openvino().Core()
    try:
        model = core.read_model(int8.xml, int8.weights)
        # What is not in INT8 is so little that bfloat16 gains nothing.
        return core.compile_model(model, "CPU", _config("f32"))
    except RuntimeError as error:
        cause = f"cannot be computed by the openvino that is installed ({reason_of(error)})"
        remedy = f"Install the version that made it: {int8.about.get('versions')}."
        raise SettingsError(int8.path, cause, remedy) from error


def adds_int8_exactly() -> bool:
    """Whether this processor sums products of 8 bits in 32 bits; x86 needs VNNI or AMX for that.

    Others sum pairs in 16 bits, which saturate.
    """
    # Older versions of torch do not report this; sums are assumed to be exact.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_x86 = found.get("architecture") == "x86_64"
    return not is_x86 or any(found.get(feature) for feature in ("avx512_vnni", "avx_vnni", "amx_int8"))


@functools.cache
def _warn_of_saturation() -> None:
    if not adds_int8_exactly():
        logger.warning(
            "precision: is int8, and this processor has neither VNNI nor AMX: sums saturate, so features are less "
            "exact, and differ from those of processors that have. Use such a processor; for a new training, "
            "`precision` amp with another `feature_dir` also works."
        )


def _config(precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch; the other hint computes several side by side
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def _kept_openvino(core: Any, path: Path, key: bytes, config: Mapping[str, Any]) -> Callable | None:
    prepared = read_prepared(path, key)
    try:
        return None if prepared is None else core.import_model(prepared, "CPU", config)
    except RuntimeError as error:
        logger.info("%s cannot be used (%s): the network is prepared again", path, reason_of(error))
        return None


def converted(backbone: Backbone, example: Tensor) -> Any:
    """The backbone as a model of OpenVINO, in float32.

    Args:
        backbone: on the CPU.
        example: some patches ``[n, H, W, 3]`` uint8; it takes as many as it is given, of this size.
    """
    openvino = import_openvino()
    traced = copy.deepcopy(backbone)
    traced.amp = False  # OpenVINO gets its precision when it compiles, and cannot read an autocast
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # Two patches show as much as a batch, in less time.
        return openvino.convert_model(
            _FromChannelsLast(traced).eval(), example_input=example[:2], input=[(-1, *example.shape[1:])]
        )


class _FromChannelsLast(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x.permute(0, 3, 1, 2))  # [n, F]
        return features


def _fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in the order in which they were registered."""
    for module in network.modules():
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = name, child


def _missing_to_compile(device: torch.device) -> str | None:
    """What ``torch.compile`` needs and this machine lacks."""
    is_gpu = device.type == "cuda"
    if is_gpu and not find_spec("triton"):
        return "triton"
    compilers = (os.environ.get("CC", "gcc"), "clang") if is_gpu else (os.environ.get("CXX", "g++"), "clang++")
    if not any(map(shutil.which, compilers)):
        return f"a {'C' if is_gpu else 'C++'} compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h"
    return None
