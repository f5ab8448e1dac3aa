"""What an evaluator writes of slides whose regions are known, with attention and contribution that are known, too."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.transforms import Activationsd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.evaluation.localisation_report import LocalisationReport
from scripts.networks.methods import MapSpec
from scripts.networks.mustmil import MuSTMIL
from scripts.training.datasets import bag_dataset, pad_bags
from tests.cohorts import builder, draw_cohort
from tests.pyramids import write_pyramid

CLASSES = ["cancer", "hgd", "normal"]
MAPS = [MapSpec("global", "global", 1), MapSpec("5x", "5x", 0), MapSpec("10x", "10x", 1)]
# Slides of 300 x 150 px; a 5x patch has 75 px, a 10x one 37.5: 4 x 2 patches of 5x, 32 rows.
SIZE, SIDES = (300, 150), (75.0, 37.5)


def make_slide(folder: Path, name: str, label: Sequence[int], regions: np.ndarray | None) -> dict[str, Any]:
    """An entry; the pixels of its slide are blank, as nothing here looks at them."""
    path = write_pyramid(folder / f"{name}.tif", np.full((SIZE[1], SIZE[0], 3), 255, np.uint8))
    entry = {"image": str(path), "slide": name, "label": np.array(label, np.float32)}
    if regions is not None:
        entry["regions"] = str(folder / f"{name}.png")
        assert cv2.imwrite(entry["regions"], regions)
    return entry


def rows() -> np.ndarray:
    """Corners ``[32, 2, 2]`` of every 10x patch and the 5x patch that holds it."""
    high = np.stack(np.meshgrid(np.arange(8), np.arange(4)), axis=-1).reshape(-1, 2)
    return np.stack([high // 2 * SIDES[0], high * SIDES[1]], axis=1)


def item(entry: dict[str, Any], attention: np.ndarray, contribution: np.ndarray | None = None) -> dict[str, Any]:
    """A bag whose features ``[N, S, 2 * M * K]`` are nothing but its maps ``[N, M, K]``, the same at both scales.

    By default the contribution is the attention's opposite, below 0.
    """
    maps = np.stack([attention, -attention if contribution is None else contribution], axis=1)
    features = torch.tensor(maps.reshape(len(attention), 1, -1), dtype=torch.float32).repeat(1, 2, 1)
    return {
        "image": features,
        "log_weight": torch.zeros(len(attention), 2),
        "corners": torch.from_numpy(rows()[: len(attention)]),
        "patch_level0": torch.tensor(SIDES, dtype=torch.float64),
        "base_mpp": 0.5,
        "slide": entry["slide"],
        "label": torch.as_tensor(entry["label"]),
    }


class Given(torch.nn.Module):
    """Gives the maps that ride in the features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.calls = classes, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 3, self.classes)

    def explain(self, x: torch.Tensor, log_weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.calls += 1
        assert not self.training
        assert log_weight.shape == x.shape[:3]
        attention, contribution = x[:, :, 0].unflatten(-1, (2, len(MAPS), self.classes)).unbind(2)
        return self.forward(x), attention, contribution


def evaluate(
    folder: Path,
    entries: list[dict[str, Any]],
    items: list[dict[str, Any]],
    batch_size: int = 1,
    maps: list[MapSpec] = MAPS,
    **settings: Any,
) -> Given:
    network = Given(len(entries[0]["label"]))
    network.train()
    with SummaryWriter(str(folder / "events")) as writer:
        report = LocalisationReport(
            folder, network, maps, CLASSES, entries, BagBuilder(), summary_writer=writer, **settings
        )
        SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(items), batch_size=batch_size, collate_fn=pad_bags),
            network=network,
            postprocessing=Activationsd(keys="pred", sigmoid=True),
            val_handlers=[report],
        ).run()
    return network


def read_csv(folder: Path, kind: str = "attention") -> list[dict[str, str]]:
    """The lines of one kind."""
    with open(folder / "localisation.csv", newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line["kind"] == kind]


def read_json(folder: Path) -> Any:
    text = (folder / "localisation.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    return json.loads(text)


@pytest.fixture
def halves(tmp_path: Path) -> dict[str, Any]:
    """A slide with cancer and high-grade dysplasia; cancer fills its left half, in an image of 12 x 6 px."""
    regions = np.zeros((6, 12), np.uint8)
    regions[:, :6] = 1
    return make_slide(tmp_path, "halves", (1, 1, 0), regions)


def test_a_slide_that_is_gone_is_left_out_with_a_warning(
    tmp_path: Path, halves: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    gone = {**halves, "slide": "gone", "image": str(tmp_path / "gone.tif")}
    attention = np.zeros((32, 3, 3))
    evaluate(tmp_path, [gone, halves], [item(entry, attention) for entry in (gone, halves)])
    assert {line["slide"] for line in read_csv(tmp_path)} == {"halves"}
    (warned,) = (text for text in caplog.messages if "slide gone" in text)
    assert warned.startswith(f"no localisation of slide gone: {gone['image']}: ")


def test_a_network_without_maps_is_not_compared(tmp_path: Path, halves: dict[str, Any]) -> None:
    for name in ("localisation.json", "localisation.csv"):  # of an earlier evaluation
        (tmp_path / name).touch()
    evaluate(tmp_path, [halves], [item(halves, np.zeros((32, 3, 3)))], maps=[])
    assert not list(tmp_path.glob("localisation*"))


def test_attention_on_the_regions_scores_1_reversed_0_and_constant_a_half(
    tmp_path: Path, halves: dict[str, Any]
) -> None:
    is_left = rows()[:, 1, 0] < SIZE[0] / 2
    attention = np.zeros((32, 3, 3))
    attention[:, 0, 0], attention[:, 1, 0], attention[:, 2, 0] = is_left / 16, ~is_left / 16, 1 / 32
    evaluate(tmp_path, [halves], [item(halves, attention)])
    summary = read_json(tmp_path)
    assert list(summary) == [f"{name}{kind}" for name in ("global", "5x", "10x") for kind in ("", " contribution")]
    for name, roc_auc, precision in (("global", 1, 1), ("5x", 0, None), ("10x", 0.5, 0.5)):
        cancer = summary[name]["cancer"]
        assert cancer["roc_auc"] == {"value": roc_auc, "ci95": [roc_auc, roc_auc]}
        assert precision is None or cancer["average_precision"]["value"] == precision
        assert (cancer["positive_share"], cancer["slides"], cancer["undefined"]) == (0.5, 1, 0)
        # Labelled, but drawn nowhere: counted, and no part of a mean. Not labelled: not compared.
        undefined = {"value": None, "ci95": [None, None]}
        assert (summary[name]["hgd"]["roc_auc"], summary[name]["hgd"]["undefined"]) == (undefined, 1)
        assert (summary[name]["normal"]["slides"], summary[name]["normal"]["undefined"]) == (0, 0)
        assert summary[name]["all"]["roc_auc"]["value"] == roc_auc
    lines = read_csv(tmp_path)
    assert list(lines[0]) == [
        "slide", "map", "kind", "class", "patches", "positive_share", "roc_auc", "average_precision",
    ]  # fmt: skip
    assert [(line["map"], line["class"], line["patches"]) for line in lines] == [
        ("global", "cancer", "32"),
        ("global", "hgd", "32"),
        ("5x", "cancer", "8"),
        ("5x", "hgd", "8"),
        ("10x", "cancer", "32"),
        ("10x", "hgd", "32"),
    ]
    assert (lines[0]["roc_auc"], lines[1]["roc_auc"], lines[1]["positive_share"]) == ("1", "", "0")


def test_regions_of_a_class_that_the_label_has_not_are_warned_of(
    tmp_path: Path, halves: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    entry = {**halves, "label": np.array([0.0, 1.0, 0.0], np.float32)}
    evaluate(tmp_path, [entry], [item(entry, np.full((32, 3, 3), 1 / 32))])
    (warned,) = [line for line in caplog.messages if "its label does not" in line]
    assert "its regions contain cancer" in warned


def test_the_contribution_is_compared_on_its_own_and_by_its_sign(tmp_path: Path, halves: dict[str, Any]) -> None:
    is_left = rows()[:, 1, 0] < SIZE[0] / 2
    contribution = np.zeros((32, 3, 3))
    contribution[:, 0, 0] = np.where(is_left, 0.1, -5.0)
    contribution[:, 1, 0] = np.where(is_left, -5.0, 0.1)
    contribution[:, 2, 0] = -0.5
    evaluate(tmp_path, [halves], [item(halves, np.full((32, 3, 3), 1 / 32), contribution)])
    summary = read_json(tmp_path)
    for name, roc_auc in (("global", 1), ("5x", 0), ("10x", 0.5)):
        assert summary[name]["cancer"]["roc_auc"]["value"] == 0.5
        cancer = summary[f"{name} contribution"]["cancer"]
        assert cancer["roc_auc"] == {"value": roc_auc, "ci95": [roc_auc, roc_auc]}
        assert (cancer["positive_share"], cancer["slides"], cancer["undefined"]) == (0.5, 1, 0)
        assert summary[f"{name} contribution"]["hgd"]["undefined"] == 1
    lines, attended = read_csv(tmp_path, "contribution"), read_csv(tmp_path)
    places = [[line[key] for key in ("slide", "map", "class", "patches")] for line in lines]
    assert places == [[line[key] for key in ("slide", "map", "class", "patches")] for line in attended]
    assert [line["roc_auc"] for line in lines if line["class"] == "cancer"] == ["1", "0", "0.5"]


def test_the_attention_of_a_patch_is_the_sum_over_its_rows(tmp_path: Path, halves: dict[str, Any]) -> None:
    # One row of each left 5x patch gets all of its attention; by row, the others would rank with the right half.
    attention = np.full((32, 3, 3), 0.01)
    is_first = np.isin(np.arange(32), [0, 2, 16, 18])
    attention[is_first, :, 0] = 0.1
    evaluate(tmp_path, [halves], [item(halves, attention)])
    roc_auc = {line["map"]: float(line["roc_auc"]) for line in read_csv(tmp_path) if line["class"] == "cancer"}
    # At 10x 4 of 16 positives beat all 16 negatives, the rest draw.
    assert roc_auc == {"5x": 1, "10x": pytest.approx(0.25 + 0.75 / 2), "global": pytest.approx(0.25 + 0.75 / 2)}


def test_x_and_y_are_not_exchanged(tmp_path: Path) -> None:
    regions = np.zeros((4, 8), np.uint8)
    regions[0, 6:] = 1  # the two 10x patches at the upper right
    entry = make_slide(tmp_path, "corner", (1, 0, 0), regions)
    corners = rows()[:, 1]
    attention = np.zeros((32, 3, 3))
    attention[(corners[:, 1] == 0) & (corners[:, 0] >= 6 * SIDES[1]), :, 0] = 0.5
    evaluate(tmp_path, [entry], [item(entry, attention)])
    by_map = {line["map"]: line for line in read_csv(tmp_path)}
    assert (by_map["10x"]["roc_auc"], by_map["10x"]["positive_share"]) == ("1", "0.0625")
    # Half of one 5x patch is region: that is positive.
    assert (by_map["5x"]["roc_auc"], by_map["5x"]["positive_share"]) == ("1", "0.125")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_slides_without_regions_are_left_alone_and_padding_does_not_count(tmp_path: Path, batch_size: int) -> None:
    regions = np.zeros((4, 8), np.uint8)
    regions[0] = 1  # the uppermost row of 10x patches
    entries = [
        make_slide(tmp_path, "whole", (1, 0, 0), regions),
        make_slide(tmp_path, "no regions", (1, 0, 0), None),
        make_slide(tmp_path, "nothing", (0, 0, 0), regions),
        make_slide(tmp_path, "short", (1, 0, 0), regions),
    ]
    attention = np.random.default_rng(0).random((32, 3, 3))
    numbers = (32, 32, 32, 20)
    items = [item(entry, attention[:number]) for entry, number in zip(entries, numbers, strict=True)]
    network = evaluate(tmp_path, entries, items, batch_size)
    assert network.calls == 2
    assert network.training  # as it was
    lines = {line["slide"]: line for line in read_csv(tmp_path) if line["map"] == "10x"}
    assert list(lines) == ["whole", "short"]
    for name, number in (("whole", 32), ("short", 20)):
        above = np.sum([a > b for a in attention[:8, 2, 0] for b in attention[8:number, 2, 0]])
        assert float(lines[name]["roc_auc"]) == pytest.approx(above / (8 * (number - 8)))
        assert lines[name]["patches"] == str(number)
    summary = read_json(tmp_path)["10x"]["cancer"]
    assert (summary["slides"], summary["patients"]) == (2, None)
    assert summary["roc_auc"]["value"] == pytest.approx(np.mean([float(line["roc_auc"]) for line in lines.values()]))


def test_the_binary_task_looks_for_the_regions_of_high_risk(tmp_path: Path) -> None:
    regions = np.zeros((4, 8), np.uint8)
    regions[0, :4], regions[0, 4:], regions[3] = 1, 2, 3
    entries = [make_slide(tmp_path, "risk", (1,), regions), make_slide(tmp_path, "none", (0,), regions)]
    attention = np.zeros((32, 3, 1))
    attention[:8] = 1 / 8
    evaluate(tmp_path, entries, [item(entry, attention) for entry in entries], task="binary")
    summary = read_json(tmp_path)["10x"]
    assert list(summary) == ["high_risk", "all"]
    assert (summary["high_risk"]["roc_auc"]["value"], summary["high_risk"]["positive_share"]) == (1, 0.25)
    assert [line["slide"] for line in read_csv(tmp_path)] == ["risk"] * 3


def test_without_regions_nothing_is_written_computed_or_shown(tmp_path: Path) -> None:
    entry = make_slide(tmp_path, "plain", (1, 0, 0), None)
    network = evaluate(tmp_path, [entry], [item(entry, np.ones((32, 3, 3)))])
    assert network.calls == 0
    assert not list(tmp_path.glob("localisation*"))
    assert not EventAccumulator(str(tmp_path / "events")).Reload().Tags()["scalars"]


def test_tensorboard_has_a_table_of_the_means_and_no_charts(tmp_path: Path, halves: dict[str, Any]) -> None:
    attention = np.random.default_rng(0).random((32, 3, 3))
    evaluate(tmp_path, [halves], [item(halves, attention)])
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    assert not events.Tags()["scalars"]
    (text,) = events.Tensors("localisation/text_summary")[0].tensor_proto.string_val
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.decode().splitlines() if "|" in line]
    shown = {(key, name): cells for key, name, *cells in rows[2:]}
    compared = {
        (key, name): of_class
        for key, classes in read_json(tmp_path).items()
        for name, of_class in classes.items()
        if of_class["slides"]
    }
    assert shown.keys() == compared.keys()
    assert len(shown) == 3 * 2 * 2
    for key, of_class in compared.items():
        slides, roc_auc, precision, chance = shown[key]
        assert int(slides) == of_class["slides"]
        assert float(roc_auc.split()[0]) == pytest.approx(of_class["roc_auc"]["value"], abs=5.1e-4)
        assert float(precision.split()[0]) == pytest.approx(of_class["average_precision"]["value"], abs=5.1e-4)
        assert float(chance) == pytest.approx(of_class["positive_share"], abs=5.1e-4)


def test_a_second_run_reports_its_own_slides_only(tmp_path: Path, halves: dict[str, Any]) -> None:
    network = Given(3)
    with SummaryWriter(str(tmp_path / "events")) as writer:
        report = LocalisationReport(tmp_path, network, MAPS, CLASSES, [halves], BagBuilder(), writer)
        loader = DataLoader(Dataset([item(halves, np.ones((32, 3, 3)))]), batch_size=1, collate_fn=pad_bags)
        for _ in range(2):
            SupervisedEvaluator("cpu", loader, network, val_handlers=[report]).run()  # type: ignore[arg-type]
    assert len(read_csv(tmp_path)) == 6


def test_a_network_and_bags_as_they_are_used(tmp_path: Path) -> None:
    """MuSTMIL on patches that are read from drawn slides: what is reported follows from its own maps."""
    entries = draw_cohort(tmp_path, 3)
    for index, entry in enumerate(entries):
        width, height = ((1024, 512), (900, 780), (768, 640))[index]
        regions = np.zeros((height // 4, width // 4), np.uint8)
        regions[:, width // 6 :] = 1 + index % 2
        entry["regions"] = str(tmp_path / f"{entry['slide']}.png")
        cv2.imwrite(entry["regions"], regions)
    torch.manual_seed(0)
    mean_colour = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())

    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mean_colour(x.float() / 64 - 2)

    network = MuSTMIL(num_classes=3, num_scales=2, num_features=12, num_nodes=8, backbone=Scaled()).eval()
    dataset = bag_dataset("patches", entries, builder(), tmp_path)
    with SummaryWriter(str(tmp_path / "events")) as writer:
        report = LocalisationReport(tmp_path, network, MAPS, CLASSES, entries, builder(), writer)
        loader = DataLoader(dataset, batch_size=2, collate_fn=pad_bags)
        SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=loader,
            network=network,
            prepare_batch=PrepareBatchExtraInput({"log_weight": "log_weight"}),
            val_handlers=[report],
        ).run()
    found = {
        (line["slide"], line["map"], kind, line["class"]): float(line["roc_auc"] or "nan")
        for kind in ("attention", "contribution")
        for line in read_csv(tmp_path, kind)
    }
    assert len(found) == 2 * 3 * (1 + 1 + 2)

    # The label images have 4 px a pixel; the first slide's regions are cancer, the second's hgd.
    for index, (width, height) in enumerate(((1024, 512), (900, 780))):
        grid, bag = builder()(entries[index]).grid, dataset[index]
        with torch.no_grad():
            of_kinds = network.explain(bag["image"][None], bag["log_weight"][None])[1:]  # of [1, N, M, K]
        for m, scale in ((0, 1), (1, 0), (2, 1)):
            side, coords = grid.scales[scale].patch_level0, grid.coords[scale]
            share = np.clip((np.minimum(coords[:, 0] + side, width) - width // 6 * 4) / side, 0, 1)
            share *= np.clip((np.minimum(coords[:, 1] + side, height) - coords[:, 1]) / side, 0, 1)
            positive = share >= 0.5
            assert 0 < positive.sum() < len(positive)
            for kind, values in zip(("attention", "contribution"), of_kinds, strict=True):
                of_rows = values[0, :, m, index].numpy()
                summed = np.array([of_rows[grid.rows[:, scale] == i].sum() for i in range(len(coords))])
                in_order = np.mean([a > b for a in summed[positive] for b in summed[~positive]])
                assert found[f"s{index}", MAPS[m].name, kind, CLASSES[index]] == pytest.approx(in_order, abs=1e-6)
