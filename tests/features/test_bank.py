import json
import math
import os
import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import scripts.features.bank
from scripts.core.errors import SettingsError, SlideError
from scripts.features.bank import BankedBag, BankReader, bank_path, read_bank
from scripts.features.bank_settings import bank_settings, is_banked, slide_fingerprint
from scripts.features.bank_writing import NewView, write_bank, write_banks
from scripts.features.encoding import Encoded, Encoder
from tests.cohorts import builder, draw_slide, tiny_backbone, tiny_encoder


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("features") / "s.tif")


@pytest.fixture(scope="module")
def bag(slide):
    return builder()({"image": slide})


def settings_of(slide):
    return bank_settings({"image": slide}, builder(), tiny_encoder())


@pytest.fixture
def bank(tmp_path, bag, slide):
    write_bank(tmp_path / "s.h5", bag, tiny_encoder(), settings_of(slide))
    return tmp_path / "s.h5"


def test_a_bank_holds_each_patch_once_and_the_rows_that_link_them(bank, bag):
    with h5py.File(bank) as file:
        assert set(file) == {"5x", "10x", "rows"}
        assert np.array_equal(file["rows"][:], bag.grid.rows)
        for s, name in enumerate(["5x", "10x"]):
            patches = bag.read_all()[s]
            expected = tiny_backbone()(torch.from_numpy(patches)).numpy()
            assert np.allclose(file[name]["features"][:], expected, atol=1e-6)
            assert np.array_equal(file[name]["coords"][:], bag.grid.coords[s])
            assert len(np.unique(file[name]["coords"][:], axis=0)) == len(patches)
        # 64 px at 5x and 10x of a slide with 0.5 um/px, whose level 1 has 2 um/px.
        assert dict(file["5x"]["coords"].attrs) == {
            "frame": "(x, y) of the top left corner, level-0 pixels",
            "patch_level0": 256.0,
            "patch_read_px": 64,
            "read_level": 1,
            "crc32": zlib.crc32(file["5x"]["coords"][:].tobytes()),
        }
        assert file["10x"]["coords"].attrs["patch_level0"] == 128.0
        assert file["10x"]["coords"].attrs["patch_read_px"] == 128
        assert file["10x"]["coords"].attrs["read_level"] == 0


def test_a_bank_says_how_it_was_made(bank, slide):
    with h5py.File(bank) as file:
        attributes = dict(file.attrs)
    assert json.loads(attributes["settings"]) == {
        "bank_format": 1,
        "magnifications": [5.0, 10.0],
        "patch_size": 64,
        "min_tissue": [0.0, 0.7],
        "read_level": "nearest",
        "overlap": 0.0,
        "grid_origin": "slide",
        "tissue": {},
        "backbone": "tiny",
        "weights_sha256": "0" * 64,
        "mean": [128.0] * 3,
        "std": [64.0] * 3,
        "input_px": None,
        "resize": None,
        "pooling": None,
        "amp": False,
        "runtime": "torch",
        "precision": "amp",
        "feature_dtype": "float32",
        "slide_fingerprint": slide_fingerprint(slide),
        "mask_fingerprint": None,
        "mpp_given": None,
        "ink": "left out",
    }
    assert attributes["slide"] == "s.tif"
    assert attributes["reader"] == "cucim"
    assert attributes["mpp"] == pytest.approx(0.5)
    assert attributes["mpp_source"].startswith("file: ")
    assert attributes["size_level0"].tolist() == [1024, 512]
    assert attributes["orphans"] == 0
    told = json.loads(attributes["made_by"])
    assert told["bundle"].startswith("pathology-mustmil 0.")
    assert told["versions"]["torch"] == torch.__version__
    assert [name for name in told["versions"] if "slide" in name or "cucim" in name] == ["cucim-cu13"]
    assert told["machine"] == {"encode_batch": 5, "num_workers": 0, "threads": torch.get_num_threads()}


def test_a_bank_tells_what_else_made_it_and_is_reused_whatever_that_was(tmp_path, bag, slide):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        made_by = {"seed": seed, "datalist_sha256": "ab"}
        write_bank(tmp_path / f"{name}.h5", bag, tiny_encoder(), settings_of(slide), made_by=made_by)
    one, again, other = (dict(h5py.File(tmp_path / f"{name}.h5").attrs) for name in ("one", "again", "other"))
    assert json.loads(one["made_by"])["seed"] == 0
    assert json.loads(one["made_by"])["datalist_sha256"] == "ab"
    assert one.keys() == again.keys()
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert [key for key in one if not np.array_equal(one[key], other[key])] == ["made_by"]
    assert is_banked(tmp_path / "other.h5", settings_of(slide))


def test_a_bank_that_does_not_tell_what_made_it_is_used_all_the_same(bank, slide):
    with h5py.File(bank, "r+") as file:
        del file.attrs["made_by"]
    assert is_banked(bank, settings_of(slide))
    assert len(read_bank(bank, (5.0, 10.0)).rows) == 20


def test_what_is_written_is_read_back(bank, bag):
    banked = read_bank(bank, (5.0, 10.0))
    with h5py.File(bank) as file:
        for s, name in enumerate(["5x", "10x"]):
            assert np.array_equal(banked.features[s], file[name]["features"][:])
            assert np.array_equal(banked.coords[s], bag.grid.coords[s])
        assert np.array_equal(banked.rows, bag.grid.rows)
        assert banked.patch_level0 == tuple(scale.patch_level0 for scale in bag.grid.scales)
        assert banked.base_mpp == bag.slide.base_mpp
    assert np.array_equal(banked.row_features(), tiny_encoder().encode_rows(bag))
    assert np.array_equal(banked.log_weight(), bag.grid.log_weight())


def test_a_bank_in_float16_takes_half_the_room_and_is_read_in_float32(bank, bag, slide, tmp_path):
    encoder = Encoder(tiny_backbone(), feature_dtype="float16")
    settings = bank_settings({"image": str(slide)}, builder(), encoder)
    write_bank(tmp_path / "half.h5", bag, encoder, settings)
    with h5py.File(tmp_path / "half.h5") as half, h5py.File(bank) as full:
        assert half["10x/features"].nbytes * 2 == full["10x/features"].nbytes
    read, whole = (read_bank(path, (5.0, 10.0)) for path in (tmp_path / "half.h5", bank))
    assert all(f.dtype == np.float32 for f in read.features)
    assert all(
        np.array_equal(f, w.astype(np.float16).astype(np.float32))
        for f, w in zip(read.features, whole.features, strict=True)
    )
    assert np.array_equal(read.row_features(), encoder.encode_rows(bag))
    assert is_banked(tmp_path / "half.h5", settings)
    with pytest.raises(SettingsError, match="feature_dtype 'float16', now 'float32'"):
        is_banked(tmp_path / "half.h5", settings_of(slide))


def test_rows_of_features_and_their_weights_by_hand():
    low, high = np.array([[1.0], [2.0]], np.float32), np.array([[10.0], [20.0], [30.0], [40.0]], np.float32)
    rows = np.array([[0, 0], [1, 1], [0, 2], [0, 3]])
    coords = np.array([[0.0, 0.0], [8.0, 0.0]]), np.array([[0.0, 4.0], [8.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    bag = BankedBag((low, high), coords, (8.0, 4.0), rows, 0.5)
    assert bag.row_features()[..., 0].tolist() == [[1, 10], [2, 20], [1, 30], [1, 40]]
    assert bag.row_corners().tolist() == [[[0, 0], [0, 4]], [[8, 0], [8, 0]], [[0, 0], [4, 0]], [[0, 0], [4, 4]]]
    third = -math.log(3)
    assert bag.log_weight().tolist() == pytest.approx(np.array([[third, 0], [0, 0], [third, 0], [third, 0]]))


def test_progress_is_told_batch_by_batch(tmp_path, bag, slide):
    batches = []
    write_bank(tmp_path / "s.h5", bag, tiny_encoder(batch_size=5), settings_of(slide), on_batch=batches.append)
    assert batches == [5, 1, 4, 5, 5, 5, 1]  # 6 patches of 5x, then 20 of 10x, in batches of 5


def test_an_extraction_that_breaks_off_leaves_no_file(tmp_path, bag, slide):
    encoder = tiny_encoder(batch_size=5)
    encode = encoder.encode

    def breaks(bag, transforms):
        batches = encode(bag, transforms)
        yield next(batches)
        raise RuntimeError("out of memory")

    encoder.encode = breaks
    with pytest.raises(RuntimeError, match="out of memory"):
        write_bank(tmp_path / "s.h5", bag, encoder, settings_of(slide))
    assert os.listdir(tmp_path) == []


def test_a_bank_for_other_magnifications_is_not_read(bank):
    with pytest.raises(
        SettingsError,
        match=r"s\.h5: was made for magnifications \[5\.0, 10\.0\], asked for are \[10\.0\]\. Set `magnifications`",
    ):
        read_bank(bank, (10.0,))


def test_a_bank_that_is_missing_or_none_is_named(tmp_path, slide):
    """Whoever reads it does not know whether it was extracted or imported."""
    told = r"x\.h5: there is no feature bank of this slide\. Run `extracting` .* or `importing`"
    with pytest.raises(SettingsError, match=told):
        read_bank(tmp_path / "x.h5", (5.0, 10.0))
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    remedy = "Delete it, and run `extracting` again, or `importing`"
    for name in ("text", "foreign"):
        for use in (lambda p: read_bank(p, (5.0, 10.0)), lambda p: is_banked(p, settings_of(slide))):
            with pytest.raises(SettingsError, match=rf"{name}\.h5: is not a feature bank \(.+\)\. {remedy}"):
                use(tmp_path / f"{name}.h5")


@pytest.mark.parametrize(("scale", "patch"), [(0, -1), (0, 6), (1, 20)])
def test_rows_through_patches_that_are_not_there_are_named(bank, scale, patch):
    with h5py.File(bank, "a") as file:
        file["rows"][3, scale] = patch  # there are 6 patches of 5x, 20 of 10x
    with pytest.raises(SettingsError, match=r"s\.h5: is not a feature bank \(its rows go through patches that it does"):
        read_bank(bank, (5.0, 10.0))


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("rows", lambda rows: rows[:, :1], r"its rows are int64 \[20, 1\]"),
        ("rows", lambda rows: rows.astype(np.float64), r"its rows are float64 \[20, 2\]"),
        ("5x/features", lambda features: features[:, :3], "its features are"),
        ("5x/features", lambda features: features.astype(np.float64), "its features are"),
        ("10x/coords", lambda coords: coords[:-1], "the numbers of its patches and their positions differ"),
    ],
)
def test_a_bank_whose_parts_do_not_fit_is_named(tmp_path, bank, name, change, cause):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        changed = change(file[name][:])
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = changed
        file[name].attrs.update(attributes)
    with pytest.raises(SettingsError, match=rf"copied\.h5: is not a feature bank \({cause}"):
        read_bank(path, (5.0, 10.0))


@pytest.mark.parametrize("name", ["rows", "5x/coords", "5x/features", "10x/coords", "10x/features"])
def test_a_bank_in_which_a_byte_has_changed_is_named(tmp_path, bank, name):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r") as file:
        place = file[name].id.get_offset() + (0 if name == "rows" else file[name].id.get_storage_size() - 3)
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SettingsError, match=rf"copied\.h5: is not a feature bank \(its {name} are not those that were"):
        read_bank(path, (5.0, 10.0))


def same(found, expected):
    arrays = ([bank.rows, *bank.features, *bank.coords] for bank in (found, expected))
    return all(np.array_equal(one, other) for one, other in zip(*arrays, strict=True))


def test_a_bank_is_opened_with_hdf5_once_and_compared_with_its_checksums_each_time(tmp_path, bank, monkeypatch):
    path, opened = Path(shutil.copy(bank, tmp_path / "copied.h5")), []
    opening = h5py.File.__init__

    def counted(file, name, *args, **settings):
        opened.append(name)
        opening(file, name, *args, **settings)

    monkeypatch.setattr(h5py.File, "__init__", counted)
    reader, expected = BankReader((5.0, 10.0)), read_bank(bank, (5.0, 10.0))
    assert all(same(reader.read(path), expected) for _ in range(3))
    assert opened.count(path) == 1
    status = os.stat(path)
    with h5py.File(bank, "r") as file:
        place = file["10x/features"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\0\1")
    # As where a disk gives back something else: the file has the time and the size that it had.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        SettingsError, match=r"copied\.h5: is not a feature bank \(its 10x/features are not those that were"
    ):
        reader.read(path)


@pytest.mark.parametrize("renamed", [True, False], ids=["replaced", "written over"])
def test_a_bank_that_is_made_again_while_it_is_used_is_read_as_it_is_now(tmp_path, bank, bag, slide, renamed):
    path, new = Path(shutil.copy(bank, tmp_path / "copied.h5")), tmp_path / "new.h5"
    reader = BankReader((5.0, 10.0))
    before = reader.read(path)
    write_bank(new, bag, Encoder(tiny_backbone(), feature_dtype="float16"), settings_of(slide))
    expected = read_bank(new, (5.0, 10.0))
    os.replace(new, path) if renamed else path.write_bytes(new.read_bytes())
    assert same(reader.read(path), expected)
    assert not same(before, expected)


def test_a_bank_that_ends_early_is_named(tmp_path, bank):
    path, reader = Path(shutil.copy(bank, tmp_path / "copied.h5")), BankReader((5.0, 10.0))
    reader.read(path)
    os.truncate(path, os.path.getsize(path) // 2)
    for read in (reader.read, BankReader((5.0, 10.0)).read):
        with pytest.raises(SettingsError, match=r"copied\.h5: is not a feature bank \(.*truncated file"):
            read(path)


def test_a_bank_that_is_cut_while_it_is_read_is_named(tmp_path, bank, monkeypatch):
    path, reader = Path(shutil.copy(bank, tmp_path / "copied.h5")), BankReader((5.0, 10.0))
    monkeypatch.setattr(scripts.features.bank, "_stamp", lambda file: ())  # looked at before it was cut
    reader.read(path)
    with h5py.File(path, "r") as file:
        place = file["10x/features"].id.get_offset()
    os.truncate(path, place + 1)
    with pytest.raises(SettingsError, match=r"copied\.h5: is not a feature bank \(it ends before its 10x/features do"):
        reader.read(path)


def test_a_bank_whose_arrays_another_tool_has_cut_into_chunks_is_read_all_the_same(tmp_path, bank):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        for name in ("rows", "5x/features"):
            array, attributes = file[name][:], dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=array, chunks=(2, 2)).attrs.update(attributes)
    assert same(read_bank(path, (5.0, 10.0)), read_bank(bank, (5.0, 10.0)))


@pytest.mark.parametrize(("name", "attribute"), [("/", "mpp"), ("5x/coords", "patch_level0")])
def test_a_bank_whose_geometry_has_changed_is_named(tmp_path, bank, name, attribute):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        file[name].attrs[attribute] *= 2
    cause = "its resolution or the size of its patches is not what was written"
    with pytest.raises(SettingsError, match=rf"copied\.h5: is not a feature bank \({cause}"):
        read_bank(path, (5.0, 10.0))


def test_a_bank_that_claims_more_than_there_is_room_for_is_named(tmp_path, bank):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        del file["5x/features"]
        file["5x"].create_dataset("features", (10**12, 12), dtype=np.float32)
    with pytest.raises(SettingsError, match=r"is not a feature bank \(it claims to contain more than it does"):
        read_bank(path, (5.0, 10.0))


def without_checksums(bank, path):
    shutil.copy(bank, path)
    with h5py.File(path, "r+") as file:
        for name in ("/", "rows", "5x/coords", "5x/features", "10x/coords", "10x/features"):
            del file[name].attrs["crc32"]
    return path


def test_of_a_bank_without_checksums_the_numbers_have_to_be_numbers(tmp_path, bank):
    path = without_checksums(bank, tmp_path / "copied.h5")
    with h5py.File(path, "r+") as file:
        file["10x/features"][3, 2] = np.nan
    with pytest.raises(SettingsError, match="its 10x/features are not all finite numbers"):
        read_bank(path, (5.0, 10.0))


def test_a_bank_without_checksums_is_read_as_it_is(tmp_path, bank):
    path = without_checksums(bank, tmp_path / "copied.h5")
    found, expected = (read_bank(file, (5.0, 10.0)) for file in (path, bank))
    assert all(np.array_equal(a, b) for a, b in zip(found.features, expected.features, strict=True))


@pytest.mark.parametrize("settings", ["[1]", "null", "3", "{", '{"magnifications": null}', 5, np.zeros(3)])
def test_a_bank_whose_settings_are_none_is_named(tmp_path, bank, slide, settings):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["settings"] = settings
    for use in (lambda: read_bank(path, (5.0, 10.0)), lambda: is_banked(path, settings_of(slide))):
        with pytest.raises(SettingsError, match=r"copied\.h5: (is not a feature bank|was made otherwise)"):
            use()


@pytest.mark.parametrize("name", ["rows", "5x", "10x/features", "5x/coords"])
def test_a_bank_with_something_else_in_the_place_of_a_part_is_named(tmp_path, bank, name):
    path = Path(shutil.copy(bank, tmp_path / "copied.h5"))
    with h5py.File(path, "r+") as file:
        del file[name]
        if name == "5x":
            file[name] = np.zeros(3)
        else:
            file.create_group(name)
    with pytest.raises(SettingsError, match=r"copied\.h5: is not a feature bank"):
        read_bank(path, (5.0, 10.0))


def test_the_bank_has_the_name_of_the_datalist_not_of_the_file():
    assert bank_path("/features", "patient 7 block A.2").as_posix() == "/features/patient 7 block A.2.h5"
    assert bank_path("/features", "patient 7 block A.2", 0) == bank_path("/features", "patient 7 block A.2")


def test_views_lie_apart_from_the_plain_banks():
    assert bank_path("/features", "a b.2", 7).as_posix() == "/features/views/a b.2/007.h5"
    paths = {bank_path("/features", slide, view) for slide in ("s", "views", "s.1") for view in (0, 1, 10, 999, 1000)}
    assert len(paths) == 15


def test_the_bank_of_a_view_holds_the_features_of_its_patches(tmp_path, bag, slide):
    def upside_down(patches):
        return np.ascontiguousarray(patches[:, :, ::-1])

    path = bank_path(tmp_path, "s", 2)
    write_banks([NewView(path, {**settings_of(slide), "view": 2}, upside_down)], bag, tiny_encoder())
    banked = read_bank(path, (5.0, 10.0))
    for s in range(2):
        expected = tiny_backbone()(torch.from_numpy(upside_down(bag.read_all()[s]))).numpy()
        assert np.allclose(banked.features[s], expected, atol=1e-6)
        assert np.array_equal(banked.coords[s], bag.grid.coords[s])
    assert np.array_equal(banked.rows, bag.grid.rows)
    assert is_banked(path, {**settings_of(slide), "view": 2})
    with pytest.raises(SettingsError, match=r"002\.h5: was made otherwise \(view 2, now 3\)"):
        is_banked(path, {**settings_of(slide), "view": 3})


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda path: path.write_bytes(b"half of a slide")])
def test_a_slide_that_changed_since_it_was_opened_gets_no_bank(tmp_path, change):
    slide = draw_slide(tmp_path / "s.tif")
    bag, settings = builder()({"image": slide}), settings_of(slide)
    changes = iter([change])
    with pytest.raises(
        SlideError, match=r"s\.tif: was changed while it was read( \(No such.*\))?\. Run again once it is complete\."
    ):
        write_bank(
            tmp_path / "banks/s.h5", bag, tiny_encoder(), settings, lambda _: next(changes, lambda path: None)(slide)
        )
    assert list((tmp_path / "banks").iterdir()) == []


class Shuffled:
    """An encoder that gives the features of patches a few at a time, in no order but within each batch."""

    num_features, feature_dtype = 3, np.dtype(np.float32)

    def __init__(self, batch_size):
        self.batch_size, self.given = batch_size, {}

    def prepare(self, patch_px):
        pass

    def made_with(self):
        return {"encode_batch": self.batch_size}

    def encode(self, bag, transforms):
        rng = np.random.default_rng(0)
        for s, coords in enumerate(bag.grid.coords):
            self.given[s] = rng.standard_normal((len(coords), 3)).astype(np.float32)
            order = rng.permutation(len(coords))
            for first in range(0, len(order), self.batch_size):
                patches = np.sort(order[first : first + self.batch_size])
                yield Encoded(0, s, patches, self.given[s][patches])


@pytest.mark.parametrize("collected", [1, 7, 1024])
def test_patches_that_come_in_any_order_are_written_where_they_belong(tmp_path, bag, slide, monkeypatch, collected):
    monkeypatch.setattr("scripts.features.bank_writing.COLLECTED", collected)
    encoder = Shuffled(4)
    write_bank(tmp_path / "s.h5", bag, encoder, settings_of(slide))
    banked = read_bank(tmp_path / "s.h5", (5.0, 10.0))
    for s in (0, 1):
        assert np.array_equal(banked.features[s], encoder.given[s])


def test_neighbours_are_written_by_one_call(tmp_path, bag, slide, monkeypatch):
    calls, write = [], h5py.Dataset.__setitem__
    monkeypatch.setattr(
        h5py.Dataset, "__setitem__", lambda self, where, values: calls.append(where) or write(self, where, values)
    )
    write_bank(tmp_path / "s.h5", bag, Shuffled(4), settings_of(slide))
    assert calls == [slice(0, len(coords)) for coords in bag.grid.coords]
