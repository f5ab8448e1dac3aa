"""Native readers in processes of their own: what happens to one costs its slide, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from scripts.core.errors import SlideError
from scripts.slides import isolation
from scripts.slides.checksums import stamp_of
from scripts.slides.isolation import ReaderError, open_slide, read_pixels
from scripts.slides.slide import Slide
from tests.pyramids import noise, write_pyramid


@pytest.fixture(scope="module")
def image():
    return noise(600, 900)


@pytest.fixture(scope="module")
def pyramid(image, tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("isolation") / "p.tif", image, mpp=0.5, downsamples=(1, 4))


@pytest.fixture
def nobody():
    """No process waits for a question."""
    isolation._end_all()
    yield
    isolation._end_all()


def readers():
    return [
        child for child in psutil.Process().children() if "scripts.slides.reader_process" in " ".join(child.cmdline())
    ]


def test_no_native_library_is_loaded_by_reading_a_slide(pyramid):
    code = (
        "import sys; from scripts.slides.slide import Slide; Slide(sys.argv[1]).read_overview(8); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, pyramid], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "scripts.slides.isolation" in loaded
    assert loaded.isdisjoint({"cucim", "openslide", "tifffile", "imagecodecs", "simplejpeg"})


def test_the_process_that_reads_has_no_framework_in_it(pyramid, nobody):
    slide = Slide(pyramid, reader="cucim")
    slide.read_overview(8.0)
    (process,) = readers()
    assert not any("torch" in mapped.path or "itk" in mapped.path.lower() for mapped in process.memory_maps())


# Imported in place of a library, it writes into a file that it was, prints what looks like an error, and gives way.
NOISY = """
import importlib, sys
from pathlib import Path
folder = Path(__file__).parents[__file__.endswith("__init__.py")]
(folder / "imported").open("a").write(__name__)
print("error: no such symbol")
print("corrupt header", file=sys.stderr)
sys.path.remove(str(folder))
del sys.modules[__name__]
sys.modules[__name__] = importlib.import_module(__name__)
"""


@pytest.mark.parametrize("library", ["cucim", "openslide"])
def test_what_a_library_prints_while_it_is_loaded_is_no_fault_of_the_first_slide(
    tmp_path, pyramid, image, nobody, monkeypatch, capfd, library
):
    (tmp_path / f"{library}.py").write_text(NOISY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    slide = Slide(pyramid, reader=library)
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert (tmp_path / "imported").read_text() == library  # once
    said = capfd.readouterr()
    assert said.out == ""
    assert sorted(said.err.splitlines()) == ["corrupt header", "error: no such symbol"]


def test_a_reader_sees_no_gpu_and_loads_no_cupy(tmp_path, pyramid, image, nobody, monkeypatch):
    (tmp_path / "cupy.py").write_text(NOISY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    slide = Slide(pyramid, reader="cucim")
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert not (tmp_path / "imported").exists()
    (process,) = readers()
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"  # the run keeps its own


def test_cucims_plugins_are_loaded_with_it():
    code = (
        "from scripts.slides.backends import load_library; load_library('cucim'); print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cucim.kit.cuslide" in done.stdout


def test_a_library_that_cannot_be_loaded_is_what_the_slide_could_not_be_read_for(
    tmp_path, pyramid, nobody, monkeypatch
):
    (tmp_path / "cucim.py").write_text("raise ImportError('libcufile.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SlideError, match=r"a slide \(cucim: libcufile\.so: cannot open shared object file\)"):
        Slide(pyramid, reader="cucim")


@pytest.mark.parametrize("backend", ["cucim", "openslide"])
def test_what_comes_back_is_a_copy_that_the_next_read_leaves_alone(pyramid, image, backend):
    stamp = stamp_of(pyramid)
    first = read_pixels(pyramid, stamp, backend, 10, 20, 300, 200, 0)
    second = read_pixels(pyramid, stamp, backend, 500, 300, 400, 300, 0)
    assert np.array_equal(first, image[20:220, 10:310])
    assert np.array_equal(second, image[300:600, 500:900])
    first[:] = 0  # it is the caller's


def test_threads_that_read_at_once_have_a_process_each_and_get_what_they_asked_for(pyramid, image, nobody):
    stamp, together = stamp_of(pyramid), threading.Barrier(3)

    def read(number):
        if number < 3:
            together.wait()
        places = np.random.default_rng(number).integers(0, 400, (20, 2)).tolist()
        return all(
            np.array_equal(read_pixels(pyramid, stamp, "cucim", x, y, 150, 100, 0), image[y : y + 100, x : x + 150])
            for x, y in places
        )

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(read, range(3))) == [True] * 3
    assert 1 <= len(readers()) <= 3
    assert read(4)
    assert 1 <= len(readers()) <= 3  # the next question goes to one that is there


@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGSEGV, r"crashed \(SIGSEGV\)"), (signal.SIGKILL, "was killed, perhaps for want of memory")],
)
def test_a_reader_that_dies_costs_the_slide_and_the_next_one_is_read(pyramid, image, nobody, number, says, monkeypatch):
    slide = Slide(pyramid, reader="cucim")
    (process,) = readers()
    process.suspend()  # so that it dies of the question, and a new one as well
    threading.Timer(0.5, lambda: (process.send_signal(number), process.resume())).start()
    monkeypatch.setattr(isolation, "PROGRAM", f"import os; os.kill(os.getpid(), {int(number)})")
    message = rf"p\.tif: cucim cannot read 64 x 64 px at \(0, 0\) of level 0 \({says}\)\. Is the file complete"
    with pytest.raises(SlideError, match=message):
        slide.read_region((0, 0), (64, 64), 0.5)
    assert readers() == []
    monkeypatch.undo()
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert len(readers()) == 1


def test_what_a_library_printed_before_it_crashed_is_told(pyramid, nobody, monkeypatch):
    code = "import os, sys; os.write(int(sys.argv[4]), b'some words\\nmalloc(): corrupted\\n'); os.abort()"
    monkeypatch.setattr(isolation, "PROGRAM", code)
    with pytest.raises(ReaderError, match=r"crashed \(SIGABRT\): malloc\(\): corrupted$"):
        open_slide(pyramid, stamp_of(pyramid), ["cucim"])


@pytest.mark.parametrize("library", ["cucim", "openslide"])
def test_a_library_that_crashes_leaves_the_slide_to_the_next(tmp_path, pyramid, image, nobody, monkeypatch, library):
    (tmp_path / f"{library}.py").write_text("import os\nos.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if library == "cucim":
        slide = Slide(pyramid)
        assert slide.backend == "openslide"
        assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
        assert open_slide(pyramid, stamp_of(pyramid), ["cucim", "openslide"]).passed == ["cucim: crashed (SIGABRT)"]
    else:  # without its properties a slide has no bounds
        with pytest.raises(
            SlideError, match=r"p\.tif: cannot be read as a slide \(openslide: crashed \(SIGABRT\)\)\. Is"
        ):
            Slide(pyramid)


def test_a_reader_that_another_slide_left_dying_costs_nothing(pyramid, image, nobody):
    slide = Slide(pyramid, reader="cucim")
    (process,) = readers()
    process.suspend()
    threading.Timer(0.5, lambda: (process.send_signal(signal.SIGSEGV), process.resume())).start()
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])


def test_a_reader_that_was_started_ahead_takes_the_first_question(pyramid, image, nobody):
    isolation.start_reader()
    (process,) = readers()
    isolation.start_reader()  # one is enough
    assert np.array_equal(Slide(pyramid).read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert readers() == [process]


def test_a_reader_that_died_of_being_started_ahead_costs_nothing(pyramid, image, nobody, monkeypatch):
    monkeypatch.setattr(isolation, "PROGRAM", "raise SystemExit(1)")
    isolation.start_reader()
    monkeypatch.undo()
    assert np.array_equal(Slide(pyramid).read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert len(readers()) == 1


@pytest.mark.parametrize("ending", ["", "raise ValueError", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)"])
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_reader_that_nobody_asks_ends_with_its_run(ending, seconds):
    code = (
        "import os, time, psutil; from scripts.slides.isolation import start_reader; start_reader(); "
        f"print(*(child.pid for child in psutil.Process().children()), flush=True); time.sleep({seconds}); {ending}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (pid,) = map(int, done.stdout.split())
    if psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=10)
    assert not psutil.pid_exists(pid)


def test_a_reader_that_died_while_idle_costs_nothing(pyramid, image, nobody):
    slide = Slide(pyramid)
    (process,) = readers()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until all its threads have ended
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])


def test_a_reader_that_gives_no_answer_is_given_up(pyramid, image, nobody, monkeypatch):
    slide = Slide(pyramid)
    (process,) = readers()
    monkeypatch.setattr(isolation, "ANSWER_SECONDS", 0.5)
    process.suspend()
    with pytest.raises(SlideError, match=r"cucim cannot read .* \(gave no answer for 0\.5 seconds\)"):
        slide.read_region((0, 0), (64, 64), 0.5)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    monkeypatch.undo()
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])


def test_a_slide_that_was_replaced_is_opened_anew(tmp_path, image):
    path = write_pyramid(tmp_path / "s.tif", image)
    assert np.array_equal(Slide(path).read_region((0, 0), (50, 50), 0.5), image[:50, :50])
    other = noise(700, 800, seed=1)
    write_pyramid(tmp_path / "s.tif", other)
    slide = Slide(path)
    assert slide.size_level0 == (800, 700)
    assert np.array_equal(slide.read_region((0, 0), (50, 50), 0.5), other[:50, :50])


@pytest.mark.parametrize("backend", ["cucim", "openslide"])
def test_a_slide_that_is_replaced_before_a_reader_opens_it_is_not_read_as_the_one_that_it_was(
    tmp_path, image, backend, nobody
):
    path = write_pyramid(tmp_path / "s.tif", image)
    slide = Slide(path, reader=backend)
    write_pyramid(tmp_path / "new.tif", noise(600, 900, seed=1)).rename(path)
    isolation._end_all()  # so that the file is opened anew
    with pytest.raises(ReaderError, match="^it was replaced while it was read$"):
        read_pixels(path, slide._stamp, backend, 0, 0, 64, 64, 0)
    with pytest.raises(SlideError, match=r"s\.tif: was changed while it was read\. Run again once it is complete\."):
        slide.read_region((0, 0), (64, 64), 0.5)
    path.unlink()
    with pytest.raises(SlideError, match=r"s\.tif: was changed while it was read \(No such file or directory\)\."):
        slide.read_region((0, 0), (64, 64), 0.5)


def test_what_stops_a_run_leaves_the_readers_to_finish_their_slide(pyramid, image, nobody):
    # torchrun's SIGTERM and a terminal's SIGINT reach them too; the run decides.
    slide = Slide(pyramid)
    (process,) = readers()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
    assert readers() == [process]


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)"])
def test_no_reader_is_left_when_its_run_is_over(pyramid, ending):
    code = (
        "import os, sys, psutil; from scripts.slides.slide import Slide; slide = Slide(sys.argv[1]); "
        f"print(*(child.pid for child in psutil.Process().children()), flush=True); {ending}"
    )
    done = subprocess.run([sys.executable, "-c", code, pyramid], capture_output=True, text=True, check=False)
    (pid,) = map(int, done.stdout.split())
    if psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=10)
    assert not psutil.pid_exists(pid)


def test_a_reader_that_is_stuck_when_its_run_is_killed_ends(tmp_path):
    begun = tmp_path / "begun"
    # A native call that never returns and keeps Python's lock.
    stuck = "def stuck(path): open(path, 'w').write(str(os.getpid())); ctypes.PyDLL(None).sleep(600)\n"
    program = f"import ctypes, os, sys; sys.path.insert(0, sys.argv[1])\n{stuck}"
    program += "from scripts.slides import reader_process as reader; reader.look_at = stuck\n"
    program += "reader.serve(*map(int, sys.argv[2:]))"
    code = "import sys; from scripts.slides import isolation; isolation.PROGRAM = sys.argv[1]; "
    code += "isolation.open_slide(sys.argv[2], (0,), [])"
    run = subprocess.Popen([sys.executable, "-c", code, program, begun])
    while not (begun.exists() and begun.read_text()):
        assert run.poll() is None
        time.sleep(0.01)
    reader = psutil.Process(int(begun.read_text()))
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs([reader], timeout=10)
    for process in alive:
        process.kill()
    assert alive == []


def test_a_forked_process_has_readers_of_its_own(pyramid, image):
    slide = Slide(pyramid)
    child = os.fork()
    if child == 0:
        same = np.array_equal(slide.read_region((0, 0), (64, 64), 0.5), image[:64, :64])
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(slide.read_region((9, 9), (64, 64), 0.5), image[9:73, 9:73])


def test_many_slides_leave_few_open(tmp_path, nobody):
    for number in range(8):
        Slide(write_pyramid(tmp_path / f"{number}.tif", noise(64, 64, number)))
    (process,) = readers()
    still_open = [file.path for file in process.open_files() if file.path.startswith(str(tmp_path))]
    assert 1 <= len(set(still_open)) <= 4


def test_what_a_library_says_reaches_the_caller(tmp_path):
    text = tmp_path / "text.tif"
    text.write_text("not a slide")
    opened = open_slide(text, stamp_of(text), ["openslide"])
    assert opened.refusal[0] == "cannot be read as a slide (openslide: Unsupported or missing image file)"
