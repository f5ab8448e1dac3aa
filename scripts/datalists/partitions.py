"""The words for partitions: those that are read as one, and those that only look like one."""

from __future__ import annotations

import re

from scripts.core.errors import DatalistError

__all__ = ["PARTITIONS", "PARTITION_WORDS", "is_switch_of", "looks_like", "partition_named", "partition_or_none"]

PARTITIONS = ("training", "validation", "testing")

PARTITION_WORDS = {
    "training": ("training", "train"),
    "validation": ("validation", "valid", "val"),
    "testing": ("testing", "test"),
}

# Begins as a partition is called somewhere, as in `train_1`, `testset`, `set: val` and `hold-out`, but not `testis`.
# These are never read as one: a "dev" set is for validation in one field, and for training in another.
_LOOKS = {
    name: re.compile(rf"((is|in|for|use|the|set|split|data)[\W_]+)*({words})(set)?(?![a-z])")
    for name, words in {
        "training": "train(ing)?|trn|development",
        "validation": "val(id|idation)?|dev|tun(e|ing)",
        "testing": "test(ing)?|tst|hold[-_ ]?out|held[-_ ]?out",
    }.items()
}
_SWITCHES = {"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n", "x"}


def partition_named(word: object, subject: str) -> str:
    """The partition that a word means: ``"val"`` is ``"validation"``.

    Raises:
        DatalistError: if it means none.
    """
    partition = partition_or_none(word)
    if partition is not None:
        return partition
    raise DatalistError(subject, f"unknown partition {word!r}", f"Use one of: {', '.join(PARTITIONS)}.")


def partition_or_none(word: object) -> str | None:
    """The partition that a word means; None if it means none."""
    return next((name for name, words in PARTITION_WORDS.items() if str(word).strip().casefold() in words), None)


def looks_like(word: object) -> str | None:
    """The partition that a word looks like, which it need not mean: ``"holdout"`` looks like ``"testing"``."""
    # `isTest` and `TrainSet` are two words each.
    text = re.sub("(?<=[a-z])(?=[A-Z])", "_", str(word).strip()).casefold()
    return next((name for name, pattern in _LOOKS.items() if pattern.match(text)), None)


def is_switch_of(name: str, values: list[object]) -> str | None:
    """The partition that a column of 0 and 1, of True and False, or of crosses switches on: ``is_test``; or None."""
    if not all(str(value).strip().casefold() in _SWITCHES for value in values):
        return None
    # `test_result` is of a laboratory.
    end = re.search(r"[\W_]([a-z]+)$", name.strip().casefold())
    is_of_more = end is not None and looks_like(end[1]) is None and end[1] not in ("set", "split", "out")
    # `valid` is a slide that may be used.
    return None if is_of_more or name.strip().casefold().endswith("valid") else looks_like(name)
