"""Damaged slides end in an error, or change nothing; with a checksum in the datalist no other gets through."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.reliability.corruption import BAD, FAULTS, REFUSED, SAME, damaged, outcomes, slides

VARIANTS = 50


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    return list(outcomes(slides(folder), folder, VARIANTS, seed=1))


def test_no_damage_takes_a_run_down_or_hangs_it_or_ends_in_a_traceback(found):
    assert len(found) == VARIANTS
    assert {fault for fault, *_ in found} == set(FAULTS)
    assert not [variant for variant in found if not set(BAD).isdisjoint(variant)]


def test_a_file_that_was_cut_off_is_always_refused(found):
    assert {outcome for fault, _, outcome, _ in found if fault == "cut off"} == {REFUSED}


def test_with_a_checksum_no_damage_goes_unnoticed(found):
    assert {outcome for *_, outcome in found} == {REFUSED}


def test_the_faults_are_not_so_harmless_that_nothing_could_come_of_them(found):
    count = Counter(outcome for *_, outcome, _ in found)
    assert count[REFUSED] >= VARIANTS // 3
    assert count[SAME] >= 1  # bytes that no reader looks at


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_seed_damages_alike(tmp_path, fault):
    content = slides(tmp_path)["JPEG"].read_bytes()
    first, second, other = (damaged(content, fault, random.Random(seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != content or first != other
