"""The report of a run, written by MONAI's evaluator and opened in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose, Lambdad
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SlideError
from scripts.datalists.failures import FailedSlides
from scripts.evaluation.reports import EvaluationReport
from scripts.heatmaps.mapped_slides import MappedSlides
from scripts.heatmaps.writer import HeatmapWriter
from scripts.inference.decisions import Decided
from scripts.inference.transforms import EncodeSlided
from scripts.networks.methods import attention_maps, get_network, result_heads
from scripts.reports.writer import ReportWriter
from scripts.slides.frames import Rectangle
from scripts.slides.slide import Slide
from tests.browser import browser, data_of, errors_of, open_page, overlays_of  # noqa: F401 (a fixture)
from tests.cohorts import NUM_TINY_FEATURES, tiny_encoder
from tests.heatmaps.test_images import BASE_MPP, COLD_BOX, HOT_BOX, PATCH_PX, SIZE, write_corner_slide
from tests.heatmaps.test_writer import CLASSES, HEADS, colour_network

NAME = "corner #1 <b>50%"
REASON = "it ends </script><script>alert(1)</script>"


BLANK = np.full((9, 9, 3), 255, np.uint8)


# The logits are those of 0.9 and 0.2: calibrated they are 0.75 and 0.2, and both are decided otherwise than at 0.5.
POINT = {
    "dark": {"shift": 0.0, "slope": 0.5, "intercept": 0.0, "threshold": 0.8},
    "pink": {"shift": 0.0, "slope": 1.0, "intercept": 0.0, "threshold": 0.1},
}


def write_report(folder: Path, path: Path, network: Any = None, method: str = "mustmil") -> Path:
    """The report of a slide that is wrongly predicted, of one that is rightly, and of one that failed."""
    wrong = {"image": str(path), "slide": NAME, "mpp": BASE_MPP, "label": np.array([0, 1], np.float32)}
    data = [{**wrong, "slide": "second", "label": np.array([1, 0], np.float32)}, wrong]
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    network = network or colour_network((0.9, 0.2))
    failures = FailedSlides(folder, "inferring")
    failures.start()
    failures.record({"slide": "third", "image": "third.tif"}, SlideError("third.tif", REASON, "Mend it."))
    mapped, heads = MappedSlides(network, attention_maps(method, [5, 10]), builder, data), result_heads(method, [5, 10])
    writer = ReportWriter(
        folder, "A <report>", method, "multilabel", (5, 10), "tiny", mapped, heads, CLASSES, failures=failures
    )
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(data, EncodeSlided("image", builder, tiny_encoder())), batch_size=1),
        network=network,
        postprocessing=Compose([Decided("pred", network, heads, CLASSES), Activationsd(keys="pred", sigmoid=True)]),
        val_handlers=[writer],
    ).run()
    return folder / "report.html"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corner_slide(tmp_path_factory.mktemp("slide") / "corner.tif", mpp=None)


@pytest.fixture(scope="module")
def evaluated(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation of slides whose probabilities differ from slide to slide and head to head."""
    folder, labels = tmp_path_factory.mktemp("evaluated"), [(0, 1), (1, 0), (1, 1), (0, 0)] * 3
    data = [
        {"image": str(slide), "slide": f"s{i:02d}", "mpp": BASE_MPP, "label": np.array(label, np.float32)}
        for i, label in enumerate(labels)
    ]
    builder, network = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4), colour_network()
    bag = EncodeSlided("image", builder, tiny_encoder())(data[0])
    bags = [{**bag, "slide": one["slide"], "label": torch.as_tensor(one["label"])} for one in data]
    rng = np.random.default_rng(3)
    scores = EvaluationReport(folder, HEADS, CLASSES, "multilabel")
    mapped = MappedSlides(network, attention_maps("mustmil", [5, 10]), builder, data)
    writer = ReportWriter(
        folder, "t", "mustmil", "multilabel", (5, 10), "tiny", mapped, HEADS, CLASSES, top_patches=0, evaluation=scores
    )
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(bags, batch_size=1),
        network=network,
        postprocessing=Compose(
            [
                Activationsd(keys="pred", sigmoid=True),
                Lambdad(keys="pred", func=lambda p: torch.from_numpy(rng.random(p.shape).astype(np.float32))),
            ]
        ),
        val_handlers=[scores, writer],
    ).run()
    return folder / "report.html"


@pytest.fixture(scope="module")
def decided(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of weights with an operating point."""
    network: Any = colour_network((0.9, 0.2))
    network.origin = {"operating_point": {head: {"classes": POINT} for head in HEADS}}
    return write_report(tmp_path_factory.mktemp("decided"), slide, network)


@pytest.fixture(scope="module")
def page(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), slide)


def pixels(chrome: Any, css: str) -> Any:
    picture = chrome.find_element(By.CSS_SELECTOR, css).screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def loaded(chrome: Any, css: str) -> Any:
    image = chrome.find_element(By.CSS_SELECTOR, css)
    WebDriverWait(chrome, 10).until(lambda _: image.get_property("complete") and image.get_property("naturalWidth"))
    return image


def test_the_page_has_every_probability_the_wrong_slides_first_and_names_what_failed(page):
    first, second = data_of(page)["slides"]
    assert (first["name"], first["prediction"], first["label"], first["is_wrong"]) == (NAME, "dark", "pink", True)
    assert (second["label"], second["is_wrong"]) == ("dark", False)
    assert np.allclose(first["probabilities"], [[0.9, 0.2]] * 3, atol=1e-3)
    text = page.read_text(encoding="utf-8")
    assert "third" in text
    assert "<b>50%" not in text  # names are texts, not HTML
    assert "<script>alert" not in text


def test_at_an_operating_point_it_has_calibrated_probabilities_and_decisions_beside_the_predictions(page, decided):
    for row in data_of(decided)["slides"]:
        assert (row["prediction"], row["decision"]) == ("dark", "pink")
        assert np.allclose(row["calibrated"], [[0.75, 0.2]] * len(HEADS), atol=1e-3)
        assert row["decided"] == [[0, 1]] * len(HEADS)
    text = decided.read_text(encoding="utf-8")
    assert text.count("<small>0.750</small>") == 2
    assert text.count("<td>pink</td>") == 2 + 1  # the decision on both, and the label of one
    assert "Decision</button>" in text
    assert "Decision</button>" not in page.read_text(encoding="utf-8")


def test_the_calibrated_probability_is_told_and_columns_are_sorted_by_the_other(browser, decided):  # noqa: F811
    open_page(browser, decided)
    browser.find_elements(By.CSS_SELECTOR, "button.look")[0].click()
    said = "The head global gives dark a probability of 0.900. Calibrated: 0.750, decided: no. Label: pink."
    assert browser.find_element(By.ID, "said").text == said
    browser.find_element(By.ID, "close").click()
    (button,) = [one for one in browser.find_elements(By.CSS_SELECTOR, "th button") if one.text == "dark"]
    rows = "return Array.from(document.querySelectorAll('#slides-table tbody tr'))"
    browser.execute_script(f"{rows}.forEach((row, i) => row.cells[5].firstChild.textContent = ['0.2 ', '0.7 '][i])")
    button.click()
    cells = browser.execute_script(f"{rows}.map((row) => row.cells[5].textContent)")
    assert [float(cell.split()[0]) for cell in cells] == [0.7, 0.2]
    assert errors_of(browser) == []


def test_nothing_on_the_page_comes_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert {slide["folder"].split("/")[0] for slide in data_of(page)["slides"]} == {"report"}


@pytest.mark.parametrize(("name", "box"), [("dark", HOT_BOX), ("pink", COLD_BOX)])
@pytest.mark.parametrize("map_name", HEADS)
def test_an_overlay_is_hottest_where_the_colour_of_its_class_is(page, map_name, name, box):
    overlay = Image.open(page.parent / overlays_of(page, 1)[map_name, name, "attention"])
    index = np.asarray(overlay)
    y, x = np.argwhere(index == index.max()).mean(axis=0) / index.shape
    width, height = data_of(page)["slides"][1]["um"]
    left, top, right, bottom = np.multiply(box, BASE_MPP)
    assert left <= x * width <= right
    assert top <= y * height <= bottom
    assert overlay.info["transparency"] == 0
    assert (index == 0).any()  # where there is no patch, the slide is seen


def test_bounds_move_no_overlay_and_no_picture_of_the_slide(page, slide, tmp_path, monkeypatch):
    # QuPath counts from the bounds; the report shows all of level 0, so that map and slide lie on each other.
    monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: Rectangle(300, 200, 1000, 900))
    cropped = write_report(tmp_path, slide)
    (one, _), (other, _) = data_of(page)["slides"], data_of(cropped)["slides"]
    assert one["um"] == other["um"] == pytest.approx(np.multiply(SIZE, BASE_MPP), abs=0.1)
    assert one["limits"] == other["limits"]
    for url in (f"{one['folder']}/slide.jpg", *overlays_of(page, 0).values()):
        assert (page.parent / unquote(url)).read_bytes() == (cropped.parent / unquote(url)).read_bytes()
    # The positions under the top patches are those of QuPath, and differ.
    top = unquote("{}/{}_{}_top.jpg".format(one["folder"], *one["top"][0]))
    assert (page.parent / top).read_bytes() != (cropped.parent / top).read_bytes()


def test_every_map_has_the_top_patches_of_predicted_and_labelled_classes(page):
    wrong, right = data_of(page)["slides"]
    maps = range(len(HEADS))
    assert right["top"] == [[m, 0] for m in maps]
    assert wrong["top"] == [[m, k] for m in maps for k in range(len(CLASSES))]
    for slide in (wrong, right):
        folder = page.parent / unquote(slide["folder"])
        found = sorted(path.name for path in folder.glob("*_top.jpg"))
        assert found == sorted(f"{m}_{k}_top.jpg" for m, k in slide["top"])
        # Whose probability stands above the patches differs from head to head, and so do the patches.
        assert len({(folder / name).read_bytes() for name in found}) == len(found)


def test_a_class_that_only_one_head_predicts_has_top_patches_in_every_map(slide, tmp_path):
    network = colour_network((0.9, 0.2))
    with torch.no_grad():
        network.myfc[HEADS.index("10x")].bias[:] = torch.logit(torch.tensor([0.1, 0.8]))
    page = write_report(tmp_path, slide, network)
    (found,) = [one for one in data_of(page)["slides"] if one["name"] == "second"]
    assert np.allclose(found["probabilities"], [[0.9, 0.2], [0.9, 0.2], [0.1, 0.8]], atol=1e-3)
    assert found["top"] == [[m, k] for m in range(len(HEADS)) for k in range(len(CLASSES))]


def test_the_title_above_top_patches_has_the_probability_of_their_own_head(slide, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "scripts.heatmaps.mapped_slides.gallery", lambda heats, count, title, *_: titles.append(title) or BLANK
    )
    network = colour_network((0.9, 0.2))
    with torch.no_grad():
        network.myfc[HEADS.index("10x")].bias[:] = torch.logit(torch.tensor([0.7, 0.8]))
    write_report(tmp_path, slide, network)
    of_second = {(t.map_name, t.head, t.class_name): t.probability for t in titles if t.slide == "second"}
    assert of_second == pytest.approx(
        {
            (head, head, name): probability
            for head in HEADS
            for name, probability in zip(CLASSES, (0.7, 0.8) if head == "10x" else (0.9, 0.2), strict=True)
        },
        abs=1e-6,
    )


def test_it_opens_in_a_browser_without_a_complaint_and_shows_its_pictures(browser, page):  # noqa: F811
    open_page(browser, page)
    assert browser.title == "A <report>"
    rows = browser.find_elements(By.CSS_SELECTOR, "#slides-table tbody tr")
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == [NAME, "second"]
    for row in rows:
        browser.execute_script("arguments[0].scrollIntoView()", row)
    for place in (1, 2):
        loaded(browser, f"#slides-table tbody tr:nth-child({place}) img")
    assert errors_of(browser) == []


def test_the_slider_changes_how_much_of_the_map_is_seen(browser, page):  # noqa: F811
    open_page(browser, page)
    browser.find_elements(By.CSS_SELECTOR, "button.look")[0].click()
    loaded(browser, "#slide-image")
    loaded(browser, "#overlay")
    slider = browser.find_element(By.ID, "opacity")
    seen = {}
    for key, opacity in ((Keys.HOME, 0), (Keys.END, 100)):  # by keyboard, as the mouse is not needed
        slider.send_keys(key)
        assert slider.get_property("value") == str(opacity)
        seen[opacity] = pixels(browser, "#sheet")
    assert (np.abs(seen[100] - seen[0]).max(axis=-1) > 30).mean() > 0.1
    assert errors_of(browser) == []


def test_head_class_and_kind_choose_the_map_and_the_text(browser, page):  # noqa: F811
    open_page(browser, page)
    browser.find_elements(By.CSS_SELECTOR, "button.look")[1].click()
    sources = set()
    for map_name in HEADS:
        Select(browser.find_element(By.ID, "map")).select_by_value(map_name)
        for class_name, probability in zip(CLASSES, ("0.900", "0.200"), strict=True):
            Select(browser.find_element(By.ID, "class")).select_by_value(class_name)
            said = browser.find_element(By.ID, "said").text
            assert said == f"The head {map_name} gives {class_name} a probability of {probability}. Label: dark."
            for kind in ("attention", "contribution"):
                Select(browser.find_element(By.ID, "kind")).select_by_value(kind)
                ends = [browser.find_element(By.ID, end).text for end in ("low", "high")]
                assert ends == ["0", "100"] if kind == "attention" else ends[0] == f"-{ends[1].removeprefix('+')}"
                sources.add(loaded(browser, "#overlay").get_attribute("src"))
    assert len(sources) == 3 * 2 * 2
    assert errors_of(browser) == []


def test_a_method_without_maps_shows_its_slides_and_no_control_of_a_map(browser, slide, tmp_path):  # noqa: F811
    network = get_network("transmil", num_classes=2, num_features=NUM_TINY_FEATURES, num_nodes=8).eval()
    with torch.no_grad():
        network.myfc.weight.zero_()
        network.myfc.bias.copy_(torch.logit(torch.tensor([0.9, 0.2])))
    open_page(browser, write_report(tmp_path, slide, network, "transmil"))
    browser.find_elements(By.CSS_SELECTOR, "button.look")[1].click()
    loaded(browser, "#slide-image")
    for class_name, probability in zip(CLASSES, ("0.900", "0.200"), strict=True):
        Select(browser.find_element(By.ID, "class")).select_by_value(class_name)
        said = browser.find_element(By.ID, "said").text
        assert said == f"The head 10x gives {class_name} a probability of {probability}. Label: dark."
    shown = {
        name: browser.find_element(By.ID, name).is_displayed() for name in ("map", "class", "kind", "opacity", "in")
    }
    assert shown == {"map": False, "class": True, "kind": False, "opacity": False, "in": True}
    assert not browser.find_element(By.ID, "overlay").is_displayed()
    assert errors_of(browser) == []


def test_it_can_be_used_by_keyboard_alone(browser, page):  # noqa: F811
    open_page(browser, page)
    browser.find_element(By.ID, "find").send_keys("corner")
    assert browser.find_element(By.ID, "count").text == "1 slides"
    button = browser.find_element(By.CSS_SELECTOR, "button.look")
    button.send_keys(Keys.ENTER)
    dialog = browser.find_element(By.ID, "viewer")
    assert dialog.get_property("open")
    assert browser.switch_to.active_element.get_attribute("id") == "viewer-title"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.get_property("open")


def test_every_control_and_picture_has_a_name(browser, page):  # noqa: F811
    open_page(browser, page)
    for element in browser.find_elements(By.CSS_SELECTOR, "button, input, select, img:not([alt=''])"):
        assert element.accessible_name or not element.is_displayed(), element.get_attribute("outerHTML")
    browser.find_elements(By.CSS_SELECTOR, "button.look")[0].click()
    for element in browser.find_elements(By.CSS_SELECTOR, "dialog button, dialog input, dialog select, dialog img"):
        assert element.accessible_name, element.get_attribute("outerHTML")


def test_tab_alone_leads_to_a_slide_to_its_slider_and_out_again(browser, page):  # noqa: F811
    open_page(browser, page)

    def focused(key: str) -> Any:
        """What has the focus after a key that is sent to whatever has it."""
        ActionChains(browser).send_keys(key).perform()
        return browser.execute_script("return document.activeElement")

    def tab_to(css: str) -> Any:
        for _ in range(40):
            element = focused(Keys.TAB)
            if browser.execute_script("return arguments[0].matches(arguments[1])", element, css):
                return element
        raise AssertionError(f"Tab does not lead to {css}")

    button = tab_to("button.look")
    assert button.accessible_name == f"Look at {NAME}"
    focused(Keys.ENTER)
    dialog = browser.find_element(By.ID, "viewer")
    assert dialog.get_property("open")
    slider = tab_to("#opacity")
    before = float(slider.get_property("value"))
    assert focused(Keys.ARROW_RIGHT) == slider
    assert float(slider.get_property("value")) == before + 1
    assert float(browser.find_element(By.ID, "overlay").value_of_css_property("opacity")) == pytest.approx(
        (before + 1) / 100, abs=1e-3
    )
    assert tab_to("#close").accessible_name == "Close"
    assert focused(Keys.ENTER) == button  # where it was before
    assert not dialog.get_property("open")


def test_zoom_enlarges_slide_map_and_scale_bar_alike_and_is_undone(browser, page):  # noqa: F811
    open_page(browser, page)
    browser.find_elements(By.CSS_SELECTOR, "button.look")[0].click()
    slide = data_of(page)["slides"][0]

    def width(css: str) -> float:
        return float(browser.execute_script(f"return document.querySelector('{css}').getBoundingClientRect().width"))

    def sizes() -> dict[str, float]:
        found = {css: width(css) for css in ("#sheet", "#slide-image", "#overlay", "#mm")}
        percent = browser.find_element(By.ID, "zoom").text
        assert percent == f"{100 * found['#sheet'] / slide['width']:.0f}%"
        number, unit = browser.find_element(By.ID, "mm").text.split()
        length_um = float(number) * {"mm": 1000, "\u00b5m": 1}[unit]
        assert found["#mm"] / found["#sheet"] == pytest.approx(length_um / slide["um"][0], rel=5e-3)
        return found

    start = sizes()
    for clicks in (1, 2):
        browser.find_element(By.ID, "in").click()
        assert sizes() == pytest.approx({css: size * 2 ** (clicks / 2) for css, size in start.items()}, rel=5e-3)
    for _ in range(2):
        browser.find_element(By.ID, "out").click()
    assert sizes() == pytest.approx(start, rel=1e-3)
    browser.find_element(By.ID, "out").click()
    assert sizes() == pytest.approx({css: size / 2**0.5 for css, size in start.items()}, rel=5e-3)


def test_the_top_patches_are_those_of_the_chosen_map_and_class(browser, page):  # noqa: F811
    open_page(browser, page)
    for row, slide in enumerate(data_of(page)["slides"]):
        browser.find_elements(By.CSS_SELECTOR, "button.look")[row].click()
        for m, map_name in enumerate(HEADS):
            Select(browser.find_element(By.ID, "map")).select_by_value(map_name)
            for k, class_name in enumerate(CLASSES):
                Select(browser.find_element(By.ID, "class")).select_by_value(class_name)
                if [m, k] in slide["top"]:
                    image = loaded(browser, "#top img")
                    assert image.get_attribute("src").endswith(f"{slide['folder']}/{m}_{k}_top.jpg")
                    for said in (map_name, class_name):
                        assert said in image.accessible_name
                else:
                    assert not browser.find_elements(By.CSS_SELECTOR, "#top img")
        browser.find_element(By.ID, "close").click()
    assert errors_of(browser) == []


TITLES = {
    "micro-accuracy": "micro_accuracy", "micro-F1": "micro_f1", "macro-F1": "macro_f1", "ROC-AUC": "roc_auc",
    "accuracy": "accuracy", "precision": "precision", "F1": "f1",
    "average precision": "average_precision", "recall (sensitivity)": "recall", "specificity": "specificity",
    "Brier score": "brier",
}  # fmt: skip


def test_the_tables_of_an_evaluation_have_the_numbers_of_its_metrics(browser, evaluated):  # noqa: F811
    open_page(browser, evaluated)
    metrics = json.loads((evaluated.parent / "metrics.json").read_text())
    found = {}
    for table in browser.find_elements(By.CSS_SELECTOR, "table.scores"):
        _, *columns = (cell.text for cell in table.find_elements(By.CSS_SELECTOR, "thead th"))
        rows = {
            row.find_element(By.TAG_NAME, "th").text: [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
        }
        found[table.find_element(By.TAG_NAME, "caption").text] = columns, rows

    def cell(score: dict[str, Any]) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["ci95"])

    def same(columns: list[str], cells: list[str], scores: dict[str, Any]) -> None:
        assert {TITLES[column] for column in columns} == {
            name for name, score in scores.items() if isinstance(score, dict) and "ci95" in score
        }
        for column, text in zip(columns, cells, strict=True):
            assert text == cell(scores[TITLES[column]])

    (caption, (columns, rows)), *of_heads = found.items()
    assert caption.startswith("Scores with 95% intervals, on 12 slides")
    assert list(rows) == HEADS
    for head, cells in rows.items():
        same(columns, cells, metrics[head])
    assert len({tuple(cells) for cells in rows.values()}) == len(HEADS)
    assert [caption for caption, _ in of_heads] == [f"Each class by the head {head}" for head in HEADS]
    for head, (_, ((number, *columns), rows)) in zip(HEADS, of_heads, strict=True):
        assert (number, list(rows)) == ("slides", CLASSES)
        for name, (slides, *cells) in rows.items():
            assert int(slides) == metrics[head]["classes"][name]["slides"] == 6
            same(columns, cells, metrics[head]["classes"][name])
    assert errors_of(browser) == []


def test_the_figures_of_each_head_are_shown_with_their_names(browser, evaluated):  # noqa: F811
    open_page(browser, evaluated)
    images = browser.find_elements(By.CSS_SELECTOR, ".figures img")
    assert [image.accessible_name for image in images] == [
        text
        for head in HEADS
        for text in (
            f"ROC curves of the head {head}",
            f"Precision-recall curves of the head {head}",
            f"Confusion of the head {head}, at a probability of 0.5",
            f"Calibration of the head {head}",
        )
    ]
    assert all(image.get_property("naturalWidth") > 0 for image in images)
    assert len({image.get_attribute("src") for image in images}) == 4 * len(HEADS)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_an_evaluation_keeps_the_scores_of_a_slide_that_can_no_longer_be_read(slide, tmp_path, caplog, damage):
    image = tmp_path / "a.tif"
    shutil.copy(slide, image)
    for left in ("lost", "another"):  # by an earlier run
        (tmp_path / "report" / left).mkdir(parents=True)
        (tmp_path / "report" / left / "small.jpg").write_text("")
    there = {"image": str(slide), "slide": "there", "mpp": BASE_MPP, "label": np.array([1, 0], np.float32)}
    data = [{**there, "image": str(image), "slide": "lost"}, there]
    builder, network = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4), colour_network((0.9, 0.2))
    encode = EncodeSlided("image", builder, tiny_encoder())
    bags = [encode(entry) for entry in data]  # it could be read when its features were made
    if damage == "gone":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:2000])
    scores = EvaluationReport(tmp_path, HEADS, CLASSES, "multilabel")
    mapped = MappedSlides(network, attention_maps("mustmil", [5, 10]), builder, data)
    writer = ReportWriter(
        tmp_path, "t", "mustmil", "multilabel", (5, 10), "tiny", mapped, HEADS, CLASSES, evaluation=scores
    )
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(bags, batch_size=1),
        network=network,
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[scores, writer],
    ).run()
    assert json.loads((tmp_path / "metrics.json").read_text())["slides"] == 2
    rows = {row["name"]: row for row in data_of(tmp_path / "report.html")["slides"]}
    assert rows["lost"]["probabilities"] == rows["there"]["probabilities"]
    assert [name for name, row in rows.items() if row["folder"]] == ["there"]
    assert [folder.name for folder in (tmp_path / "report").iterdir()] == ["there"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('class="look" aria-haspopup') == 1
    (warned,) = (text for text in caplog.messages if "lost" in text)
    assert "\n" not in warned
    assert warned.startswith(f"no pictures of slide lost in the report: {image}: ")


def test_heatmaps_and_report_share_a_slides_maps_and_patches(slide, tmp_path, monkeypatch):
    data = [{"image": str(slide), "slide": name, "mpp": BASE_MPP} for name in ("a", "b")]
    builder, network = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4), colour_network((0.9, 0.2))
    encode = EncodeSlided("image", builder, tiny_encoder())
    bags = [encode(entry) for entry in data]
    passes, reads, explain, read_patch = [], [], network.explain, Slide.read_patch
    monkeypatch.setattr(network, "explain", lambda *inputs: passes.append(inputs) or explain(*inputs))
    monkeypatch.setattr(
        Slide, "read_patch", lambda self, *of: reads.append((self, *map(repr, of))) or read_patch(self, *of)
    )
    mapped = MappedSlides(network, attention_maps("mustmil", [5, 10]), builder, data)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(bags, batch_size=1),
        network=network,
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[
            HeatmapWriter(tmp_path, mapped, HEADS, CLASSES, heatmap_formats=["mha"]),
            ReportWriter(tmp_path, "t", "mustmil", "multilabel", (5, 10), "tiny", mapped, HEADS, CLASSES),
        ],
    ).run()
    assert len(passes) == len(data)
    assert len(reads) == len({(id(read), *of) for read, *of in reads}) > 0
    for entry in data:
        assert (tmp_path / "heatmaps" / entry["slide"] / "global_dark_top.png").is_file()
        assert (tmp_path / "report" / entry["slide"] / "0_0_top.jpg").is_file()


def test_a_switch_writes_none_and_leaves_none_of_an_earlier_run(slide, tmp_path):
    write_report(tmp_path, slide)
    (tmp_path / "report" / "notes").mkdir()
    mapped = MappedSlides(colour_network(), [], BagBuilder(), [])
    writer = ReportWriter(tmp_path, "t", "mustmil", "multilabel", (5, 10), "b", mapped, HEADS, CLASSES, report=False)
    engine = SupervisedEvaluator(device="cpu", val_data_loader=[], network=colour_network(), val_handlers=[writer])
    for event in (Events.STARTED, Events.COMPLETED):
        engine.fire_event(event)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["notes"]
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_is_interrupted_leaves_no_page_of_an_earlier_one(slide, tmp_path):
    page = write_report(tmp_path, slide)
    mapped = MappedSlides(colour_network(), [], BagBuilder(), [])
    writer = ReportWriter(tmp_path, "t", "mustmil", "multilabel", (5, 10), "b", mapped, HEADS, CLASSES)
    engine = SupervisedEvaluator(device="cpu", val_data_loader=[], network=colour_network(), val_handlers=[writer])
    engine.fire_event(Events.STARTED)
    assert not page.exists()
