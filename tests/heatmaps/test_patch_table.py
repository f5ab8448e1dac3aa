"""The table of patches agrees with the network, with scipy's ranks and with the slide's grid."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.patch_table import patch_columns, patch_table
from scripts.networks.methods import attention_maps
from scripts.networks.mustmil import MuSTMIL
from scripts.slides.frames import Frame

CLASSES = ["a", "b, c"]
SIDES = [200.0, 100.0]


def a_table(seed, num_rows, frame=None):
    torch.manual_seed(seed)
    network = MuSTMIL(num_classes=2, num_scales=2, num_features=6, num_nodes=4).eval()
    grid = np.array([(i % 4 * 100.0, i // 4 * 100.0) for i in range(num_rows)])
    corners = np.stack([np.floor(grid / side) * side for side in SIDES], axis=1)
    item = {
        "image": torch.randn(num_rows, 2, 6), "log_weight": torch.zeros(num_rows, 2),
        "corners": torch.from_numpy(corners), "patch_level0": torch.tensor(SIDES, dtype=torch.float64),
        "base_mpp": 0.5,
    }  # fmt: skip
    specs = attention_maps("mustmil", [5, 10])
    maps = BagMaps(network, specs, item)
    lines = patch_table(maps, specs, 2, ["5x", "10x"], *([] if frame is None else [frame]))
    columns = patch_columns(specs, CLASSES)
    assert all(len(line) == len(columns) for line in lines)
    return network, item, corners, [dict(zip(columns, line, strict=True)) for line in lines]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 16))
def test_contributions_sum_to_the_logit_less_its_bias_and_percentiles_are_scipys(seed, num_rows):
    network, item, _, lines = a_table(seed, num_rows)
    with torch.no_grad():
        logits = network(item["image"][None], item["log_weight"][None])[0].numpy()
    for head, name in enumerate(("global", "5x", "10x")):
        of_map = [line for line in lines if line["scale"] == ("5x" if name == "5x" else "10x")]
        for k, class_name in enumerate(CLASSES):
            attention, percentile, contribution = (
                np.array([float(line[f"{name}_{class_name}_{measure}"]) for line in of_map])
                for measure in ("attention", "attention_percentile", "contribution")
            )
            assert attention.sum() == pytest.approx(1, abs=1e-4)
            bias = network.myfc[head].bias[k].item()
            assert contribution.sum() == pytest.approx(logits[head, k] - bias, abs=1e-4)
            if np.diff(np.sort(attention)).min(initial=1) > 1e-4:  # no ties, which rounding could make or break
                assert percentile == pytest.approx(100 * rankdata(attention) / len(attention), rel=1e-5)


def test_every_patch_of_every_scale_stands_once_with_its_place_in_both_frames():
    _, _, corners, lines = a_table(0, 10, Frame("qupath", (30.0, 70.0)))
    for s, (scale, side) in enumerate(zip(("5x", "10x"), SIDES, strict=True)):
        of_scale = [line for line in lines if line["scale"] == scale]
        places = [(float(line["x_level0"]), float(line["y_level0"])) for line in of_scale]
        assert len(places) == len(set(places))
        assert set(places) == {tuple(corner) for corner in corners[:, s].tolist()}
        for line, (x, y) in zip(of_scale, places, strict=True):
            assert (float(line["x"]), float(line["y"])) == (x - 30, y - 70)
            assert float(line["side_level0"]) == side
            filled = {name.split("_")[0] for name, cell in line.items() if name.endswith("attention") and cell}
            assert filled == ({"5x"} if scale == "5x" else {"global", "10x"})
