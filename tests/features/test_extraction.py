import csv
import hashlib
import json
import logging
import os
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tqdm import tqdm

from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.blocks import plan_blocks
from scripts.core.errors import SettingsError, SlideError
from scripts.datalists.failures import FailedSlides, FailedSlidesError
from scripts.features.augmentation import augmentation_settings, view_transform
from scripts.features.bank import bank_path, read_bank
from scripts.features.bank_settings import bank_settings, of_view
from scripts.features.bank_writing import NewView, write_banks
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor, left_out
from tests.cohorts import PATCH_PX, SIZES, builder, draw_cohort, draw_slide, tiny_backbone, tiny_encoder
from tests.limits import within


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("extraction"), 3)


@pytest.fixture
def bars(monkeypatch):
    """The progress bars that are shown."""
    shown = []

    def bar(*args, **kwargs):
        shown.append(tqdm(*args, **kwargs))
        return shown[-1]

    monkeypatch.setattr("scripts.features.extraction.tqdm", bar)
    return shown


def encoder_that_counts(fail_at=None):
    encoder = tiny_encoder()
    encode, encoder.slides = encoder.encode, []

    def counted(bag, transforms):
        encoder.slides.append(bag.slide.path.stem)
        batches = encode(bag, transforms)
        yield next(batches)
        if fail_at == bag.slide.path.stem:
            raise SlideError(bag.slide.path, "breaks off", "Copy it again.")
        yield from batches

    encoder.encode = counted
    return encoder


def num_patches(entry):
    return builder()(entry).grid.num_patches


def size(entry):
    return Path(entry["image"]).stat().st_size


def test_each_slide_gets_a_bank_of_its_bag(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "features").run()
    assert sorted(os.listdir(tmp_path / "features")) == ["s0.h5", "s1.h5", "s2.h5"]
    for entry in cohort:
        bag = builder()(entry)
        banked = read_bank(tmp_path / "features" / f"{entry['slide']}.h5", (5.0, 10.0))
        assert np.array_equal(banked.row_features(), tiny_encoder().encode_rows(bag))
        assert np.array_equal(banked.rows, bag.grid.rows)


def test_what_is_there_is_not_made_again(cohort, tmp_path, bars, caplog):
    Extractor(cohort[:2], builder(), tiny_encoder(), tmp_path).run()
    made = {name: (tmp_path / name).stat().st_mtime_ns for name in os.listdir(tmp_path)}
    encoder = encoder_that_counts()
    with caplog.at_level(logging.INFO):
        Extractor(cohort, builder(), encoder, tmp_path).run()
    assert encoder.slides == ["s2"]
    assert f"extracting 1 of 3 slides into {tmp_path} (2 are there)" in caplog.messages
    again = encoder_that_counts()
    Extractor(cohort, builder(), again, tmp_path).run()
    assert again.slides == []
    assert len(bars) == 2  # none where nothing is to do
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made


def test_a_run_that_finds_all_banks_does_not_touch_the_gpu(cohort, tmp_path, monkeypatch):
    # `comparing` and `searching` start their trainings from such a process, and a GPU may take one process at a time.
    Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the GPU was touched"))
    monkeypatch.setattr("scripts.features.extraction.is_banked", lambda path, *_: path.exists())
    extractor = Extractor(cohort, builder(), Encoder(tiny_backbone(), "cuda"), tmp_path)
    extractor.run()
    assert extractor.left_out() == []


def test_an_interrupted_extraction_goes_on_with_the_slide_that_it_stopped_in(cohort, tmp_path):
    with pytest.raises(SlideError, match=r"s1\.tif: breaks off"):
        Extractor(cohort, builder(), encoder_that_counts(fail_at="s1"), tmp_path).run()
    assert os.listdir(tmp_path) == ["s0.h5"]
    encoder = encoder_that_counts()
    Extractor(cohort, builder(), encoder, tmp_path).run()
    assert encoder.slides == ["s1", "s2"]
    with h5py.File(tmp_path / "s1.h5") as bank:
        assert np.array_equal(bank["rows"][:], builder()(cohort[1]).grid.rows)


def test_the_progress_bar_counts_bytes_and_the_log_patches(cohort, tmp_path, bars, caplog):
    with caplog.at_level(logging.INFO):
        Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    (bar,) = bars
    assert bar.total == bar.n == sum(map(size, cohort))
    assert bar.unit == "B"
    assert f"extracted 3 slides, {sum(map(num_patches, cohort))} patches in" in caplog.messages[-1]


def test_other_settings_are_refused_before_anything_is_encoded(cohort, tmp_path):
    Extractor(cohort[1:2], builder(), tiny_encoder(), tmp_path).run()
    encoder = encoder_that_counts()
    with pytest.raises(
        SettingsError, match=r"s1\.h5: was made otherwise \(min_tissue \[0\.0, 0\.7\], now \[0\.0, 0\.5"
    ):
        Extractor(cohort, builder(min_tissue=0.5), encoder, tmp_path).run()
    assert encoder.slides == []
    assert os.listdir(tmp_path) == ["s1.h5"]


def test_an_entrys_mpp_decides_its_bank(cohort, tmp_path):
    finer = {**cohort[0], "mpp": 0.25}
    Extractor([finer], builder(min_tissue=0.2), tiny_encoder(), tmp_path).run()
    with h5py.File(tmp_path / "s0.h5") as bank:
        assert bank["10x"]["coords"].attrs["patch_level0"] == 256.0
        assert bank.attrs["mpp_source"] == "datalist: mpp"
    with pytest.raises(SettingsError, match=r"mpp_given 0\.25, now None"):
        Extractor(cohort[:1], builder(min_tissue=0.2), tiny_encoder(), tmp_path).run()


def test_patches_left_out_without_an_ancestor_are_reported(tmp_path, caplog):
    entry = {"image": str(draw_slide(tmp_path / "s.tif")), "slide": "s"}
    strict = builder(min_tissue=[0.6, 0.7])
    assert strict(entry).grid.orphans == 4  # those of the left 5x patches, half of which are glass
    with caplog.at_level(logging.INFO):
        Extractor([entry], strict, tiny_encoder(), tmp_path).run()
    assert caplog.messages[-1].endswith("; 4 patches left out without an ancestor")


# --- views -----------------------------------------------------------------------------------------------


def builder_that_counts(**settings):
    """A bag builder that records which slides it was asked for."""
    the_builder = builder(**settings)
    the_builder.slides = []

    class Counting(type(the_builder)):
        def __call__(self, entry):
            self.slides.append(entry["slide"])
            return super().__call__(entry)

    the_builder.__class__ = Counting
    return the_builder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.h5"))


def test_each_view_gets_a_bank_of_the_patches_that_it_transforms(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(num_workers=2), tmp_path, views=[2, 0, 1]).run()
    assert files(tmp_path) == ["s0.h5", "s1.h5", "s2.h5", "views/s0/001.h5", "views/s0/002.h5", "views/s2/001.h5"]
    for entry, views in zip(cohort, [2, 0, 1], strict=True):
        bag = builder()(entry)
        for view in range(1, views + 1):
            banked = read_bank(bank_path(tmp_path, entry["slide"], view), (5.0, 10.0))
            transform = view_transform(entry["slide"], view)
            for s in range(2):
                expected = tiny_backbone()(torch.from_numpy(transform(bag.read_all()[s]))).numpy()
                assert np.allclose(banked.features[s], expected, atol=1e-6)
                assert np.array_equal(banked.coords[s], bag.grid.coords[s])
            assert np.array_equal(banked.rows, bag.grid.rows)


@pytest.fixture
def blocks_read(monkeypatch):
    """How often each block of each slide was read."""
    counts, read_block = Counter(), Bag.read_block

    def counting(bag, block):
        counts[bag.slide.path.stem, block.level, block.corner_px] += 1
        return read_block(bag, block)

    monkeypatch.setattr(Bag, "read_block", counting)
    return counts


@pytest.mark.parametrize("num_workers", [0, 2])
def test_banks_of_views_made_together_are_those_made_one_by_one_to_the_last_byte(
    cohort, tmp_path, blocks_read, num_workers
):
    entry, encoder = cohort[0], tiny_encoder(batch_size=7, num_workers=num_workers)
    Extractor([entry], builder(), encoder, tmp_path / "together", views=[3]).run()
    assert set(blocks_read.values()) == {1}
    assert len(blocks_read) == len(plan_blocks(builder()(entry).grid))
    bag, sha256 = builder().verified(entry, always=True)
    settings = {**bank_settings(entry, builder(), encoder), "slide_sha256": sha256}
    for view in range(4):
        path = bank_path(tmp_path / "alone", "s0", view)
        write_banks([NewView(path, of_view(settings, view), view_transform("s0", view))], bag, encoder)
        assert path.read_bytes() == bank_path(tmp_path / "together", "s0", view).read_bytes()


def test_views_that_are_missing_are_made_from_one_reading_of_the_slide(cohort, tmp_path, blocks_read):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[4]).run()
    missing = [bank_path(tmp_path, "s0", view) for view in (1, 3, 4)]
    made = {path: path.read_bytes() for path in missing}
    others = {path: path.stat().st_mtime_ns for path in (bank_path(tmp_path, "s0", view) for view in (0, 2))}
    for path in missing:
        path.unlink()
    blocks_read.clear()
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[4]).run()
    assert set(blocks_read.values()) == {1}
    assert {path: path.read_bytes() for path in missing} == made
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_of_many_views_a_few_at_once_are_made_from_a_reading(cohort, tmp_path, blocks_read, monkeypatch):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path / "once", views=[4]).run()
    blocks_read.clear()
    monkeypatch.setattr("scripts.features.extraction.VIEWS_AT_ONCE", 2)
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path / "thrice", views=[4]).run()
    assert set(blocks_read.values()) == {3}
    assert files(tmp_path / "thrice") == files(tmp_path / "once")
    for name in files(tmp_path / "once"):
        assert (tmp_path / "thrice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_the_plain_banks_are_the_same_with_views_and_without(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "plain").run()
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "views", views=[1, 1, 1]).run()
    for name in ("s0.h5", "s1.h5", "s2.h5"):
        with h5py.File(tmp_path / "plain" / name) as plain, h5py.File(tmp_path / "views" / name) as beside:
            assert plain.attrs["settings"] == beside.attrs["settings"]
            for scale in ("5x", "10x"):
                assert np.array_equal(plain[scale]["features"][:], beside[scale]["features"][:])


def test_the_bank_of_a_view_says_which_and_how_views_are_drawn(cohort, tmp_path):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[3]).run()
    with h5py.File(tmp_path / "s0.h5") as plain, h5py.File(tmp_path / "views/s0/003.h5") as view:
        before, after = (json.loads(bank.attrs["settings"]) for bank in (plain, view))
    assert after == {**before, "view": 3, **augmentation_settings()}
    assert not {"view", *augmentation_settings()} & set(before)


def test_views_drawn_otherwise_are_refused_and_the_plain_banks_are_not(cohort, tmp_path, monkeypatch):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[1]).run()
    monkeypatch.setattr("scripts.features.augmentation.HUE_SHIFT", 20)
    with pytest.raises(SettingsError, match=r"001\.h5: was made otherwise \(hue_shift 8, now 20\)"):
        Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[1]).run()
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path).run()


def test_only_missing_views_are_made_and_each_slide_is_opened_once(cohort, tmp_path, caplog, bars):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    (tmp_path / "s1.h5").unlink()
    made = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    opened, encoder = builder_that_counts(), encoder_that_counts()
    with caplog.at_level(logging.INFO):
        Extractor(cohort, opened, encoder, tmp_path, views=[2, 1, 0]).run()
    assert sorted(opened.slides) == encoder.slides == ["s0", "s1"]
    patches = [num_patches(entry) for entry in cohort]
    extracted = 2 * patches[0] + 2 * patches[1]
    assert f"extracting 1 of 3 slides and 3 of 3 augmented views into {tmp_path} (2 and 0 are there)" in caplog.messages
    assert f"extracted 1 slides and 3 augmented views, {extracted} patches in" in caplog.messages[-1]
    assert bars[-1].n == bars[-1].total == 2 * size(cohort[0]) + 2 * size(cohort[1])
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made
    again = encoder_that_counts()
    Extractor(cohort, builder(), again, tmp_path, views=[3, 1, 0]).run()
    assert again.slides == ["s0"]


@pytest.mark.parametrize(
    ("key", "first", "own"),
    [("amp", True, False), ("patch_size", 32, 64), ("feature_dir", "elsewhere", None), ("datalist", "9 slides", None)],
)
def test_ranks_that_would_not_do_the_same_work_are_refused(cohort, tmp_path, monkeypatch, key, first, own):
    monkeypatch.setattr("scripts.features.extraction.from_first_rank", lambda make: {**make(), key: first})
    monkeypatch.setattr("scripts.features.extraction.rank", lambda: 1)
    says = (
        rf"{key}: the ranks would not do the same work \({key} {first!r} on rank 0, {own or ''}.*rank 1\)\. Set {key}"
    )
    with pytest.raises(SettingsError, match=says):
        Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    assert not list(tmp_path.iterdir())


# --- slides that fail ------------------------------------------------------------------------------------


def extractor(entries, folder, encoder=None, the_builder=None, strict=False, allow_missing=None, views=None):
    failures = FailedSlides(folder, "extracting", strict)
    the_builder, encoder = the_builder or builder(), encoder or tiny_encoder()
    return Extractor(entries, the_builder, encoder, folder / "features", views, failures, allow_missing)


def sha256_of(entry):
    return hashlib.sha256(Path(entry["image"]).read_bytes()).hexdigest()


def failed(folder):
    with open(folder / "failed.csv", newline="", encoding="utf-8") as file:
        return {row["slide"]: row["reason"] for row in csv.DictReader(file)}


def spoilt(cohort, folder, number):
    """The cohort with the file of one slide replaced by text."""
    image = folder / "text.tif"
    image.write_text("no slide")
    return [{**entry, "image": str(image)} if i == number else entry for i, entry in enumerate(cohort)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_slide_that_fails_costs_nothing_but_itself(cohort, tmp_path, bars, caplog, number):
    entries, good = spoilt(cohort, tmp_path, number), [f"s{i}" for i in range(3) if i != number]
    line = rf"^extracting: 1 of 3 slides failed \(s{number}\): see .*failed\.csv\. Mend or replace them, or name "
    with caplog.at_level(logging.INFO), pytest.raises(FailedSlidesError, match=line):
        extractor(entries, tmp_path).run()
    assert files(tmp_path / "features") == [f"{name}.h5" for name in good]
    # The bag is made ahead of its turn, and the slide that was encoded meanwhile is not to blame.
    assert list(failed(tmp_path)) == [f"s{number}"]
    assert "text.tif: cannot be read as a slide" in failed(tmp_path)[f"s{number}"]
    patches = sum(num_patches(entry) for i, entry in enumerate(cohort) if i != number)
    assert bars[0].n == bars[0].total == sum(map(size, entries))
    assert f"extracted 2 slides, {patches} patches in" in caplog.messages[-1]


def test_a_second_run_goes_on_with_the_slides_that_failed(cohort, tmp_path):
    with pytest.raises(FailedSlidesError):
        extractor(spoilt(cohort, tmp_path, 1), tmp_path).run()
    encoder = encoder_that_counts()
    extractor(cohort, tmp_path, encoder).run()
    assert encoder.slides == ["s1"]
    assert not (tmp_path / "failed.csv").exists()


def test_a_slide_that_breaks_off_leaves_no_bank_and_no_count(cohort, tmp_path, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(FailedSlidesError):
        extractor(cohort, tmp_path, encoder_that_counts(fail_at="s1")).run()
    assert files(tmp_path / "features") == ["s0.h5", "s2.h5"]
    assert failed(tmp_path) == {"s1": f"{cohort[1]['image']}: breaks off. Copy it again."}
    assert f"extracted 2 slides, {num_patches(cohort[0]) + num_patches(cohort[2])} patches in" in caplog.messages[-1]


def rename_over(new, path):
    new.rename(path)


def overwrite(new, path):
    path.write_bytes(new.read_bytes())


@pytest.mark.parametrize("replace", [rename_over, overwrite])
@pytest.mark.parametrize("views", [None, [0, 1, 0]])
def test_a_slide_that_is_replaced_while_it_is_read_has_no_bank_of_two_slides(tmp_path, replace, views):
    entries = draw_cohort(tmp_path, 3)
    other, encoder = draw_slide(tmp_path / "other.tif", SIZES[1], seed=9), tiny_encoder()
    encode, path = encoder.encode, Path(entries[1]["image"])

    def replacing(bag, transforms):
        if bag.slide.path == path and other.exists():
            replace(other, path)
            other.unlink(missing_ok=True)
        return encode(bag, transforms)

    encoder.encode = replacing
    with pytest.raises(FailedSlidesError, match=r"1 of 3 slides failed \(s1\)"):
        extractor(entries, tmp_path, encoder, views=views).run()
    assert failed(tmp_path) == {"s1": f"{path}: was changed while it was read. Run again once it is complete."}
    assert files(tmp_path / "features") == ["s0.h5", "s2.h5"]
    extractor(entries, tmp_path, views=views).run()
    banked, bag = read_bank(tmp_path / "features/s1.h5", (5.0, 10.0)), builder()(entries[1])
    assert np.array_equal(banked.row_features(), tiny_encoder().encode_rows(bag))


def test_a_slide_that_is_replaced_between_two_readings_keeps_the_banks_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.features.extraction.VIEWS_AT_ONCE", 1)
    entries = draw_cohort(tmp_path, 1)
    other, encoder = draw_slide(tmp_path / "other.tif", seed=9), encoder_that_counts()
    encode = encoder.encode

    def replacing(bag, transforms):
        for encoded in encode(bag, transforms):
            if transforms != [None] and other.exists():
                other.rename(bag.slide.path)
            yield encoded

    encoder.encode = replacing
    with pytest.raises(FailedSlidesError):
        extractor(entries, tmp_path, encoder, views=[1]).run()
    assert files(tmp_path / "features") == ["s0.h5"]
    with pytest.raises(SettingsError, match=r"s0\.h5: was made otherwise \(slide_fingerprint"):
        extractor(entries, tmp_path, views=[1]).run()


@pytest.mark.parametrize("key", ["image", "mask"])
def test_a_pipe_in_the_place_of_a_slide_costs_that_slide_alone(cohort, tmp_path, key):
    os.mkfifo(tmp_path / "b.svs")
    entries = [cohort[0], {**cohort[1], key: str(tmp_path / "b.svs")}]
    with within(60), pytest.raises(FailedSlidesError, match=r"1 of 2 slides failed \(s1\)"):
        extractor(entries, tmp_path).run()
    assert failed(tmp_path)["s1"].startswith(f"{tmp_path / 'b.svs'}: is a pipe, a device or a socket, not a file. ")
    assert files(tmp_path / "features") == ["s0.h5"]


@pytest.mark.parametrize("mpp", [2.5e-7, 0.00025, 1e-300])
def test_a_resolution_that_no_microscope_has_costs_that_slide_alone(cohort, tmp_path, mpp):
    entries = [cohort[0], {**cohort[1], "mpp": mpp}]
    with within(60), pytest.raises(FailedSlidesError, match=r"1 of 2 slides failed \(s1\)"):
        extractor(entries, tmp_path).run()
    reason = f"s1.tif: `mpp` is {mpp!r}, not a number from 0.02 to 20. Give micrometres per pixel at full resolution"
    assert reason in failed(tmp_path)["s1"]


def test_a_slide_that_is_gone_fails_like_any_other(cohort, tmp_path, caplog):
    gone = [{**cohort[0], "image": str(tmp_path / "gone.tif")}, *cohort[1:]]
    with caplog.at_level(logging.INFO), pytest.raises(FailedSlidesError):
        extractor(gone, tmp_path).run()
    assert "gone.tif: cannot be read (No such file or directory). Check its rights" in failed(tmp_path)["s0"]
    assert f"extracting 2 of 3 slides into {tmp_path / 'features'} (0 are there)" in caplog.messages


def test_where_every_slide_fails_the_run_ends_the_same_way(cohort, tmp_path):
    gone = [{**entry, "image": str(tmp_path / "gone.tif")} for entry in cohort]
    with pytest.raises(FailedSlidesError, match=r"3 of 3 slides failed \(s0, s1, s2\)"):
        extractor(gone, tmp_path).run()


def test_a_strict_run_stops_at_the_first_slide_that_fails(cohort, tmp_path):
    with pytest.raises(SlideError, match=r"text\.tif: cannot be read as a slide"):
        extractor(spoilt(cohort, tmp_path, 1), tmp_path, strict=True).run()
    assert files(tmp_path / "features") == ["s0.h5"]
    assert list(failed(tmp_path)) == ["s1"]


def test_what_is_no_slides_fault_ends_the_run(cohort, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.features.extraction.write_banks", full)
    with pytest.raises(OSError, match="No space left"):
        extractor(cohort, tmp_path).run()
    assert not (tmp_path / "failed.csv").exists()


@pytest.mark.parametrize(("at_once", "last", "left"), [(4, 1, []), (2, 2, ["s0.h5", "views/s0/001.h5"])])
def test_a_slide_that_breaks_off_leaves_the_banks_of_earlier_readings_alone(
    cohort, tmp_path, caplog, monkeypatch, at_once, last, left
):
    monkeypatch.setattr("scripts.features.extraction.VIEWS_AT_ONCE", at_once)
    encoder = tiny_encoder()
    encode, readings = encoder.encode, Counter()

    def breaks(bag, transforms):
        slide = bag.slide.path.stem
        readings[slide] += 1
        for encoded in encode(bag, transforms):
            yield encoded
            if (slide, readings[slide]) == ("s0", last):
                raise SlideError(bag.slide.path, "breaks off", "Copy it again.")

    encoder.encode = breaks
    with caplog.at_level(logging.INFO), pytest.raises(FailedSlidesError, match=r"1 of 2 slides failed \(s0\)"):
        extractor(cohort[:2], tmp_path, encoder, views=[3, 1]).run()
    assert files(tmp_path / "features") == sorted([*left, "s1.h5", "views/s1/001.h5"])
    written = [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert len(written) == len(left) + 2  # and nothing half-written
    patches = len(left) * num_patches(cohort[0]) + 2 * num_patches(cohort[1])
    each = 1 + len(left) // 2
    assert f"extracted {each} slides and {each} augmented views, {patches} patches in" in caplog.messages[-1]


def test_banks_of_an_older_version_are_told_of_in_one_line(cohort, tmp_path, caplog):
    extractor(cohort, tmp_path, views=[1, 0, 0]).run()
    for path in (tmp_path / "features").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            stored = json.loads(file.attrs["settings"])
            del stored["slide_sha256"], stored["ink"]
            file.attrs["settings"] = json.dumps(stored)
    sums = [{**entry, "sha256": hashlib.sha256(Path(entry["image"]).read_bytes()).hexdigest()} for entry in cohort]
    caplog.clear()
    extractor(sums, tmp_path, views=[1, 0, 0]).run()
    told = "4 feature banks of an older version (s0.h5, views/s0/001.h5, s1.h5, s2.h5)"
    of_older = sorted(message for message in caplog.messages if "older version" in message)
    assert [message.startswith(told) for message in of_older] == [True, True]
    assert "do not store the `sha256` of their slides" in of_older[0]
    assert "were made before ink was left out of the tissue" in of_older[1]


@pytest.mark.parametrize("views", [None, [1, 1, 1]])
def test_who_is_allowed_to_goes_on_without_them_and_is_told(cohort, tmp_path, caplog, views):
    encoder = encoder_that_counts(fail_at="s1")
    without = extractor(cohort, tmp_path, encoder, allow_missing=True, views=views)
    assert without.left_out() == ["s1"]
    told = f"going on without 1 of 3 slides (s1), as `allow_missing` says: see {tmp_path / 'failed.csv'}"
    assert [record.message for record in caplog.records if "going on" in record.message] == [told]
    assert without.left_out() == ["s1"]
    assert encoder.slides.count("s1") == 1  # it was extracted once


def test_who_is_not_allowed_to_is_told_how(cohort, tmp_path):
    with pytest.raises(FailedSlidesError, match=r"or go on without them with `allow_missing`; the same command"):
        extractor(spoilt(cohort, tmp_path, 1), tmp_path, allow_missing=False).run()


def test_a_slide_whose_file_is_gone_is_left_out_though_it_has_a_bank(cohort, tmp_path):
    extractor(cohort, tmp_path).run()
    gone = [{**cohort[0], "image": str(tmp_path / "gone.tif")}, *cohort[1:]]
    assert extractor(gone, tmp_path, allow_missing=True).left_out() == ["s0"]


def test_patches_have_no_banks_that_may_be_missing(cohort, tmp_path):
    without = extractor(cohort, tmp_path, allow_missing=True)
    assert left_out(without, "patches", allow_missing=False) == []
    with pytest.raises(SettingsError, match=r"allow_missing: is for the feature bank.*Set `source` to bank"):
        left_out(without, "patches", allow_missing=True)


def test_a_slide_with_another_checksum_fails(cohort, tmp_path):
    right = sha256_of(cohort[0])
    entries = [{**cohort[0], "sha256": right}, {**cohort[1], "sha256": right}]
    with pytest.raises(FailedSlidesError, match=r"1 of 2 slides failed \(s1\)"):
        extractor(entries, tmp_path).run()
    assert f"the datalist says {right}. Copy it again, or correct `sha256`." in failed(tmp_path)["s1"]


def test_a_bank_of_another_file_than_the_datalist_names_is_refused_also_if_it_was_made_without_a_checksum(
    cohort, tmp_path
):
    extractor(cohort[:2], tmp_path).run()
    entries = [{**entry, "sha256": sha256_of(entry).upper()} for entry in cohort[:2]]
    extractor(entries, tmp_path).run()
    right, wrong = sha256_of(cohort[1]), "0" * 64
    with pytest.raises(SettingsError, match=rf"s1\.h5: was made otherwise \(slide_sha256 '{right}', now '{wrong}'\)"):
        extractor([entries[0], {**entries[1], "sha256": wrong}], tmp_path).run()


def test_a_slide_that_is_replaced_after_its_checksum_was_compared_gets_no_bank(cohort, tmp_path):
    entry = draw_cohort(tmp_path, 1)[0]
    other = draw_slide(tmp_path / "other.tif", seed=9)

    class Replacing(BagBuilder):
        def __call__(self, entry):
            other.rename(entry["image"])
            return super().__call__(entry)

    extract = extractor([{**entry, "sha256": sha256_of(entry)}], tmp_path)
    extract.bag_builder = Replacing((5, 10), PATCH_PX)
    with pytest.raises(FailedSlidesError):
        extract.run()
    assert "was changed while it was read" in failed(tmp_path)["s0"]
    assert files(tmp_path / "features") == []


def test_what_was_extracted_to_know_what_fails_is_not_extracted_again(cohort, tmp_path):
    encoder = encoder_that_counts(fail_at="s1")
    without = extractor(cohort, tmp_path, encoder, allow_missing=True)
    assert without.left_out() == ["s1"]
    without.run()
    assert encoder.slides.count("s1") == 1


def test_slides_without_a_checksum_are_counted_before_they_are_read(cohort, tmp_path, caplog):
    summed = {**cohort[0], "sha256": sha256_of(cohort[0])}
    extractor([summed], tmp_path).run()
    assert "sha256" not in caplog.text
    extractor([summed, *cohort[1:]], tmp_path).run()
    assert f"{len(cohort) - 1} of these slides have no `sha256` in the datalist" in caplog.text
    caplog.clear()
    extractor(cohort, tmp_path).run()
    assert "sha256" not in caplog.text
