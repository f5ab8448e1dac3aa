import errno
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time

import pytest

from scripts.core.errors import SettingsError
from scripts.core.files import MACHINE, file_sha256, lock, locked, output_folder, refuse_special, replacing, unlock
from tests.conftest import ROOT
from tests.locks import locked_by_another


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"  # until the block ends
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_block_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def fail():
        with replacing(path) as part:
            part.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_block_that_fails_before_it_writes_leaves_nothing(tmp_path):
    def fail():
        with replacing(tmp_path / "deep" / "model.pt"):
            raise ValueError("too early")

    with pytest.raises(ValueError, match="too early"):
        fail()
    assert os.listdir(tmp_path / "deep") == []


def test_the_part_is_hidden_and_keeps_the_suffix_by_which_writers_choose_a_format(tmp_path):
    with replacing(tmp_path / "s1_tissue.mha") as part:
        part.touch()
        assert part.parent == tmp_path
        assert part.suffix == ".mha"
        assert part.name.startswith(".s1_tissue.")


def test_parts_of_killed_processes_go_when_a_process_first_writes_into_the_folder(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    elsewhere = "0" * 8
    assert elsewhere != MACHINE
    gone = [f".s1.{MACHINE}-{dead.pid}.part.h5", f".a b.c.{MACHINE}-{dead.pid}.part", f".old.{elsewhere}-1.part.pt"]
    kept = [f".s1.{MACHINE}-{os.getppid()}.part.h5", f".new.{elsewhere}-1.part.pt", ".mine.part.h5", "s.1.part.h5"]
    for name in gone + kept:
        (tmp_path / name).touch()
    os.utime(tmp_path / gone[-1], (time.time() - 25 * 3600,) * 2)
    with replacing(tmp_path / "x.json") as part:
        part.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "x.json"])


def test_an_error_that_has_nothing_to_do_with_room_stays_what_it_is(tmp_path):
    for error in (OSError("no such slide"), RuntimeError("out of memory"), FileNotFoundError(2, "No such file")):
        with pytest.raises(type(error), match=re.escape(str(error))), replacing(tmp_path / "x.pt"):
            raise error
        assert os.listdir(tmp_path) == []


def test_folders_are_made_where_there_are_none(tmp_path):
    folder = output_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert output_folder(folder) == tmp_path / "a" / "b"


def test_a_file_in_the_place_of_the_folder_is_an_error_of_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with (
        pytest.raises(
            SettingsError,
            match=r"taken/out: cannot be made \(Not a directory\)\. Choose a folder that you may write to",
        ),
        replacing(tmp_path / "taken" / "out" / "x.csv"),
    ):
        pass
    with pytest.raises(SettingsError, match=r"taken: cannot be made \(File exists\)\. Choose a folder"):
        output_folder(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_that_may_not_be_written_to_is_an_error_of_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root may write anywhere
        monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with (
        pytest.raises(
            SettingsError,
            match=r"readonly: is a folder that you may not write to\. Choose a folder that you may write to",
        ),
        replacing(folder / "x.csv"),
    ):
        pass


def test_a_folder_is_locked_by_one_process_at_a_time_and_freed_by_its_end(tmp_path):
    code = (
        "import sys, time\nfrom scripts.core.files import locked\n"
        f"with locked({str(tmp_path)!r}):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SettingsError, match="another process is writing into it. Wait"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):
            pass


def test_a_folder_is_locked_until_it_is_unlocked_and_can_be_locked_again(tmp_path):
    lock(tmp_path / "a")
    lock(tmp_path / "a")
    lock(tmp_path / "b")
    with pytest.raises(SettingsError, match="another process is writing into it"), locked(tmp_path / "a"):
        pass
    for _ in range(2):
        unlock(tmp_path / "a")
    with locked_by_another(tmp_path / "a"), pytest.raises(SettingsError, match="another process is writing into it"):
        lock(tmp_path / "a")
    lock(tmp_path / "a")  # what was refused is not held
    for folder in ("a", "b"):
        unlock(tmp_path / folder)


def test_a_run_that_fails_with_a_lock_ends_in_its_error_alone(tmp_path):
    code = (
        "from scripts.core.errors import SettingsError, show_one_line\nfrom scripts.core.files import lock\n"
        f"show_one_line()\nlock({str(tmp_path)!r})\nraise SettingsError('epochs', 'got 0', 'Give 1 or more.')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (1, ["error: epochs: got 0. Give 1 or more."])
    assert os.listdir(tmp_path) == []


def test_an_unlocked_folder_contains_no_trace_of_the_lock(tmp_path):
    with locked(tmp_path):
        assert os.listdir(tmp_path)
    lock(tmp_path)
    unlock(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    lock = fcntl.flock

    def removed_once(file, how):
        monkeypatch.setattr("scripts.core.files.fcntl.flock", lock)
        os.unlink(tmp_path / ".lock")  # by the process that had it until now
        lock(file, how)

    monkeypatch.setattr("scripts.core.files.fcntl.flock", removed_once)
    with locked(tmp_path), pytest.raises(BlockingIOError), locked_by_another(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_a_run_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("scripts.core.files.fcntl.flock", refuse)
    with locked(tmp_path):
        pass
    assert "nothing keeps another process from writing into it (No locks available)" in caplog.text


def test_a_step_of_a_run_may_lock_what_the_run_has_locked_and_does_not_unlock_it(tmp_path):
    with locked(tmp_path):
        lock(tmp_path)
        unlock(tmp_path)
        with pytest.raises(BlockingIOError), locked_by_another(tmp_path):
            pass
    with locked_by_another(tmp_path):
        pass


def test_a_files_hash_is_that_of_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(SettingsError, match=r"b: cannot be read \(No such file"):
        file_sha256(tmp_path / "b")


def test_a_pipe_or_a_device_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (refuse_special, file_sha256):
            with pytest.raises(SettingsError, match=r"(pipe|zero): is a pipe, a device or a socket, not a file\. Give"):
                read(path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path, tmp_path / "gone", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        refuse_special(path)
