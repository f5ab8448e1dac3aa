"""Rules on trained weights: they load, fit the configs, say what they are, and can be exported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import numpy as np
import onnxruntime
import torch
from monai.data import load_net_with_metadata
from torch import Tensor, nn

from bundle.checked import Bundle, NotChecked
from bundle.metadata import CARD_TOP
from bundle.rules_network import bag, in_bundle, inference_files, inference_settings, make_network
from scripts.core.errors import SettingsError
from scripts.core.running import ADVANCED
from scripts.core.settings import is_same_value

__all__ = ["RULES"]

NETWORK = "network_def"

# Rows of the bags on which an exported network is compared, and rows of padding after them. None of them is the
# number with which it is exported.
BAGS = ((1, 0), (2, 3), (300, 0), (64, 7))
EXPORTED_ROWS = 5

# Sums in another order; log weights and features are of the order of 1.
RTOL, ATOL = 1e-3, 1e-4


def weights_load(bundle: Bundle) -> None:
    """All weights load strictly and are of one training, and their settings are those of the inference config."""
    bundle.weights()
    with in_bundle(bundle):
        config = inference_settings(bundle)
        methods = importlib.import_module("scripts.networks.methods")
        load = importlib.import_module("scripts.weights.checkpoints").load_weights
        path_of = importlib.import_module("scripts.weights.paths").weights_path
        folder = bundle.root / "models"
        paths = {
            Path(path_of(folder, head)) for head in methods.result_heads(config["method"], config["magnifications"])
        }
        # Packing leaves others of a repository out.
        if bundle.kind != "repository":
            paths.update(folder.glob("model*.pt"))
        for path in sorted(paths):
            load(make_network(bundle), path, config)
    record = _record(bundle)
    # Weights of bundles up to 0.4.0 have none.
    if (sha256 := record["settings"].get("int8_sha256")) is not None:
        with in_bundle(bundle):
            importlib.import_module("scripts.encoders.int8_networks").find_int8(sha256, [folder])
    for path in sorted(paths):
        if _record(bundle, path) != record:
            raise SettingsError(
                f"models/{path.name}", "is not of the same training as model.pt", "Pack the weights of one training."
            )
    _compare_settings("inference", config, record["settings"])
    # A repository's own configs are for any weights.
    if bundle.kind != "repository":
        for name in ("train", "extract"):
            own = bundle.config(name)
            _compare_settings(name, {**own, **own.get(ADVANCED, {})}, record["settings"])


def _compare_settings(name: str, config: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    for key, value in trained.items():
        own = config.get(key, value)
        if not str(own).startswith("$") and not is_same_value(key, own, value):
            raise SettingsError(
                f"configs/{name}.json#{key}",
                f"is {own!r}, and the weights were trained with {value!r}",
                "Pack with `python -m bundle pack`, which takes the settings of the weights.",
            )


def demonstration(bundle: Bundle) -> None:
    """Weights that were trained on synthetic slides are called a demonstration wherever a user looks."""
    bundle.weights()
    record = _record(bundle)
    with in_bundle(bundle):
        if not importlib.import_module("scripts.weights.record").is_demonstration(record):
            return
    if bundle.kind == "repository":
        raise NotChecked("the weights are a demonstration; packing says so in what is handed on")
    texts = {
        f"configs/metadata.json#{key}": bundle.metadata.get(key) for key in ("name", "description", "intended_use")
    }
    texts[f"docs/README.md, its first {CARD_TOP} lines"] = "\n".join(
        bundle.text("docs/README.md").splitlines()[:CARD_TOP]
    )
    texts["models/README.md"] = bundle.text("models/README.md")
    for place, text in texts.items():
        if "demonstration" not in str(text).lower():
            raise SettingsError(
                place,
                "does not say that the weights are a demonstration, trained on synthetic slides",
                "Pack with `python -m bundle pack`, which says so.",
            )


def operating_point(bundle: Bundle) -> None:
    """The operating point of each file of weights can be used, and the metadata says that of the served one."""
    main = bundle.weights()
    with in_bundle(bundle):
        # Bundles up to 0.4.0 have none.
        if importlib.util.find_spec("scripts.weights.operating_point") is None:
            raise NotChecked("this version of the bundle has no operating point")
        points = importlib.import_module("scripts.weights.operating_point")
        record = importlib.import_module("scripts.weights.record")
        paths = importlib.import_module("scripts.weights.paths")
        settings = record.read_record(main)["settings"]
        labels = importlib.import_module("scripts.datalists.labels")
        names = labels.output_names(settings["task"], settings["class_names"], settings.get("positive_classes"))
        methods = importlib.import_module("scripts.networks.methods")
        heads = methods.result_heads(settings["method"], settings["magnifications"])
        origins = {head: record.read_origin(paths.weights_path(main.parent, head)) for head in heads}
        if not any(points.OPERATING_POINT in origin for origin in origins.values()):
            raise NotChecked("the weights have no operating point: decisions are at 0.5")
        for head, origin in origins.items():
            # Predictions take all outputs from the served file, and evaluations each from its own.
            used = heads if paths.weights_path(main.parent, head) == main else [head]
            point = points.operating_point_of(SimpleNamespace(origin=origin), used, names, settings["task"])
            if point is None or not _is_usable(point):
                place = f"models/{paths.weights_path(main.parent, head).name}"
                cause = f"its operating point cannot be used for the outputs {', '.join(used)}"
                raise SettingsError(place, cause, "Run `calibrating` on validation slides, or train again; then pack.")
    served = {head: origins[heads[0]][points.OPERATING_POINT][head] for head in heads}
    # A repository's own metadata is for any weights.
    if bundle.kind != "repository" and bundle.metadata.get(points.OPERATING_POINT) != served:
        place = f"configs/metadata.json#{points.OPERATING_POINT}"
        raise SettingsError(place, "is not that of models/model.pt", "Pack the weights again.")


def _is_usable(point: Any) -> bool:
    """Whether calibration keeps the order of slides, and thresholds are probabilities."""
    thresholds = np.zeros(0) if point.threshold is None else point.threshold
    return bool((point.slope >= 0).all() and (thresholds >= 0).all() and (thresholds <= 1).all())


def torchscript(bundle: Bundle) -> None:
    """MONAI's ``ckpt_export`` makes a TorchScript network with the same outputs for bags of any length.

    Its archive has the metadata, and with these the operating point.
    """
    weights = bundle.weights()
    with in_bundle(bundle), _folder() as folder:
        path = str(folder / "model.ts")
        monai.bundle.ckpt_export(
            net_id=NETWORK, filepath=path, ckpt_file=str(weights), key_in_ckpt="", **inference_files(bundle)
        )
        exported, metadata, _ = load_net_with_metadata(path)
        if metadata.get("operating_point") != bundle.metadata.get("operating_point"):
            cause = "its metadata has not the operating point of configs/metadata.json"
            raise SettingsError("TorchScript", cause, "Export with `--meta_file configs/metadata.json`.")
        _compare(bundle, lambda x: exported(x), "TorchScript")


def onnx(bundle: Bundle) -> None:
    """MONAI's ``onnx_export`` makes an ONNX network with the same outputs for bags of any length."""
    weights = bundle.weights()
    with in_bundle(bundle), _folder() as folder:
        path = str(folder / "model.onnx")
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"]}
        monai.bundle.onnx_export(
            net_id=NETWORK,
            filepath=path,
            ckpt_file=str(weights),
            key_in_ckpt="",
            input_shape=list(bag(bundle, EXPORTED_ROWS).shape),
            use_trace=True,
            converter_kwargs={**names, "dynamic_axes": {"image": {1: "rows"}}},
            **inference_files(bundle),
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        _compare(bundle, lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), "ONNX")


def _compare(bundle: Bundle, exported: Callable[[Tensor], Tensor], name: str) -> None:
    network = _trained(bundle)
    with torch.no_grad():
        for rows, padding in BAGS:
            x = bag(bundle, rows, padding)
            wanted, found = network(x), exported(x)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=RTOL, atol=ATOL):
                differ = f" by up to {(found - wanted).abs().max():.2g}" if found.shape == wanted.shape else ""
                raise SettingsError(
                    name,
                    f"its outputs for {rows} rows and {padding} of padding differ from the network's{differ}",
                    "Look for what its forward pass does with numbers of rows, and with log weights.",
                )


def _trained(bundle: Bundle) -> nn.Module:
    network = make_network(bundle)
    importlib.import_module("scripts.weights.checkpoints").load_weights(network, bundle.weights())
    return network


def _record(bundle: Bundle, path: Path | None = None) -> dict[str, Any]:
    path = path or bundle.weights()
    with in_bundle(bundle):
        record: dict[str, Any] = importlib.import_module("scripts.weights.record").read_record(path)
    return record


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


RULES: dict[str, Callable[[Bundle], None]] = {
    "weights": weights_load,
    "demonstration": demonstration,
    "operating point": operating_point,
    "TorchScript": torchscript,
    "ONNX": onnx,
}
"""The rules of this file by name."""
