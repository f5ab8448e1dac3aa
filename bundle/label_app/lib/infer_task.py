"""One whole slide, predicted: the scores of every output, and a map as polygons."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import SaveImaged
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import name_to_device

from .bundle_parts import bundle_scripts, read_parts
from .bundles import check_configs
from .choices import DEFAULTS, KEYS, KINDS, Choice, check_logging, device_error, read_choice, read_device
from .polygons import ClassMap, annotate
from .reasons import BAD_REQUEST, SERVER_FAULT, RequestError, show

__all__ = ["SlideInferTask"]

# Under this key the checked choice travels with the request.
CHOICE = "checked_choice"
# What the bundle's preprocessing makes of a slide.
ENCODED = ("image", "corners", "patch_level0", "base_mpp", "bounds_level0")
OF_PATIENTS = "These weights predict patients from all of their slides, and this is one slide alone."
NOTICE = "For research only, not for diagnosis."
UNKNOWN = "These weights tell nothing of their training: on which slides, or with which settings, is not known."


class SlideInferTask(BundleInferTask):
    """MONAI Label's task of a bundle, without its silent fallbacks: whole weights, one answer a slide, its maps.

    Args:
        path: the bundle's folder.
        conf: of the server; may hold defaults of what a client may choose (:mod:`choices`).

    Raises:
        RequestError: if the bundle cannot be served, or a default is none.
    """

    def __init__(self, path: str, conf: Mapping[str, str]) -> None:
        # With `--conf preload true` weights are loaded while this is made.
        self.loaded_files: dict[str, str] = {}
        check_configs(path)
        # The type is given, so that a folder may be called by its version.
        with bundle_scripts(path):
            super().__init__(
                path,
                conf,
                type=InferType.CLASSIFICATION,
                post_filter=[SaveImaged],
                add_post_restore=False,
                load_strict=True,
            )
        if not self.is_valid():
            wanted = "configs/inference.json and models/model.pt"
            raise RequestError(SERVER_FAULT, path, f"lacks {wanted}", "Download the bundle again, or train it.")
        self.parts = read_parts(path, self.bundle_config)
        self.labels = {name: index for index, name in enumerate(self.parts.offer.class_names)}
        self.defaults = {key: conf[key] for key in KEYS if key in conf}
        self.last_slide: tuple[tuple[object, ...], dict[str, Any]] | None = None
        self._config["model_filename"].sort(key=lambda name: name != self.const.model_pytorch())
        self._config.update(
            DEFAULTS, head=self.parts.offer.map_names, kind=list(KINDS), coordinates=list(self.parts.offer.coordinates)
        )
        self.choose({})

    def info(self) -> dict[str, Any]:
        """What MONAI Label tells of a model, and the names of the outputs."""
        return {**super().info(), "heads": list(self.parts.offer.heads)}

    def choose(self, request: Mapping[str, Any]) -> Choice:
        """Check what a client asks for.

        Raises:
            RequestError: if it cannot be had.
        """
        file, files = request.get("model_filename"), self._config["model_filename"]
        if file is not None and file != files and file not in files:
            raise RequestError(BAD_REQUEST, "model_filename", f"got {show(file)}", f"Give one of {', '.join(files)}.")
        for key in ("mask_tissue", "mask_excluded"):
            if request.get(key) is not None and "qupath" not in self.parts.offer.coordinates:
                remedy = "Leave it out, or serve a newer version."
                raise RequestError(BAD_REQUEST, key, f"version {self.version} does not know it", remedy)
        _find_device(request)
        check_logging(request.get("logging"))
        return read_choice(request, self.parts.offer, self.defaults)

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[None, dict[str, Any]]:
        """Predict a slide.

        Args:
            request: ``image``, the slide's path, and the client's parameters.
            callbacks: as in MONAI Label.

        Returns:
            No file, and the reply; see :meth:`writer`.

        Raises:
            RequestError: if the request or the weights cannot be used.
        """
        choice = self.choose(request)
        device = _find_device(request)
        # Null leaves a parameter out; MONAI Label would take it for a value.
        request = {key: value for key, value in request.items() if value is not None}
        with bundle_scripts(self.bundle_path):
            # Before the slide is encoded, which takes minutes.
            self._check_weights(device, {**self._config, **request})
            return super().__call__({**request, "device": device, CHOICE: choice}, callbacks)

    def _check_weights(self, device: str, request: Mapping[str, Any]) -> None:
        self.parts.check_sum(os.path.join(self.bundle_path, "models", self._file(request)))
        network = self._get_network(device, request)
        try:
            self.parts.check_weights(network, self.parts.settings)
            # A record that is none would else fail when the slide has been encoded.
            self._weights(network), self._notice(network)
        except Exception as error:
            # It knows the weights, and not the file that they came from.
            cause = getattr(error, "cause", None) or f"their record cannot be read ({_in_short(error)})"
            path = os.path.join(self.bundle_path, "models", self.loaded_files[device])
            remedy = "Download the bundle again, or train it; no scores are given with such weights."
            raise RequestError(SERVER_FAULT, path, cause, remedy) from error

    def run_pre_transforms(self, data: dict[str, Any], transforms: Any) -> dict[str, Any]:
        """Encode the slide; or take it as it was encoded for the last request, if that was of the same slide.

        Encoding is nearly all of the time that a slide takes, and it depends on neither weights nor choice: another
        output, class or kind of map of the same slide comes at once.
        """
        key = _slide_key(data, self.parts.stamp_of)
        if self.last_slide is None or self.last_slide[0] != key:
            self.last_slide = None
            made = super().run_pre_transforms(data, transforms)
            # Bundles up to 0.3.0 tell no bounds.
            self.last_slide = key, {name: made[name] for name in ENCODED if name in made}
        return {**data, **self.last_slide[1]}

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[None, dict[str, Any]]:
        """The reply to a client, from what the bundle's transforms left in ``data``.

        Returns:
            No file, and: ``prediction`` as MONAI Label has it, of the output that is served; ``decision``, the names of
            the classes that it decides; ``scores`` by output and class; ``operating_point``, the calibrated
            probability, the decision and, where the task has some, its threshold by output and class, which
            ``prediction`` has, too, ``None`` where the weights have none; ``annotation``, the polygons; ``heatmap``,
            what these show; ``model`` and ``version``.
        """
        offer, choice = self.parts.offer, data[CHOICE]
        head_scores = _array(data["head_scores"])  # [H, K]
        scores = {
            head: dict(zip(offer.class_names, row, strict=True))
            for head, row in zip(offer.heads, head_scores.tolist(), strict=True)
        }
        _, reply = super().writer(data)
        # The bundle puts it where MONAI Label's stock app sends it on, too.
        point = (data.get("latencies") or {}).pop("operating_point", None)
        served = {entry["label"]: entry["score"] for entry in reply["prediction"]}
        decided = self.parts.decided(np.array([served[name] for name in offer.class_names]))
        chosen = dict(zip(offer.class_names, decided.tolist(), strict=True))
        if point is not None:
            chosen = {name: of_class["decision"] for name, of_class in point[offer.served_head].items()}
            for entry in reply["prediction"]:
                entry.update(point[offer.served_head][entry["label"]])
        reply.update(decision=[name for name in offer.class_names if chosen[name]], operating_point=point)
        maps, shown = self._maps(data, choice, head_scores)
        origin = self.parts.origin_of(choice.coordinates, _numbers(data.get("bounds_level0", ())))
        annotation = annotate(maps, choice, self.parts.shade_colours, origin)
        shown.update(coordinates=choice.coordinates, origin_level0=list(origin))
        shown["drawn"] = sum(len(element["contours"]) for element in annotation["elements"])
        name = os.path.basename(self.bundle_path)
        reply.update(scores=scores, annotation=annotation, heatmap=shown, model=name, version=self.version)
        network = self._get_network(data["device"], data)
        reply.update(weights=self._weights(network), device=data["device"], notice=self._notice(network))
        return None, reply

    def _maps(
        self, data: Mapping[str, Any], choice: Choice, head_scores: np.ndarray
    ) -> tuple[list[ClassMap], dict[str, Any]]:
        """The maps that were chosen, and what they are in plain values."""
        offer = self.parts.offer
        m = offer.map_index(choice.head)
        map_name, head = offer.maps[m]
        predicted = self.parts.predicted_classes(self.parts.per_logit(head_scores[offer.heads.index(head)]))
        wanted = choice.classes or tuple(offer.shown_classes[k] for k in predicted)
        values = self._explain(data)[choice.kind][:, m]  # [N, L]
        s = self.parts.scale_indices[m]
        corners, side = _array(data["corners"])[:, s], float(_array(data["patch_level0"])[s])  # [N, 2]
        maps = []
        for name in wanted:
            k = offer.shown_classes.index(name)
            heat = self.parts.gather_rows(values[:, k], corners, side, float(data["base_mpp"]), choice.kind)
            maps.append(ClassMap(name, self.parts.class_colour(k), heat))
        much = {"share": list(choice.shares)} if choice.threshold is None else {"threshold": choice.threshold}
        shown = {"map": map_name, "head": head, "kind": choice.kind, "classes": list(wanted), **much}
        return maps, {**shown, "patches": len(maps[0].heat.values)}

    def _weights(self, network: Any) -> dict[str, Any]:
        """Which weights answered: after a training on this server they are others than those that were downloaded."""
        return {"sha256": self.parts.weights_sha256(network.state_dict()), **network.record}

    def _notice(self, network: Any) -> str:
        if not network.record:
            return f"{UNKNOWN} {NOTICE}"
        settings = network.record.get("settings", {})
        told = [
            self.parts.demonstration if self.parts.is_demonstration(network.record) else "",
            OF_PATIENTS if settings.get("unit") == "patient" else "",
            NOTICE,
        ]
        return " ".join(filter(None, told))

    def _explain(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Attention and contribution of the slide, ``[N, M, K]`` each."""
        network = self._get_network(data["device"], data)
        image = torch.as_tensor(data[self.input_key]).unsqueeze(0).to(torch.device(data["device"]))
        with torch.no_grad():
            _, attention, contribution = network.explain(image)
        return {"attention": _array(attention[0]), "contribution": _array(contribution[0])}

    def _file(self, data: Any) -> str:
        """The name of the file of weights that a request is answered with."""
        file = (data or {}).get("model_filename", self.const.model_pytorch())
        return file[0] if isinstance(file, list) else str(file)

    def _get_network(self, device: str, data: Any) -> Any:
        file = self._file(data)
        # MONAI Label keeps one network a device, and knows its file by the time of writing alone, which files out of
        # one zip share.
        if self.loaded_files.get(device) != file:
            self._networks.pop(device, None)
        try:
            network = super()._get_network(device, data)
        # A file that is none of weights makes PyTorch raise whatever its bytes happen to mean.
        except Exception as error:
            path = os.path.join(self.bundle_path, "models", file)
            cause = f"the weights do not load ({_in_short(error)})"
            remedy = "Download the bundle again, or train it; no scores are given without its weights."
            raise RequestError(SERVER_FAULT, path, cause, remedy) from error
        self.loaded_files[device] = file
        return network


def _find_device(request: Mapping[str, Any]) -> str:
    """The device that a client asks for, or the server's own.

    Raises:
        RequestError: if it is not there: only the CPU and NVIDIA's GPUs run the bundle.
    """
    there = ["cpu", *(f"cuda:{gpu}" for gpu in range(torch.cuda.device_count()))]
    device = str(name_to_device(read_device(request.get("device"), there)))
    if device not in (*there, "cuda"):
        raise device_error(request.get("device"), there)
    return device


def _in_short(error: Exception) -> str:
    """An error in words that fit into a reason, without PyTorch's advice to run what a file holds all the same."""
    said = " ".join(str(error).split())
    refused = re.search(r"WeightsUnpickler error: (.*?)(\. |$)", said)
    return f"{type(error).__name__}: {(refused[1] if refused else said)[:300]}"


def _slide_key(data: Mapping[str, Any], stamp_of: Callable[[str], tuple[int, ...]]) -> tuple[object, ...]:
    """What decides how a slide is encoded."""
    files = [str(data[name]) for name in ("image", "mask") if data.get(name) is not None]
    return (
        *files,
        *(stamp_of(file) for file in files if os.path.exists(file)),
        repr(data.get("mpp")),
        repr(data.get("mask_tissue")),
        repr(data.get("mask_excluded")),
    )


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in value)


def _array(value: Any) -> np.ndarray:
    """As a plain array; a MetaTensor would drag its metadata through every step."""
    tensor = torch.as_tensor(value).detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
