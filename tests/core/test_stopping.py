"""SIGTERM while slides are processed."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from scripts.core.ranks import StoppedError
from scripts.core.stopping import finishing_slides


def test_it_waits_until_a_slide_is_finished_and_then_ends_the_run_in_words() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with finishing_slides("inferring", "Go on.") as check:
            for slide in range(3):
                check()
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(slide)

    with pytest.raises(StoppedError, match=r"inferring: was told to stop .*, and begins no other slide\. Go on"):
        run()
    assert done == [0]
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_leave_signals_alone() -> None:
    found = []

    def run() -> None:
        with finishing_slides("inferring", "") as check:
            check()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
