"""What `make bench ARGS=stages` measures with: functions timed in whatever threads call them."""

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmarks.timers import timed, timing

PAUSE_S = 0.02


class Work:
    """Functions that wait, compute, call each other, or yield."""

    def nothing(self) -> None:
        pass

    def wait(self) -> None:
        time.sleep(PAUSE_S)

    def compute(self) -> None:
        end = time.thread_time() + PAUSE_S
        while time.thread_time() < end:
            pass

    def call_wait(self) -> str:
        time.sleep(PAUSE_S)
        self.wait()
        return "waited"

    def call_itself(self, depth: int) -> None:
        time.sleep(PAUSE_S)
        if depth > 1:
            self.call_itself(depth - 1)

    def fail(self) -> None:
        time.sleep(PAUSE_S)
        raise KeyError("slide")

    def items(self) -> Iterator[int]:
        for item in range(3):
            time.sleep(PAUSE_S)
            yield item


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads that take turns so often that a sum without a lock loses some of them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("quick_switches")
def test_the_calls_of_two_threads_are_all_counted():
    work, both = Work(), threading.Barrier(2)

    def many() -> None:
        both.wait()
        for _ in range(2000):
            work.nothing()

    with timing({"stage": [(Work, "nothing")]}) as spent, ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(many), threads.submit(many)]:
            done.result()
    assert spent["stage"].calls == 4000
    assert spent["stage"].beside_s == pytest.approx(spent["stage"].seconds)


def test_the_seconds_of_threads_are_summed_and_those_of_others_are_known():
    work, both = Work(), threading.Barrier(2)

    def wait() -> None:
        both.wait()
        work.wait()

    with timing({"stage": [(Work, "wait")]}) as spent, ThreadPoolExecutor(1) as thread:
        other = thread.submit(wait)
        _, whole = timed(lambda: (wait(), other.result()))
    assert spent["stage"].calls == 2
    assert 2 * PAUSE_S <= spent["stage"].seconds <= 2 * whole
    assert PAUSE_S <= spent["stage"].beside_s <= spent["stage"].seconds - PAUSE_S


def test_a_call_within_another_is_counted_once_as_its_own_stage():
    with timing({"outer": [(Work, "call_wait")], "inner": [(Work, "wait")]}) as spent:
        result, whole = timed(Work().call_wait)
    assert result == "waited"
    assert spent["outer"].seconds >= PAUSE_S
    assert spent["inner"].seconds >= PAUSE_S
    assert spent["outer"].seconds + spent["inner"].seconds <= whole
    assert (spent["outer"].calls, spent["inner"].calls) == (1, 1)


def test_a_function_that_calls_itself_is_counted_once():
    with timing({"stage": [(Work, "call_itself")]}) as spent:
        _, whole = timed(lambda: Work().call_itself(4))
    # Counted in each call that contains it, it would be 10 pauses.
    assert 4 * PAUSE_S <= spent["stage"].seconds <= whole
    assert spent["stage"].calls == 4


def test_what_waits_takes_no_processor_and_what_computes_does():
    work = Work()
    with timing({"waits": [(Work, "wait")], "computes": [(Work, "compute")]}) as spent:
        for _ in range(5):
            work.wait()
            work.compute()
    assert spent["computes"].cpu_s >= 5 * PAUSE_S
    assert spent["waits"].cpu_s < spent["computes"].cpu_s / 2
    assert spent["waits"].beside_s == 0


def test_of_what_yields_the_time_between_items_is_the_callers():
    with timing({"stage": [(Work, "items")]}) as spent:
        items, whole = [], 0.0
        for item in Work().items():
            items.append(item)
            whole += timed(lambda: time.sleep(5 * PAUSE_S))[1]
    assert items == [0, 1, 2]
    assert 3 * PAUSE_S <= spent["stage"].seconds < whole


def test_an_error_is_the_functions_own_and_its_time_counts():
    with pytest.raises(KeyError, match="slide"), timing({"stage": [(Work, "fail")]}) as spent:
        Work().fail()
    assert spent["stage"].seconds >= PAUSE_S


def test_functions_are_what_they_were_afterwards():
    plain, work = Work.wait, Work()
    with timing({"class": [(Work, "wait")], "object": [(work, "nothing")]}):
        assert Work.wait is not plain
        work.wait()
        work.nothing()
    assert Work.wait is plain
    assert "nothing" not in vars(work)


def test_a_function_that_was_never_called_is_an_error():
    with (
        pytest.raises(SystemExit, match="^Work has no compute that was called$"),
        timing({"stage": [(Work, "nothing"), (Work, "compute")]}),
    ):
        Work().nothing()
