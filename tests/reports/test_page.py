"""The page of a report by itself: its texts, its tables and its figures."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from selenium.webdriver.common.by import By

from scripts.core.errors import SettingsError
from scripts.reports.page import figure_url, write_page
from tests.browser import browser, errors_of, open_page  # noqa: F401 (a fixture)


def figure() -> Figure:
    made = Figure(figsize=(3, 2))
    axes = made.subplots()
    axes.plot([0, 1], [0, 1], label="a < b & c")
    axes.legend()
    return made


def test_a_figure_is_the_same_picture_each_time():
    url = figure_url(figure())
    assert url == figure_url(figure())
    kind, _, content = url.partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")


def test_tables_and_figures_are_shown_without_a_complaint(browser, tmp_path):  # noqa: F811
    tables = [{"caption": "Scores <of> each", "head": ["output", "F1"], "rows": [["MuSTMIL 5x", "0.875 ± 0.010"]]}]
    figures = [{"src": figure_url(figure()), "alt": "A line"}]
    write_page(tmp_path / "a.html", title="Comparison", facts=[("Task", "binary")], tables=tables, figures=figures)
    open_page(browser, tmp_path / "a.html")
    table = browser.find_element(By.TAG_NAME, "table")
    assert table.text.split("\n") == ["Scores <of> each", "output F1", "MuSTMIL 5x 0.875 ± 0.010"]
    image = browser.find_element(By.CSS_SELECTOR, "figure img")
    assert (image.accessible_name, image.get_property("naturalWidth") > 0) == ("A line", True)
    assert errors_of(browser) == []


def test_of_a_thousand_slides_the_page_loads_the_pictures_in_view_alone(browser, tmp_path):  # noqa: F811
    picture = {"small": "report/a/small.jpg", "thumbnail": "report/a/slide.jpg", "width": 9, "height": 9, "um": [9, 9]}
    slides = [
        {"name": f"slide {i}", "label": "a", "prediction": "b", "is_wrong": i % 2 == 0, "overlays": [], **picture}
        | {"probabilities": [[0.1, 0.9]] * 3}
        for i in range(1000)
    ]
    heads, classes = ["global", "5x", "10x"], ["a", "b"]
    write_page(
        tmp_path / "a.html", title="t", facts=[], slides=slides, heads=heads, head_index=0, classes=classes,
        has_labels=True, data={"heads": heads, "head_index": 0, "classes": classes, "slides": slides},
    )  # fmt: skip
    open_page(browser, tmp_path / "a.html")
    # Pictures that are not in view are not asked for.
    asked = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert asked < 100
    browser.find_element(By.ID, "only-wrong").click()
    assert browser.find_element(By.ID, "count").text == "500 slides"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file: cannot be made"):
        write_page(tmp_path / "file" / "a.html", title="t", facts=[])
