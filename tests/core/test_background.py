"""Calls in threads: all are done when the block ends, few wait, and the first error is the one that is raised."""

import threading

import pytest

from scripts.core.background import THREADS, WAITING, OneBehind, in_background
from scripts.core.errors import SettingsError


def test_all_calls_have_ended_when_the_block_ends_and_two_of_them_ran_at_once():
    together, done = threading.Barrier(2, timeout=30), []

    def meet(number):
        together.wait()
        done.append(number)

    with in_background() as background:
        for number in range(10):
            background(meet, number)
    assert sorted(done) == list(range(10))


def test_a_call_waits_while_a_few_are_before_it():
    go_on, begun, made = threading.Event(), threading.Semaphore(0), []

    def wait():
        begun.release()
        assert go_on.wait(30)

    def make():
        with in_background() as background:
            for number in range(2 * (THREADS + WAITING)):
                background(wait)
                made.append(number)

    maker = threading.Thread(target=make)
    maker.start()
    for _ in range(THREADS):
        assert begun.acquire(timeout=30)
    maker.join(0.3)
    assert len(made) == THREADS + WAITING
    go_on.set()
    maker.join()
    assert len(made) == 2 * (THREADS + WAITING)


def test_the_first_error_is_raised_and_what_has_not_begun_is_not_done():
    failing, done = threading.Event(), []

    def fail(name):
        assert failing.wait(30)
        raise SettingsError(name, "cannot be written", "Make room.")

    def block():
        with in_background() as background:
            for name in ("first", "second"):
                background(fail, name)
            for number in range(100):
                if number == WAITING:
                    failing.set()
                background(done.append, number)

    with pytest.raises(SettingsError, match=r"^first: cannot be written"):
        block()
    assert len(done) <= WAITING + THREADS


def test_an_error_of_the_block_itself_waits_for_the_calls_that_have_begun():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def write():
        begun.set()
        assert go_on.wait(30)
        done.append(True)

    def block():
        with in_background() as background:
            background(write)
            assert begun.wait(30)
            threading.Timer(0.1, go_on.set).start()
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        block()
    assert done == [True]


# --- one behind --------------------------------------------------------------------------------------------


def test_calls_about_a_subject_go_on_while_the_next_is_made_and_end_before_a_call_about_it():
    behind, made_next, events = OneBehind(), threading.Event(), []

    def show(name):
        assert made_next.wait(30)
        events.append(f"{name} shown")

    for name in ("map", "report"):
        behind("first", lambda name=name: show(name))
    events.append("second made")
    made_next.set()
    behind("second", lambda: events.append("second shown"))
    behind.wait()
    assert events == ["second made", "map shown", "report shown", "second shown"]


def test_the_error_of_a_call_is_raised_with_the_next_subject_which_is_not_begun():
    behind, done = OneBehind(), []

    def fail():
        raise SettingsError("first", "cannot be written", "Make room.")

    behind("first", fail)
    with pytest.raises(SettingsError, match=r"^first: cannot be written"):
        behind("second", lambda: done.append("second"))
    behind.wait()
    assert done == []
