"""What TensorBoard shows of an evaluation: its event file says what metrics.json does."""

import json
import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from monai.data import Dataset
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.evaluation.board import MOST_SCALARS, EvaluationBoard
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, score_names
from scripts.evaluation.reports import EvaluationReport
from tests.evaluation.test_localisation_report import Given, item, make_slide
from tests.evaluation.test_reports import evaluate, read_csv, some_slides

CLASSES, HEADS = ["cancer", "hgd", "normal"], ["global", "5x", "10x"]
SETTINGS = {
    "task": "multilabel",
    "method": "mustmil",
    "magnifications": [5, 10],
    "backbone": "tiny",
    "class_names": CLASSES,
    "report": True,
}
RECORD = {"version": "0.4.0", "data": {"training_slides": 12, "validation_slides": 4, "drawn_slides": 3}}
MADE_BY = {"configuration": {"method": "mustmil", "lr": 0.25}, "seed": 7}


def network_of(classes):
    """Gives the maps that ride in the bags, and keeps the record of a training."""
    network = Given(classes)
    network.copies = [SimpleNamespace(record=RECORD, origin={"made_by": MADE_BY})]
    return network


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The metrics, the events and the folder of an evaluation of eight slides."""
    folder = tmp_path_factory.mktemp("board")
    slides = some_slides(8, 3)
    entries = [make_slide(folder, slide["slide"], slide["label"].tolist(), None) for slide in slides]
    maps = np.random.default_rng(0).random((32, 3, 3))
    return (*evaluated(folder, slides, entries, [item(entry, maps) for entry in entries]), folder)


class Bags(Dataset):
    """Bags, with the datalist's entries as ``data``."""

    def __init__(self, entries, items):
        super().__init__(entries)
        self.items = items

    def __getitem__(self, index):
        return self.items[index]


def evaluated(folder, slides, entries, items, left_out=("lost",), settings=SETTINGS):
    made_by = {"configuration": {"method": "mustmil", "partition": "testing"}, "weights_sha256": {"5x": "abcdef" * 9}}
    with SummaryWriter(str(folder / "events")) as writer:
        board = EvaluationBoard(writer, network_of(3), Bags(entries, items), BagBuilder(), left_out, settings)
        evaluate(slides, EvaluationReport(folder, HEADS, CLASSES, "multilabel", board, made_by=made_by, data=entries))
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, EventAccumulator(str(folder / "events"), size_guidance={"tensors": 0, "images": 0}).Reload()


def tables(text):
    """The rows of each table below the heading that is above it, without the head of the table."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.split("|")[1:-1]])
    return {heading: rows[2:] for heading, rows in found.items()}


def text_of(events):
    return events.Tensors("evaluation/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_few_headline_scores_are_charts(shown):
    metrics, events, _ = shown
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert len(values) <= MOST_SCALARS == 20
    assert values == pytest.approx(
        {
            f"evaluation/{head}/{name}": metrics[head][name]["value"]
            for head in HEADS
            for name in score_names("multilabel")
        },
        rel=1e-6,
    )


def test_the_summary_has_the_numbers_of_the_metrics(shown):
    metrics, events, _ = shown
    found = tables(text_of(events))

    def same(cells, scores, names):
        for cell, name in zip(cells, names, strict=True):
            value, bounds = scores[name]["value"], scores[name]["ci95"]
            expected = "-" if value is None else "{:.3f} [{:.3f}, {:.3f}]".format(value, *bounds)
            assert cell == expected

    assert [row[0] for row in found["Scores"]] == HEADS
    for head, *cells in found["Scores"]:
        same(cells, metrics[head], score_names("multilabel"))
        for name, slides, *of_class in found[f"Classes, head {head}"]:
            scores = metrics[head]["classes"][name]
            assert int(slides) == scores["slides"]
            same(of_class, scores, CLASS_SCORE_NAMES)


def test_the_summary_says_which_weights_and_what_to_beware_of(shown):
    text = text_of(shown[1])
    weights = dict(tables(text)["Weights"])
    assert weights["method"] == "mustmil"
    assert weights["magnifications"] == "5x, 10x"
    assert weights["trained on"] == "12 training, 4 validation slides, of which 3 synthetic"
    assert weights["SHA-256 of head 5x"] == "`abcdefabcdef...`"
    assert "8 slides, patients not known" in text
    for warning in (
        "Demonstration weights",
        "no column names the patient",
        "fewer than 10",
        "1 slide, `lost`. `failed.csv` has",
    ):
        assert warning in text


def test_every_head_has_its_figures_and_curves(shown):
    _, events, _ = shown
    images = {tag for tag in events.Tags()["images"] if tag.startswith("figures/")}
    figures = ("roc", "precision_recall", "confusion", "calibration")
    assert images == {f"figures/{head}/{name}" for head in HEADS for name in figures}
    assert {f"{head}/{name}" for head in HEADS for name in CLASSES} <= set(events.Tags()["tensors"])
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (image.height, image.width, 3)
        assert 300 <= min(decoded.shape[:2]) <= max(decoded.shape[:2]) <= 2000
        assert decoded.std() > 5  # something is drawn


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CLASSES)
def test_a_precision_recall_curve_is_that_of_the_predictions(shown, head, name):
    _, events, folder = shown
    _, _, _, _, precision, recall = make_ndarray(events.Tensors(f"{head}/{name}")[0].tensor_proto)
    rows = [row for row in read_csv(folder) if row["head"] == head]
    p = np.array([float(row[name]) for row in rows])
    has = np.array([name in row["label"].split(";") for row in rows])
    assert 0 < has.sum() < len(has) == 8
    thresholds = np.arange(len(recall)) / (len(recall) - 1)  # of TensorBoard
    for threshold, of_curve in zip(thresholds, zip(precision, recall, strict=True), strict=True):
        expected = [score(has, p >= threshold, zero_division=0) for score in (precision_score, recall_score)]
        assert of_curve == pytest.approx(expected, abs=1e-6)
    assert len({*recall.round(6).tolist()}) > 3  # it is a curve


def test_the_training_and_the_evaluation_are_a_line_of_the_hparams_tab(shown):
    _, events, _ = shown
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["lr"].number_value == 0.25
    assert found["training_seed"].number_value == 7
    assert found["partition"].string_value == "testing"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(content).experiment.metric_infos
    assert {info.name.tag for info in metrics} == set(events.Tags()["scalars"])


def test_the_slides_most_wrong_and_most_right_are_pictures(shown):
    _, events, _ = shown
    slides = {tag for tag in events.Tags()["images"] if tag.startswith("slides/")}
    assert slides == {
        f"slides/{name}/{kind}" for name in ("most_wrong", "most_right") for kind in ("attention", "contribution")
    }


def test_a_slide_that_cannot_be_read_has_no_picture_and_stops_nothing(tmp_path, caplog):
    slides = some_slides(2, 3)
    entries = [make_slide(tmp_path, slide["slide"], slide["label"].tolist(), None) for slide in slides]
    entries[0]["image"] = str(tmp_path / "gone.tif")
    items = [item(entry, np.ones((32, 3, 3))) for entry in entries]
    with caplog.at_level(logging.WARNING):
        _, events = evaluated(tmp_path, slides, entries, items, left_out=())
    (warning,) = [line for line in caplog.messages if "no picture" in line]
    assert warning.startswith(f"no picture of slide slide 00: {tmp_path}/gone.tif: no such file.")
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("slides/")]) == 2
    assert "Left out" not in text_of(events)


def test_an_undefined_score_is_a_dash_and_no_chart(tmp_path):
    slides = some_slides(3, 3, one_class=True)
    entries = [make_slide(tmp_path, slide["slide"], slide["label"].tolist(), None) for slide in slides]
    items = [item(entry, np.ones((32, 3, 3))) for entry in entries]
    metrics, events = evaluated(tmp_path, slides, entries, items)
    assert metrics["global"]["roc_auc"]["value"] is None
    assert "evaluation/global/roc_auc" not in events.Tags()["scalars"]
    assert "evaluation/global/micro_accuracy" in events.Tags()["scalars"]
    text = text_of(events)
    assert tables(text)["Scores"][0][-1] == "-"
    assert "No slide has `cancer`, `hgd`, `normal`" in text


def test_without_a_report_there_are_no_images_and_all_numbers(shown, tmp_path):
    _, with_report, _ = shown
    slides = some_slides(8, 3)
    entries = [make_slide(tmp_path, slide["slide"], slide["label"].tolist(), None) for slide in slides]
    items = [item(entry, np.ones((32, 3, 3))) for entry in entries]
    _, events = evaluated(tmp_path, slides, entries, items, settings={**SETTINGS, "report": False})
    assert with_report.Tags()["images"]
    assert not events.Tags()["images"]
    for kind in ("scalars", "tensors"):
        assert set(events.Tags()[kind]) == set(with_report.Tags()[kind])
