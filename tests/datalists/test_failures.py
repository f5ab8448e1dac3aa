import csv
import errno
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader
from monai.transforms import Compose

from scripts.core.errors import DatalistError, SettingsError, SlideError
from scripts.datalists.failures import FailedSlides, FailedSlidesError, PassingSlides, without
from tests.torchruns import torchrun

REASON = "/slides/a.svs: cannot be read. Copy it again."


def entry(slide):
    return {"slide": slide, "image": f"/slides/{slide}.svs"}


def unreadable(slide="a"):
    return SlideError(f"/slides/{slide}.svs", "cannot be read", "Copy it again.")


def started(folder, step="extracting", strict=False):
    failures = FailedSlides(folder, step, strict)
    failures.start()
    return failures


def rows(folder):
    with open(folder / "failed.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_slide_that_fails_is_in_the_file_at_once_and_warned_of(tmp_path, capsys):
    failures = started(tmp_path / "out")
    failures.record(entry("a"), unreadable())
    told = {"slide": "a", "image": "/slides/a.svs", "step": "extracting", "reason": REASON}
    assert rows(tmp_path / "out") == [told]
    assert capsys.readouterr().err.strip() == f"warning: extracting: slide a failed: {REASON}"
    failures.record(entry("b"), unreadable("b"))
    assert [row["slide"] for row in rows(tmp_path / "out")] == ["a", "b"]


def test_a_slide_that_fails_in_two_handlers_counts_once(tmp_path, capsys):
    failures = started(tmp_path)
    for _ in range(2):
        failures.record(entry("a"), unreadable())
    assert len(rows(tmp_path)) == len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(FailedSlidesError, match=r"1 of 3 slides failed \(a\): see"):
        failures.end(3)


def test_a_file_of_an_earlier_run_is_not_shown_by_a_run_in_which_nothing_was_tried(tmp_path):
    started(tmp_path).record(entry("a"), unreadable())
    later = FailedSlides(tmp_path, "extracting")
    assert later.rows() == []
    later.start()
    assert later.rows() == []


def test_of_many_slides_that_fail_for_one_reason_the_first_few_are_shown_and_all_are_counted(tmp_path, capsys):
    failures = started(tmp_path)
    for i in range(165):
        failures.record(entry(f"s{i}"), unreadable(f"s{i}"))
    failures.record(entry("t"), SlideError("/slides/t.svs", "no tissue was found", "Look at it."))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[2].partition(" failed")[0] for line in lines[:3]] == [
        f" extracting: slide s{i}" for i in range(3)
    ]
    assert lines[3] == f"warning: extracting: more slides fail in this way: see {tmp_path / 'failed.csv'}"
    assert "slide t failed: /slides/t.svs: no tissue was found" in lines[4]
    assert len(lines) == 5
    assert len(rows(tmp_path)) == 166
    with pytest.raises(FailedSlidesError, match=r"166 of 200 slides failed \(s0, s1, s2, s3, s4, \.\.\.\): see"):
        failures.end(200)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4
    )
)
def test_any_name_of_a_file_comes_back_as_it_was(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    failures = started(folder)
    for number, name in enumerate(names):
        failures.record({"slide": f"s{number}", "image": name}, unreadable())
    assert [row["image"] for row in rows(folder)] == names


def test_a_name_that_is_no_utf_8_comes_back_as_it_was(tmp_path):
    name = b"/slides/\xff.svs".decode("utf-8", "surrogateescape")
    started(tmp_path).record({"slide": "s", "image": name}, unreadable())
    assert rows(tmp_path)[0]["image"] == name


def test_the_file_tells_of_the_latest_run(tmp_path):
    started(tmp_path).record(entry("a"), unreadable())
    failures = started(tmp_path)
    assert not (tmp_path / "failed.csv").exists()
    failures.end(3)  # nothing failed: no error
    failures.record(entry("b"), unreadable("b"))
    assert [row["slide"] for row in rows(tmp_path)] == ["b"]
    assert failures.names() == ["b"]


def test_an_old_file_that_cannot_be_removed_is_refused(tmp_path):
    (tmp_path / "failed.csv").mkdir()
    with pytest.raises(
        SettingsError, match=r"failed\.csv: is left from an earlier run and cannot be removed \(.*Choose an"
    ):
        started(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_told_as_what_it_is(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(
        SettingsError, match=r"/out: cannot be made \(File exists\)\. Choose a folder that you may write to"
    ):
        started(tmp_path / "out")


def test_a_folder_that_cannot_be_written_to_is_refused_before_a_slide_is_read(tmp_path, monkeypatch):
    # On a read-only disk removing fails even where there is nothing to remove.
    def unlink(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SettingsError) as refused:
        started(tmp_path)
    assert (
        str(refused.value)
        == f"{tmp_path}: is a folder that you may not write to. Choose a folder that you may write to."
    )


def test_the_last_line_counts_the_slides_and_says_where_to_look(tmp_path):
    failures = started(tmp_path, step="inferring")
    for slide in "ab":
        failures.record(entry(slide), unreadable(slide))
    line = rf"^inferring: 2 of 40 slides failed \(a, b\): see {re.escape(str(tmp_path))}/failed\.csv\. Wait for it\.$"
    with pytest.raises(FailedSlidesError, match=line):
        failures.end(40, "Wait for it.")


@pytest.mark.parametrize(("number", "shown"), [(5, r"\(0, 1, 2, 3, 4\)"), (6, r"\(0, 1, 2, 3, 4, \.\.\.\)")])
def test_the_last_line_names_five_slides_at_most(tmp_path, number, shown):
    failures = started(tmp_path)
    for slide in range(number):
        failures.record(entry(str(slide)), unreadable())
    with pytest.raises(FailedSlidesError, match=shown):
        failures.end(9)


def test_a_strict_run_ends_with_the_first_slide_that_fails(tmp_path):
    failures, error = started(tmp_path, strict=True), unreadable()
    with pytest.raises(SlideError) as raised:
        failures.record(entry("a"), error)
    assert raised.value is error
    assert [row["reason"] for row in rows(tmp_path)] == [REASON]


def test_many_that_write_at_once_leave_whole_lines_under_one_header(tmp_path):
    writers = [started(tmp_path) for _ in range(4)]

    def write(number):
        for slide in range(25):
            writers[number].record(entry(f"{number}-{slide}"), unreadable())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert sorted(row["slide"] for row in rows(tmp_path)) == sorted(f"{n}-{s}" for n in range(4) for s in range(25))
    assert {(row["step"], row["reason"]) for row in rows(tmp_path)} == {("extracting", REASON)}


RANKS = """
import sys
from scripts.core.errors import SlideError, show_one_line
from scripts.datalists.failures import FailedSlides
from scripts.core.ranks import rank, wait_for_ranks

show_one_line()
failures = FailedSlides(sys.argv[1], "extracting")
failures.start()
for slide in ("ab", "c")[rank()]:
    failures.record({"slide": slide, "image": f"/slides/{slide}.svs"}, SlideError(slide, "broken", "Mend it."))
wait_for_ranks()
failures.end(9, "Mend them.")
print("not reached")
"""


def test_ranks_share_the_file_and_the_first_tells_of_all(preloaded, tmp_path):
    (tmp_path / "failed.csv").write_text("slide\nold\n")
    done = torchrun(tmp_path, RANKS, tmp_path, python=preloaded.python)
    assert done.returncode == 1
    assert sorted(row["slide"] for row in rows(tmp_path)) == ["a", "b", "c"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len([line for line in errors if "extracting: 3 of 9 slides failed (" in line]) == 1
    assert [line for line in errors if "slides failed" not in line] == [
        "error: rank 1: stopped, because rank 0 failed. See its message."
    ]
    assert "not reached" not in done.stdout


class Encoded:
    def __init__(self, slide):
        self.slide = slide


def encode(given):
    if given["slide"].startswith("bad"):
        raise unreadable(given["slide"])
    if given["slide"].startswith("full"):
        raise OSError("no space left on device")
    return {"slide": given["slide"], "image": torch.zeros(1)}


# MONAI's Compose wraps what its transforms raise.
@pytest.mark.parametrize("transform", [encode, Compose([encode])])
def test_slides_that_fail_are_passed_over(tmp_path, transform):
    data = [entry(name) for name in ("bad 1", "s1", "bad 2", "bad 3", "s2")]
    slides = PassingSlides(data, transform, started(tmp_path, step="inferring"))
    loader = DataLoader(slides, batch_size=1, num_workers=0)
    assert [batch["slide"] for batch in loader] == [["s1"], ["s2"]]
    assert [row["slide"] for row in rows(tmp_path)] == ["bad 1", "bad 2", "bad 3"]
    assert {row["step"] for row in rows(tmp_path)} == {"inferring"}
    assert rows(tmp_path)[1]["reason"] == "/slides/bad 2.svs: cannot be read. Copy it again."


def test_what_is_no_slides_fault_ends_the_run(tmp_path):
    slides = PassingSlides([entry("s1"), entry("full"), entry("s2")], Compose([encode]), started(tmp_path))
    with pytest.raises(RuntimeError) as raised:
        list(slides)
    assert isinstance(raised.value.__cause__, OSError)
    assert not (tmp_path / "failed.csv").exists()


def test_a_slide_is_not_kept_in_memory_while_the_next_is_encoded(tmp_path):
    alive = []

    def transform(given):
        assert [item() for item in alive] == [None] * len(alive)
        made = Encoded(given["slide"])
        alive.append(weakref.ref(made))
        return made

    for item in PassingSlides([entry(name) for name in "abc"], transform, started(tmp_path)):
        del item
    assert len(alive) == 3


def test_slides_are_left_out_by_name():
    data = [entry(name) for name in "abc"]
    assert without(data, ["b", "of another partition"]) == [entry("a"), entry("c")]
    assert without(data, []) == data
    assert without([], ["a"]) == []


def test_a_partition_is_not_left_empty():
    with pytest.raises(DatalistError, match=r"no slide of a partition is left, of a, b\. Mend or replace"):
        without([entry("a"), entry("b")], ["b", "a"])
