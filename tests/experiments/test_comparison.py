"""What a comparison refuses before anything runs, and the page that it writes."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from selenium.webdriver.common.by import By

import scripts.experiments.comparison
from scripts.core.errors import BundleError, DatalistError, SettingsError
from scripts.experiments.comparison import Comparison
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.figures import PanelRow, panel
from scripts.heatmaps.images import Thumbnail
from tests.browser import browser, errors_of, open_page  # noqa: F401 (a fixture)
from tests.comparisons import CLASSES, write_cohort
from tests.pyramids import noise

SETTINGS = {"task": "multilabel", "class_names": ["cancer", "normal"], "magnifications": [5, 10]}
TESTING = [{"slide": "a", "label": np.array([1.0, 0.0])}, {"slide": "b", "label": np.array([0.0, 1.0])}]


def comparison(folder, **changes):
    given = {
        "methods": ["mustmil", "ssmil"], "seeds": [0, 1], "settings": SETTINGS, "training_data": TESTING,
        "testing_data": TESTING, "output_dir": folder,
    }  # fmt: skip
    return Comparison(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "mustmil"}, r"methods: got 'mustmil'. Give a list, for example \['mustmil'"),
        ({"methods": []}, r"methods: got \[\]"),
        ({"methods": ["mustmil", "clam"]}, "method: got 'clam'. Choose one of mustmil"),
        ({"methods": ["mustmil", "mustmil"]}, "Name it once"),
        ({"seeds": 5}, r"seeds: got 5. Give a list, for example \[0, 1, 2\]"),
        ({"seeds": [0, 0]}, "Name each once"),
        ({"seeds": [0, -1]}, "seed: got -1"),
        ({"seeds": [[1]]}, r"seed: got \[1\]"),
        ({"seeds": [True]}, "seed: got True"),
        ({"seeds": [2**40]}, "seed: got 1099511627776"),
        ({"figure_slides": ["c"]}, "figure_slides: c is not among the test slides. Name some of: a, b"),
        ({"figure_slides": "a"}, "figure_slides: got 'a'. Give a list"),
        ({"figure_slides": [1]}, r"figure_slides: got \[1\]"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        comparison(tmp_path, **changes)


def test_a_run_that_failed_is_named_when_the_others_are_through(tmp_path, monkeypatch):
    said = SettingsError("lr", "the loss is nan", "Lower it.")
    monkeypatch.setattr(
        scripts.experiments.comparison, "run_experiments", lambda *args, **kwargs: {"mustmil, seed 1": said}
    )
    with pytest.raises(BundleError, match=r"mustmil, seed 1: lr: the loss is nan\. Lower it\."):
        comparison(tmp_path).run()


def test_under_torchrun_the_first_rank_alone_writes_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(scripts.experiments.comparison, "run_experiments", lambda *args, **kwargs: {})
    monkeypatch.setenv("RANK", "1")
    assert comparison(tmp_path).run() == ""
    assert not list(tmp_path.iterdir())


def test_no_run_and_no_picture_has_a_slide_that_is_left_out(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        scripts.experiments.comparison, "run_experiments", lambda runs, *args, **kwargs: seen.extend(runs) or {}
    )
    monkeypatch.setenv("RANK", "1")
    comparison(tmp_path).run(["b"])
    assert [run.settings["leave_out"] for run in seen] == [["b"]] * 4
    with pytest.raises(SettingsError, match="figure_slides: b is not among the test slides"):
        comparison(tmp_path, figure_slides=["b"]).run(["b"])
    with pytest.raises(DatalistError, match="no slide of a partition is left, of a, b"):
        comparison(tmp_path).run(["a", "b"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page and the tables of runs with known results; the heatmaps are noise, as hard to compress as tissue."""
    folder = tmp_path_factory.mktemp("comparison")
    row = PanelRow("s00", "cancer", Thumbnail(noise(800, 600), 4.0, (3200.0, 2400.0)), None)
    runs = write_cohort(folder / "runs", seeds=(0, 1))
    labels = np.random.default_rng([0, 99]).integers(0, 2, (12, len(CLASSES))).astype(float)  # those of the runs
    data = [{"slide": f"s{i:02d}", "label": label} for i, label in enumerate(labels)]
    made = comparison(folder, settings={**SETTINGS, "class_names": CLASSES}, training_data=data, testing_data=data)
    with pytest.MonkeyPatch.context() as patch:
        panels = {kind: panel([row] * 2, CLASSES) for kind in KINDS}
        patch.setattr(scripts.experiments.comparison, "draw_panels", lambda *_: panels)
        made._write([[run] for run in runs], [], data, data)
    return folder


def test_the_page_shows_the_pictures_beside_it_and_stays_small(browser, written):  # noqa: F811
    assert (written / "attention.png").stat().st_size > 500_000
    assert (written / "report.html").stat().st_size < 100_000
    open_page(browser, written / "report.html")
    images = browser.find_elements(By.CSS_SELECTOR, "figure img")
    assert len(images) == 3
    assert all(image.get_property("naturalWidth") > 0 for image in images)
    assert "attention.png, contribution.png. Copy them with it" in browser.find_element(By.TAG_NAME, "dl").text
    assert errors_of(browser) == []


def test_the_page_has_the_tables_with_the_numbers_of_the_csv(browser, written):  # noqa: F811
    open_page(browser, written / "report.html")
    tables = browser.find_elements(By.CSS_SELECTOR, "table.scores")
    captions = [table.find_element(By.TAG_NAME, "caption").text for table in tables]
    of_scores, of_points, *of_classes_and_maps, of_power = captions
    assert of_scores.startswith("12 test slides")
    assert "2 trainings of each method (seeds 0, 1): mean ± standard deviation over trainings." in of_scores
    assert of_points.startswith("The same at the operating point of each training")
    assert of_classes_and_maps[:2] == ["F1 of each class:", "ROC-AUC of each class:"]
    assert [caption.split(", ")[2] for caption in of_classes_and_maps[2:]] == ["ROC-AUC", "average precision"]
    assert of_power.startswith("How many slides a comparison needs: ")
    with open(written / "comparison.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))

    def cell(table, row_title, column):
        names = [one.text for one in table.find_elements(By.CSS_SELECTOR, "thead th")]
        (row,) = (
            row for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
            if row.find_element(By.TAG_NAME, "th").text == row_title
        )  # fmt: skip
        return row.find_elements(By.CSS_SELECTOR, "th, td")[names.index(column)].text

    def in_csv(**wanted):
        (line,) = (line for line in lines if all(line[key] == value for key, value in wanted.items()))
        return "{:.3f} ± {:.3f}".format(*(float(line[key]) for key in ("mean", "sd")))

    for method, head, title in (("mustmil", "global", "MuSTMIL global"), ("ssmil", "5x", "SSMIL 5x")):
        of_head = {"method": method, "output": head}
        assert cell(tables[0], title, "micro-F1") == in_csv(**of_head, **{"class": ""}, score="micro_f1")
        assert cell(tables[1], title, "micro-F1") == in_csv(**of_head, score="operating_point_micro_f1")
        assert cell(tables[3], title, "hgd") == in_csv(**of_head, **{"class": "hgd"}, score="roc_auc")
    assert errors_of(browser) == []
