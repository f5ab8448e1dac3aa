import errno
import json
import pickle
import subprocess
import sys
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from scripts.core.errors import (
    BundleError,
    DatalistError,
    SettingsError,
    SlideError,
    fitting,
    mistake_in,
    printable,
    show_mistake,
)
from scripts.core.ranks import StoppedError


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_users_mistake_ends_the_process_with_one_line_however_deeply_it_is_wrapped():
    result = run_python(
        """
from scripts.core.errors import SlideError, show_one_line

show_one_line()
try:
    try:
        raise SlideError("a.svs", "no such file", "Check the path.")
    except SlideError as error:
        raise RuntimeError("Failed to instantiate extractor") from error
except RuntimeError as error:
    raise RuntimeError("Failed to evaluate training") from error
"""
    )
    assert result.stderr == "error: a.svs: no such file. Check the path.\n"
    assert result.stdout == ""
    assert result.returncode == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    result = run_python(
        """
from scripts.core.errors import show_one_line

show_one_line()
try:
    {}["patch"]
except KeyError as error:
    raise RuntimeError("Failed to evaluate training") from error
"""
    )
    assert result.stderr.count("Traceback (most recent call last)") == 2
    assert "KeyError: 'patch'" in result.stderr
    assert result.stderr.endswith("RuntimeError: Failed to evaluate training\n")
    assert "error: " not in result.stderr.replace("KeyError: ", "").replace("RuntimeError: ", "")
    assert result.returncode == 1


def test_without_the_hook_a_users_mistake_has_a_traceback_too():
    result = run_python("from scripts.core.errors import SlideError\nraise SlideError('a', 'b', 'c')")
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("SlideError: a: b. c\n")


@pytest.mark.parametrize("kind", [BundleError, SlideError, DatalistError, SettingsError])
def test_an_error_arrives_whole_from_a_worker_process(kind):
    error = pickle.loads(pickle.dumps(kind("a.svs", "is cut off", "Copy it again.")))
    assert type(error) is kind
    assert str(error) == "a.svs: is cut off. Copy it again."
    assert (error.subject, error.cause, error.remedy) == ("a.svs", "is cut off", "Copy it again.")
    assert isinstance(error, BundleError)


def test_a_cause_of_several_lines_becomes_one():
    error = SlideError("a.svs", "cannot be read (line one\nline two)", "Copy it again.")
    assert str(error) == "a.svs: cannot be read (line one line two). Copy it again."


@pytest.mark.parametrize("folder", ["", "gone/"])
def test_torchrun_is_given_the_line_if_it_can_be(tmp_path, folder, monkeypatch):
    path = tmp_path / folder / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    code = "from scripts.core.errors import SlideError, show_one_line\nshow_one_line()\nraise SlideError('a', 'b', 'c')"
    assert run_python(code).stderr == "error: a: b. c\n"
    if folder:
        assert list(tmp_path.iterdir()) == []
    else:
        # As torch.distributed.elastic.multiprocessing.errors.ProcessFailure reads it.
        message = json.loads(path.read_text())["message"]
        assert message["extraInfo"]["py_callstack"] == message["message"] == "a: b. c"
        assert int(message["extraInfo"]["timestamp"]) > 0


@pytest.mark.parametrize("leaves_a_file", [True, False])
@pytest.mark.parametrize("cause", [0, 1])
def test_torchrun_takes_no_rank_for_the_cause_that_another_stopped(tmp_path, cause, leaves_a_file, monkeypatch):
    files = [tmp_path / f"{number}.json" for number in range(2)]
    # Both fail in the last tenth of a second, and torchrun looks in the next one.
    monkeypatch.setattr(time, "time", lambda: 1000.9)
    for number, file in enumerate(files):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        if number != cause:
            show_mistake(StoppedError(f"rank {number}", "stopped", f"See rank {cause}."))
        elif leaves_a_file:
            show_mistake(SettingsError("lr", "the loss is nan", "Lower it."))
    monkeypatch.setattr(time, "time", lambda: 1001.1)
    failures = {number: ProcessFailure(number, 7, 1, str(file)) for number, file in enumerate(files)}
    assert ChildFailedError("training", failures).get_first_failure()[0] == cause


def test_an_interrupt_is_logged_without_a_traceback():
    result = run_python(
        """
import logging
from scripts.core.errors import show_one_line

logging.basicConfig(format="%(message)s")
show_one_line()
try:
    raise KeyboardInterrupt
except KeyboardInterrupt:
    logging.getLogger("monai").exception("Engine run is terminating")
    raise
"""
    )
    assert result.stderr == "Engine run is terminating\ninterrupted\n"


def test_a_file_name_can_neither_begin_a_line_nor_move_the_cursor_of_a_terminal():
    error = SlideError("a\nerror: b\x1b[2J\x07\u2028\u202e\udce9é.svs", "is cut\roff", "Copy it\tagain.")
    assert str(error) == "a error: b\\x1b[2J\\x07 \\u202e\\udce9é.svs: is cut off. Copy it\\tagain."
    assert str(error).encode()
    # What made it stays as it was.
    assert error.subject.startswith("a\nerror")


def test_a_logged_mistake_has_no_traceback_either():
    # MONAI's StatsHandler logs, with its traceback, what ends a run.
    result = run_python(
        """
import logging
from scripts.core.errors import SlideError, show_one_line

logging.basicConfig(format="%(message)s")
show_one_line()
for error in (SlideError("a.svs", "no tissue", "Look at it."), ValueError("a fault")):
    try:
        raise error
    except Exception:
        logging.getLogger("monai").exception("Exception: %s", error)
"""
    )
    mistake, fault = result.stderr.split("Exception: a fault\n")
    assert mistake == "Exception: a.svs: no tissue. Look at it.\n"
    assert "Traceback" in fault


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "output_dir: cannot be written: the disk is full (No space left on device). Make room",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/out/tensorboard"),
            "/out/tensorboard: cannot be written: the disk is read-only (Read-only file system). Make room",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out"),
            "/out: you have no right to it (Permission denied). Choose another path.",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "/long"),
            "/long: cannot be used (File name too long). Choose another path.",
        ),
    ],
)
def test_what_a_library_was_not_let_do_with_a_path_is_a_mistake_of_one_line_through_the_chain(error, line):
    wrapped = RuntimeError("failed to instantiate")
    wrapped.__cause__ = error
    assert str(mistake_in(wrapped)).startswith(line)
    assert mistake_in(OSError(errno.EIO, "Input/output error", "/out")) is None


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, which this file need not import."""


GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 39.38 GiB of which 1.20 GiB is free."
    " Including non-PyTorch memory, this process has 38.18 GiB memory in use.\nIf reserved but unallocated memory is "
    "large try setting PYTORCH_ALLOC_CONF=expandable_segments:True"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_GPU = (
    "does not fit into the GPU's memory (Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 39.38 GiB of which "
    "1.20 GiB is free)"
)
ON_CPU = "does not fit into this machine's memory (tried to allocate 4000000000000 bytes)"
WANTS = [
    (OutOfMemoryError(GPU), ON_GPU),
    (RuntimeError(CPU), ON_CPU),
    (MemoryError("Unable to allocate 7.28 TiB for an array"), "does not fit into this machine's memory (Unable to all"),
    (MemoryError(), "does not fit into this machine's memory (MemoryError)"),
    (
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"),
        "does not fit into the GPU's memory (CUDA er",
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate"), "does not fit into the GPU's"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "does not fit into the GPU's memory (cuDNN error: "),
]


@pytest.mark.parametrize(("error", "cause"), WANTS)
def test_want_of_memory_is_one_line_that_names_the_settings_to_lower(error, cause):
    wrapped = RuntimeError("Failed to evaluate training")
    wrapped.__cause__ = error
    line = str(mistake_in(wrapped))
    assert line.startswith(f"the run: {cause}")
    assert line.endswith(". Lower `batch_size`, `num_nodes`, `cache_gb` or `num_workers`, or use another `device`.")
    with pytest.raises(SettingsError) as found, fitting("encode_batch"):
        raise error
    assert str(found.value).startswith(f"encode_batch: {cause}")
    assert str(found.value).endswith(". Lower `encode_batch`, or use another `device`.")
    assert "\n" not in str(found.value)


def test_a_gpu_that_another_process_has_to_itself_is_one_line():
    busy = RuntimeError(
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCompile with TORCH_USE_CUDA_DSA"
    )
    assert str(mistake_in(busy)).startswith("device: the GPU is in use by another process, and takes one at a time (")
    assert str(mistake_in(busy)).endswith("after an extraction, run the same command again.")


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("out of memory"), KeyError("m")])
def test_other_errors_say_nothing_of_memory(error):
    assert mistake_in(error) is None
    with pytest.raises(type(error)) as found, fitting("encode_batch"):
        raise error
    assert found.value is error


def test_a_full_disk_in_a_thread_ends_in_one_line_and_other_faults_of_threads_keep_their_traceback():
    code = (
        "import errno, threading\nfrom scripts.core.errors import show_one_line\nshow_one_line()\n"
        "def fail(error):\n    raise error\n"
        "for error in (OSError(errno.ENOSPC, 'No space left on device'), ValueError('a fault')):\n"
        "    thread = threading.Thread(target=fail, args=(error,))\n    thread.start()\n    thread.join()\n"
    )
    done = run_python(code)
    first, rest = done.stderr.split("\n", 1)
    assert first.startswith("error: output_dir: cannot be written: the disk is full (No space left on device). Make")
    assert rest.count("Traceback") == 1
    assert rest.endswith("ValueError: a fault\n")


def test_a_text_is_one_line_that_can_be_seen():
    assert printable("größe µm") == "größe µm"
    assert printable("a\nb\udcff\x1b") == r"a\nb\udcff\x1b"
