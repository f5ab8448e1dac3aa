"""The benchmark of GPUs: what it decodes, how it ends a part, and the whole of it on the CPU, on little."""

import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import tifffile
import torch

from tests.benchmarks.bench_slides import write_tiled
from tests.benchmarks.gpu import PARTS, WHOLE_S, run_within, threads_needed
from tests.benchmarks.gpu_decoding import cucim_tiles, jpeg_tiles, thread_tiles
from tests.cohorts import draw_slide
from tests.conftest import ROOT


def test_the_parts_end_within_ten_minutes():
    assert sum(PARTS.values()) <= WHOLE_S <= 600


@pytest.mark.parametrize(("forward", "threads"), [(50, 1), (100, 1), (101, 4), (350, 4), (351, None)])
def test_the_fewest_threads_that_read_as_fast_as_the_forward_pass_feed_it(forward, threads):
    # Eight threads are slower than four: they share cores.
    assert threads_needed({1: 100, 2: 90, 4: 350, 8: 300}, forward) == threads


def test_the_tiles_are_those_within_the_border_and_decoders_agree_with_tifffile(tmp_path):
    slide = write_tiled(draw_slide(tmp_path / "drawn.tif", size=(1000, 520)), tmp_path / "jpeg.tif", times=1)
    tiles = jpeg_tiles(slide, 100)
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.series[0].levels[0].pages[0]
        side, level = page.tilewidth, page.asarray()
    columns, rows = 1000 // side, 520 // side
    assert tiles.corners == [(x * side, y * side) for y in range(rows) for x in range(columns)]
    expected = np.stack([level[y : y + side, x : x + side] for x, y in tiles.corners])
    for decode in (thread_tiles(tiles, 2), cucim_tiles(tiles, 2, torch.device("cpu"))):
        found = torch.cat(list(decode())).numpy()
        assert found.shape == expected.shape
        # Decoders round differently.
        assert np.abs(found.astype(int) - expected).max() <= 3
    assert jpeg_tiles(slide, 2).streams == tiles.streams[:2]


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def test_a_part_is_ended_with_what_it_started_when_its_time_is_up(tmp_path):
    note = tmp_path / "pid"
    child = "import time; time.sleep(60)"
    part = (
        f"import pathlib, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid)); child.wait()"
    )
    start = time.monotonic()
    assert run_within([sys.executable, "-c", part], 3) == "It was ended after 3 s; what is missing was not measured.\n"
    assert time.monotonic() - start < 20
    # A signal takes a moment to end a process.
    while is_alive(int(note.read_text())):
        assert time.monotonic() - start < 20
        time.sleep(0.05)


def test_a_part_that_fails_says_so_and_one_that_ends_says_nothing():
    assert run_within([sys.executable, "-c", "raise SystemExit(3)"], 30) == "It failed with exit code 3.\n"
    assert run_within([sys.executable, "-c", ""], 30) == ""


@pytest.mark.slow
def test_the_whole_command_runs_on_the_cpu(preloaded):
    command = [preloaded.python, "-m", "tests.benchmarks.gpu", "--device", "cpu"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WHOLE_S + 60)
    assert run.returncode == 0, run.stderr
    parts = dict(text.split(" ==\n", 1) for text in run.stdout.split("== ")[1:])
    assert list(parts) == list(PARTS)
    assert not [part for part, text in parts.items() if "It " in text or "failed" in text], run.stdout
    rows = {
        part: [line.split(" | ") for line in text.splitlines() if line.startswith("| ")] for part, text in parts.items()
    }
    for part, first in (("forward", "resnet34"), ("memory", "resnet34"), ("reading", "resnet34, torch, float32")):
        assert f"| {first}" in {row[0] for row in rows[part]}
    assert {row[0] for row in rows["decoding"]} >= {"| decoder", "| threads", "| cuCIM, cpu", "| nvImageCodec, cpu"}
    assert [row[:2] for row in rows["training"][1:]] == [["| 1", ""], ["| 1 under torchrun", "gloo"]]
