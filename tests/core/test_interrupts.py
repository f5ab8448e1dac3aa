"""Ctrl-C waits for native code, and is not lost in it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from PIL import Image

from scripts.core.interrupts import interrupts_wait
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def interrupted_as_in_a_terminal():
    """A shell starts what it runs in the background deaf to interrupts, and so these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_when_the_block_has_ended():
    done = []

    def work():
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")
        done.append("what comes after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nobody_waits_twice_for_it():
    done = []

    @interrupts_wait()
    def inner():
        signal.raise_signal(signal.SIGINT)
        done.append("inner")

    @interrupts_wait()
    def outer():
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]


def test_it_comes_after_a_failure_too():
    @interrupts_wait()
    def fail():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as found:
        fail()
    assert isinstance(found.value.__context__, ValueError)


def test_without_one_nothing_is_different():
    with interrupts_wait():
        pass
    with pytest.raises(ValueError, match="of the block"), interrupts_wait():
        raise ValueError("of the block")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_pass():
    # Python gives signals to the main thread alone.
    seen = []

    @interrupts_wait()
    def work():
        seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("after", [2.0, 2.4])
def test_none_is_lost_while_itk_loads_its_modules(tmp_path, after):
    mask = tmp_path / "mask.png"
    Image.new("L", (60, 40)).save(mask)
    code = (
        "import os, pathlib, signal, sys, threading\n"
        "from scripts.bags.mask_files import read_mask_pixels\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"threading.Timer({after}, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "for _ in range(10000):\n    read_mask_pixels(pathlib.Path(sys.argv[1]))\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, mask], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    assert done.stderr.endswith("KeyboardInterrupt\n")
