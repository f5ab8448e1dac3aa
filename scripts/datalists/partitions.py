"""The words for partitions: those that are read as one, and those that only look like one."""

from __future__ import annotations

import re

__all__ = ["PARTITIONS", "PARTITION_WORDS", "is_switch_of", "looks_like", "partition_or_none"]

PARTITIONS = ("training", "validation", "testing")
# Each word that means a partition, in any case.
PARTITION_WORDS = {
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("testing", "test"), "testing"),
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


def partition_or_none(word: object) -> str | None:
    """The partition that a word means: ``"val"`` is ``"validation"``; ``None`` if it means none."""
    return PARTITION_WORDS.get(str(word).strip().casefold())


def looks_like(word: object) -> str | None:
    """The partition that a word looks like, which it need not mean: ``"holdout"`` looks like ``"testing"``."""
    # `isTest` and `TrainSet` are two words each.
    text = re.sub("(?<=[a-z])(?=[A-Z])", "_", str(word).strip()).casefold()
    return next((name for name, pattern in _LOOKS.items() if pattern.match(text)), None)


def is_switch_of(name: str, values: list[object]) -> str | None:
    """The partition that a column of 0 and 1, of True and False, or of crosses switches on: ``is_test``; or None."""
    word = name.strip().casefold()
    end = re.search(r"[\W_]([a-z]+)$", word)
    # `test_result` is a laboratory's, and a slide may be used where `valid` is 1.
    is_of_more = end is not None and looks_like(end[1]) is None and end[1] not in ("set", "split", "out")
    if is_of_more or word.endswith("valid") or not all(str(v).strip().casefold() in _SWITCHES for v in values):
        return None
    return looks_like(name)
