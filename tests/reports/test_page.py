"""The page of a report by itself: its texts, its tables and its figures."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from scripts.core.errors import SettingsError
from scripts.heatmaps.attention_maps import KINDS
from scripts.reports.page import figure_url, write_page
from tests.browser import browser, data_of, errors_of, open_page  # noqa: F401 (a fixture)


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


def a_small_picture() -> bytes:
    """A picture of the size of a thumbnail, as JPEG."""
    content = io.BytesIO()
    Image.new("RGB", (160, 130), (200, 120, 170)).save(content, "JPEG")
    return content.getvalue()


def write_large(path: Path, number: int) -> None:
    """A page of slides with the values of real ones: three maps of five classes and two kinds for each."""
    heads, classes = ["global", "5x", "10x"], ["cancer", "hgd", "lgd", "hyperplastic", "normal"]
    slides = [
        {
            "name": f"TCGA-AA-{i:04d}-01Z-00-DX1", "folder": f"report/TCGA-AA-{i:04d}-01Z-00-DX1",
            "label": "cancer", "prediction": "cancer, hgd", "is_wrong": i % 2 == 0,
            "probabilities": [[0.9123, 0.5678, 0.1234, 0.0456, 0.0012]] * 3,
            "decision": "cancer, hgd", "calibrated": [[0.8123, 0.4678, 0.1034, 0.0556, 0.0112]] * 3,
            "decided": [[1, 1, 0, 0, 0]] * 3,
            "width": 1000, "height": 812, "um": [24321.5, 19750.1], "top": [[m, k] for m in range(3) for k in (0, 1)],
            "limits": [[[["0", "100"], ["-0.0123", "+0.0123"]]] * len(classes)] * 3,
        }
        for i in range(number)
    ]  # fmt: skip
    maps = [{"name": head, "head": head} for head in heads]
    shared = {"heads": heads, "head_index": 0, "classes": classes, "slides": slides}
    data = {**shared, "maps": maps, "kinds": KINDS}
    write_page(path, title="t", facts=[], has_labels=True, has_decisions=True, data=data, **shared)


def test_a_slide_adds_less_than_two_kilobytes_to_the_page(tmp_path):
    for number in (0, 1000):
        write_large(tmp_path / f"{number}.html", number)
    empty, full = ((tmp_path / f"{number}.html").stat().st_size for number in (0, 1000))
    assert (full - empty) / 1000 < 2000


def test_of_a_thousand_slides_the_page_loads_the_pictures_in_view_alone(browser, tmp_path):  # noqa: F811
    write_large(tmp_path / "a.html", 1000)
    picture = a_small_picture()
    for slide in data_of(tmp_path / "a.html")["slides"]:
        (tmp_path / slide["folder"]).mkdir(parents=True)
        (tmp_path / slide["folder"] / "small.jpg").write_bytes(picture)
    open_page(browser, tmp_path / "a.html")
    # Printed with `pytest -s`, and not asserted: it depends on what else the machine does.
    entry = browser.execute_script("return performance.getEntriesByType('navigation')[0].toJSON()")
    print(
        f"1,000 slides: {(tmp_path / 'a.html').stat().st_size} bytes, interactive in {entry['domInteractive']:.0f} ms"
    )

    def shown() -> int:
        """How many pictures have come. The browser fetches those in view, and some that soon will be."""
        script = "return [...document.querySelectorAll('#slides-table img')]"
        return int(browser.execute_script(f"{script}.filter((one) => one.complete && one.naturalWidth > 0).length"))

    # All that the page asks for at once has come when it is loaded.
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script("return document.readyState") == "complete")
    WebDriverWait(browser, 20).until(lambda _: shown() > 0)
    at_first = shown()
    assert 0 < at_first < 100
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    WebDriverWait(browser, 20).until(lambda _: shown() > at_first)
    last = browser.find_element(By.CSS_SELECTOR, "#slides-table tbody tr:last-child img")
    WebDriverWait(browser, 20).until(lambda _: last.get_property("naturalWidth") > 0)
    assert shown() < 200
    assert errors_of(browser) == []
    browser.find_element(By.ID, "only-wrong").click()
    assert browser.find_element(By.ID, "count").text == "500 slides"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file: cannot be made"):
        write_page(tmp_path / "file" / "a.html", title="t", facts=[])
