"""``make bench ARGS=peers``: who is measured, in which order, what it took, and the table of it."""

import sys
from pathlib import Path

import pytest

from scripts.bags.bag import BagBuilder
from scripts.synthetic.cohort import make_cohort
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.peers.__main__ import Cohort, present, random_weights, run_in_turn, run_once
from tests.benchmarks.peers.contenders import OTHERS, Other, Ours, Work
from tests.benchmarks.peers.measuring import FailedError, measure
from tests.benchmarks.peers.tables import Run, aim_line, result_table

# Stands for a tool's Python: a shell script that is given the runner's options.
FAKE = """#!/bin/sh
for option; do case $option in --report=*) report=${option#*=} ;; --slides=*) slides=${option#*=} ;; esac; done
"""
ENCODES_40 = """printf '{"patches": 40, "first_batch_at": %s}' $(date +%s.%N) > $report\n"""


def set_up(folder: Path, key: str, script: str = ENCODES_40) -> Other:
    """A tool whose Python runs a shell script."""
    tool = Other(key.upper(), key, folder, has_checkout=False)
    tool.python.parent.mkdir(parents=True)
    tool.python.write_text(FAKE + script)
    tool.python.chmod(0o755)
    return tool


def cells(table: str) -> dict[str, list[str]]:
    """The cells of each line behind the first two, by those."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {" ".join(row[:2]): row[2:] for row in (rows[0], *rows[2:])}


# Who is there


def test_a_tool_that_is_absent_is_named_with_what_is_missing_and_the_others_are_found(tmp_path, capsys):
    assert {key for _, key, _ in OTHERS} == {"trident", "clam", "lazyslide", "hs2p"}
    set_up(tmp_path, "lazyslide")
    set_up(tmp_path, "clam")
    assert [tool.name for tool in present(tmp_path)] == ["LazySlide"]
    told = capsys.readouterr().out
    assert f"TRIDENT is absent: there is no {tmp_path}/trident/env/bin/python; docs/peers.md" in told
    assert f"CLAM is absent: there is no {tmp_path}/clam/checkout; docs/peers.md" in told


@pytest.mark.parametrize("arguments", [["peers"], ["memory", "--peers", "somewhere"], ["--peers", "somewhere"]])
def test_the_part_and_the_folder_of_the_other_tools_go_together(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "make bench ARGS=peers PEERS=FOLDER" in capsys.readouterr().err


def test_without_a_part_each_is_measured_but_that_of_the_other_tools(monkeypatch):
    run = []
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.setattr(benchmarks.subprocess, "run", lambda command, check: run.append(command[2].rpartition(".")[2]))
    benchmarks.main()
    assert run == list(benchmarks.PARTS)
    assert benchmarks.PEERS not in run


# Runs


def test_tools_run_in_turn_on_the_same_slides_and_one_that_fails_is_named_and_left_out(tmp_path, capsys):
    noted = tmp_path / "noted"
    slides = [tmp_path / "a.tiff", tmp_path / "b.tiff"]
    for slide in slides:
        slide.write_bytes(b"")
    note = f"echo $0 $(ls $slides) >> {noted}\n"
    well, last = (set_up(tmp_path, key, note + ENCODES_40) for key in ("well", "last"))
    ill = set_up(tmp_path, "ill", note + "seq 9; echo no such level >&2; exit 3\n")
    cohort = Cohort("slides", slides, (5, 10), aims={})
    runs, still = run_in_turn([well, ill, last], cohort, tmp_path / "weights.pth", 2, 2, tmp_path)
    in_turn = (well, ill, last, well, last)
    assert noted.read_text().splitlines() == [f"{tool.python} a.tiff b.tiff" for tool in in_turn]
    assert {tool: len(of_it) for tool, of_it in runs.items()} == {well: 2, last: 2}
    assert still == [well, last]
    told = capsys.readouterr().out
    assert "2 slides, run 1: ILL, float32, failed: exit code 3\n6\n7\n8\n9\nno such level\n" in told
    assert "2 slides, run 2: LAST, float32, 40 patches in " in told


def test_a_run_lasts_from_the_start_of_the_process_to_its_end(tmp_path):
    tool = set_up(tmp_path, "tool", f"sleep 0.3\n{ENCODES_40}sleep 0.3\n")
    run = run_once(tool, Work(tmp_path, (5, 10), tmp_path / "weights.pth"), tmp_path)
    assert run.patches == 40
    assert 0.3 < run.first_features_s < run.seconds - 0.3
    assert run.rate == pytest.approx(40 / run.seconds)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tool"]  # what it wrote is gone


def test_memory_is_that_of_all_processes_and_what_they_share_counts_once(tmp_path):
    program = (
        "import os, time\n"
        "held = b'x' * 150_000_000\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        own = b'y' * 50_000_000\n"
        "        time.sleep(1.5)\n"
        "        os._exit(0)\n"
        "os.wait(), os.wait()\n"
    )
    measured = measure([sys.executable, "-c", program], tmp_path / "log", {})
    mb = 2**20 / 1e6
    assert 250 < measured.peak_mb * mb < 350


def test_of_a_progress_bar_the_last_state_is_told(tmp_path):
    program = r"print('begun'); print('0%\r50%\r99%'); raise SystemExit('no memory')"
    with pytest.raises(FailedError, match=r"^exit code 1\nbegun\n99%\nno memory$"):
        measure([sys.executable, "-c", program], tmp_path / "log", {})


@pytest.mark.slow  # a process that imports all that extraction needs
def test_ours_encodes_every_patch_of_the_grid_and_has_its_first_features_before_it_ends(tmp_path):
    make_cohort(tmp_path, 3)
    slides = sorted((tmp_path / "slides").iterdir())[:1]
    cohort = Cohort("slide", slides, (5, 10), aims={})
    ours = Ours("torch", amp=False)
    weights = random_weights(tmp_path / "resnet34.pth")
    runs, _ = run_in_turn([ours], cohort, weights, 2, 1, tmp_path)
    grid = BagBuilder()({"image": str(slides[0])}).grid
    assert [run.patches for run in runs[ours]] == [sum(map(len, grid.coords))]
    assert all(0 < run.first_features_s < run.seconds for run in runs[ours])


# The table


TRIDENT = Other("TRIDENT", "trident", Path("peers"), has_checkout=True)
# 10 and 5 patches a second; then 15, 24 and 30.
RUNS = {
    TRIDENT: [Run(100, 10, 4, 2000), Run(100, 20, 6, 3000)],
    Ours("torch", amp=False): [Run(150, 10, 3, 1000)],
    Ours("openvino", amp=False): [Run(240, 10, 3, 1000)],
    Ours("openvino", amp=True): [Run(300, 10, 3, 1000)],
}


def test_the_table_has_means_each_run_the_most_memory_and_how_many_times_as_fast_ours_are():
    table = cells(result_table(RUNS))
    assert table["tool arithmetic"] == [
        "patches", "patches/s", "of each run", "first features, s", "peak MB", "torch float32 / it", "our fastest / it",
    ]  # fmt: skip
    assert table["TRIDENT float32"] == ["100", "7.5", "10.0, 5.0", "5.0", "3000", "2.00", "4.00"]
    assert table["ours, torch float32"][-2:] == ["1.00", "2.00"]
    assert table["ours, openvino bfloat16"][-2:] == ["0.50", "1.00"]


def test_runs_that_encoded_different_numbers_of_patches_say_so():
    two = {TRIDENT: [Run(100, 10, 4, 2000), Run(99, 9, 4, 2000)]}
    assert cells(result_table(two))["TRIDENT float32"] == ["99 or 100", "10.5", "10.0, 11.0", "4.0", "2000", "-", "-"]


@pytest.mark.parametrize(("aim", "told"), [(4, "4.00, reached."), (4.5, "4.00, NOT reached.")])
def test_the_aim_is_of_bfloat16_against_the_named_tool(aim, told):
    fast_float32 = {**RUNS, Ours("torch", amp=False): [Run(1000, 10, 3, 1000)]}
    assert aim_line(fast_float32, "TRIDENT", "bfloat16", aim).endswith(
        f"at least {aim:g} times the patches/s of TRIDENT: {told}"
    )


@pytest.mark.parametrize("left_out", [TRIDENT, Ours("openvino", amp=True)])
def test_an_aim_without_both_sides_is_not_measured(left_out):
    assert aim_line({one: runs for one, runs in RUNS.items() if one != left_out}, "TRIDENT", "bfloat16", 3).endswith(
        "not measured."
    )
