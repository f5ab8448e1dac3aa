"""The handler that writes the report of `inferring` or `evaluating`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts import __version__
from scripts.core.errors import SlideError
from scripts.core.imported import IMPORTED
from scripts.core.magnification import scale_names
from scripts.core.ranks import is_first_rank
from scripts.core.settings import check_settings
from scripts.core.shards import gather_results
from scripts.core.tasks import get_task
from scripts.datalists.failures import FailedSlides
from scripts.evaluation.label_texts import classes_text
from scripts.evaluation.reports import EvaluationReport
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.legend import Title
from scripts.heatmaps.mapped_slides import MappedSlide, MappedSlides
from scripts.heatmaps.writer import predicted_classes
from scripts.networks.methods import method_title, served_head
from scripts.reports.page import write_page
from scripts.reports.pictures import remove_other_pictures, write_pictures
from scripts.reports.scores import evaluation_content
from scripts.slides.frames import frame_of
from scripts.weights.record import DEMONSTRATION, is_demonstration

__all__ = ["ReportWriter"]

# More patches in each gallery would make the pictures of a large cohort too large.
MOST_TOP = 3
PAGE = "report.html"
POINT = ("calibrated", "decided")

logger = logging.getLogger(__name__)


class ReportWriter:
    """Writes ``report.html`` and, beside it, the folder ``report`` with the pictures of each slide.

    The page opens without a network: style, script and figures are in the file, and it loads a slide's pictures from
    the folder when they come into view. It shows the slides with their predictions, the maps of each over its
    thumbnail, and what failed. Pictures of slides that are not on the page, which an earlier run left, are removed.

    Attach to an evaluator whose postprocessing makes probabilities ``[H, K]``, after the handlers that it shows. With
    what :class:`scripts.inference.decisions.Decided` adds, calibrated probabilities and decisions are shown, too. Of
    several ranks each writes the pictures of its slides, and the first the page.

    Args:
        output_dir: where both are written.
        title: of the page.
        method: one of :data:`scripts.networks.methods.METHODS`.
        task: one of :data:`scripts.core.tasks.TASKS`; in the ordinal one maps are of its logits, ``"above <class>"``.
        magnifications: the scales.
        backbone: the encoder's name.
        mapped: the slides with their maps; the datalist's entries have ``label`` where it is known.
        heads: the H heads' names.
        class_names: the names of a head's K classes.
        report: False writes none.
        top_patches: how many patches a gallery shows, at most 3 here; 0 for no galleries.
        coordinates: the frame of the positions in galleries, see :mod:`scripts.slides.frames`.
        key: of the probabilities in the evaluator's output.
        failures: the slides that failed, which the page lists, and where slides are recorded that cannot be read
            again; ``None`` ends the run with the first.
        evaluation: the handler of an evaluation, which comes before this one: its scores and figures are shown. A slide
            that cannot be read again then keeps its row without pictures, and a warning names it: it has its scores.
            So does a slide of imported features that is not there.

    Raises:
        SettingsError: if ``report`` is no switch.
    """

    def __init__(
        self,
        output_dir: str | Path,
        title: str,
        method: str,
        task: str,
        magnifications: Sequence[float],
        backbone: str,
        mapped: MappedSlides,
        heads: Sequence[str],
        class_names: Sequence[str],
        report: bool = True,
        top_patches: int = 5,
        coordinates: str = "qupath",
        key: str = CommonKeys.PRED,
        failures: FailedSlides | None = None,
        evaluation: EvaluationReport | None = None,
    ) -> None:
        check_settings(report=report, top_patches=top_patches, coordinates=coordinates)
        self.top_patches, self.coordinates = top_patches, coordinates
        self.is_imported = backbone == IMPORTED
        self.output_dir, self.title, self.report = Path(output_dir), title, report
        scales = ", ".join(scale_names(magnifications))
        self.facts = [("Method", f"{method_title(method)}, {task}, at {scales}"), ("Encoder", backbone)]
        self.mapped, self.heads, self.class_names = mapped, list(heads), list(class_names)
        self.kind = get_task(task)
        self.map_names = self.kind.logit_names(class_names)
        self.key, self.failures, self.evaluation = key, failures, evaluation
        self.head_index = served_head(self.heads)
        self.slides: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Remove an earlier page, write the pictures after every iteration, and the page when the run is complete."""
        if is_first_rank():
            engine.add_event_handler(Events.STARTED, self._remove)
        if self.report:
            engine.add_event_handler(Events.STARTED, self._clear)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._show)
            engine.add_event_handler(Events.COMPLETED, self._end)

    def _remove(self) -> None:
        # An interrupted run would leave its pictures under the numbers of an earlier one.
        (self.output_dir / PAGE).unlink(missing_ok=True)
        if not self.report:  # else other ranks may be writing some already
            remove_other_pictures(self.output_dir, [])

    def _clear(self) -> None:
        # One list for each bag in turn, of its slides, and the bags' names.
        self.rows: list[list[dict[str, Any]]] = []
        self.names: list[str] = []

    def _show(self, engine: Engine) -> None:
        self.mapped.show(engine, self._show_item)

    def _show_item(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        probabilities = output[self.key].float().cpu().numpy()
        names = self.mapped.slides_of(item)
        rows = [self._shown(name, item, index, probabilities) for index, name in enumerate(names)]
        self.names.append(str(item["slide"]))
        self.rows.append([row | self._decided(output) for row in rows if row is not None])

    def _shown(
        self, slide: str, item: Mapping[str, Any], index: int, probabilities: NDArray[np.floating]
    ) -> dict[str, Any] | None:
        """The row of a slide of an item, with its pictures written; ``None`` if it failed."""
        row = self._row(slide, item, probabilities)
        if self.is_imported and self.mapped.is_missing(slide):
            return row
        try:
            return row | self._pictures(slide, item, index, probabilities)
        except SlideError as error:
            if self.evaluation is not None:
                logger.warning("no pictures of slide %s in the report: %s", slide, error)
                return row
            if self.failures is None:
                raise
            self.failures.record(self.mapped.entries[slide], error)
            return None

    def _row(self, slide: str, item: Mapping[str, Any], probabilities: NDArray[np.floating]) -> dict[str, Any]:
        """What the page says of a slide whether or not it has pictures: the prediction and the label are the bag's."""
        label, decided = self._label(item), self.kind.decided(probabilities[self.head_index])
        return {
            "name": self.mapped.title_of(item, slide),
            "slide": slide,
            "label": "" if label is None else classes_text(label, self.class_names),
            "prediction": classes_text(decided, self.class_names),
            "is_wrong": label is not None and not np.array_equal(decided, label > 0.5),
            "probabilities": np.round(probabilities.astype(np.float64), 4).tolist(),
            "of_maps": np.round(self.kind.per_logit(probabilities.astype(np.float64)), 4).tolist(),
            "folder": "",
        }

    def _decided(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """What the page says of the operating point; empty values where the weights have none."""
        spread = output.get("spread")
        of_members = {"spread": [] if spread is None else np.round(spread.cpu().numpy(), 4).tolist()}
        if output.get("calibrated") is None:
            return {"decision": "", "calibrated": [], "decided": [], **of_members}
        calibrated, decided = (output[key].cpu().numpy() for key in ("calibrated", "decision"))
        return {
            "decision": classes_text(decided[self.head_index], self.class_names),
            "calibrated": np.round(calibrated, 4).tolist(),
            "decided": decided.astype(int).tolist(),
            **of_members,
        }

    def _per_map(self, of_classes: list[list[float]]) -> list[list[float]]:
        """Values of classes ``[H, K]``, if there are any, as those of what the maps are of."""
        return np.round(self.kind.per_logit(np.array(of_classes)), 4).tolist() if of_classes else []

    def _label(self, item: Mapping[str, Any]) -> NDArray[Any] | None:
        entry = self.mapped.bags[str(item["slide"])]
        return np.asarray(entry[CommonKeys.LABEL]) if CommonKeys.LABEL in entry else None

    def _pictures(
        self, slide: str, item: Mapping[str, Any], index: int, probabilities: NDArray[np.floating]
    ) -> dict[str, Any]:
        """Write the pictures of a slide; returns what the page needs to show them."""
        shown, label = self.mapped(item, index), self._label(item)
        known = set() if label is None else set(np.flatnonzero(self.kind.per_logit(label) > 0.5).tolist())
        galleries = self._galleries(self.mapped.title_of(item, slide), shown, self.kind.per_logit(probabilities), known)
        return write_pictures(
            self.output_dir, slide, shown.opened, shown.maps, self.mapped.maps, self.map_names, galleries
        )

    def _galleries(
        self, heading: str, shown: MappedSlide, probabilities: NDArray[np.floating], labelled: set[int]
    ) -> dict[tuple[int, int], NDArray[np.uint8]]:
        """The top patches of every map, for the classes of the label and those that any head predicts.

        Whoever compares the maps of a class finds the patches of each.
        """
        if not self.top_patches:
            return {}
        frame, count = frame_of(self.coordinates, shown.opened.bounds_level0), min(self.top_patches, MOST_TOP)
        classes = labelled.union(*map(predicted_classes, probabilities))
        galleries = {}
        for m, spec in enumerate(self.mapped.maps):
            of_head = probabilities[self.heads.index(spec.head)]
            for k in sorted(classes):
                title = Title(heading, spec.name, spec.head, self.map_names[k], float(of_head[k]))
                galleries[m, k] = shown.gallery(m, k, KINDS, count, title, frame)
        return galleries

    def _end(self, engine: Engine) -> None:
        self.mapped.wait()
        self.slides = [row for of_bag in gather_results(self.rows, self.names, engine) for row in of_bag]
        if is_first_rank():
            path = self.output_dir / PAGE
            write_page(path, **self._content())
            remove_other_pictures(self.output_dir, [slide["slide"] for slide in self.slides if slide["folder"]])
            engine.logger.info("wrote %s (%d slides)", path, len(self.slides))

    def _content(self) -> dict[str, Any]:
        """What ``page.html`` names."""
        network = self.mapped.network
        networks: Any = getattr(network, "copies", [network])
        record = getattr(networks[0], "record", None)
        scores = {} if self.evaluation is None else evaluation_content(self.evaluation)
        labelled = any(slide["label"] for slide in self.slides)
        slides = sorted(self.slides, key=lambda slide: not slide["is_wrong"])
        # The page's script shows maps.
        of_maps = [
            {**slide, "probabilities": slide["of_maps"], **{key: self._per_map(slide[key]) for key in POINT}}
            for slide in slides
        ]
        for slide in of_maps:
            del slide["of_maps"]
            slide.pop("spread", None)  # of classes, and maps may be of cumulative logits
        return {
            "title": self.title,
            "facts": self._facts(record),
            "warnings": [*([DEMONSTRATION] if is_demonstration(record) else []), *scores.pop("warnings", [])],
            "heads": self.heads,
            "head_index": self.head_index,
            "classes": self.class_names,
            "has_labels": labelled,
            "has_decisions": any(slide["decision"] for slide in self.slides),
            "has_spread": any(slide.get("spread") for slide in self.slides),
            "slides": slides,
            "failed": [] if self.failures is None else self.failures.rows(),
            **scores,
            "data": {
                "heads": self.heads,
                "head_index": self.head_index,
                "classes": self.map_names,
                "maps": [{"name": spec.name, "head": spec.head} for spec in self.mapped.maps],
                "kinds": KINDS,
                "slides": of_maps,
            },
        }

    def _facts(self, record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
        facts = [*self.facts, ("Software", f"pathology-mustmil {__version__}")]
        if record:
            training, validation = (record["data"][f"{name}_slides"] for name in ("training", "validation"))
            of_each = f"trained on {training} slides, chosen on {validation}"
            count = len(record.get("members", ()))
            facts.append(("Weights", f"an ensemble of {count}, each {of_each} at most" if count else of_each))
        return facts
