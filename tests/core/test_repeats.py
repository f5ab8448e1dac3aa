"""What is the same of two slides, and what is not."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.repeats import SHOWN_MESSAGES, Repeats, cause_of, first_names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("almost no tissue: 3 rows (0.12 mm2), fewer than 10", "almost no tissue: 7 rows (1.2e-05 mm2), fewer than 10"),
        ("no file /data/my slides/s1.svs", "no file /data/my slides/s2.svs"),
        ("has the same content as /data/x.svs", "has the same content as /data/old/y.svs"),
        (f"its SHA-256 is {'ab' * 32}, the datalist says {'cd' * 32}", f"its SHA-256 is {'0a' * 32}, the datalist says "
         f"{'12' * 32}"),
        ("slide s1 failed: s1.svs: no tissue was found", "slide s2 failed: s2.svs: no tissue was found"),
    ],
)  # fmt: skip
def test_numbers_paths_names_and_checksums_are_no_cause(one: str, other: str) -> None:
    assert cause_of(one, ["s1"]) == cause_of(other, ["s2"])


def test_other_words_are_another_cause() -> None:
    texts = ["unknown class 'warts'", "unknown class 'polyp'", "no label", "no file", "almost no tissue: 3 rows"]
    assert len({cause_of(text, ["s"]) for text in texts}) == len(texts)


NAMES = st.from_regex("[ab]([ab ]{0,5}[ab])?", fullmatch=True)


@given(NAMES, NAMES)
def test_the_name_of_a_slide_does_not_matter(one: str, other: str) -> None:
    text = "slide {} failed: /data/{}.svs: no tissue was found"
    assert cause_of(text.format(one, one), [one]) == cause_of(text.format(other, other), [other])


def test_the_first_names_and_whether_there_are_more() -> None:
    assert first_names("abcde") == "a, b, c, d, e"
    assert first_names("abcdef") == "a, b, c, d, e, ..."
    assert first_names("ab", 9) == "a, b, ..."
    assert first_names("abcd", shown=3) == "a, b, c, ..."


def test_of_messages_that_come_one_by_one_the_first_few_are_shown_and_once_that_there_are_more() -> None:
    repeats = Repeats()
    shown = [repeats.shown(f"s{i} has no tissue", f"s{i}", "more") for i in range(165)]
    assert shown[:SHOWN_MESSAGES] == [f"s{i} has no tissue" for i in range(SHOWN_MESSAGES)]
    assert [text for text in shown[SHOWN_MESSAGES:] if text is not None] == ["more"]
    assert repeats.shown("s1 is torn", "s1", "more") == "s1 is torn"


def test_the_same_words_are_logged_once_and_few_of_one_cause(caplog: pytest.LogCaptureFixture) -> None:
    repeats, logger = Repeats(), logging.getLogger("tests.repeats")
    for i in [0, 0, *range(165), 2, 164]:
        repeats.log(logger, logging.WARNING, f"/slides/s{i}.tif: {90 + i / 20}% is tissue", f"/slides/s{i}.tif")
    assert [message.partition(":")[0] for message in caplog.messages[:-1]] == [f"/slides/s{i}.tif" for i in range(3)]
    assert "`checking` names all of them" in caplog.messages[3]
    caplog.clear()
    for i in [0, *range(9), 3]:
        repeats.log_once(logger, logging.WARNING, f"split with seed {i}")
    assert caplog.messages == [f"split with seed {i}" for i in range(9)]
