import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from scripts.features.hdf5 import writing_hdf5
from tests.conftest import ROOT

# Writes 320 kB in ten pieces, and may write fewer; prints after which piece it was told, and by whom.
WRITE = """
import json, resource, sys
from pathlib import Path
import numpy as np
from scripts.features.hdf5 import writing_hdf5

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
pieces = 0
try:
    with writing_hdf5(Path(sys.argv[1])) as (file, check):
        file.create_dataset("features", (1000, 80), dtype=np.float32)
        for piece in range(10):
            file["features"][piece * 100 : piece * 100 + 100] = np.full((100, 80), piece + 1.0)
            check()
            pieces = piece + 1
    print(json.dumps([pieces, None]))
except OSError as error:
    print(json.dumps([pieces, error.strerror]))
"""


def write(path, limit):
    # The limit would hold for the file of coverage, too.
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    command = [sys.executable, "-c", WRITE, str(path), str(limit)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    # HDF5, told of the error, would end the process with a segmentation fault, or complain of what it cannot close.
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_file_reads_as_one_that_h5py_wrote_alone(tmp_path):
    values = np.random.default_rng(0).random((500, 70)).astype(np.float32)

    def fill(file):
        file.attrs["settings"] = "{}"
        file.create_dataset("10x/features", values.shape, dtype=np.float32)
        for row in np.random.default_rng(1).permutation(500):
            file["10x/features"][row] = values[row]
        file["rows"] = np.arange(9)
        file["rows"].attrs["frame"] = "none"

    with writing_hdf5(tmp_path / "a.h5") as (file, check):
        fill(file)
        check()
    with h5py.File(tmp_path / "b.h5", "w") as file:
        fill(file)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert dict(a.attrs) == dict(b.attrs) == {"settings": "{}"}
        assert sorted(a) == sorted(b) == ["10x", "rows"]
        assert np.array_equal(a["10x/features"], values)
        assert np.array_equal(b["10x/features"], values)
        assert dict(a["rows"].attrs) == {"frame": "none"}


@pytest.mark.parametrize("pieces", [0, 3, 9])
def test_a_write_for_which_there_is_no_room_is_raised_at_once_and_the_process_lives(pieces, tmp_path):
    # A piece is 32 kB; the first ones come after a header of 2 kB.
    assert write(tmp_path / "a.h5", 2048 + pieces * 32_000 + 16_000) == [pieces, "File too large"]


def test_without_room_for_the_header_it_is_raised_at_the_end_of_the_block(tmp_path):
    assert write(tmp_path / "a.h5", 0)[1] == "File too large"
    assert write(tmp_path / "b.h5", 10**6) == [10, None]


def test_a_fault_of_the_block_is_raised_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="a fault"), writing_hdf5(tmp_path / "a.h5"):
        raise ValueError("a fault")
