from types import SimpleNamespace

import numpy as np
import pytest

from scripts.core.errors import DatalistError
from scripts.core.provenance import cohort_fingerprint
from scripts.evaluation.same_split import warn_of_other_split

SLIDES = [{"slide": f"s{i}", "label": np.array([i % 2, 1], dtype=np.float32)} for i in range(3)]


def trained_on(slides):
    made_by = {"data": cohort_fingerprint(training=slides, validation=[])}
    return SimpleNamespace(copies=[SimpleNamespace(origin={"made_by": made_by}, record={})])


def ensemble_trained_on(*of_members):
    members = [{"data": cohort_fingerprint(training=slides)} for slides in of_members]
    return SimpleNamespace(copies=[SimpleNamespace(origin={}, record={"members": members})])


def warned(caplog, network, slides):
    caplog.clear()
    warn_of_other_split(network, lambda: slides)
    return caplog.text


def test_the_same_training_slides_are_no_news(caplog):
    assert warned(caplog, trained_on(SLIDES), [{**slide, "label": slide["label"].tolist()} for slide in SLIDES]) == ""


@pytest.mark.parametrize(
    "slides", [SLIDES[:2], [*SLIDES, {**SLIDES[0], "slide": "s3"}], [{**SLIDES[0], "label": [1, 1]}]]
)
def test_others_are_told_of_with_both_numbers(caplog, slides):
    told = warned(caplog, trained_on(SLIDES), slides)
    assert "the weights were trained on 3 slides" in told
    assert f"what the datalist has for training is not the same: {len(slides)} slides (" in told


def test_nothing_is_said_where_nothing_is_known(caplog):
    assert warned(caplog, trained_on(SLIDES), []) == ""
    assert warned(caplog, SimpleNamespace(copies=[SimpleNamespace(origin={}, record={})]), SLIDES) == ""
    assert warned(caplog, ensemble_trained_on(SLIDES, SLIDES), SLIDES) == ""


def test_members_of_other_slides_are_counted(caplog):
    folds = ensemble_trained_on(SLIDES[1:], SLIDES, SLIDES[:2])
    assert "2 of the 3 members of the ensemble were trained on other slides" in warned(caplog, folds, SLIDES)


def test_labels_that_cannot_be_compared_are_told_of(caplog):
    def refuse():
        raise DatalistError("list.csv line 2", "no label", "Give one.")

    warn_of_other_split(trained_on(SLIDES), refuse)
    assert "were trained on is not known: list.csv line 2: no label. Give one." in caplog.text
