"""A slide with 20,000 rows of 1,536 features is imported and exported without a second copy of its features."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.foreign import grid, write_trident

ROWS, LENGTH = (160, 125), 1536
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which knows a peak")
# What a file's buffers, chunks of rows, positions and links take, beside the features.
CONSTANT_MB = 100

PROGRAM = """
import re, sys
from pathlib import Path
from scripts.features.exporting import export_banks
from scripts.features.importing import Importer

def memory_mb(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def added(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_mb("VmRSS")
    work()
    return memory_mb("VmHWM") - before

out = Path(sys.argv[1])
for name in ("small", "large"):  # a first time with a slide of a few patches: libraries are loaded then
    folder = out / name
    importing = added(Importer([folder / "5x", folder / "10x"], folder / "features", folder).run)
    exporting = added(lambda: export_banks(folder / "features", folder / "out"))
print(importing, exporting)
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """The memory in megabytes that importing and exporting add at most."""
    folder = tmp_path_factory.mktemp("memory")
    generator = np.random.default_rng(0)
    for name, (columns, rows) in (("small", (4, 4)), ("large", ROWS)):
        for magnification, side, shape in ((5, 512, (columns // 2, (rows + 1) // 2)), (10, 256, (columns, rows))):
            coords = grid(*shape, side)
            features = generator.random((len(coords), LENGTH), dtype=np.float32)
            path = folder / name / f"{magnification}x" / "s.h5"
            write_trident(path, coords, features, magnification=magnification, patch_size=128, size=None)
    call = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("step", [0, 1], ids=["importing", "exporting"])
def test_the_features_are_in_memory_once(peaks, step):
    patches = ROWS[0] * ROWS[1] + ROWS[0] // 2 * ((ROWS[1] + 1) // 2)
    assert peaks[step] < patches * LENGTH * 4 / 2**20 + CONSTANT_MB
