"""The shipped commands, killed in their work and started again; ``make reliability`` does it many times."""

import random

import pytest

from tests.reliability.counters import Counts
from tests.reliability.jobs import JOBS, Workplace
from tests.reliability.kills import EQUAL, WHOLE, try_job

KILLS = 2


@pytest.fixture(scope="module")
def place(preloaded, tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("killed"), preloaded.popen)
    place.draw()
    return place


@pytest.fixture(scope="module")
def undisturbed():
    """Runs that nothing disturbed, as they are needed."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [("extracting", 1), ("training", 2), ("pack", 3)])
def test_what_was_killed_twice_ends_as_if_nothing_had_been(name, seed, place, undisturbed):
    counts = Counts()
    try_job(JOBS[name], place, place.folder / f"killed_{name}", undisturbed, counts, random.Random(seed), KILLS)
    assert counts.rows[f"`{name}`: killed and started again"] == {EQUAL: 1}
    # Kills of a run that ended before the next are counted as well.
    assert counts.rows[f"`{name}`: files after a kill"].keys() == {WHOLE}
    assert counts.rows[f"`{name}`: files after a kill"][WHOLE] >= KILLS
    assert undisturbed[name].content  # there was something to compare
