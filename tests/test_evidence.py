"""The figures of docs/evidence.md are those of pages that commands printed, and the smallest is computed again."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scripts.evaluation.metrics import frequency_baseline, score_names
from tests.benchmarks.tissue.fields import read_fields
from tests.benchmarks.tissue.groups import fields_of_groups, group_patients
from tests.benchmarks.tissue.mosaics import LEAST_FIELD_UM, plan_mosaics
from tests.conftest import ROOT

GLAS = ROOT.parent / "shared" / "tissue" / "glas"
FIGURE = re.compile(r"[+-]?\d\.\d{3}(?: ± \d\.\d{3}| \[[^\]]+\])?")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_what_evidence_says_was_printed() -> None:
    told = page("evidence.md").split("## Slides made of real fields")[0]
    printed = page("evidence_tissue.md") + page("evidence_classifiers.md") + page("benchmarks.md")
    figures = FIGURE.findall(told)
    assert len(figures) > 50
    assert [figure for figure in figures if figure not in printed] == []


@pytest.mark.skipif(not GLAS.is_dir(), reason="the fields of GlaS are not beside the checkout")
@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_what_class_frequencies_score_on_glas_is_what_the_page_says(task: str) -> None:
    fields = read_fields(GLAS, 0.62, None, LEAST_FIELD_UM)
    groups = group_patients(fields.fields, fields.class_names, 0)
    benign = [name for name in fields.class_names if name not in fields.positive_classes]
    in_groups = fields_of_groups(fields.fields, fields.class_names, groups)
    labels: list[list[list[bool]]] = [[] for _ in in_groups]
    for mosaic in plan_mosaics(in_groups, benign, 20, (9, 30), 0):
        shown = set(mosaic.classes(fields.fields, fields.class_names))
        of_classes = [name in shown for name in fields.class_names]
        labels[mosaic.group].append(of_classes if task == "multilabel" else [not shown <= set(benign)])
    own = np.array(labels, float)  # [groups, slides, K]
    scores = []
    for group, tested in enumerate(own):
        others = np.concatenate(np.delete(own, group, axis=0))
        scores.append(frequency_baseline(others, tested, task)[score_names(task)[1]])
    row = rf"\| class frequencies alone +\| {np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} +\|"
    title = {"multilabel": "All classes", "binary": "Malignant or not"}[task]
    section = page("evidence_tissue.md").split(f"## {title}\n")[1].split("\n## ")[0]
    assert re.search(row, section)
