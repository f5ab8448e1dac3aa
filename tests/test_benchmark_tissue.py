"""The benchmark on slides made of real fields: fields, groups, slides, controls, and what is said of the results."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from scripts.bags.bag import BagBuilder
from scripts.core.errors import BundleError, DatalistError
from scripts.evaluation.metrics import frequency_baseline
from scripts.synthetic.tissue import CLASSES as SYNTHETIC
from scripts.synthetic.tissue import MASK_STEP_PX, background, draw_tissue, sample_stain
from tests.benchmarks.tissue.__main__ import main
from tests.benchmarks.tissue.cohort import make_cohort, permuted
from tests.benchmarks.tissue.fields import Field, Fields, read_fields
from tests.benchmarks.tissue.groups import fields_of_groups, group_patients
from tests.benchmarks.tissue.mosaics import (
    BASE_MPP,
    CELL_PX,
    Cell,
    Mosaic,
    cell_image,
    plan_mosaics,
    write_mosaics,
)
from tests.benchmarks.tissue.results import AT_POINT, Output, interval_over_groups, read_outputs
from tests.benchmarks.tissue.tables import (
    ablation_table,
    chance_table,
    claims_table,
    difference_table,
    localisation_table,
    same_scales_table,
    score_table,
)
from tests.comparisons import CLASSES, write_run
from tests.conftest import ROOT

GLAS = ROOT.parent / "shared" / "tissue" / "glas"
SYMMETRIES = range(8)


def picture(seed: int, size: tuple[int, int] = (CELL_PX, CELL_PX)) -> np.ndarray:
    """Smooth stained tissue of (width, height) px, different everywhere."""
    rng = np.random.default_rng(seed)
    grey = cv2.resize(rng.random((16, 16)), size, interpolation=cv2.INTER_CUBIC)
    grey = (grey - grey.min()) / np.ptp(grey)
    stain = np.array([(0.15, 0.55, 0.25), (0.65, 0.75, 0.30)][seed % 2])
    return np.round(255 * 10 ** -((0.2 + grey[..., None]) * stain)).astype(np.uint8)


def write_fields(folder: Path, patients: dict[str, list[str]], mpp: float = BASE_MPP) -> list[Field]:
    """A field for each class of each patient."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = []
    for patient, classes in patients.items():
        for name in classes:
            path = folder / f"{patient}_{name}_{len(fields)}.png"
            Image.fromarray(picture(len(fields))).save(path)
            fields.append(Field(path, patient, name, mpp))
    return fields


def write_list(folder: Path, fields: list[Field], **columns: list[str]) -> Path:
    with open(folder / "fields.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "class", *columns])
        for field, *more in zip(fields, *columns.values(), strict=True):
            writer.writerow([field.image.name, field.patient, field.class_name, *more])
    return folder


# --- fields -----------------------------------------------------------------------------------------------


def test_a_list_and_folders_describe_the_same_fields(tmp_path):
    fields = write_fields(tmp_path / "listed", {"P1": ["benign", "tumour"], "P2": ["tumour"]}, mpp=0.5)
    malignant = [str(int(field.class_name == "tumour")) for field in fields]
    listed = read_fields(write_list(tmp_path / "listed", fields, malignant=malignant, mpp=["0.5"] * 3))
    for field in fields:
        place = tmp_path / "tree" / field.class_name / field.patient
        place.mkdir(parents=True)
        field.image.rename(place / field.image.name)
    in_folders = read_fields(tmp_path / "tree", mpp=0.5, positive_classes=["tumour"])

    def known(fields: Fields) -> set[tuple[str, str, str, float]]:
        return {(field.image.name, field.patient, field.class_name, field.mpp) for field in fields.fields}

    assert known(listed) == known(in_folders) == known(Fields(tuple(fields), (), ()))
    assert (listed.class_names, listed.positive_classes) == (("benign", "tumour"), ("tumour",))
    assert in_folders.sha256() == read_fields(tmp_path / "tree", 0.5, ["tumour"]).sha256()


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({}, {"positive_classes": ["tumour"]}, "mpp: the resolution of .* is not known. .* as --mpp"),
        ({"mpp": ["0.5", "4"]}, {"positive_classes": ["tumour"]}, "mpp: .* has '4', no number up to 1"),
        ({}, {"mpp": 0.5}, "positive_classes: which classes are malignant is not known. Name some"),
        ({"malignant": ["1", "1"]}, {"mpp": 0.5}, "positive_classes: every class is malignant"),
        ({"malignant": ["", "1"]}, {"mpp": 0.5}, "class benign has '' as `malignant`"),
        ({}, {"mpp": 0.5, "positive_classes": ["cancer"]}, "positive_classes: 'cancer' is no class"),
        (
            {},
            {"mpp": 0.3, "positive_classes": ["tumour"], "least_um": 224},
            "covers 192 x 192 um, and 224 um are needed",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_in_one_line(tmp_path, columns, given, message):
    write_list(tmp_path, write_fields(tmp_path, {"P1": ["benign", "tumour"]}), **columns)
    with pytest.raises(BundleError, match=message) as error:
        read_fields(tmp_path, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,patient\na.png,P1\n", "has no column class"),
        ("image,patient,class\na.png,,tumour\n", "line 2: has no patient"),
        ("image,patient,class\nb.png,P1,tumour\n", "b.png: no such file"),
        ("image,patient,class\na.png,P1,tumour\n", "a.png: cannot be read as a picture"),
        ("image,patient,class\n", "has no fields"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "fields.csv").write_text(text)
    with pytest.raises(BundleError, match=message):
        read_fields(tmp_path, 0.5, ["tumour"], least_um=1)


def test_one_picture_of_two_patients_is_refused(tmp_path):
    first, second = write_fields(tmp_path, {"P1": ["benign"], "P2": ["tumour"]})
    second.image.write_bytes(first.image.read_bytes())
    with pytest.raises(DatalistError, match=f"has the same content as {first.image.name}"):
        Fields((first, second), ("benign", "tumour"), ("tumour",)).sha256()


# --- groups -----------------------------------------------------------------------------------------------


def of_patients(patients: dict[str, str]) -> list[Field]:
    """Fields without a file, one for each letter, which is its class."""
    return [Field(Path("x"), patient, name, 0.5) for patient, names in patients.items() for name in names]


def test_there_are_as_many_groups_as_the_rarest_class_has_patients():
    fields = of_patients({"P1": "aab", "P2": "ab", "P3": "aab", "P4": "ab", "P5": "aaa", "P6": "a"})
    groups = group_patients(fields, "ab")
    assert sorted(groups) == ["P1", "P2", "P3", "P4", "P5", "P6"]
    assert len({groups[patient] for patient in ("P1", "P2", "P3", "P4")}) == 4 == len(set(groups.values()))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=3, max_size=8), st.integers(0, 9))
def test_every_class_is_in_every_group_or_the_groups_are_refused(patients, seed):
    fields = of_patients({f"P{i}": names for i, names in enumerate(patients)})
    classes = sorted({field.class_name for field in fields})
    of_class = [len({f.patient for f in fields if f.class_name == name}) for name in classes]
    if min(of_class) < 3:
        with pytest.raises(DatalistError, match="no division of the patients into 3 groups has every class in each"):
            group_patients(fields, classes, seed)
        return
    groups = group_patients(fields, classes, seed)
    number = len(set(groups.values()))
    assert 3 <= number <= min(of_class)
    for group in range(number):
        assert {field.class_name for field in fields if groups[field.patient] == group} == set(classes)
    assert groups == group_patients(fields, classes, seed)


def test_the_sixteen_patients_of_glas_are_in_four_groups_that_have_all_classes():
    if not GLAS.is_dir():
        pytest.skip(f"no {GLAS}")
    found = read_fields(GLAS, mpp=0.62)
    groups = group_patients(found.fields, found.class_names)
    assert len(found.fields) == 165
    assert len(groups) == 16
    in_groups = fields_of_groups(found.fields, found.class_names, groups)
    assert len(in_groups) == 4
    for fields in in_groups:
        assert len(fields) == 5
        assert all(fields.values())
    numbers = sorted(number for fields in in_groups for of_class in fields.values() for number in of_class)
    assert numbers == list(range(165))


# --- the plan of the slides -------------------------------------------------------------------------------

FOUR_GROUPS = [
    {"benign": list(range(g * 10, g * 10 + 6)), "polyp": [g * 10 + 6], "tumour": [g * 10 + 7, g * 10 + 8]}
    for g in range(4)
]


@pytest.fixture(scope="module")
def plan() -> list[Mosaic]:
    return plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], num_slides=40, num_cells=(9, 30), seed=3)


def test_a_slide_has_fields_of_its_group_alone(plan):
    assert Counter(mosaic.group for mosaic in plan) == dict.fromkeys(range(4), 40)
    for mosaic in plan:
        own = {number for numbers in FOUR_GROUPS[mosaic.group].values() for number in numbers}
        assert {cell.field for cell in mosaic.cells} <= own


def test_a_group_uses_the_fields_of_a_class_evenly(plan):
    for group, fields in enumerate(FOUR_GROUPS):
        used = Counter(cell.field for mosaic in plan if mosaic.group == group for cell in mosaic.cells)
        for numbers in fields.values():
            counts = [used[number] for number in numbers]
            assert max(counts) - min(counts) <= 1 <= min(counts)


def test_slides_have_one_class_or_several_and_some_classes_lie_in_one_cell(plan):
    name_of = {n: name for fields in FOUR_GROUPS for name, numbers in fields.items() for n in numbers}
    shown = [Counter(name_of[cell.field] for cell in mosaic.cells) for mosaic in plan]
    assert {len(mosaic.cells) for mosaic in plan} == set(range(9, 31))
    assert {len(classes) for classes in shown} == {1, 2, 3}
    alone = [count == 1 for classes in shown for name, count in classes.items() if name == "tumour"]
    assert 0.2 < np.mean(alone) < 0.8
    for classes in shown:  # half of each slide or more is its background
        assert max(classes["benign"], classes["polyp"]) * 2 >= classes.total()
    for group in range(4):
        own = [classes for mosaic, classes in zip(plan, shown, strict=True) if mosaic.group == group]
        assert sum("tumour" in classes for classes in own) == 10


def test_the_seed_decides_the_plan(plan):
    assert plan == plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], 40, (9, 30), seed=3)
    assert plan != plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], 40, (9, 30), seed=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"num_slides": 0}, "num_slides: got 0"), ({"num_cells": (3, 9)}, "num_cells: got 3 9. Give .* of 4 or more")],
)
def test_a_plan_without_room_is_refused(given, message):
    with pytest.raises(BundleError, match=message):
        plan_mosaics(FOUR_GROUPS, ["benign"], **given)


# --- cells and slides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", SYMMETRIES)
def test_a_field_of_a_cells_size_is_turned_and_nothing_else(turn):
    field = picture(0)
    image = Image.fromarray(field).rotate(90 * (turn % 4))  # PIL turns against the clock, as it is written
    if turn >= 4:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(cell_image(field, BASE_MPP, Cell(0, turn, (0.5, 0.5))), np.asarray(image))


def test_the_eight_turns_differ():
    field = picture(0)
    assert len({cell_image(field, BASE_MPP, Cell(0, turn, (0, 0))).tobytes() for turn in SYMMETRIES}) == 8


@pytest.mark.parametrize(("start", "left"), [(0.0, 0), (0.5, 50), (1.0, 100)])
def test_a_longer_side_is_cut_and_a_shorter_one_is_mirrored_at_both_ends(start, left):
    field = picture(1, (CELL_PX + 100, CELL_PX - 200))
    cell = cell_image(field, BASE_MPP, Cell(0, 0, (start, 0.3)))
    cut = field[:, left : left + CELL_PX]
    assert np.array_equal(cell[100:-100], cut)
    assert np.array_equal(cell[:100], cut[:100][::-1])
    assert np.array_equal(cell[-100:], cut[-100:][::-1])


def test_a_field_keeps_its_size_in_micrometres():
    """A square of 100 um in a field at 0.35 um/px is 100 um wide on the slide."""
    field = np.full((1400, 1400, 3), 200, np.uint8)
    side_px = round(100 / 0.35)
    field[500 : 500 + side_px, 500 : 500 + side_px] = 50
    cell = cell_image(field, 0.35, Cell(0, 0, (0.5, 0.5)))
    assert np.sqrt((cell[..., 0] < 125).sum()) * BASE_MPP == pytest.approx(100, abs=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Field], Mosaic]:
    """One slide of five cells, of fields that fit."""
    folder = tmp_path_factory.mktemp("written")
    fields = write_fields(folder / "fields", {f"P{i}": ["benign", "tumour"] for i in range(3)})
    cells = tuple(Cell(field, turn, (0.5, 0.5)) for field, turn in [(0, 0), (1, 3), (2, 5), (4, 1), (3, 6)])
    mosaic = Mosaic("s", 0, columns=3, cells=cells)
    write_mosaics(folder, [mosaic], fields, ["benign", "tumour"])
    return folder, fields, mosaic


def test_a_5x_patch_is_one_field_and_four_10x_patches_are_inside_it(written):
    folder, _, mosaic = written
    bag = BagBuilder().look({"image": str(folder / "slides" / "s.tiff")})
    low, high = bag.grid.coords
    assert (len(low), len(high), bag.grid.num_rows) == (5, 20, 20)
    places = [(column * CELL_PX, row * CELL_PX) for _, row, column in mosaic.places()]
    assert (
        low.tolist()
        == [list(place) for place in places]
        == [[640, 640], [1280, 640], [1920, 640], [640, 1280], [1280, 1280]]
    )
    for row in range(20):
        offset = high[row] - low[bag.grid.rows[row, 0]]
        assert offset.tolist() in [[0, 0], [320, 0], [0, 320], [320, 320]]


def test_what_openslide_reads_at_5x_is_the_field(written):
    folder, fields, mosaic = written
    with openslide.OpenSlide(folder / "slides" / "s.tiff") as slide:
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.7, rel=1e-4)
        assert [round(d, 3) for d in slide.level_downsamples] == [1, 2, 4]
        places = [(column * CELL_PX, row * CELL_PX) for _, row, column in mosaic.places()]
        regions = [slide.read_region(place, 1, (320, 320)).convert("RGB") for place in places]
    patches = [np.asarray(region.resize((224, 224), Image.Resampling.BOX)) for region in regions]
    for cell, patch in zip(mosaic.cells, patches, strict=True):
        turned = [
            np.asarray(Image.fromarray(np.rot90(field.read(), cell.turn % 4)).resize((224, 224), Image.Resampling.BOX))
            for field in fields
        ]
        turned = [image[:, ::-1] if cell.turn >= 4 else image for image in turned]
        differences = [np.abs(patch.astype(float) - image).mean() for image in turned]
        assert int(np.argmin(differences)) == cell.field
        assert differences[cell.field] < 2  # what JPEG loses


def test_the_regions_of_a_slide_are_its_cells(written):
    folder, fields, mosaic = written
    with openslide.OpenSlide(folder / "slides" / "s.tiff") as slide:
        size = slide.dimensions
    labels = np.asarray(Image.open(folder / "masks" / "s.png"))
    rows, columns = mosaic.size
    assert (columns * CELL_PX, rows * CELL_PX) == size
    wanted = np.zeros((rows, columns), int)
    for cell, row, column in mosaic.places():
        wanted[row, column] = ["benign", "tumour"].index(fields[cell.field].class_name) + 1
    side = labels.shape[1] // columns
    assert labels.shape == (rows * side, columns * side)
    assert np.array_equal(labels, np.kron(wanted, np.ones((side, side), int)))


# --- the cohort and its controls --------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort of six small slides, and how it was made."""
    folder = tmp_path_factory.mktemp("made")
    fields = write_fields(folder / "fields", {f"P{i}": ["benign", "tumour"] for i in range(3)})
    given = Fields(tuple(fields), ("benign", "tumour"), ("tumour",)), {"P0": 0, "P1": 1, "P2": 2}, 2, (2, 3), 0
    return make_cohort(folder / "slides", *given), given


def test_the_label_of_a_slide_is_the_classes_of_its_cells(made):
    cohort, (fields, groups, *_) = made
    rows = read_rows(cohort.folder / "datalist.csv")
    assert len(rows) == 6
    for row, mosaic in zip(rows, cohort.mosaics, strict=True):
        shown = [fields.fields[cell.field] for cell in mosaic.cells]
        assert row["label"].split(";") == sorted({field.class_name for field in shown})
        assert {f"group_{groups[field.patient] + 1}" for field in shown} == {row["patient"]}
        mask = np.asarray(Image.open(cohort.folder / row["regions"]))
        assert {("benign", "tumour")[value - 1] for value in np.unique(mask[mask > 0])} == set(row["label"].split(";"))


def test_permuted_labels_are_the_same_ones_of_a_group_on_other_slides(made):
    cohort, _ = made
    plain, others = (read_rows(cohort.folder / name) for name in ("datalist.csv", "permuted.csv"))
    assert [(row["image"], row["patient"]) for row in plain] == [(row["image"], row["patient"]) for row in others]
    assert read_rows(cohort.folder / "without_regions.csv") == [
        {key: value for key, value in row.items() if key != "regions"} for row in plain
    ]
    assert set(others[0]) == {"image", "label", "patient"}
    for group in {row["patient"] for row in plain}:
        labels = [Counter(row["label"] for row in rows if row["patient"] == group) for rows in (plain, others)]
        assert labels[0] == labels[1]


def test_a_permutation_tells_nothing_of_the_label_and_the_seed_decides_it():
    labels, groups = ["a", "b"] * 500, ["x"] * 600 + ["y"] * 400
    found = permuted(labels, groups, seed=1)
    assert found == permuted(labels, groups, seed=1) != permuted(labels, groups, seed=2)
    assert Counter(found[:600]) == Counter(labels[:600])
    # Of 1,000 labels by chance half are the same, with a standard deviation of 16.
    assert np.mean([one == other for one, other in zip(labels, found, strict=True)]) == pytest.approx(0.5, abs=0.08)


def test_slides_that_were_made_otherwise_are_not_used(made):
    cohort, (fields, groups, *given) = made
    slide = cohort.folder / "slides" / "tissue_000.tiff"
    before = slide.stat().st_mtime_ns
    make_cohort(cohort.folder, fields, groups, *given)
    assert slide.stat().st_mtime_ns == before
    with pytest.raises(BundleError, match="has slides that were made with other seed. Choose another `output_dir`"):
        make_cohort(cohort.folder, fields, groups, given[0], given[1], seed=1)


# --- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_intervals_over_groups_are_students_t_with_the_correction_for_trainings_that_share_slides(seed):
    values = np.random.default_rng(seed).normal(size=4)
    assert interval_over_groups(values) == pytest.approx((values.mean(), *corrected(values)))
    # Without a correction they would be those of scipy.
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert np.ptp(corrected(values)) / (high - low) == pytest.approx(np.sqrt(3))
    assert interval_over_groups(np.full(4, 0.25)) == (0.25, 0.25, 0.25)


def corrected(values: np.ndarray) -> tuple[float, float]:
    """Of four groups of 20 slides, of which two train a network that one tests."""
    deviation = np.sqrt((1 / 4 + 20 / 40) * values.var(ddof=1))
    return values.mean() - stats.t.ppf(0.975, 3) * deviation, values.mean() + stats.t.ppf(0.975, 3) * deviation


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Runs of two methods with two seeds and three folds, as `comparing` leaves them."""
    folder = tmp_path_factory.mktemp("compared")
    for method in ("mustmil", "ssmil"):
        for seed in range(2):
            for fold in range(3):
                run = folder / "runs" / method / f"seed_{seed}" / f"fold_{fold + 1}"
                write_run(run, method, seed, num_slides=14, cohort=fold)
                (run / "done.json").write_text("{}")
    return folder


def test_a_score_is_the_mean_over_seeds_in_each_group(compared):
    outputs = read_outputs(compared, "multilabel", ["ssmil", "mustmil"], [0, 1])
    titles = ["SSMIL 5x", "SSMIL 10x", "MuSTMIL global", "MuSTMIL 5x", "MuSTMIL 10x", "class frequencies alone"]
    assert [output.title for output in outputs] == titles
    assert [output.title for output in outputs if output.is_reference] == ["MuSTMIL global"]
    for output in outputs[:-1]:
        title, head = output.title.split()
        for fold in range(3):
            runs = [compared / "runs" / title.lower() / f"seed_{seed}" / f"fold_{fold + 1}" for seed in range(2)]
            metrics = [json.loads((run / "metrics.json").read_text())[head] for run in runs]
            maps = [json.loads((run / "localisation.json").read_text()) for run in runs]
            wanted = {
                "micro_f1": [of["micro_f1"]["value"] for of in metrics],
                AT_POINT: [of["operating_point"]["micro_f1"]["value"] for of in metrics],
                "roc_auc": [np.mean([of["classes"][c]["roc_auc"]["value"] for c in CLASSES]) for of in metrics],
                "attention": [of[head]["all"]["roc_auc"]["value"] for of in maps],
                "contribution": [of[f"{head} contribution"]["all"]["roc_auc"]["value"] for of in maps],
            }
            for name, values in wanted.items():
                assert output.scores[name][fold] == pytest.approx(np.mean(values))
        assert output.seconds == pytest.approx(2.5)  # 2 and 3 s


def test_class_frequencies_are_those_of_the_other_groups(compared):
    last = read_outputs(compared, "multilabel", ["ssmil"], [1])[-1]
    labels = [np.random.default_rng([fold, 99]).integers(0, 2, (14, 3)).astype(float) for fold in range(3)]
    others = np.concatenate([labels[1], labels[2]])
    assert last.scores["micro_f1"][0] == frequency_baseline(others, labels[0], "multilabel")["micro_f1"]


def test_runs_of_other_seeds_and_methods_do_not_count(compared):
    outputs = read_outputs(compared, "multilabel", ["mustmil"], [1])
    assert [output.title for output in outputs] == [f"MuSTMIL {h}" for h in ("global", "5x", "10x")] + [
        "class frequencies alone"
    ]
    assert outputs[0].seconds == pytest.approx(3)


def test_a_variant_has_the_heads_that_it_trains(compared, tmp_path):
    own = Path("runs") / "mustmil_beta=0" / "seed_1"
    shutil.copytree(compared / "runs" / "mustmil" / "seed_1", tmp_path / own)
    outputs = read_outputs(tmp_path, "multilabel", ["mustmil beta=0"], [1])
    assert [output.title for output in outputs] == ["MuSTMIL beta=0 global", "class frequencies alone"]
    assert not any(output.is_reference for output in outputs)


def table_cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def outputs_of(reference: list[float], other: list[float]) -> list[Output]:
    def scores(values):
        return {name: np.array(values) for name in ("micro_f1", AT_POINT, "roc_auc")}

    return [
        Output("MuSTMIL global", scores(reference), 1.0, (), (), "mustmil", "mustmil", "global"),
        Output("SSMIL 5x", scores(other), 1.0, (), (), "ssmil", "ssmil", "5x"),
    ]


def test_differences_are_paired_by_group():
    reference, other = np.array([0.9, 0.6, 0.8, 0.7]), np.array([0.8, 0.65, 0.6, 0.6])
    head, _, row = table_cells(difference_table(outputs_of(reference, other), "multilabel"))
    assert len(head) == len(row) == 5
    text = difference_text(reference, other)
    assert row == ["SSMIL 5x", text, text, text, "3 of 4 groups"]


def test_a_score_stands_beside_chance_and_says_whether_chance_is_within_its_interval():
    near, above = [0.45, 0.55, 0.5, 0.52], [0.8, 0.82, 0.78, 0.81]
    table, told = chance_table(outputs_of(near, above)).split("\n\n")
    rows = table_cells(table)[2:]
    assert told.startswith("Of 2 intervals 1 leave 0.5 out; of so many 0.1 do by chance.")
    assert [(row[0], row[2], row[3]) for row in rows] == [("MuSTMIL global", "0.5", "yes"), ("SSMIL 5x", "0.5", "no")]


def test_the_gain_of_two_scales_stands_beside_that_of_one_scale_twice():
    real, same = outputs_of([0.9, 0.8, 0.9], [0.7, 0.7, 0.7]), outputs_of([0.7, 0.8, 0.6], [0.7, 0.8, 0.6])
    row = table_cells(same_scales_table(real, same))[2]
    assert row[1].startswith("+0.167 [")
    assert row[2] == "+0.000 [+0.000, +0.000]"
    assert row[3] == row[1]


def with_maps(title: str, variant: str, head: str, seed: int) -> Output:
    names = ("micro_f1", AT_POINT, "roc_auc", "attention", "contribution")
    scores = dict(zip(names, np.random.default_rng(seed).random((5, 4)), strict=True))
    return Output(f"{title} {head}", scores, 1.0, (), (), variant, variant.split()[0], head)


def difference_text(first: np.ndarray, second: np.ndarray) -> str:
    low, high = corrected(first - second)
    return f"{(first - second).mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def test_what_a_part_brings_is_told_for_each_head_that_the_variant_has():
    outputs = [
        with_maps("MuSTMIL", "mustmil", "global", 0),
        with_maps("MuSTMIL", "mustmil", "5x", 1),
        with_maps("SSMIL", "ssmil", "5x", 2),
        with_maps("MuSTMIL beta=0", "mustmil beta=0", "global", 3),
        with_maps("MuSTMIL alpha=0", "mustmil alpha=0", "5x", 4),
    ]
    rows = table_cells(ablation_table(outputs, "multilabel"))[2:]
    assert [row[0] for row in rows] == ["MuSTMIL beta=0 global", "MuSTMIL alpha=0 5x"]
    for row, method, variant in ((rows[0], outputs[0], outputs[3]), (rows[1], outputs[1], outputs[4])):
        assert row[1:] == [difference_text(method.scores[name], variant.scores[name]) for name in method.scores]
    assert ablation_table(outputs[:3], "multilabel") == ""


def test_each_head_of_mustmil_is_compared_with_its_own_scale_alone():
    heads = [("MuSTMIL", "mustmil", head) for head in ("global", "5x", "10x")]
    heads += [("MSMIL", "msmil", "global"), ("SSMIL", "ssmil", "5x"), ("SSMIL", "ssmil", "10x")]
    outputs = [with_maps(*place, seed) for seed, place in enumerate(heads)]
    rows = table_cells(claims_table(outputs, "multilabel"))[2:]
    pairs = {"MuSTMIL 5x less SSMIL 5x": (1, 4), "MuSTMIL 10x less SSMIL 10x": (2, 5)}
    others = ["MuSTMIL global less SSMIL 5x", "MuSTMIL global less SSMIL 10x", "MuSTMIL global less MSMIL global"]
    assert [row[0] for row in rows] == [*others, *pairs]
    for row in rows[3:]:
        first, second = (outputs[i].scores["roc_auc"] for i in pairs[row[0]])
        assert row[3] == difference_text(first, second)
    assert len(table_cells(claims_table(outputs[:-1], "multilabel"))[2:]) == 3
    assert claims_table(outputs[3:], "multilabel") == ""


def test_a_table_of_scores_says_which_trainings_might_have_gone_on_and_which_learnt_nothing():
    one = replace(with_maps("MuSTMIL", "mustmil", "global", 0), best_epochs=(20, 3, 20), best_losses=(0.1, 0.69, 0.2))
    one.scores["f1"] = one.scores["micro_f1"]
    head, _, row = table_cells(score_table([one], "binary", 20))
    assert head[-2:] == ["best epoch the last", "validation loss above 0.6"]
    assert row[-2:] == ["2 of 3", "1 of 3"]
    assert table_cells(score_table([one], "multilabel", 5))[2][-1] == "0 of 3"


def test_a_variants_attention_is_compared_with_the_contribution_of_its_method():
    method = with_maps("MuSTMIL", "mustmil", "global", 0)
    variant = with_maps("MuSTMIL class_attention=separate", "mustmil class_attention=separate", "global", 1)
    without = Output(
        "mean 10x", {"micro_f1": np.zeros(4), "attention": np.full(4, np.nan)}, 1.0, (), (), "mean", "mean", "10x"
    )
    _, _, own, other = table_cells(localisation_table([method, variant, without]))
    of_method = method.scores["attention"], method.scores["contribution"]
    assert own[3] == own[4] == difference_text(*of_method)
    assert other[4] == difference_text(variant.scores["attention"], of_method[1])
    assert localisation_table([without]) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "clam"], "method: got 'clam'"),
        (["--methods", "mustmil", "mustmil"], "methods: 'mustmil' and 'mustmil' are the same training"),
        (
            ["--methods", "mustmil class_attention=shared"],
            "methods: none of ['mustmil class_attention=shared'] differs",
        ),
        (["--seeds", "0", "0"], "seeds: got [0, 0]"),
        (["--seeds", "-1"], "seed: got -1"),
        (["--epochs", "0"], "epochs: got 0"),
        (["--num_processes", "0"], "num_processes: got 0"),
    ],
)
def test_what_a_part_would_refuse_is_refused_before_anything_is_made(tmp_path, given, message):
    with pytest.raises(BundleError) as raised:
        main([str(tmp_path / "fields"), f"--output_dir={tmp_path / 'out'}", *given])
    assert str(raised.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_cut_off_is_found_before_slides_are_made(tmp_path):
    fields = write_fields(tmp_path, {"P1": ["cancer", "normal"]})
    fields[0].image.write_bytes(fields[0].image.read_bytes()[:2000])
    write_list(tmp_path, fields)
    with pytest.raises(DatalistError, match="cannot be read as a picture"):
        read_fields(tmp_path, BASE_MPP, ["cancer"], 1.0)


# --- the whole command ------------------------------------------------------------------------------------


def draw_fields(folder: Path) -> None:
    """Twelve synthetic fields of GlaS's size and resolution, two classes of three patients."""
    rng = np.random.default_rng(0)
    for class_name in ("cancer", "normal"):
        for number in range(6):
            stain = sample_stain(rng)
            rows, columns = 44, 64  # of 8 um
            glass = background(columns * MASK_STEP_PX, rows * MASK_STEP_PX, stain, rng)
            labels = np.full((rows, columns), SYNTHETIC.index(class_name) + 1, np.uint8)
            draw_tissue(glass, np.ones((rows, columns), np.float32), labels, stain, rng)
            field = cv2.resize(glass, None, fx=0.5 / 0.62, fy=0.5 / 0.62, interpolation=cv2.INTER_AREA)[:522, :775]
            place = folder / class_name / f"P{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(field).save(place / f"{number}.png")


@pytest.mark.slow
def test_the_command_ends_with_one_page_and_does_nothing_twice(tmp_path, capfd, preloaded, monkeypatch):
    monkeypatch.setattr(sys, "executable", preloaded.python)  # the trainings are processes of their own
    draw_fields(tmp_path / "fields")
    options = [str(tmp_path / "fields"), f"--output_dir={tmp_path / 'out'}", "--mpp=0.62", "--positive_classes=cancer"]
    options += ["--num_slides=4", "--num_cells", "2", "4", "--methods", "mustmil", "--seeds", "0", "--epochs=1"]
    assert main([*options, "--parts", "multilabel", "same_scales"]) == 0
    page = (tmp_path / "out" / "tissue.md").read_text()
    told = capfd.readouterr()
    assert page in told.out
    assert "12 slides, made of 12 fields of 3 patients in 3 groups." in page
    assert re.findall(r"(?m)^## (.+)$", page)[:2] == ["All classes", "Control: both scales the same"]
    # Scores and maps of the first part, scores of the control.
    assert len(re.findall(r"(?m)^\| MuSTMIL global +\|", page)) == 3
    assert [row[1] for row in table_cells(page[page.rindex("| part ") :])[2:]] == ["3"] * 2
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/runs/*/*/*/done.json")}
    assert len(done) == 6
    assert main([*options, "--parts", "multilabel"]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    page = (tmp_path / "out" / "tissue.md").read_text()
    assert "## All classes" in page
    assert "## Control" not in page
    assert "Trainings with their" not in page
