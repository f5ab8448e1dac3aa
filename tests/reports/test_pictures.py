"""The folder of a report's pictures: what stays in it, and what goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.bags.bag import BagBuilder
from scripts.heatmaps.bag_maps import BagMaps
from scripts.inference.transforms import EncodeSlided
from scripts.networks.methods import attention_maps
from scripts.reports.pictures import remove_other_pictures, write_pictures
from tests.cohorts import tiny_encoder
from tests.heatmaps.test_images import BASE_MPP, PATCH_PX, write_corner_slide
from tests.heatmaps.test_writer import CLASSES, colour_network

OF_ANOTHER_RANK = ".0_0_attention.0badcafe-1.part.png"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures of two slides; the second has those of an earlier run with one more class."""
    folder = tmp_path_factory.mktemp("pictures")
    path = write_corner_slide(folder / "corner.tif", mpp=None)
    builder, network = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4), colour_network()
    entry = {"image": str(path), "slide": "a", "mpp": BASE_MPP}
    specs = attention_maps("mustmil", [5, 10])
    maps = BagMaps(network, specs, EncodeSlided("image", builder, tiny_encoder())(entry))
    second = folder / "report" / "second"
    second.mkdir(parents=True)
    for name in ("0_2_attention.png", "2_2_contribution.png", "0_1_top.jpg", OF_ANOTHER_RANK, "notes.txt"):
        (second / name).write_text("")
    for slide, galleries in (("first", {(0, 1): np.zeros((9, 9, 3), np.uint8)}), ("second", {})):
        write_pictures(folder, slide, builder.open_slide(entry), maps, specs, CLASSES, galleries)
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_slides_pictures_replace_those_of_an_earlier_run_and_nothing_else(output):
    written = names_in(output / "report" / "first")
    assert len(written) == 2 + 3 * 2 * 2 + 1
    # What another rank is about to write stays, and what a user put there.
    assert names_in(output / "report" / "second") == written - {"0_1_top.jpg"} | {OF_ANOTHER_RANK, "notes.txt"}


def test_pictures_of_other_slides_go_and_what_a_user_put_there_stays(output, tmp_path):
    (output / "report" / "mine").mkdir()
    (output / "report" / "mine" / "slide.jpg").write_text("")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "small.jpg").write_text("")
    (output / "report" / "elsewhere").symlink_to(kept)
    remove_other_pictures(output, ["first"])
    assert names_in(output / "report") == {"first", "second", "mine", "elsewhere"}
    assert len(names_in(output / "report" / "first")) == 2 + 3 * 2 * 2 + 1
    assert names_in(output / "report" / "second") == {"notes.txt"}
    assert names_in(kept) == {"small.jpg"}
    remove_other_pictures(output, [])
    assert names_in(output / "report") == {"second", "mine", "elsewhere"}


def test_a_folder_without_pictures_is_no_problem(tmp_path):
    remove_other_pictures(tmp_path, [])
    assert not list(tmp_path.iterdir())
