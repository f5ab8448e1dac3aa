"""A prediction saved as a label: training has to read it as it was meant."""

import json

import numpy as np
import pytest

from bundle.label_app.lib.labels import check_tag, label_document
from bundle.label_app.lib.reasons import RequestError
from scripts.core.tasks import get_task
from scripts.datalists.label_files import as_entries
from scripts.datalists.labels import output_names

MADE_BY = {"name": "pathology_mustmil_classification", "version": "0.3.0", "weights": {"sha256": "ab12"}}


def reply(scores, **others):
    prediction = [{"idx": i, "label": name, "score": score} for i, (name, score) in enumerate(scores.items())]
    answered = {"model": MADE_BY["name"], "version": MADE_BY["version"], "weights": MADE_BY["weights"]}
    return {
        "prediction": prediction,
        "decision": [name for name, score in scores.items() if score >= 0.5],
        "scores": {"global": scores, **others},
        "operating_point": None,
        "notice": "No diagnosis.",
        **answered,
        "slide": "slide_1",
    }


def entry_of(tmp_path, document, task, class_names):
    path = tmp_path / "label.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    (entry,) = as_entries([{"image": str(tmp_path / "a.svs"), "label": str(path)}], task, class_names)
    return entry


def test_classes_with_a_score_of_a_half_or_more_are_the_label_that_training_reads(tmp_path):
    scores = {"cancer": 0.9, "hgd": 0.5, "normal": 0.4999}
    document = label_document(reply(scores, **{"5x": {**scores, "cancer": 0.1}}))
    assert document["label"] == {"cancer": 1, "hgd": 1, "normal": 0}
    entry = entry_of(tmp_path, document, "multilabel", list(scores))
    np.testing.assert_array_equal(entry["label"], [1, 1, 0])


@pytest.mark.parametrize(("task", "decided"), [("multiclass", "cancer"), ("ordinal", "lgd")])
def test_one_class_a_slide_is_saved_as_the_one_that_is_decided(tmp_path, task, decided):
    # No class has a half: the last is the most probable, the second the median.
    scores = {"normal": 0.3, "lgd": 0.3, "cancer": 0.4}
    names = list(scores)
    answered = {**reply(scores), "decision": [decided]}
    chosen = get_task(task).decided(np.array(list(scores.values())))
    assert [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen] == [decided]
    document = label_document(answered)
    assert document["label"] == {name: int(name == decided) for name in names}
    assert entry_of(tmp_path, document, task, names)["label"].argmax() == names.index(decided)


def test_what_the_label_was_made_from_is_kept():
    scores = {"cancer": 0.9, "normal": 0.2}
    document = label_document(reply(scores, **{"5x": {"cancer": 0.1, "normal": 0.7}}))
    assert document["scores"]["5x"] == {"cancer": 0.1, "normal": 0.7}
    assert document["model"] == MADE_BY
    assert document["notice"] == "No diagnosis."
    assert document["slide"] == "slide_1"


def test_at_an_operating_point_its_decisions_are_the_label(tmp_path):
    scores = {"cancer": 0.9, "hgd": 0.1, "normal": 0.6}
    point = {
        "cancer": {"calibrated": 0.7, "threshold": 0.8, "decision": False},
        "hgd": {"calibrated": 0.05, "threshold": 0.04, "decision": True},
        "normal": {"calibrated": 0.5, "threshold": 0.5, "decision": True},
    }
    answered = {**reply(scores), "operating_point": {"global": point}, "decision": ["hgd", "normal"]}
    document = label_document(answered)
    assert document["label"] == {"cancer": 0, "hgd": 1, "normal": 1}
    assert document["operating_point"] == {"global": point}
    entry = entry_of(tmp_path, document, "multilabel", list(scores))
    np.testing.assert_array_equal(entry["label"], [0, 1, 1])


@pytest.mark.parametrize(("score", "label"), [(0.7, 1), (0.2, 0)])
@pytest.mark.parametrize(
    ("names", "positive"),
    [(["cancer", "hgd", "normal"], None), (["benign", "malignant"], ["malignant"]), (["benign", "malignant"], None)],
)
def test_the_binary_tasks_label_is_one_that_it_trains_on(tmp_path, names, positive, score, label):
    (output,) = output_names("binary", names, positive)
    document = label_document(reply({output: score}))
    entry = entry_of(tmp_path, document, "binary", names)
    np.testing.assert_array_equal(entry["label"], [label])


@pytest.mark.parametrize("label", [0, 0.0, [0], "benign", ["benign"], {"benign": 1, "malignant": 0}, {"label": 0}])
def test_a_label_file_of_a_slide_without_a_positive_class_is_0(tmp_path, label):
    path = tmp_path / "label.json"
    path.write_text(json.dumps(label if isinstance(label, dict) and "label" in label else {"label": label}))
    data = [{"image": str(tmp_path / "a.svs"), "label": str(path)}]
    (entry,) = as_entries(data, "binary", ["benign", "malignant"], ["malignant"])
    np.testing.assert_array_equal(entry["label"], [0])


@pytest.mark.parametrize("tag", ["final", "original", "round-2", "v2"])
def test_a_plain_name_is_a_tag(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "..", "../models", "a/b", "/etc", "a b", ".hidden", None, 5, "x" * 41])
def test_a_tag_cannot_lead_out_of_the_studies(tag):
    with pytest.raises(RequestError, match="label_tag: got"):
        check_tag(tag)


def test_a_tag_is_told_by_the_name_of_its_parameter():
    with pytest.raises(RequestError, match=r"^tag: got '\.\./evil'\."):
        check_tag("../evil", "tag")
