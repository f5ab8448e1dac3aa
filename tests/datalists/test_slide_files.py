"""Finding slides, and names that no output can escape by."""

from __future__ import annotations

import itertools
import os
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from scripts.checking.cohort import choose_source
from scripts.core.errors import DatalistError
from scripts.datalists.cohort import choose_slides
from scripts.datalists.datalist import list_slides
from scripts.datalists.formats import read_rows
from scripts.datalists.slide_files import LONGEST_NAME_BYTES, SLIDE_SUFFIXES, SlideFolder, slide_names, without_suffix


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", ["$1+1", "@one", "%one", "$@one", "=$1+1", "..$1+1", "  $1+1"])
def test_a_name_in_a_config_is_a_name(name: str) -> None:
    for names in (slide_names([f"/d/{name}.svs"], "/d"), slide_names(["/d/a.svs"], "/d", [name])):
        parser = ConfigParser({"leave_out": names, "one": 1})
        assert parser.get_parsed_content("leave_out") == names
        assert names[0].startswith("_")


def test_slides(tmp_path: Path) -> None:
    touch(tmp_path, "b.SVS", "a.tiff", "deep/er/c.mrxs", "._a.svs", ".hidden/d.svs", "notes.txt", "svs")
    touch(tmp_path, *(f"all/x{suffix}" for suffix in SLIDE_SUFFIXES))
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    found = [os.path.relpath(path, tmp_path) for path in SlideFolder(tmp_path).slides]
    assert found == sorted(["a.tiff", "b.SVS", "deep/er/c.mrxs", *(f"all/x{s}" for s in SLIDE_SUFFIXES)])


def test_what_is_no_slide_by_its_name_is_named_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.dat", "c.qptiff", "x/d.png", ".hidden", "._a.svs", "m.mrxs", "m/Slidedat.ini")
    folder = SlideFolder(tmp_path)
    assert [os.path.basename(path) for path in folder.slides] == ["a.svs", "m.mrxs"]
    said = folder.not_looked_at()
    assert said is not None
    assert said.startswith("3 files do not end in .svs, .ome.tif, .ome.tiff")
    assert said.endswith(" (b.dat, c.qptiff, x/d.png)")


def test_slides_in_a_folder_that_is_called_as_a_mirax_file_beside_it_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/x.svs", "b.mrxs", "b/y.svs")
    found = [os.path.relpath(path, tmp_path) for path in SlideFolder(tmp_path).slides]
    assert found == ["a.mrxs", "b.mrxs", "b/y.svs"]


def test_a_link_to_nothing_is_named_and_the_other_slides_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "b.svs").symlink_to("/no/such/c.svs")
    assert [entry["slide"] for entry in list_slides(tmp_path)] == ["a"]
    said = f"{tmp_path}/b.svs cannot be read (it links to /no/such/c.svs, which is not there)"
    assert SlideFolder(tmp_path).not_looked_at() == said
    with pytest.raises(DatalistError, match=f"no file /no/such/c.svs, which {tmp_path}/b.svs links to"):
        list_slides([tmp_path / "b.svs"])
    with pytest.raises(DatalistError, match=f"no file /no/such/c.svs, which {tmp_path}/b.svs links to"):
        list_slides(["b"], tmp_path)
    touch(tmp_path, "x/b.svs")
    assert [entry["image"] for entry in list_slides(["b"], tmp_path)] == [f"{tmp_path}/x/b.svs"]


def test_of_many_links_to_nothing_the_first_are_named_and_the_rest_are_counted(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"b{i}.svs").symlink_to(f"/no/such/{i}.svs")
    first = [f"{tmp_path}/b{i}.svs cannot be read (it links to /no/such/{i}.svs, which is not there)" for i in range(3)]
    assert SlideFolder(tmp_path).not_looked_at() == "; ".join([*first, "6 more cannot be read"])


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["é", "é/Größe.svs"])
def test_a_folder_or_slide_is_found_however_its_own_name_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, on_disk: Literal["NFC", "NFD"]
) -> None:
    touch(tmp_path, unicodedata.normalize(on_disk, "é/Größe.svs"))
    monkeypatch.chdir(tmp_path)
    for form, start in itertools.product(("NFC", "NFD"), (str(tmp_path), "")):
        given_name = os.path.join(start, unicodedata.normalize(form, name))  # type: ignore[arg-type]
        source, folder = choose_slides(given_name, None, tmp_path)
        assert [unicodedata.normalize("NFC", e["slide"]) for e in list_slides(source, folder)] == ["Größe"]
        checked, datalist = choose_source(given_name, None, tmp_path)
        assert checked.exists()
        assert datalist is None


def test_a_name_that_no_disk_can_have_is_a_slide_that_is_not_there() -> None:
    with pytest.raises(DatalistError, match="no file"):
        list_slides(["a\0/é.svs"])


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_a_datalist_is_found_however_its_name_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: Literal["NFC", "NFD"]
) -> None:
    (tmp_path / unicodedata.normalize(on_disk, "Größe.csv")).write_text("image,label\na.svs,a\n")
    monkeypatch.chdir(tmp_path)
    for form, start in itertools.product(("NFC", "NFD"), (tmp_path, Path())):
        name = unicodedata.normalize(form, "Größe.csv")  # type: ignore[arg-type]
        assert [row.image for row in read_rows(start / name, ("a", "b"), [])] == ["a.svs"]


def test_one_file_and_many_files_that_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    assert SlideFolder(tmp_path).not_looked_at() is None
    touch(tmp_path, "0.png")
    assert str(SlideFolder(tmp_path).not_looked_at()).startswith("1 file does not end in")
    touch(tmp_path, *(f"{i:03}.png" for i in range(165)))
    said = str(SlideFolder(tmp_path).not_looked_at())
    assert said.startswith("166 files do not end in")
    assert said.endswith("(0.png, 000.png, 001.png, ...)")


def test_a_folder_without_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folder = SlideFolder(tmp_path)
    assert len(folder.slides) == 1
    assert folder.not_looked_at() == f"{tmp_path}/closed cannot be read (Permission denied)"


def test_linked_folders_are_searched(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.svs", "data/b.svs")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert [os.path.basename(path) for path in SlideFolder(tmp_path / "data").slides] == ["b.svs", "a.svs"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.svs", "a.svs"),
        ("./x/../a.svs", "a.svs"),
        ("a", "a.svs"),
        ("TCGA-1.8F2B", "sub/TCGA-1.8F2B.svs"),
        ("one/s", "one/s.tif"),
        ("deep/two/s", "deep/two/s.tif"),
        ("two/s", "deep/two/s.tif"),
        ("gone", "gone"),
        ("gone.svs", "gone.svs"),
        ("o/s", "o/s"),
        ("notes", "notes"),
        ("o", "sub/o.ome.tiff"),
        ("o.ome", "sub/o.ome.tiff"),
        ("sub/o", "sub/o.ome.tiff"),
        ("q.qptiff", "q.qptiff"),
    ],
)
def test_find(tmp_path: Path, name: str, expected: str) -> None:
    touch(
        tmp_path, "a.svs", "sub/TCGA-1.8F2B.svs", "one/s.tif", "deep/two/s.tif", "notes", "sub/o.ome.tiff", "q.qptiff"
    )
    assert SlideFolder(tmp_path).find(name) == str(tmp_path / expected)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Größe/é.svs", "Größe/é", "é", "/Größe/é.svs", "/Größe/é"])
def test_an_accent_is_found_however_disk_and_list_encode_it(
    tmp_path: Path, name: str, listed: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"]
) -> None:
    file = unicodedata.normalize(on_disk, "Größe/é.svs")
    touch(tmp_path, file)
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    assert SlideFolder(tmp_path).find(unicodedata.normalize(listed, name)) == f"{tmp_path}/{file}"


def test_a_file_whose_name_is_encoded_as_asked_comes_before_one_that_looks_alike(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "é.svs") for form in ("NFC", "NFD")]  # type: ignore[arg-type]
    touch(tmp_path, *both)
    assert [SlideFolder(tmp_path).find(name) for name in both] == [f"{tmp_path}/{name}" for name in both]
    assert SlideFolder(tmp_path).path("Größe/m.png") == f"{tmp_path}/Größe/m.png"


def test_find_an_absolute_path(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.svs", "other/b.svs")
    assert SlideFolder(tmp_path / "data").find(tmp_path / "other" / "b.svs") == str(tmp_path / "other/b.svs")
    assert SlideFolder(tmp_path / "data").find(tmp_path / "data" / "a") == str(tmp_path / "data/a.svs")


def test_find_what_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "one/s.tif", "two/s.svs")
    with pytest.raises(DatalistError, match=r"slide s: could be .*one/s\.tif or .*two/s\.svs\. Write its path"):
        SlideFolder(tmp_path).find("s")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatalistError, match=r"dataset_dir .*gone: no such folder\. Give"):
        SlideFolder(tmp_path / "gone")


def test_without_suffix() -> None:
    assert without_suffix("/a.b/c.d.SVS") == "/a.b/c.d"
    assert without_suffix("/a.svs/c.png") == "/a.svs/c.png"
    assert without_suffix("/d/c.d.OME.tif") == "/d/c.d"
    assert without_suffix("/d/.svs") == "/d/.svs"
    assert without_suffix("/d/.ome.tiff") == "/d/.ome"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.svs", "b.svs"], ["a", "b"]),
        (["x/a.svs", "y/a.svs", "b.svs"], ["x__a", "y__a", "b"]),
        (["a.svs", "a.tif"], ["a.svs", "a.tif"]),
        (["a.ome.tiff", "b.tif"], ["a", "b"]),
        (["a.ome.tiff", "a.tif"], ["a.ome.tiff", "a.tif"]),
        (["a.svs", "x/A.svs"], ["a", "x__A"]),
        (["x/a.svs", "x/a.tif", "a.svs"], ["x__a.svs", "x__a.tif", "a"]),
        (["../out/a.svs", "a.svs"], ["out__a", "a"]),
        (["Probe 7 (größer), ü.svs"], ["Probe 7 (größer), ü"]),
        (["a:b?.svs", "tab\there.svs", " .svs"], ["a_b_", "tab_here", "slide"]),
    ],
)
def test_names(files: list[str], expected: list[str]) -> None:
    names = slide_names([os.path.abspath(f"/data/{file}") for file in files], "/data")
    assert names == expected


def test_a_path_as_name_gives_way_to_a_file_of_that_name() -> None:
    assert slide_names(["/d/x/a.svs", "/d/y/a.svs", "/d/x__a.svs"], "/d") == ["x__a.svs", "y__a", "x__a"]


def test_names_that_only_a_hash_tells_apart() -> None:
    names = slide_names(["/d/a:b.svs", "/d/a?b.svs"], "/d")
    assert [name.rpartition("-")[0] for name in names] == ["a_b.svs", "a_b.svs"]
    assert names == slide_names(["/d/a?b.svs", "/d/a:b.svs"], "/d")[::-1]


def test_names_that_are_wanted() -> None:
    assert slide_names(["/d/a.svs", "/d/b.svs"], "/d", ["first", None]) == ["first", "b"]
    assert slide_names(["/d/a.svs", "/d/b.svs"], "/d", ["same", "same"]) == ["a", "b"]
    assert slide_names(["/d/a.svs"], "/d", ["../../etc/passwd"]) == ["etc__passwd"]


@pytest.mark.parametrize("sign", "=+-@")
def test_no_name_is_a_formula_to_a_spreadsheet(sign: str) -> None:
    assert slide_names(["/d/a.svs", "/d/b.svs"], "/d", [f" .{sign}1", None]) == ["_1", "b"]
    assert slide_names([f"/d/{sign}.svs", f"/d/1{sign}1.svs"], "/d") == ["_", f"1{sign}1"]


def test_files_that_no_name_can_tell_apart_are_refused_instead_of_written_over_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two paths with the same eight digits can be found in a minute.
    monkeypatch.setattr("scripts.datalists.slide_files._short_hash", lambda text: "0" * 8)
    with pytest.raises(
        DatalistError, match=r"/d/a:b\.svs: would be called a_b\.svs-00000000, as another slide is\. Rename its file"
    ):
        slide_names(["/d/a:b.svs", "/d/a?b.svs"], "/d")


def test_a_name_that_is_asked_for_cannot_take_the_place_of_another_slides_hashed_one() -> None:
    paths = ["/d/a:b.svs", "/d/a?b.svs", "/d/evil.svs"]
    hashed = slide_names(paths, "/d")[0]
    names = slide_names(paths, "/d", [None, None, hashed])
    assert names[0] == hashed
    assert names[2] == "evil"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=5, unique=True))
def test_names_are_safe(texts: list[str]) -> None:
    paths = sorted({os.path.abspath(f"/data/{text}.svs") for text in texts})
    for wanted in (None, [path.removeprefix("/data/") for path in paths]):
        names = slide_names(paths, "/data", wanted)
        assert len({name.casefold() for name in names}) == len(paths)
        for name in names:
            assert os.path.dirname(os.path.abspath(os.path.join("/out", name + ".csv"))) == "/out"
            assert name.encode().decode().isprintable()
            assert not name.startswith((".", "=", "+", "-", "@"))
            assert len(name.encode()) <= LONGEST_NAME_BYTES + 9
        # Nothing that MONAI runs or looks up.
        assert ConfigParser({"leave_out": names, "one": 1}).get_parsed_content("leave_out") == names
