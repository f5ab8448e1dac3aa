"""Labels in files: every way to write them is the same cohort, for both tasks, the paper's classes and one's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.checking.datalist import check_datalist
from scripts.core.errors import SettingsError
from scripts.datalists.datalist import list_labels, load_datalist
from scripts.datalists.labels import CLASS_NAMES

# From the classes of a slide, their names, and whether it counts as 1, to the keys of its label.
WAYS = {
    "a column a class": lambda has, names, one: dict(zip(names, has, strict=True)),
    "a column of floats a class": lambda has, names, one: dict(zip(names, map(float, has), strict=True)),
    "names": lambda has, names, one: {"label": ";".join(n for n, v in zip(names, has, strict=True) if v)},
    "a list": lambda has, names, one: {"label": json.dumps(has)},
    "one 0 or 1": lambda has, names, one: {"label": one},
    "one 0.0 or 1.0": lambda has, names, one: {"label": float(one)},
    "an index": lambda has, names, one: {"label": has.index(1)},
    "an index as a float": lambda has, names, one: {"label": float(has.index(1))},
}
OF_ONE_TASK = {
    "one 0 or 1": "binary", "one 0.0 or 1.0": "binary", "an index": "multilabel", "an index as a float": "multilabel",
}  # fmt: skip
TWO, THREE = ("Benign", "Malignant"), ("benign", "borderline", "malignant")
COHORTS = [
    (way, task, names, positive)
    for way in WAYS
    for task in ("multilabel", "binary")
    for names, positive in (
        (CLASS_NAMES, None),
        (CLASS_NAMES, ["lgd", "normal"]),
        (THREE, ["malignant"]),
        (TWO, TWO[1:]),
    )
    if OF_ONE_TASK.get(way, task) == task
    # In a list of nothing but 0 and 1 they are no indices.
    and not (way.startswith("an index") and names == TWO)
]


def write(folder: Path, suffix: str, rows: Sequence[dict[str, Any]]) -> Path:
    """A datalist whose slides are all for training, and files for its slides."""
    for row in rows:
        (folder / row["image"]).touch()
    path = folder / f"datalist{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({"training": rows}), encoding="utf-8")
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["partition", *rows[0]])
        writer.writeheader()
        writer.writerows({"partition": "training", **row} for row in rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize(("way", "task", "names", "positive"), COHORTS)
def test_every_way_is_the_same_cohort(
    tmp_path: Path, way: str, task: str, names: Sequence[str], positive: Sequence[str] | None, suffix: str
) -> None:
    truth = [[int(i == k) for i in range(len(names))] for k in range(len(names))]  # one slide of each class
    ones = [int(any(has[names.index(name)] for name in positive or ("cancer", "hgd"))) for has in truth]
    rows = [
        {"image": f"s{k}.svs", **WAYS[way](has, names, one)}
        for k, (has, one) in enumerate(zip(truth, ones, strict=True))
    ]
    path = write(tmp_path, suffix, rows)
    own = {"positive_classes": positive if task == "binary" else None}
    expected = truth if task == "multilabel" else [[one] for one in ones]
    loaded = load_datalist(path, None, task, names, **own)["training"]
    listed = list_labels(path, None, "training", task, names, **own)
    checked = check_datalist(path, tmp_path, task, names, **own)
    assert [entry["label"].tolist() for entry in loaded] == expected
    assert [entry["label"].tolist() for entry in listed] == expected
    assert [slide.label.tolist() for slide in checked.slides if slide.label is not None] == expected
    assert not [problem for problem in checked.problems if problem.blocks]


@pytest.mark.parametrize("way", ["names", "a column a class", "a list"])
def test_own_classes_of_the_binary_task_need_positive_classes(tmp_path: Path, way: str) -> None:
    rows = [{"image": f"s{k}.svs", **WAYS[way]([1 - k, k], TWO, k)} for k in (0, 1)]
    path = write(tmp_path, ".csv", rows)
    for read in (load_datalist, lambda *arguments: check_datalist(path, tmp_path, *arguments[2:])):
        with pytest.raises(
            SettingsError, match=r"^positive_classes: not given, .* Give a list of some of: Benign, Malig"
        ):
            read(path, None, "binary", TWO)  # type: ignore[operator]


@pytest.mark.parametrize("way", ["one 0 or 1", "one 0.0 or 1.0"])
def test_plain_0_and_1_need_none(tmp_path: Path, way: str) -> None:
    path = write(tmp_path, ".csv", [{"image": f"s{k}.svs", **WAYS[way]([], TWO, k)} for k in (0, 1)])
    loaded = load_datalist(path, None, "binary", TWO)["training"]
    assert [entry["label"].tolist() for entry in loaded] == [[0], [1]]
