"""Rules on the network that the configs define, without weights: what goes in and comes out is as the metadata says."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from bundle.checked import Bundle, own_scripts
from scripts.core.errors import SettingsError
from scripts.core.running import ADVANCED
from scripts.core.settings import with_role

__all__ = ["RULES", "bag", "in_bundle", "inference_files", "inference_settings", "make_network"]

METADATA = "configs/metadata.json"
NETWORK = "network_def"
# The key of an inference config with the settings of the weights, from which it takes those that decide scores.
TRAINED = "trained"
SCORING = (*with_role("decides"), *with_role("recorded"))

SHAPES = f"{METADATA}#network_data_format"


def data_format(bundle: Bundle) -> None:
    """The shapes and classes in the metadata are those of the inference config."""
    tensors = bundle.metadata.get("network_data_format", {})
    with in_bundle(bundle):
        settings = inference_settings(bundle)
        scales = len(settings["magnifications"])
        # Only a network's file knows the length of its features: the record of the weights does, too.
        num_features = settings.get("num_features")
        if not num_features:
            num_features = _call("scripts.encoders.registry", "encoder_entry", settings["backbone"]).num_features
        heads = _call("scripts.networks.methods", "result_heads", settings["method"], settings["magnifications"])
        # Bundles up to 0.3.0 have none.
        positive = [settings["positive_classes"]] if "positive_classes" in settings else []
        names = _call("scripts.datalists.labels", "output_names", settings["task"], settings["class_names"], *positive)
        # Bundles up to 0.4.0 have a logit for each class.
        has_tasks = importlib.util.find_spec("scripts.core.tasks") is not None
        logits = _call("scripts.core.tasks", "get_task", settings["task"]).logit_names(names) if has_tasks else names
    wanted = {
        ("inputs", "image", "spatial_shape"): [scales, num_features + 1],
        ("outputs", "pred", "num_channels"): len(heads),
        ("outputs", "pred", "spatial_shape"): [len(logits)],
        # MONAI Label names the served scores by it, which are those of classes.
        ("outputs", "pred", "channel_def"): _numbered(names),
        ("outputs", "pred", "logit_def"): None if logits == names else _numbered(logits),
    }
    for (group, name, key), value in wanted.items():
        found = tensors.get(group, {}).get(name, {}).get(key)
        if found != value:
            raise SettingsError(
                f"{SHAPES}#{group}#{name}#{key}", f"is {found!r}, and of configs/inference.json {value!r}", "Mend one."
            )


def in_and_out(bundle: Bundle) -> None:
    """MONAI's check: the network takes what the metadata says, and gives what it says."""
    with in_bundle(bundle):
        monai.bundle.verify_net_in_out(net_id=NETWORK, device="cpu", **inference_files(bundle))
        network = make_network(bundle)
        with torch.no_grad():
            found = list(network(bag(bundle, 3)).shape)
    # MONAI compares the number of channels alone.
    pred = bundle.metadata["network_data_format"]["outputs"]["pred"]
    wanted = [1, pred["num_channels"], *pred["spatial_shape"]]
    if found != wanted:
        raise SettingsError(f"{SHAPES}#outputs#pred", f"says {wanted}, and the network gives {found}", "Mend one.")


@contextlib.contextmanager
def in_bundle(bundle: Bundle) -> Iterator[None]:
    """Run a bundle's own code, without what it and MONAI print."""
    silence = io.StringIO()
    level = logging.root.manager.disable
    with (
        own_scripts(bundle.root),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def inference_files(bundle: Bundle) -> dict[str, Any]:
    """The arguments with which MONAI's commands find the network of a bundle."""
    configs = bundle.root / "configs"
    # The metadata of a repository is of the settings in its configs, whatever weights lie in its models/.
    own: dict[str, Any] = {}
    if bundle.kind == "repository" and TRAINED in bundle.config("inference"):
        own[TRAINED] = _of_ensemble(bundle)
    return {
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.json"),
        "bundle_root": str(bundle.root),
        **own,
    }


def inference_settings(bundle: Bundle) -> dict[str, Any]:
    """What decides scores, of the inference config and its weights; to be called inside :func:`in_bundle`.

    With ``num_features``, where the weights say it.
    """
    parser = _parser(bundle)
    places = {key: key if key in parser else f"{ADVANCED}#{key}" for key in SCORING}
    trained = parser.get_parsed_content(TRAINED) if TRAINED in parser else {}
    own = {key: trained[key] for key in ("num_features",) if key in trained}
    return {**own, **{key: parser.get_parsed_content(place) for key, place in places.items() if place in parser}}


def make_network(bundle: Bundle) -> nn.Module:
    """The network of the inference config, with random weights; to be called inside :func:`in_bundle`."""
    network: nn.Module = _parser(bundle).get_parsed_content(NETWORK)
    return network.eval()


def bag(bundle: Bundle, rows: int, padding: int = 0) -> Tensor:
    """A bag of random features ``[1, rows + padding, S, F + 1]`` as the metadata says, the last channel log weights."""
    generator = torch.Generator().manual_seed(rows)
    shape = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    x = torch.randn(1, rows + padding, *shape, generator=generator)
    x[..., -1] = -torch.rand(x.shape[:-1], generator=generator)
    x[:, rows:, :, -1] = -torch.inf
    return x


def _parser(bundle: Bundle) -> ConfigParser:
    files = inference_files(bundle)
    parser = ConfigParser()
    parser.read_config(files.pop("config_file"))
    parser.read_meta(files.pop("meta_file"))
    parser.update(files)
    return parser


def _numbered(names: list[str]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _of_ensemble(bundle: Bundle) -> dict[str, Any]:
    """How many members an ensemble has whose weights lie in a repository: its network is another one."""
    own_error: type[Exception] = importlib.import_module("scripts.core.errors").SettingsError
    try:
        settings = _call("scripts.weights.record", "trained_settings", bundle.root / "models")
    except own_error:  # a rule on weights says why
        return {}
    return {key: settings[key] for key in ("members",) if key in settings}


def _call(module: str, name: str, *args: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args)


RULES: dict[str, Callable[[Bundle], None]] = {
    "data format": data_format,
    "network in and out": in_and_out,
}
"""The rules of this file by name."""
