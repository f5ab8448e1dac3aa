"""Imported features in every workflow: the same results as our own banks, also where the slides are not there."""

import csv
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bundle.pack import pack
from scripts.core.errors import mistake_in
from scripts.features.bank import read_bank
from tests.conftest import ROOT
from tests.foreign import grid, random_features, write_trident
from tests.worlds import CLASSES, PICTURES, World


class Imported(World):
    """The world's own banks, exported and imported again, and a folder with its datalist and no slides."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.run("extract")
        out = self.run("extract", "exporting")
        self.folders = [str(path) for path in sorted((out / "trident").glob("*x_64px_0px_overlap"))]
        self.banks = str(folder / "imported")
        self.run("extract", "importing", features=self.folders[::-1], feature_dir=self.banks)
        self.empty = folder / "empty"
        self.empty.mkdir()
        (self.empty / "datalist.csv").write_text((self.cohort / "datalist.csv").read_text())
        self.imported = {"backbone": "imported", "feature_dir": self.banks}
        self.run("train", **self.own("with"), **self.imported)

    def own(self, name: str) -> dict[str, str]:
        """Where a training writes."""
        return {"output_dir": str(self.folder / name), "ckpt_dir": str(self.folder / name / "models")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield Imported(tmp_path_factory.mktemp("imported"))


def weights_in(folder):
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def scores_in(output):
    found = {}
    with open(output / "predictions.csv") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["slide"], {})[row["head"]] = [float(row[name]) for name in CLASSES]
    return found


def refusal(work):
    with pytest.raises(Exception, match=".") as error:
        work()
    mistake = mistake_in(error.value)
    assert mistake is not None, error.value
    return str(mistake)


def test_training_gives_the_weights_of_our_own_banks(world):
    own, imported = (weights_in(folder) for folder in (world.trained, world.folder / "with"))
    tensors = [key for key, value in own.items() if value.is_floating_point()]
    assert tensors
    for key in tensors:
        assert torch.equal(own[key], imported[key]), key


def test_evaluating_gives_the_scores_of_our_own_banks(world):
    own = world.run("evaluate")
    # The settings follow the weights: of these, which were trained on imported features.
    given = {"ckpt_dir": world.own("with")["ckpt_dir"], "feature_dir": world.banks}
    imported = world.run("evaluate", **given, report=True)
    assert scores_in(own) == scores_in(imported)
    assert (imported / "report.html").is_file()
    metrics = json.loads((imported / "metrics.json").read_text())
    assert metrics["made_by"]["configuration"]["backbone"] == "imported"


def test_inferring_gives_the_scores_and_heatmaps_of_our_own_banks(world):
    places = {"dataset_dir": str(world.cohort), "datalist": world.fewest}
    own = world.run("inference", **places, feature_dir=str(world.trained / "features"))
    imported = world.run("inference", **places, ckpt_dir=world.own("with")["ckpt_dir"], feature_dir=world.banks)
    assert scores_in(own) == scores_in(imported)
    maps = sorted(path.relative_to(own) for path in (own / "heatmaps").rglob("*") if path.is_file())
    assert maps == sorted(path.relative_to(imported) for path in (imported / "heatmaps").rglob("*") if path.is_file())
    assert any(path.suffix == ".png" for path in maps)
    for path in maps:
        assert (own / path).read_bytes() == (imported / path).read_bytes(), path


def test_patches_in_any_grid_have_heatmaps(world, tmp_path):
    """Grids that start at contours, and overlap, with the slides at hand."""
    for i in range(8):
        for magnification, side in ((5, 256), (10, 128)):
            grids = [grid(2, 2, side, (37 + i, 20)), grid(2, 1, side, (411, 133 + i))]
            coords = np.concatenate(grids)
            features = random_features(len(coords), seed=i)
            path = tmp_path / f"{magnification}x" / f"s{i}.h5"
            write_trident(path, coords, features, magnification=magnification, size=None)
    banks, folders = str(tmp_path / "banks"), [str(tmp_path / f"{m}x") for m in (5, 10)]
    world.run("extract", "importing", features=folders, feature_dir=banks)
    places = {"output_dir": str(tmp_path / "out"), "ckpt_dir": str(tmp_path / "models"), "feature_dir": banks}
    world.run("train", **places, backbone="imported")
    formats = ["png", "plain", "geojson", "mha"]
    out = world.run("inference", **places, dataset_dir=world.slide, heatmap_formats=formats)
    found = {path.suffix for path in (out / "heatmaps" / "s0").iterdir()}
    assert found == {".png", ".geojson", ".mha", ".csv"}
    polygons = json.loads(next((out / "heatmaps" / "s0").glob("10x*.geojson")).read_text())["features"]
    corners = {tuple(np.min(shape["geometry"]["coordinates"][0], axis=0)) for shape in polygons}
    assert corners == {tuple(corner) for corner in read_bank(Path(banks) / "s0.h5", (5.0, 10.0)).coords[1]}


def test_slides_need_not_be_there(world, capfd):
    """Training, evaluating and inferring with the datalist alone; where pictures are missing, one line says which."""
    world.run("train", dataset_dir=str(world.empty), **world.own("without"), **world.imported)
    one, other = (weights_in(world.folder / name) for name in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in one if one[key].is_floating_point())
    places = {"dataset_dir": str(world.empty), "ckpt_dir": world.own("without")["ckpt_dir"]}
    evaluated = world.run("evaluate", **places, **PICTURES, feature_dir=world.banks)
    assert scores_in(evaluated) == scores_in(world.run("evaluate"))
    datalist = str(world.empty / "datalist.csv")
    capfd.readouterr()
    predicted = world.run("inference", **places, datalist=datalist, feature_dir=world.banks)
    for slide, heads in scores_in(evaluated).items():
        for head, scores in heads.items():
            assert scores_in(predicted)[slide][head] == pytest.approx(scores, abs=1e-6)
    assert len(scores_in(predicted)) == 8
    told = capfd.readouterr().err
    assert told.count(f"no pictures of slide s0: its file {world.empty / 's0.tif'} is not there") == 1
    assert told.count("more slides are not there") == 1
    assert (predicted / "report.html").is_file()
    assert not list(predicted.rglob("*.png"))


def test_without_imported_features_slides_have_to_be_there(world):
    told = refusal(lambda: world.run("train", dataset_dir=str(world.empty)))
    assert f"no file {world.empty / 's0.tif'}" in told


def test_a_slide_without_features_fails_and_may_be_left_out(world, tmp_path):
    banks = tmp_path / "banks"
    banks.mkdir()
    for path in Path(world.banks).glob("*.h5"):
        if path.stem not in ("s1", "s6"):
            (banks / path.name).write_bytes(path.read_bytes())
    given = {"backbone": "imported", "feature_dir": str(banks)}
    told = refusal(lambda: world.run("train", **given))
    assert "extracting: 2 of 6 slides failed" not in told  # s6 is of the testing partition
    assert told.startswith("importing: 1 of 6 slides failed (s1)")
    out = world.run("train", **given, allow_missing=True)
    failed = (out / "failed.csv").read_text()
    assert ",importing,slide s1: " in failed
    assert f"slide s1: has no imported features in {banks}. Run `importing` into this `feature_dir` first" in failed


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        ("extract", {}, "backbone: is imported, and there is nothing to extract. Run `importing`"),
        ("check", {}, "backbone: is imported, and `checking` looks at slides for an encoder"),
        ("train", {"source": "patches"}, "backbone: is imported, and `source` patches reads slides"),
        ("train", {"views": 2}, "backbone: is imported, and augmented `views` are encoded"),
        ("train", {"patch_size": 224}, "patch_size: is 224, and the features in .* are of 64. Give --patch_size 64"),
        (
            "train", {"magnifications": [10, 20]},
            r"magnifications: is \[10, 20\], and the features in .* are of .5.0, 10.0.. Give --magnifications '.5,10.'",
        ),
        ("train", {"feature_dir": "OUT/none"}, "feature_dir: there is no feature bank in .*none. Run `importing`"),
        ("inference", {"feature_dir": None, "ckpt_dir": "OUT/none"}, "feature_dir: is not given, and `backbone` is "),
    ],
)  # fmt: skip
def test_what_needs_an_encoder_is_refused(world, config, given, told):
    line = refusal(lambda: world.run(config, **{**world.imported, **given}))
    assert re.match(told, line), line


def test_banks_of_our_own_are_not_taken_for_imported_ones(world):
    given = {"backbone": "imported", "feature_dir": str(world.trained / "features")}
    told = refusal(lambda: world.run("train", **given))
    assert "s0.h5 is a bank of efficientnet_lite0, not of imported features" in told


def test_features_of_another_encoder_are_refused_with_weights(world, tmp_path):
    other = str(tmp_path / "other")
    given = {"encoder": "uni_v1", "mpp": 0.5}
    renamed = []
    for folder in world.folders:
        target = tmp_path / Path(folder).name
        target.mkdir()
        for path in Path(folder).glob("features_*/*.h5"):
            (target / path.name).write_bytes(path.read_bytes())
            with h5py.File(target / path.name, "a") as file:
                del file["features"].attrs["encoder"]
        renamed.append(str(target))
    world.run("extract", "importing", features=renamed, feature_dir=other, features_are=given)
    places = {"ckpt_dir": world.own("with")["ckpt_dir"], "feature_dir": other}
    told = refusal(lambda: world.run("evaluate", **places))
    assert "model.pt: they were trained with other settings (backbone_sha256 " in told


@pytest.mark.slow
def test_comparing_searching_and_cross_validating_with_features_alone(world):
    given = {**world.imported, "dataset_dir": str(world.empty)}
    out = world.run("compare", **given, epochs=1, methods=["ssmil"], seeds=[0])
    assert (out / "comparison.md").is_file()
    assert (out / "report.html").is_file()
    assert world.run("search", **given, grid={"lr": [0.001, 0.01], "epochs": [1]}).is_dir()
    out = world.run("cross_validate", **given, epochs=1, folds=3)
    with open(out / "predictions.csv") as file:
        assert len({line["slide"] for line in csv.DictReader(file)}) == 8


def test_such_weights_are_not_packed(world, tmp_path):
    told = refusal(lambda: pack(ROOT, world.folder / "with" / "models", tmp_path))
    assert "was trained on imported features, and a bundle has to encode slides itself. Pack weights of" in told


def test_heatmaps_lie_where_the_patches_do(world):
    places = {"dataset_dir": world.slide, "ckpt_dir": world.own("with")["ckpt_dir"], "feature_dir": world.banks}
    with open(world.run("inference", **places) / "heatmaps" / "s0" / "patches.csv") as file:
        lines = list(csv.DictReader(file))
    bank = read_bank(Path(world.banks) / "s0.h5", (5.0, 10.0))
    for name, corners, side in zip(("5x", "10x"), bank.coords, bank.patch_level0, strict=True):
        found = [line for line in lines if line["scale"] == name]
        assert [[float(line["x_level0"]), float(line["y_level0"])] for line in found] == corners.tolist()
        assert {float(line["side_level0"]) for line in found} == {side}
