"""Training from the labels of a MONAI Label server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask

from .bundles import check_configs
from .choices import check_training
from .reasons import BAD_REQUEST, NOT_USABLE, SERVER_FAULT, RequestError

__all__ = ["SlideTrainTask"]

# One to train on and one to validate on.
FEWEST_SLIDES = 2
# How the weights of an ensemble begin.
MEMBERS = "members."
# What a rank prints that failed; not one that stopped because another did.
REASON = re.compile(r"^(?:\[rank\d+\]: ?)?error: (?!rank \d+: stopped, because)(.*)")


class SlideTrainTask(BundleTrainTask):
    """MONAI Label's training of a bundle; weights that it goes on from must fit, and labels must be there.

    On a server with several GPUs it trains on all of them, or on the one that the client names.

    Args:
        path: the bundle's folder.
        conf: of the server.
    """

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        check_configs(path)
        super().__init__(path, conf, load_strict=True)

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Raises:
            RequestError: if the request, its weights or the labels cannot be used, the bundle is an ensemble, or a
                training in several processes fails.
        """
        served = os.path.join(self.bundle_path, "models", self.const.model_pytorch())
        if _is_ensemble(served):
            cause = "is an ensemble: no training goes on from one, or replaces it while it is served"
            raise RequestError(
                NOT_USABLE, served, cause, "Serve a bundle with the weights of one member, and train that."
            )
        given = {key: value for key, value in request.items() if value is not None}
        check_training(given, self.config()["model_filename"])
        # A list is what /info/ shows, and "cuda" any GPU; another name is one device.
        if isinstance(given.get("device"), str) and given["device"] not in ("", "cuda"):
            given["multi_gpu"] = False
        done: dict[str, Any] = super().__call__(given, datastore)
        return done

    def config(self) -> dict[str, Any]:
        """What a client may choose, with model.pt before what else training wrote."""
        config = dict(super().config())
        config["model_filename"].sort(key=lambda name: name != self.const.model_pytorch())
        return config

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        labelled: list[dict[str, Any]] = super()._fetch_datalist(request, datastore)
        if len(labelled) < FEWEST_SLIDES:
            cause = f"{len(labelled)} of {len(datastore.list_images())} slides have a final label"
            remedy = f"Label {FEWEST_SLIDES} or more: PUT /datastore/label?image=ID&tag=final"
            raise RequestError(NOT_USABLE, "train", cause, remedy)
        return labelled

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        # Asked to start anew, the stock task looks for a file called None.
        if not pretrained:
            return
        if not os.path.isfile(model_pytorch):
            remedy = 'Name another in "model_filename", or start anew with "pretrained": false.'
            raise RequestError(BAD_REQUEST, model_pytorch, "there is no such file", remedy)
        super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def run_multi_gpu(self, request: dict[str, Any], cmd: list[str], env: Mapping[str, str]) -> None:
        """Train in a process for each GPU.

        Raises:
            RequestError: if it fails, which MONAI Label would pass over.
        """
        # MONAI Label counts the GPUs that this process sees, and starts whatever torchrun is on the path.
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = env["CUDA_VISIBLE_DEVICES"].split(",")
        if seen:
            env = {**env, "CUDA_VISIBLE_DEVICES": ",".join(seen.split(",")[int(gpu)] for gpu in gpus)}
        command = [sys.executable, "-m", "torch.distributed.run", *cmd[1:]]
        reason = "The lines above say why."
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if (found := REASON.match(line)) is not None:
                    reason = found[1]
        if process.returncode != 0:
            cause = f"failed in {len(gpus)} processes, with status {process.returncode}"
            raise RequestError(SERVER_FAULT, "train", cause, reason)


def _is_ensemble(path: str) -> bool:
    try:
        return any(key.startswith(MEMBERS) for key in torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # Of bytes that are no weights, anything may be raised: loading them says why.
        return False
