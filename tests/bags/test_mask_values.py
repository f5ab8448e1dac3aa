"""Which values of a mask are tissue: against masks that the test has coded, in every format that they come in."""

import json
import logging

import h5py
import itk
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.bags.bag import BagBuilder
from scripts.bags.mask_values import tissue_in
from scripts.checking.inspection import inspect_slide
from scripts.checking.slides import SlideChecker
from scripts.core.errors import DatalistError, SettingsError, SlideError
from scripts.core.repeats import Repeats
from scripts.datalists.datalist import list_slides, load_partition
from scripts.datalists.label_files import as_entries
from scripts.datalists.values import check_mask_tissue
from scripts.features.bank import bank_path
from scripts.features.bank_settings import bank_settings, is_banked
from scripts.features.extraction import Extractor
from tests.cohorts import builder, draw_slide, tiny_encoder

# GrandQC: 1 is clean tissue, 2 to 6 are artefacts, 7 is background.
GRANDQC = np.zeros((64, 128), np.uint8)
GRANDQC[:] = 7
GRANDQC[2:62, 46:121] = 1
GRANDQC[2:62, 90:121] = 3
GRANDQC[2:8, 46:60] = 6
CLEAN = GRANDQC == 1


def say(values, mask_tissue=None, **options):
    return tissue_in(np.asarray(values), mask_tissue, "slide s", "m.png", **options)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("coded") / "s.tif")


@pytest.fixture(scope="module")
def mask(slide):
    path = slide.with_name("grandqc.png")
    Image.fromarray(GRANDQC).save(path)
    return path


# --- one value, several values ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("value", [1, 3, 255])
def test_the_only_value_beside_0_is_tissue(dtype, value):
    pixels = (CLEAN * value).astype(dtype)
    assert np.array_equal(say(pixels), CLEAN)
    assert not say(np.zeros_like(pixels)).any()


@given(
    seed=st.integers(0, 2**16),
    codes=st.sets(st.integers(0, 12), min_size=1),
    listed=st.sets(st.integers(0, 12), min_size=1),
    dtype=st.sampled_from([np.uint8, np.int32, np.float32]),
)
def test_the_listed_values_are_tissue_and_no_others(seed, codes, listed, dtype):
    pixels = np.random.default_rng(seed).choice(sorted(codes), (9, 7)).astype(dtype)
    found, mask_tissue = {int(value) for row in pixels.tolist() for value in row}, tuple(sorted(listed))
    if not found & listed:
        with pytest.raises(SlideError, match=r"has none of the values \["):
            say(pixels, mask_tissue)
    else:
        assert say(pixels, mask_tissue).tolist() == [[value in listed for value in row] for row in pixels.tolist()]
    if len(found - {0}) > 1:
        with pytest.raises(SlideError, match=r"has the values \d+, .* beside 0.*List those that are as `mask_tissue`"):
            say(pixels)
    else:
        assert say(pixels).tolist() == [[value != 0 for value in row] for row in pixels.tolist()]


def test_several_values_are_refused_by_name_with_the_remedy():
    with pytest.raises(SlideError) as refused:
        say(GRANDQC)
    assert str(refused.value) == (
        "slide s: its mask m.png has the values 1, 3, 6, 7 beside 0, and not all of them need be tissue. List those "
        "that are as `mask_tissue`, a setting or a key of the datalist (of GrandQC's masks: 1)."
    )
    with pytest.raises(SlideError, match=r"has none of the values \[2, 255\] of `mask_tissue` \(it has 1, 3, 6, 7\)"):
        say(GRANDQC, (2, 255))


@pytest.mark.parametrize("painted", [(255, 0, 0), (1, 1, 1), (0, 0, 7)])
@pytest.mark.parametrize("channels", [3, 4])
def test_one_colour_is_tissue_and_several_are_refused(painted, channels):
    colours = np.zeros((64, 128, channels), np.uint8)
    colours[..., 3:] = 255
    colours[CLEAN, :3] = painted
    assert np.array_equal(say(colours), CLEAN)
    colours[0, 0, :3] = (0, 200, 10)
    with pytest.raises(
        SlideError, match=r"has several colours, such as \(0, 200, 10\) and \(.*Save it with one channel"
    ):
        say(colours)
    with pytest.raises(SlideError, match=r"colours are no values of `mask_tissue`"):
        say(colours, (1,))


def test_grey_in_three_channels_is_one_channel():
    grey = np.repeat(GRANDQC[..., None], 3, axis=-1)
    assert np.array_equal(say(grey, (1,)), CLEAN)
    with pytest.raises(SlideError, match=r"has the values 1, 3, 6, 7 beside 0"):
        say(grey)


def test_what_lossy_compression_leaves_is_refused_with_what_to_do(slide, tmp_path):
    Image.fromarray((CLEAN * 255).astype(np.uint8)).save(tmp_path / "m.jpg", quality=70)
    smooth = Image.fromarray((CLEAN * 255).astype(np.uint8)).resize((200, 100), Image.Resampling.BILINEAR)
    smooth.save(tmp_path / "m.png")
    for name in ("m.jpg", "m.png"):
        with pytest.raises(SlideError, match=r"has \d+ values beside 0, as lossy compression and smoothed edges leave"):
            builder().look({"image": slide, "mask": tmp_path / name})
    for listed in (None, (255,)):
        with pytest.raises(
            SlideError, match=r"has 2 values beside 0, as lossy .*Save it as PNG or TIFF, with 0 and one other"
        ):
            say([[0, 254, 255]], listed, is_lossy=True)
    assert say([[0, 255]], (255,), is_lossy=True).tolist() == [[False, True]]


@pytest.mark.parametrize(("alpha", "is_certain"), [(255, True), (CLEAN * 255, True), (~CLEAN * 255, False), (0, False)])
def test_transparency_says_what_the_colours_say_or_is_refused(alpha, is_certain):
    colours = np.zeros((64, 128, 4), np.uint8)
    colours[CLEAN, :3], colours[..., 3] = 255, alpha
    if is_certain:
        assert np.array_equal(say(colours), CLEAN)
    else:
        with pytest.raises(SlideError, match=r"is transparent in other places .*Save it with one channel"):
            say(colours, (255,))


def test_a_run_says_once_which_values_are_left_out(slide, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("scripts.bags.mask_values._repeats", Repeats())
    codes = np.array([0, 1, 0, 3, 0, 0, 2, 0], np.uint8)[GRANDQC]
    path = tmp_path / "m.png"
    Image.fromarray(codes).save(path)
    bags, entry = builder(mask_tissue=[1]), {"image": slide, "mask": path}
    with caplog.at_level(logging.INFO):
        bags(entry)
        bags(entry)
    line = f"{slide}: of its mask {path}, all with another value (2, 3) is left out, as `mask_tissue` is [1]"
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.INFO, line)]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        builder(mask_tissue=[1, 2, 3])(entry)
    assert not caplog.records


def test_of_a_thousand_slides_with_the_same_values_the_first_few_are_logged(caplog, monkeypatch):
    monkeypatch.setattr("scripts.bags.mask_values._repeats", Repeats())
    with caplog.at_level(logging.INFO):
        for i in range(1000):
            tissue_in(np.array([[0, 1, 2, 3]]), (1,), f"/slides/s{i}.tif", f"/masks/m{i}.png")
    *lines, last = caplog.messages
    assert [line.partition(":")[0] for line in lines] == [f"/slides/s{i}.tif" for i in range(3)]
    assert "`inspecting` outlines them" in last


# --- what a user writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "codes"),
    [
        (None, None), (1, (1,)), ("1", (1,)), ("1;2", (1, 2)), (" 2 ; 1 ", (1, 2)), ([2, 1, 2], (1, 2)), ((0,), (0,)),
        ("[1, 2]", (1, 2)), (1.0, (1,)), ("1.0", (1,)), (["1", 2], (1, 2)), (65535, (65535,)),
        ("Tissue", ("Tissue",)), (["Tissue", 1], (1, "Tissue")), ("b; a", ("a", "b")), ("['a', 'b c']", ("a", "b c")),
    ],
)  # fmt: skip
def test_values_are_a_number_or_several_in_any_notation(given_, codes):
    assert check_mask_tissue(given_) == codes


@pytest.mark.parametrize(
    "wrong",
    [-1, True, [True], 1.5, "1.5", "1;", "Tissue;", [], "", "[]", {}, {"a": 1}, float("nan"), 2**32, [[1]]],
)
def test_what_are_no_values_is_refused(wrong):
    with pytest.raises(SettingsError, match=r"^mask_tissue: got .*\. Give the values of the mask that are"):
        BagBuilder(mask_tissue=wrong)
    with pytest.raises(SlideError, match=r"^s\.tif: mask_tissue is"):
        BagBuilder().mask_settings({"image": "s.tif", "mask": "m.png", "mask_tissue": wrong})


def test_the_datalists_key_goes_before_the_setting(slide, mask):
    def corners(setting, **own):
        grid = builder(mask_tissue=setting).look({"image": slide, "mask": mask, **own}).grid
        return {tuple(corner) for corner in grid.coords[1].tolist()}

    clean, folded = corners([1]), corners([3])
    assert clean
    assert folded
    assert clean != folded
    assert corners(None, mask_tissue="1") == corners([3], mask_tissue=[1]) == clean
    assert corners([1, 3]) > clean | folded  # with those that are half one and half the other


@pytest.mark.parametrize("column", ["mask_tissue", "Mask_Tissue", "mask tissue", "MaskTissue"])
@pytest.mark.parametrize(("cell", "codes"), [("1", [1]), ("1;2", [1, 2]), ("", None)])
def test_a_datalist_has_them_as_a_column_or_a_key(slide, mask, column, cell, codes):
    path = slide.with_name("d.csv")
    path.write_text(f"image,mask,{column},label,partition\ns.tif,grandqc.png,{cell},cancer,training\n")
    (entry,) = load_partition(path, None, "training", "multilabel")
    (listed,) = list_slides(path)
    assert entry.get("mask_tissue") == listed.get("mask_tissue") == codes
    assert entry["mask"] == str(mask)


def test_a_datalists_values_that_are_none_are_refused_with_their_line(slide, mask):
    path = slide.with_name("wrong.csv")
    path.write_text("image,mask,mask_tissue\ns.tif,grandqc.png,-1\n")
    with pytest.raises(DatalistError, match=r"wrong\.csv line 2, slide s\.tif: mask_tissue is '-1'"):
        list_slides(path)


def test_what_monai_label_hands_over_keeps_them(tmp_path):
    item = {"image": "/s/s1.svs", "label": [1, 0, 0, 0, 0], "mask": "m.png", "mask_tissue": [1]}
    (entry,) = as_entries([item], "multilabel")
    assert (entry["mask"], entry["mask_tissue"]) == ("m.png", [1])


# --- where it is used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "mha"])
def test_checking_blocks_a_coded_mask_until_its_tissue_is_listed(slide, tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, GRANDQC)
    else:
        itk.imwrite(itk.image_from_array(GRANDQC), str(path))

    def check(setting=None, **own):
        facts = SlideChecker(builder(mask_tissue=setting), class_names=["cancer", "hgd", "normal"])(
            {"image": str(slide), "slide": "s", "mask": str(path), **own}
        )
        return [(p.severity, p.check) for p in facts.problems], facts.tissue_mm2

    assert check() == ([("blocks", "mask")], None)
    assert check(mask_tissue="9") == ([("blocks", "mask")], None)
    area_mm2 = CLEAN.sum() * (8 * 0.5e-3) ** 2  # pixels of 8 x 8, 0.5 um each
    for told, found in (check([1]), check(mask_tissue=[1])):
        assert "mask" not in [check for _, check in told]
        assert found == pytest.approx(area_mm2)


def test_inspecting_draws_what_is_listed(slide, mask, tmp_path, capsys):
    with pytest.raises(SlideError, match="has the values 1, 3, 6, 7"):
        inspect_slide({"image": slide, "mask": mask}, builder(), tmp_path)
    inspect_slide({"image": slide, "mask": mask}, builder(mask_tissue=[1]), tmp_path)
    assert np.array_equal(itk.array_from_image(itk.imread(str(tmp_path / "s_tissue.mha"))).astype(bool), CLEAN)


def settings_of(extractor):
    return bank_settings(extractor.entries[0], extractor.bag_builder, extractor.encoder)


def test_a_bank_says_which_values_it_was_made_with(slide, mask, tmp_path):
    entry = {"image": str(slide), "slide": "s", "mask": str(mask)}

    def extractor(setting, **own):
        return Extractor([{**entry, **own}], builder(mask_tissue=setting), tiny_encoder(), tmp_path)

    extractor([1]).run()
    path = bank_path(tmp_path, "s")
    for same in (extractor([1]), extractor(None, mask_tissue="1"), extractor([3], mask_tissue=[1])):
        assert is_banked(path, settings_of(same))
    for other in (extractor(None), extractor([1, 3]), extractor([1], mask_tissue=[3])):
        with pytest.raises(SettingsError, match=r"was made otherwise \(mask_tissue \[1\], now"):
            is_banked(path, settings_of(other))


def test_banks_of_before_stay_valid_and_are_named(slide, mask, tmp_path, caplog):
    # Without a mask, how tissue is found is stored. With one, an older bank without this key listed no values.
    assert BagBuilder(mask_tissue=[1]).mask_settings({"image": slide}) == {"tissue": {}}
    assert BagBuilder().mask_settings({"image": slide, "mask": mask}) == {"mask_tissue": None}
    whole = slide.with_name("whole.png")
    Image.fromarray(((GRANDQC != 7) * 255).astype(np.uint8)).save(whole)
    extractor = Extractor(
        [{"image": str(slide), "slide": "s", "mask": str(whole)}], builder(), tiny_encoder(), tmp_path
    )
    extractor.run()
    path, wanted = bank_path(tmp_path, "s"), settings_of(extractor)
    with h5py.File(path, "r+") as bank:
        stored = json.loads(bank.attrs["settings"])
        assert stored.pop("mask_tissue") is None
        bank.attrs["settings"] = json.dumps(stored)
    assert is_banked(path, wanted)
    for codes in ([255], []):
        with pytest.raises(SettingsError, match=r"was made otherwise \(mask_tissue None, now \["):
            is_banked(path, {**wanted, "mask_tissue": codes})
    with caplog.at_level(logging.WARNING, logger="scripts.features.bank_settings"):
        Extractor(extractor.entries, builder(), tiny_encoder(), tmp_path).run()
    (told,) = [message for message in caplog.messages if "older version" in message]
    assert told.startswith("1 feature banks of an older version (s.h5) were made before masks with several values were")
    assert told.endswith("run `checking`, which looks at the masks; delete their banks in doubt")
