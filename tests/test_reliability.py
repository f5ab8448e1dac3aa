"""What ``make reliability`` counts with must itself notice what is wrong."""

import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.reliability.counters import BEGIN, END, Counts, write_table
from tests.reliability.jobs import JOBS, broken_files, differing, left_parts

ROOT = Path(__file__).parents[1]
PAGE = f"# Reliability\n\n{BEGIN}\n{END}\n\nThe end.\n"


def test_every_try_is_counted_under_its_fault_and_outcome_and_kept_as_json(tmp_path):
    counts = Counts(tmp_path / "deep" / "kills.json", "Killed runs")
    for outcome in ("equal", "equal", "HALF A FILE"):
        counts.add("`training`: killed | twice", outcome)
        kept = json.loads((tmp_path / "deep" / "kills.json").read_text())
    counts.add("`pack`: killed", "equal")
    assert kept["rows"] == {"`training`: killed | twice": {"equal": 2, "HALF A FILE": 1}}
    assert counts.markdown().splitlines()[2:] == [
        r"| `training`: killed \| twice | 3 | 2 x equal, 1 x HALF A FILE |",
        "| `pack`: killed | 1 | 1 x equal |",
    ]
    assert counts.bad() == ["`training`: killed | twice"]


def test_a_part_that_is_run_alone_replaces_its_own_rows_alone(tmp_path):
    page = tmp_path / "reliability.md"
    page.write_text(PAGE)
    for part, outcome in (("disk", "one line"), ("kills", "equal"), ("disk", "two lines")):
        counts = Counts(about=f"Part {part}")
        counts.add(f"fault of {part}", outcome)
        write_table(page, part, counts, ("kills", "disk"))
    text = page.read_text()
    assert text.startswith(f"# Reliability\n\n{BEGIN}\n<!-- part: kills -->\nPart kills: ")
    assert text.endswith(f"| fault of disk | 1 | 1 x two lines |\n\n{END}\n\nThe end.\n")
    assert text.count("| fault of kills | 1 | 1 x equal |") == 1
    assert "one line" not in text


def test_a_command_that_is_tried_alone_stands_below_its_part_and_replaces_itself_alone(tmp_path):
    page = tmp_path / "reliability.md"
    page.write_text(PAGE)
    tried = (("Kills", "equal"), ("Kills of a", "one"), ("Kills of b", "two"), ("Kills of a", "six"))
    for about, outcome in tried:
        counts = Counts(about=about)
        counts.add(f"fault of {about}", outcome)
        write_table(page, "kills", counts, ("kills",), beside=about != "Kills")
    rows = [line for line in page.read_text().splitlines() if line.startswith("| fault of")]
    told = [("Kills", "equal"), ("Kills of b", "two"), ("Kills of a", "six")]
    assert rows == [f"| fault of {about} | 1 | 1 x {outcome} |" for about, outcome in told]
    write_table(page, "kills", Counts(about="Kills"), ("kills",))
    assert "fault of" not in page.read_text()


def test_a_page_without_the_markers_is_left_as_it_is(tmp_path):
    page = tmp_path / "reliability.md"
    for text in ("# Reliability\n", f"{END}\n{BEGIN}\n", PAGE + PAGE):
        page.write_text(text)
        with pytest.raises(ValueError, match="once each, in this order"):
            write_table(page, "kills", Counts(), ("kills",))
        assert page.read_text() == text


def whole_files(folder):
    """A file of each kind, none of which is broken."""
    folder.mkdir()
    with h5py.File(folder / "s1.h5", "w") as bank:
        bank.attrs["made_by"] = "{}"
        for scale in ("5x", "10x"):
            bank[f"{scale}/features"] = np.ones((40, 30), dtype=np.float32)
    torch.save({"weight": torch.arange(9.0)}, folder / "model.pt")
    (folder / "training.json").write_text('{"seconds": 1, "loss": 0.5}\n')
    (folder / "runs.csv").write_text("a,b\n10,20\n")
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        archive.writestr("configs/train.json", bytes(range(256)) * 20)
    return folder


@pytest.mark.parametrize("name", ["s1.h5", "model.pt", "training.json", "runs.csv", "bundle.zip"])
def test_half_a_file_under_its_final_name_is_noticed(name, tmp_path):
    folder = whole_files(tmp_path / "output")
    assert broken_files(folder) == []
    (folder / name).write_bytes((folder / name).read_bytes()[: -(folder / name).stat().st_size // 2])
    assert [told.split(":")[0] for told in broken_files(folder)] == [name]
    (folder / name).rename(folder / f".{name}")  # what is hidden is nobody's result
    assert broken_files(folder) == []


def test_a_bank_of_which_one_patch_was_never_written_is_noticed(tmp_path):
    folder = whole_files(tmp_path / "output")
    with h5py.File(folder / "s1.h5", "a") as bank:
        bank["10x/features"][7] = 0
    assert broken_files(folder) == ["s1.h5: not all of it is there"]


def test_what_differs_is_noticed_to_the_last_digit_and_what_is_the_runs_own_is_not(tmp_path):
    one, other = whole_files(tmp_path / "one"), whole_files(tmp_path / "other")
    training, extracting = JOBS["training"].content, JOBS["extracting"].content
    (other / "training.json").write_text('{"seconds": 2, "loss": 0.5}\n')
    assert differing(training(one), training(other)) == {}
    torch.save({"weight": torch.arange(9.0).nextafter(torch.tensor(99.0))}, other / "model.pt")
    (other / "training.json").write_text('{"seconds": 1, "loss": 0.5000001}\n')
    (one / "model_5x.pt").write_bytes((one / "model.pt").read_bytes())
    assert differing(training(one), training(other)) == {
        "model.pt": "/model.pt/weight: by 9.54e-07 of 8",
        "model_5x.pt": "/model_5x.pt: in one of them only",
        "training.json": "/training.json/loss: 0.5, 0.5000001",
    }
    with h5py.File(other / "s1.h5", "a") as bank:
        bank["5x/features"].attrs["frame"] = "level-0 pixels"
    assert differing(extracting(one), extracting(other)).keys() == {"s1.h5"}


def test_temporary_files_that_stay_are_noticed(tmp_path):
    folder = whole_files(tmp_path / "output")
    assert left_parts(folder) == []
    (folder / ".model.0a0b0c0d-77.part.pt").touch()
    assert left_parts(folder) == [".model.0a0b0c0d-77.part.pt"]


def test_the_tests_that_the_table_of_silent_faults_names_are_there():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs/reliability.md").read_text(encoding="utf-8"))
    gone = [pair for pair in named if f"def {pair[1]}(" not in (ROOT / "tests" / pair[0]).read_text(encoding="utf-8")]
    assert named
    assert not gone
