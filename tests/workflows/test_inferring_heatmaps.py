"""``inferring``, as shipped: the heatmaps lie on the tissue that the network attends to, and that it concludes from.

The network's weights are set by hand, on the features of the shipped encoder, so that one class attends to one kind of
tissue and another class to the other, and so that each class is concluded from the kind that it does not attend to.
The slide has the first kind in its upper right corner.
"""

import csv
import json

import cv2
import itk
import monai.bundle
import numpy as np
import pytest
import torch

from scripts.encoders.backbones import get_backbone
from scripts.networks.mustmil import MuSTMIL
from tests.conftest import ROOT
from tests.heatmaps.test_geojson import hottest_um_of_geojson, read
from tests.heatmaps.test_images import (
    BASE_MPP,
    COLD_BOX,
    HOT_BOX,
    PATCH_PX,
    corner_image,
    hottest_um_of_mha,
    hottest_um_of_png,
    is_in,
    write_corner_slide,
)

CLASSES = ["cancer", "hgd", "lgd", "hyperplastic", "normal"]
ATTENDING = {"cancer": HOT_BOX, "normal": COLD_BOX}
CONCLUDING = {"cancer_contribution": COLD_BOX, "normal_contribution": HOT_BOX}
MAPS = {"global": 1.0, "5x": 2.0, "10x": 1.0}  # um per pixel of the patches that it lies on


def patches_of(box, mpp):
    """A few patches from within a box of the drawn slide, uint8 [n, 3, 64, 64]."""
    image, side = corner_image(), PATCH_PX * mpp / BASE_MPP
    left, top, right, bottom = box
    corners = [(x, y) for x in np.arange(left, right - side, side) for y in np.arange(top, bottom - side, side)]
    cut = [image[int(y) : int(y + side), int(x) : int(x + side)] for x, y in corners]
    resized = [cv2.resize(patch, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA) for patch in cut]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2))


def network_for_the_corner():
    """Each scale's first node is 1 on one kind of tissue and -1 on the other, and attention follows it.

    The attention for high-grade dysplasia prefers nothing. From what it pools, the node speaks against cancer and
    for normal glands.
    """
    network = MuSTMIL(num_classes=5, num_scales=2, num_features=1280)
    backbone = get_backbone("efficientnet_lite0")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for il, mpp in zip(network.embed, (2.0, 1.0), strict=True):
            hot, cold = (backbone(patches_of(box, mpp)).mean(dim=0) for box in (HOT_BOX, COLD_BOX))
            towards = (hot - cold) / (hot - cold).square().sum()
            il.weight[0], il.bias[0] = 2 * towards, -towards @ (hot + cold)
        for scoring in network.attention:
            scoring[0].weight[0, ::128] = 0.5
            scoring[2].weight[CLASSES.index("cancer"), 0] = 6.0
            scoring[2].weight[CLASSES.index("normal"), 0] = -6.0
        for classify in network.myfc:
            classify.bias[:] = torch.tensor([3.0, -3.0, -3.0, -3.0, -2.0])
            weight = classify.weight.unflatten(1, (5, -1))[:, CLASSES.index("hgd"), ::128]  # [class, scale]
            weight[CLASSES.index("cancer")], weight[CLASSES.index("normal")] = -0.5, 0.5
    return network


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Settings for the slide, whose file has no resolution, so that the datalist's is the only one."""
    folder = tmp_path_factory.mktemp("corner")
    write_corner_slide(folder / "corner.tif", mpp=None)
    (folder / "list.json").write_text(json.dumps({"testing": [{"image": "corner.tif", "mpp": BASE_MPP}]}))
    torch.save({"model": network_for_the_corner().state_dict()}, folder / "model.pt")
    return {
        "datalist": str(folder / "list.json"), "ckpt_dir": str(folder), "patch_size": PATCH_PX, "min_tissue": 0.4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def inferred(setting, tmp_path_factory):
    """The output folder after ``inferring`` with maps of two classes."""
    output = tmp_path_factory.mktemp("inferred")
    settings = {"output_dir": str(output), "heatmap_classes": list(ATTENDING), **setting}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        monai.bundle.run(run_id="inferring", config_file="configs/inference.json", **settings)
    return output


def test_the_hottest_place_of_every_file_is_where_the_tissue_is(inferred):
    folder = inferred / "heatmaps" / "corner"
    shown = {**ATTENDING, **CONCLUDING}
    wanted = [f"{m}_{c}.{suffix}" for m in MAPS for c in shown for suffix in ("geojson", "mha", "png")]
    wanted += [f"{m}_{c}_top.png" for m in MAPS for c in ATTENDING]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*wanted, "patches.csv"])
    width, height = 2000, 1275
    plain = cv2.resize(corner_image(), (width, height), interpolation=cv2.INTER_AREA)
    for name, box in shown.items():
        for map_name, mpp in MAPS.items():
            stem = f"{map_name}_{name}"
            found = {
                "png": hottest_um_of_png(folder / f"{stem}.png", plain, PATCH_PX * mpp),
                "mha": hottest_um_of_mha(folder / f"{stem}.mha"),
                "geojson": hottest_um_of_geojson(folder / f"{stem}.geojson", BASE_MPP),
            }
            # The hottest patch shows more of this tissue than of glass, so that its middle is in the box.
            assert all(is_in(box, place, slack_um=2.0) for place in found.values()), (stem, found)
            assert found["mha"] == pytest.approx(found["geojson"], abs=0.01)


def test_by_default_the_predicted_classes_are_shown_and_false_writes_none(workflow, setting, tmp_path):
    workflow("inferring", "inference", output_dir=str(tmp_path / "default"), **setting)
    shown = sorted(path.name for path in (tmp_path / "default" / "heatmaps" / "corner").glob("*.geojson"))
    assert shown == sorted(f"{m}_cancer{ending}.geojson" for m in MAPS for ending in ("", "_contribution"))
    workflow("inferring", "inference", output_dir=str(tmp_path / "none"), heatmaps=False, report=False, **setting)
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["predictions.csv"]
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("default", "none")]
    assert tables[0] == tables[1]


def test_three_magnifications_of_a_slide_of_ones_own_need_no_more_than_the_setting(workflow, setting, tmp_path):
    torch.manual_seed(0)
    torch.save(MuSTMIL(num_classes=5, num_scales=3, num_features=1280).state_dict(), tmp_path / "model.pt")
    settings = {**setting, "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "magnifications": [2.5, 5, 12.5]}
    workflow("inferring", "inference", heatmap_classes=["lgd"], heatmap_kinds=["attention"], **settings)
    folder = tmp_path / "heatmaps" / "corner"
    for name, mpp in (("global", 0.8), ("2.5x", 4.0), ("5x", 2.0), ("12.5x", 0.8)):
        features = read(folder / f"{name}_lgd.geojson")["features"]
        ring = np.array(features[0]["geometry"]["coordinates"][0])
        assert np.ptp(ring, axis=0) == pytest.approx(PATCH_PX * mpp / BASE_MPP, abs=2e-3)
        total = sum(v for f in features for k, v in f["properties"]["measurements"].items() if "percentile" not in k)
        assert total == pytest.approx(1, abs=5e-4)
    assert not list(folder.glob("*contribution*"))


def test_the_contributions_in_the_files_add_up_to_the_predicted_probability(inferred):
    with open(inferred / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["head"] for row in rows] == list(MAPS)
    for row in rows:
        for class_name, bias in (("cancer", 3.0), ("normal", -2.0)):
            path = inferred / "heatmaps" / "corner" / f"{row['head']}_{class_name}_contribution"
            name = f"contribution ({row['head']}, {class_name})"
            features = read(path.with_name(path.name + ".geojson"))["features"]
            tiles = [feature["properties"]["measurements"][name] for feature in features]
            assert min(tiles) < 0 < max(tiles)
            probability = float(row[class_name])
            logit = np.log(probability / (1 - probability))
            assert sum(tiles) + bias == pytest.approx(logit, abs=1e-4 + 5e-4 * sum(map(abs, tiles)))  # four digits
            pixels = itk.array_from_image(itk.imread(str(path.with_name(path.name + ".mha"))))
            assert pixels.sum(dtype=float) + bias == pytest.approx(logit, abs=1e-4)


def test_a_class_that_there_is_not_ends_in_one_line(command, setting, tmp_path):
    done = command("inferring", "inference", output_dir=tmp_path, heatmap_classes="['tumour']", **setting)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: heatmap_classes: there is no class 'tumour'. Give a list of cancer, hgd, lgd")
