"""What every kind of file says when there is no room for it, and what is left of the one that was there."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.reliability.disk import namespace

# Writes files of each kind through `replacing`, in a folder that takes 200 kB, where an old one of each lies.
WRITE = """
import json, resource, subprocess, sys, zipfile
from pathlib import Path
import numpy as np, tifffile, torch
from matplotlib.image import imsave
from scripts.core.errors import BundleError
from scripts.core.files import replacing
from scripts.features.hdf5 import writing_hdf5

folder, limited = Path(sys.argv[1]), sys.argv[2] == "limited"
if not limited:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], check=True)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)

def bank(path):
    with writing_hdf5(path) as (file, check):
        file.create_dataset("features", noise.shape, noise.dtype)[:] = noise

def one_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", noise.tobytes(), zipfile.ZIP_DEFLATED)

def pyramid(path):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(noise, tile=(128, 128))

def lines(path):
    with open(path, "w") as file:
        file.writelines(f"{value}\\n" for value in noise.ravel().tolist())

writers = {
    "bank.h5": bank,
    "model.pt": lambda path: torch.save({"weight": torch.from_numpy(noise)}, path),
    "predictions.csv": lines,
    "metrics.json": lambda path: path.write_text(json.dumps(noise.ravel().tolist())),
    "heatmap.png": lambda path: imsave(path, noise, format="png"),
    "bundle.zip": one_member,
    "slide.tiff": pyramid,
}
told = {}
for name, write in writers.items():
    (folder / name).write_text("old")
    try:
        with replacing(folder / name) as part:
            write(part)
        said = "written"
    except BundleError as error:
        said = str(error)
    told[name] = [said, (folder / name).read_text(errors="replace"), sorted(p.name for p in folder.glob(".*"))]
print(json.dumps(told))
"""
# A child of a folder that the file system lets nobody write to.
READ_ONLY = """
import subprocess, sys
from scripts.core.files import replacing
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", sys.argv[1]], check=True)
with replacing(sys.argv[1] + "/metrics.json") as part:
    part.write_text("{}")
"""
FILES = ("bank.h5", "model.pt", "predictions.csv", "metrics.json", "heatmap.png", "bundle.zip", "slide.tiff")
REMEDY = "Make room, or choose another folder; what was there before is as it was."

mounts = pytest.mark.skipif(namespace() is None, reason="this machine lets nobody mount a file system")


def run(code, *arguments, before=()):
    call = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module", params=["limited", pytest.param("full", marks=mounts)])
def written(request, tmp_path_factory):
    """What each writer said, what is left of the old file, and the temporary files; and the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run(WRITE, folder, request.param, before=namespace() if request.param == "full" else ())
    assert done.returncode == 0, done.stderr
    cause = {
        "limited": "it would be larger than allowed (File too large)",
        "full": "the disk is full (No space left on device)",
    }
    return folder, cause[request.param], json.loads(done.stdout)


@pytest.mark.parametrize("name", FILES)
def test_a_file_for_which_there_is_no_room_is_an_error_of_one_line_and_the_old_one_stays(name, written):
    folder, cause, told = written
    assert told[name] == [f"{folder / name}: cannot be written: {cause}. {REMEDY}", "old", []]


@mounts
def test_a_read_only_folder_is_an_error_of_one_line(tmp_path):
    done = run(READ_ONLY, tmp_path, before=namespace())
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.endswith(f"{tmp_path}: is a folder that you may not write to. Choose a folder that you may write to.")
    assert os.listdir(tmp_path) == []
