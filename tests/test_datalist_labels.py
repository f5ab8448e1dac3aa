"""Labels as users write them."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.datalist_labels import CLASS_NAMES, HIGH_RISK, check_class_names, label_vector, uses_indices
from scripts.errors import DatalistError, SettingsError

ALL = r"cancer, hgd, lgd, hyperplastic, normal"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([1, 0, 0, 1, 0], [1, 0, 0, 1, 0]),
        ([0.0, 1.0, 0, 0, True], [0, 1, 0, 0, 1]),
        (["1", "0", "0", "0", "1.0"], [1, 0, 0, 0, 1]),
        (np.array([0, 0, 1, 0, 0]), [0, 0, 1, 0, 0]),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ("[0, 1, 0, 1, 0]", [0, 1, 0, 1, 0]),
        ("cancer", [1, 0, 0, 0, 0]),
        ("Normal ; HGD", [0, 1, 0, 0, 1]),
        ("lgd|hyperplastic|", [0, 0, 1, 1, 0]),
        (["cancer", "lgd"], [1, 0, 1, 0, 0]),
        ('["cancer", "lgd"]', [1, 0, 1, 0, 0]),
        ("0;3", [1, 0, 0, 1, 0]),
        ("1;0;0;1;0", [1, 0, 0, 1, 0]),
        ("0|0|1|0|0", [0, 0, 1, 0, 0]),
        ("4;3;2;1;0", [1, 1, 1, 1, 1]),
        ({"cancer": "0", "hgd": "1", "lgd": 0, "hyperplastic": 0, "normal": 1}, [0, 1, 0, 0, 1]),
    ],
)
def test_multilabel(label: object, expected: list[int]) -> None:
    vector = label_vector(label, "multilabel")
    assert vector.dtype == np.float32
    assert vector.tolist() == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (0, 0),
        (1, 1),
        (True, 1),
        ("1", 1),
        ("0.0", 0),
        ([1], 1),
        ([1, 0, 0, 0, 0], 1),
        ([0, 1, 0, 0, 1], 1),
        ([0, 0, 1, 1, 1], 0),
        ([0, 0, 0, 0, 0], 0),
        ("hgd;normal", 1),
        ("0;1;0;0;0", 1),
        ("lgd", 0),
    ],
)
def test_binary(label: object, expected: int) -> None:
    vector = label_vector(label, "binary")
    assert vector.dtype == np.float32
    assert vector.tolist() == [expected]


def test_high_risk_is_a_setting() -> None:
    assert label_vector("lgd", "binary", CLASS_NAMES, ("lgd", "normal")).tolist() == [1]
    assert label_vector("cancer", "binary", CLASS_NAMES, ("lgd", "normal")).tolist() == [0]
    assert label_vector("b", "binary", ("a", "b"), ("b",)).tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1"], False),
        ([0, 1, 3], True),
        (["0", "1;2"], True),
        (["cancer;lgd", [0, 3], None, "", "1;0;0;1;0"], False),
    ],
)
def test_uses_indices(labels: list[object], expected: bool) -> None:
    assert uses_indices(labels) is expected


def test_a_bare_number_is_an_index_only_if_others_must_be() -> None:
    assert label_vector("0", "multilabel", indices=True).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(DatalistError, match="label '0' has 1 value, but there are 5 classes"):
        label_vector("0", "multilabel")
    # In the binary task it is never one: a 2 by mistake must not turn every other label round.
    assert label_vector("0", "binary", indices=True).tolist() == [0]
    with pytest.raises(DatalistError, match="label '2' holds '2', not 0 or 1"):
        label_vector("2", "binary", indices=True)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "s1: no label. Give 0 or 1 for each of: " + ALL),
        (" ; ", "s1: no label"),
        (
            [1, 0],
            r"s1: label \[1, 0\] has 2 values, but there are 5 classes. Give 0 or 1 for each of: " + ALL,
        ),
        ([], r"label \[\] has 0 values"),
        ([1, 0, 0, 0, 2], r"label \[1, 0, 0, 0, 2\] holds 2, not 0 or 1. Give .*" + ALL),
        ([1, 0, 0, 0, float("nan")], "holds nan, not 0 or 1"),
        ([1, 0, 0, 0, "x"], "holds 'x', not 0 or 1"),
        ([1, 0, 0, 0, [1]], r"holds \[1\], not 0 or 1"),
        ("[1, 0", r"label '\[1, 0' is no JSON list"),
        pytest.param("[" * 100_000, r"label '\[{40}'\.\.\. cannot be read", id="deep"),
        pytest.param(f"[{'9' * 5000}]", r"label '\[9{39}'\.\.\. cannot be read \(Exceeds", id="long number"),
        pytest.param(f"{'9' * 5000};1", r"is no class index", id="long index"),
        ("cancer;polyp", "unknown class 'polyp'. The classes are: " + ALL),
        ("0;0;1", "label '0;0;1' has 3 values, but there are 5 classes"),
        ("0;7", "label '0;7' is no class index. The classes are: 0 cancer, 1 hgd, 2 lgd,"),
        ({"cancer": 1}, "label has no hgd"),
        ({**dict.fromkeys(CLASS_NAMES, 0), "polyp": 1}, "label has the unknown class 'polyp'"),
        (object(), "cannot be understood"),
    ],
)
def test_errors(label: object, message: str) -> None:
    with pytest.raises(DatalistError, match=message) as caught:
        label_vector(label, "multilabel", subject="s1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["0;1", [0, 1], "0;1;0"])
def test_binary_errors(label: object) -> None:
    with pytest.raises(DatalistError, match=r"has [23] values, but there are 5 classes"):
        label_vector(label, "binary")


def test_no_indices_in_the_binary_task() -> None:
    with pytest.raises(DatalistError, match="label '0;3' holds '3', not 0 or 1"):
        label_vector("0;3", "binary", indices=True)


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_two_numbers_for_two_classes_are_ambiguous(task: str) -> None:
    with pytest.raises(DatalistError, match=r"'0;1' could be two class indices or .*Write the names .*: a;b\."):
        label_vector("0;1", task, ("a", "b"), ("a",))
    assert label_vector("0;0", task, ("a", "b"), ("a",)).max() == 0


def test_settings() -> None:
    with pytest.raises(SettingsError, match=r"task: got 'both'. Choose one of: multilabel, binary\."):
        label_vector([1], "both")
    with pytest.raises(SettingsError, match=r"high_risk: 'cancer' is no class. Choose some of: a, b\."):
        label_vector([1, 0], "binary", ("a", "b"))
    with pytest.raises(SettingsError, match="high_risk: no class"):
        label_vector([1, 0], "binary", ("a", "b"), ())
    assert set(HIGH_RISK) < set(CLASS_NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cancer", "class_names: got 'cancer'"),
        ([], r"class_names: got \[\]"),
        (["a", 3], "class_names: 3 is no name"),
        (["a", " "], "class_names: ' ' is no name"),
        (["a;b", "c"], "class_names: 'a;b' has a separator of labels"),
        (["a|b", "c"], r"class_names: 'a\|b' has a separator"),
        (["slide", "c"], "class_names: 'slide' is taken. Choose other names than slide, head, label, all"),
        (["all"], "class_names: 'all' is taken"),
        (["Label", "c"], "class_names: 'Label' is taken"),
        (["a", "b", "a"], "class_names: 'a' is named twice"),
        (["A", "a", "b"], "class_names: 'A' and 'a' are one name in labels"),
        (["a", "b", "a "], "class_names: 'a' and 'a ' are one name in labels"),
        (["1", "2", "3", "4", "5"], r"class_names: '1' is a number, .*\. Name it with letters, for example 'grade 1'"),
        (["normal", " 2.5"], "class_names: ' 2.5' is a number"),
    ],
)
def test_class_names_that_outputs_could_not_hold_are_refused(names, message):
    with pytest.raises(SettingsError, match=message):
        check_class_names(names)
    with pytest.raises(SettingsError, match=message):
        label_vector("a", "multilabel", names)
