"""The MONAI Label app: one answer a slide, every output's scores, maps for QuPath and the Digital Slide Archive."""

from __future__ import annotations

import html
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import monailabel
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.pathology import create_asap_annotations_xml, create_dsa_annotations_json

from .bundles import find_bundles
from .choices import read_mpp, read_switch
from .datastore import SlideDatastore
from .infer_task import NOTICE, SlideInferTask
from .labels import check_tag, label_document
from .polygons import escape_labels
from .reasons import BAD_REQUEST, NOT_FOUND, NOT_POSSIBLE, NOT_USABLE, SERVER_FAULT, RequestError, find_reason
from .studies import check_ids, find_mask, find_slide_file
from .train_task import SlideTrainTask

__all__ = ["SlideApp"]

DESCRIPTION = f"Slide-level classification at several magnifications, with its maps. {NOTICE}"

logger = logging.getLogger(__name__)
Task = TypeVar("Task")


class SlideApp(MONAILabelApp):
    """Serves the bundles in its folder ``model``, several versions beside each other.

    Unlike the stock app it runs once for a slide, on the CPU or a GPU whatever the client sends, refuses weights that
    do not load whole, answers with the scores of every output and a map as polygons, saves a result as a label, and
    tells the client why a request failed.

    Args:
        app_dir: this app's folder.
        studies: the folder with the slides, or the address of a datastore.
        conf: of the server, ``--conf KEY VALUE``: ``models``, folders in ``model``, separated by commas, by default
            all; and defaults of what a client may choose (``head``, ``classes``, ``kind``, ``share``, ``threshold``,
            ``coordinates``).
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        # MONAI Label leaves it to PyTorch whether a file of weights may run code, and PyTorch before 2.6 lets it.
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        check_ids(studies, settings.MONAI_LABEL_DATASTORE_FILE_EXT)
        self.bundles = find_bundles(os.path.join(app_dir, "model"), conf)
        self.refused: dict[str, str] = {}
        super().__init__(
            app_dir, studies, conf, name="MuSTMIL", description=DESCRIPTION, version=monailabel.__version__
        )

    def init_datastore(self) -> Datastore:
        """The folder of slides; a remote one is MONAI Label's."""
        if self._is_remote():
            return super().init_datastore()
        return SlideDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """A task for each bundle. One that cannot be served stands in nobody's way: its requests get the reason."""
        infers = self._each(SlideInferTask)
        if not infers:
            raise RequestError(SERVER_FAULT, "models", "none can be served", " ".join(self.refused.values()))
        return infers

    def init_trainers(self) -> dict[str, TrainTask]:
        """A training for each bundle that has one; ``--conf skip_trainers true`` offers none."""
        if read_switch("skip_trainers", self.conf.get("skip_trainers", False)):
            return {}
        return {name: task for name, task in self._each(SlideTrainTask).items() if task.is_valid()}

    def init_strategies(self) -> dict[str, Strategy]:
        """How the next slide to label may be chosen."""
        return {"random": Random(), "first": First()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Predict one slide, and save the result as its label if asked to.

        Args:
            request: ``model``, ``image`` (the slide's id), and the parameters in ``docs/serving.md``.
            datastore: by default the app's.

        Returns:
            ``params``, the reply (:meth:`SlideInferTask.writer`), with ``saved`` if it was; no file.

        Raises:
            HTTPException: with the reason, if there is no result.
        """
        with _told():
            store = datastore or self.datastore()
            task = self._task(request.get("model"))
            task.choose(request)
            save = read_switch("save_label", request.get("save_label", False))
            tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL.value))
            found = self._find_slide(request.get("image"), store)
            if save:
                _check_saving(request["image"], tag, store)
            request = self._checked(request, store)
            reply = super().infer({**request, "image": found}, store)["params"]
            # MONAI Label lets a client's parameters name another slide than its address: what was scored is told.
            reply["slide"] = os.path.basename(request["image"])
            if save:
                reply["saved"] = {"label": _save(store, request, reply, tag), "tag": tag}
            return {"label": None, "tag": tag, "file": None, "params": reply}

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Predict one slide for the plugins: the same, as JSON, DSA's JSON or ASAP's XML.

        A rectangle (``location``, ``size``) decides what is drawn; the scores are always of the whole slide, and the
        slide is never cut into tiles.

        Returns:
            ``params``, MONAI Label's reply for slides with the one of :meth:`infer` as its only annotation; and
            ``file``, the path of the annotation in the format of ``output``, if it is not JSON.

        Raises:
            HTTPException: as :meth:`infer`.
        """
        result = self.infer(request, datastore)["params"]
        with _told():
            region = list(self._task(request["model"]).choose(request).region or (0, 0, 0, 0))
            reply = {
                "name": f"MONAILabel Annotations - {request['model']} for {region}",
                "description": _in_words(result),
                "model": request["model"],
                "location": region[:2],
                "size": region[2:],
                "annotations": [result],
                "latencies": result.get("latencies"),
            }
            return {"file": _annotation_file(reply, request.get("output")), "params": reply}

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Predict many slides one after the other, and save the results as their labels.

        Returns:
            For each slide ``saved``, or ``error`` with the reason: one that cannot be used does not stop the others.
        """

        def infer_one(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return {"saved": self.infer(one, store)["params"]["saved"]}
            except HTTPException as error:
                return {"error": error.detail}

        # The stock task wants several GPUs, or divides by their number.
        one_by_one = {**request, "multi_gpu": False, "max_workers": 1}
        outcome: dict[str, Any] = self._batch_infer(one_by_one, datastore or self.datastore(), infer_one)
        return outcome

    def bundle_path(self, model: str | None) -> str | None:
        """The folder of a model; MONAI Label asks for it before it starts a training or a batch in the background.

        Raises:
            HTTPException: if there is no such model.
        """
        with _told():
            if model is not None:
                self._task(model)
        path: str | None = super().bundle_path(model)
        return path

    def _each(self, kind: Callable[[str, dict[str, str]], Task]) -> dict[str, Task]:
        made = {}
        for name, path in self.bundles.items():
            try:
                made[name] = kind(path, self.conf)
            # Whatever a broken bundle raises, or if it calls exit(), the others are served.
            except (Exception, SystemExit) as error:
                self.refused[name] = find_reason(error, subject=path)[1]
                logger.exception("%s is not served: %s", name, self.refused[name])
        return made

    def _task(self, model: object) -> SlideInferTask:
        if model in self.refused:
            raise RequestError(SERVER_FAULT, model, "it is not served", self.refused[str(model)])
        if model not in self._infers:
            raise RequestError(NOT_FOUND, model, "there is no such model", f"Give one of {', '.join(self._infers)}.")
        task: SlideInferTask = self._infers[model]
        return task

    def _find_slide(self, image: object, store: Datastore) -> str:
        """The path of a slide by its id; or of an upload, or a file in the studies, by its absolute path."""
        if not isinstance(image, str) or not image:
            raise RequestError(NOT_USABLE, "image", f"got {type(image).__name__}", "Give the id of a whole slide.")
        # No id is an absolute path, and a relative path is not looked for: it would be from where the server runs.
        if os.path.isabs(image):
            uploads = [self.sessions().store_path] if self.sessions() else []
            path = find_slide_file(image, uploads if self._is_remote() else [self.studies, *uploads])
        else:
            path = store.get_image_uri(image)
        if path and os.path.exists(path):
            return os.path.abspath(path)
        # A remote datastore fetches a slide as a whole, if no rectangle is asked for.
        if self._is_remote() and not os.path.isabs(image):
            path = store.get_image(image, {"location": [0, 0], "size": [0, 0]})
            if isinstance(path, str) and os.path.exists(path):
                return path
        remedy = "GET /datastore/?output=all names those there are; other suffixes: MONAI_LABEL_DATASTORE_FILE_EXT."
        raise RequestError(NOT_FOUND, image, "there is no such slide", remedy)

    def _checked(self, request: Mapping[str, Any], store: Datastore) -> dict[str, Any]:
        """The request, with ``mpp`` and ``mask`` as they are used.

        If it has no ``mpp``, the resolution that was stored with the slide in its image info is used.
        """
        checked = {key: value for key, value in request.items() if value is not None}
        stored = store.get_image_info(request["image"]) if isinstance(store, LocalDatastore) else {}
        mpp = checked.get("mpp", stored.get("mpp"))
        if mpp is not None:
            checked["mpp"] = read_mpp(mpp)
        if "mask" in checked:
            if self._is_remote():
                remedy = "Leave it out: this server has no folder of slides to find it in."
                raise RequestError(BAD_REQUEST, "mask", "it cannot be given here", remedy)
            checked["mask"] = find_mask(checked["mask"], self.studies)
        return checked

    def _is_remote(self) -> bool:
        return not isinstance(self.studies, str) or self.studies.startswith(("http://", "https://"))


@contextmanager
def _told() -> Iterator[None]:
    """Let the client know why a request failed; the log gets the whole of it."""
    try:
        yield
    except HTTPException:
        raise
    except (Exception, SystemExit) as error:
        status, text = find_reason(error)
        logger.error(text, exc_info=None if status < SERVER_FAULT else error)
        raise HTTPException(status, text) from error


def _check_saving(image: str, tag: str, store: Datastore) -> None:
    if image not in store.list_images():
        remedy = "Add the slide to the server's studies, and give its id."
        raise RequestError(NOT_USABLE, "save_label", f"{image} is no slide of the datastore", remedy)
    final = DefaultLabelTag.FINAL.value
    if tag == final and final in store.get_labels_by_image_id(image):
        remedy = f"Delete it first (DELETE /datastore/label?id={image}&tag={final}), or give another label_tag."
        cause = f"{image} has a {final} label, which no prediction replaces"
        raise RequestError(NOT_USABLE, "label_tag", cause, remedy)


def _save(store: Datastore, request: Mapping[str, Any], reply: Mapping[str, Any], tag: str) -> str:
    document = label_document(reply)
    if request.get("mpp") is not None:
        document["mpp"] = request["mpp"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "label.json")
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        try:
            return str(store.save_label(request["image"], str(path), tag, {"model": document["model"]}))
        except NotImplementedError as error:
            remedy = "Take the scores from the reply."
            cause = f"{type(store).__name__} cannot save labels"
            raise RequestError(NOT_POSSIBLE, "save_label", cause, remedy) from error


def _in_words(result: Mapping[str, Any]) -> str:
    """The scores and decisions in one line: all that the plugins show beside the polygons."""
    heads = (
        f"{head}: {', '.join(f'{name} {score:.2f}{_decision(result, head, name)}' for name, score in scores.items())}"
        for head, scores in result["scores"].items()
    )
    shown = result["heatmap"]
    frame = f"Coordinates: {shown['coordinates']}, from ({shown['origin_level0'][0]:g}, {shown['origin_level0'][1]:g})"
    of_map = f"{shown['kind'].capitalize()} of {shown['map']}"
    return f"{'; '.join(heads)}. {of_map}. {frame} of level 0. {result['notice']}"


def _decision(result: Mapping[str, Any], head: str, name: str) -> str:
    """The decision on a class at the operating point, in words; nothing where the weights have none."""
    if result["operating_point"] is None:
        return ""
    of_class = result["operating_point"][head][name]
    at = f" at {of_class['threshold']:.2f}" if "threshold" in of_class else ""
    return f" (calibrated {of_class['calibrated']:.2f}, {'yes' if of_class['decision'] else 'no'}{at})"


def _annotation_file(reply: Mapping[str, Any], output: str | None) -> str | None:
    if output == "dsa":
        path, _ = create_dsa_annotations_json(reply)
    elif output == "asap":
        annotations = [{**one, "annotation": escape_labels(one["annotation"])} for one in reply["annotations"]]
        texts = {key: html.escape(str(reply[key])) for key in ("name", "description", "model")}
        path, _ = create_asap_annotations_xml({**reply, **texts, "annotations": annotations})
    else:
        return None
    return str(path)
