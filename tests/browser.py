"""Pages in tests: their data, and a real browser without a screen."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

__all__ = ["browser", "data_of", "errors_of", "open_page", "overlays_of"]

# No window, no calls home.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium, driven by chromedriver; a test is skipped where it is not installed."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def data_of(page: Path) -> Any:
    """What a report gives its script."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None, page
    return json.loads(found[1])


def overlays_of(page: Path, slide: int) -> dict[tuple[str, str, str], str]:
    """The URLs of a slide's overlays, by map, class and kind, as the script of a report makes them."""
    data = data_of(page)
    folder = data["slides"][slide]["folder"]
    return {
        (spec["name"], class_name, kind): f"{folder}/{m}_{k}_{kind}.png"
        for m, spec in enumerate(data["maps"])
        for k, class_name in enumerate(data["classes"])
        for kind in data["kinds"]
    }


def errors_of(chrome: webdriver.Chrome) -> list[str]:
    """What the console of a page has said since the last call."""
    return [str(entry["message"]) for entry in chrome.get_log("browser")]


def open_page(chrome: webdriver.Chrome, path: Path) -> None:
    """Open a file, as a user does who clicks on it."""
    chrome.get(path.absolute().as_uri())
