"""Labels as users write them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.keys import KEYS
from scripts.datalists.labels import (
    CLASS_NAMES,
    POSITIVE_CLASSES,
    check_class_names,
    label_vector,
    output_names,
    resolve_positive_classes,
    uses_indices,
    with_positive_classes,
)

ALL = r"cancer, hgd, lgd, hyperplastic, normal"
THREE_WAYS = (
    r"Give 0 or 1 for each of: {} \(in a CSV file a column each\); or names of these as `label`; or, for the binary "
    r"task, one 0 or 1 as `label`\."
)
NAMES = {
    "paper": list(CLASS_NAMES),
    "two": ["benign", "malignant"],
    "three": ["Grade 1", "grade 2", "Grade 3"],
    "one": ["tumour"],
}


@st.composite
def slides(draw: st.DrawFn, names: Sequence[str]) -> list[int]:
    """Which classes a slide has."""
    return draw(st.lists(st.integers(0, 1), min_size=len(names), max_size=len(names)))


def texts_of(value: int) -> st.SearchStrategy[object]:
    """A 0 or 1 as users, spreadsheets and pandas write it."""
    ways: list[object] = [value, float(value), bool(value), str(value), f"{value}.0", f" {value} ", np.float32(value)]
    return st.sampled_from(ways)


@st.composite
def spelled(draw: st.DrawFn, names: Sequence[str]) -> list[str]:
    """Names in some order, in any case, one perhaps twice."""
    chosen = [*draw(st.permutations(names)), *draw(st.lists(st.sampled_from(names), max_size=1))]
    return [f" {name} " if draw(st.booleans()) else draw(st.sampled_from([name, name.upper()])) for name in chosen]


@st.composite
def written(draw: st.DrawFn, has: Sequence[int], names: Sequence[str]) -> object:
    """A label of every kind that both tasks take, of a slide with these classes."""
    values = [draw(texts_of(value)) for value in has]
    plain = list(has)
    ways: list[object] = [
        values,
        tuple(values),
        np.array(plain),
        np.array(plain, bool),
        dict(zip(names, values, strict=True)),
    ]
    ways.append(json.dumps([draw(st.sampled_from([v, float(v), bool(v), str(v)])) for v in plain]))
    if len(set(plain)) < len(plain):  # else they could be indices
        ways += [sign.join(draw(st.sampled_from([str(v), f"{v}.0"])) for v in plain) for sign in ";|"]
    present = [name for name, value in zip(names, has, strict=True) if value]
    if present:
        words = draw(spelled(present))
        ways += [words, json.dumps(words), ";".join(words), "|".join(words) + "|"]
    return draw(st.sampled_from(ways))


@pytest.mark.parametrize("classes", NAMES)
@given(data=st.data())
def test_every_way_to_write_a_label_gives_its_classes(classes: str, data: st.DataObject) -> None:
    names = NAMES[classes]
    has = data.draw(slides(names))
    label = data.draw(written(has, names))
    assert label_vector(label, "multilabel", names).tolist() == has


@pytest.mark.parametrize("classes", NAMES)
@given(data=st.data())
def test_a_slide_counts_as_1_in_the_binary_task_if_it_has_a_positive_class(classes: str, data: st.DataObject) -> None:
    names = NAMES[classes]
    has = data.draw(slides(names))
    positive = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    expected = [float(any(value for name, value in zip(names, has, strict=True) if name in positive))]
    assert label_vector(data.draw(written(has, names)), "binary", names, positive).tolist() == expected
    if classes in ("paper", "one"):
        of_default = POSITIVE_CLASSES if classes == "paper" else names
        expected = [float(any(has[names.index(name)] for name in of_default))]
        assert label_vector(data.draw(written(has, names)), "binary", names).tolist() == expected


@pytest.mark.parametrize("classes", NAMES)
@pytest.mark.parametrize("value", [0, 1])
@given(data=st.data())
def test_one_0_or_1_is_the_label_of_the_binary_task_whatever_the_classes(
    classes: str, value: int, data: st.DataObject
) -> None:
    one = data.draw(texts_of(value))
    label = data.draw(st.sampled_from([one, [one], json.dumps([value]), np.array([value]), np.array(value)[()]]))
    assert label_vector(label, "binary", NAMES[classes]).tolist() == [value]
    assert label_vector(label, "binary", NAMES[classes], NAMES[classes][:1]).tolist() == [value]


@given(has=slides(CLASS_NAMES), data=st.data())
def test_class_indices_may_be_written_as_floats(has: list[int], data: st.DataObject) -> None:
    numbers = data.draw(st.permutations([i for i, value in enumerate(has) if value]))
    words = [data.draw(st.sampled_from([str(i), f"{i}.0", f"{i}e0"])) for i in numbers]
    if len(words) > 1:
        label: object = data.draw(st.sampled_from([";".join(words), "|".join(words)]))
        assert uses_indices([label])
        assert label_vector(label, "multilabel").tolist() == has
    elif words:
        # One alone is an index if another label of the datalist is.
        label = data.draw(st.sampled_from([words[0], float(numbers[0]), numbers[0], np.int64(numbers[0])]))
        assert uses_indices([words[0]]) == (numbers[0] > 1)
        assert label_vector(label, "multilabel", indices=True).tolist() == has


@pytest.mark.parametrize(
    ("label", "told"),
    [("4.5", "4.5"), (4.5, "4.5"), ("0;2.5", "2.5"), ("7.0", "7.0"), ("-1", "-1"), ("nan", "nan"), ("1e999", "1e999")],
)
def test_what_is_no_index_is_named(label: object, told: str) -> None:
    assert uses_indices([label]) == (label == "7.0")
    with pytest.raises(
        DatalistError, match=rf"has {told}, which is no class index. The classes are: 0 cancer, 1 hgd, 2 lgd"
    ):
        label_vector(label, "multilabel", indices=True)


@pytest.mark.parametrize("task", ["multilabel", "binary"])
@pytest.mark.parametrize("classes", ["paper", "two"])
@pytest.mark.parametrize(
    "label", [None, "", [], [1, 0, 0], [0, 2], "polyp", ["polyp"], {"polyp": 1}, "0.5", "1_0", object()]
)
def test_what_is_no_label_is_refused_with_the_ways_to_write_one(task: str, classes: str, label: object) -> None:
    names = NAMES[classes]
    with pytest.raises(DatalistError) as caught:
        label_vector(label, task, names, names[-1:] if task == "binary" else None, subject="s1")
    told = str(caught.value)
    assert told.startswith("s1: ")
    assert "\n" not in told
    for part in (", ".join(names), "0 or 1 for each", "ames of these", "for the binary task, one 0 or 1"):
        assert part in told


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


def test_the_positive_classes_are_a_setting() -> None:
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
        (["0.0", "4.0"], True),
        ([1.0, 4.0], True),
        (["0.0", "1.0", 0.0, 1.0], False),
        (["1.0;0;0.0;1;0", "0;0.0"], False),
        (["0.5", "4.5", "nan", "-3", "2_0"], False),
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
    with pytest.raises(DatalistError, match="label '2' has '2', not 0 or 1"):
        label_vector("2", "binary", indices=True)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "s1: no label. " + THREE_WAYS.format(ALL)),
        (" ; ", "s1: no label"),
        (
            [1, 0],
            r"s1: label \[1, 0\] has 2 values, but there are 5 classes. Give 0 or 1 for each of: " + ALL,
        ),
        ([], r"label \[\] has 0 values"),
        ([1, 0, 0, 0, 2], r"label \[1, 0, 0, 0, 2\] has 2, not 0 or 1. Give .*" + ALL),
        ([1, 0, 0, 0, float("nan")], "has nan, not 0 or 1"),
        ([1, 0, 0, 0, "x"], "has 'x', not 0 or 1"),
        ([1, 0, 0, 0, [1]], r"has \[1\], not 0 or 1"),
        ("[1, 0", r"label '\[1, 0' is no JSON list"),
        pytest.param("[" * 100_000, r"label '\[{40}' is no JSON list", id="deep"),
        pytest.param(f"[{'9' * 5000}]", r"label '\[9{39}' is no JSON list \(Exceeds", id="long number"),
        pytest.param(f"{'9' * 5000};1", r"is no class index", id="long index"),
        ("cancer;polyp", "unknown class 'polyp'. The classes are: " + ALL),
        ("0;0;1", "label '0;0;1' has 3 values, but there are 5 classes"),
        ("0;7", "label '0;7' has 7, which is no class index. The classes are: 0 cancer, 1 hgd, 2 lgd,"),
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
    with pytest.raises(DatalistError, match="label '0;3' has '3', not 0 or 1"):
        label_vector("0;3", "binary", indices=True)


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_two_numbers_for_two_classes_are_ambiguous(task: str) -> None:
    with pytest.raises(DatalistError, match=r"'0;1' could be two class indices or .*Write the names .*: a;b\."):
        label_vector("0;1", task, ("a", "b"))
    positive = ("a",) if task == "binary" else None
    assert label_vector("0;0", task, ("a", "b"), positive).max() == 0


def test_settings() -> None:
    with pytest.raises(
        SettingsError, match=r"task: got 'both'. Choose one of: multilabel, binary, multiclass, ordinal\."
    ):
        label_vector([1], "both")
    assert set(POSITIVE_CLASSES) < set(CLASS_NAMES)


@pytest.mark.parametrize("label", [[1, 0], {"a": 0, "b": 1}, "b", ["a"], "0;0"])
def test_classes_of_ones_own_need_positive_classes(label: object) -> None:
    told = r"positive_classes: not given, and whether the label .* \(s1\) counts as 1 .* Give a list of some of: a, b\."
    with pytest.raises(SettingsError, match=told):
        label_vector(label, "binary", ("a", "b"), subject="s1")


OWN = ("a", "b", "c")


@pytest.mark.parametrize(
    ("task", "names", "given_classes", "resolved", "outputs"),
    [
        ("multilabel", CLASS_NAMES, None, None, list(CLASS_NAMES)),
        ("multilabel", OWN, None, None, ["a", "b", "c"]),
        ("multilabel", OWN, [], None, ["a", "b", "c"]),
        ("binary", CLASS_NAMES, None, ["cancer", "hgd"], ["high_risk"]),
        ("binary", CLASS_NAMES, ["hgd", "cancer"], ["cancer", "hgd"], ["high_risk"]),
        ("binary", ["normal", "hgd", "cancer"], None, ["hgd", "cancer"], ["high_risk"]),
        ("binary", CLASS_NAMES, ["lgd"], ["lgd"], ["lgd"]),
        ("binary", OWN, ["b"], ["b"], ["b"]),
        ("binary", OWN, ("c", "a"), ["a", "c"], ["a_or_c"]),
        ("binary", ["tumour"], None, ["tumour"], ["tumour"]),
        ("binary", OWN, None, None, ["positive"]),
        ("binary", ["normal", "cancer"], None, None, ["positive"]),
    ],
)
def test_what_positive_classes_resolve_to_and_what_the_outputs_are_called(
    task: str,
    names: Sequence[str],
    given_classes: Sequence[str] | None,
    resolved: list[str] | None,
    outputs: list[str],
) -> None:
    assert resolve_positive_classes(task, names, given_classes) == resolved
    assert resolve_positive_classes(task, names, resolved) == resolved
    assert output_names(task, names, given_classes) == output_names(task, names, resolved) == outputs
    # What a version stored that had no such setting.
    if given_classes is None:
        stored = {"task": task, "class_names": list(names)}
        assert with_positive_classes(stored) == {**stored, "positive_classes": resolved}
    told = {"task": task, "class_names": list(names), "positive_classes": ["x"]}
    assert with_positive_classes(told) == told
    assert with_positive_classes({"lr": 1}) == {"lr": 1}


@pytest.mark.parametrize(
    ("task", "value", "told"),
    [
        (
            "binary",
            "a",
            r"""got 'a'. Give a list of some of: a, b, c; on the command line --positive_classes "\['c'\]"\.""",
        ),
        ("binary", [], r"got \[\]. Give a list of some of: a, b, c"),
        ("binary", 2024, "got 2024"),
        ("binary", {"a": 1}, "got {'a': 1}"),
        ("binary", ["a", "x"], r"'x' is no class. Choose some of: a, b, c\."),
        ("binary", ["A"], "'A' is no class"),
        ("binary", [1], "1 is no class"),
        ("binary", ["a", "a"], r"got \['a', 'a'\]. Name each class once\."),
        (
            "multilabel",
            ["a"],
            r"got \['a'\], and the multilabel task sets no classes against others. Leave it out, or give \[\]; it",
        ),
        ("multilabel", "a", "got 'a'"),
        ("multilabel", {"a": 1}, "got {'a': 1}"),
    ],
)
def test_what_are_no_positive_classes_is_refused(task: str, value: object, told: str) -> None:
    with pytest.raises(SettingsError, match=f"positive_classes: {told}") as caught:
        output_names(task, OWN, value)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="positive_classes: "):
        label_vector([0, 0, 1], task, OWN, value)  # type: ignore[arg-type]


ACCENTED = ("größe", "Übergang", "naïve é", "한국")
FORMS = st.sampled_from(["NFC", "NFD"])


@given(has=slides(ACCENTED), data=st.data())
def test_classes_are_known_however_accents_are_encoded(has: list[int], data: st.DataObject) -> None:
    def encoded(name: str) -> str:
        return unicodedata.normalize(data.draw(FORMS), name)

    names = [encoded(name) for name in ACCENTED]
    ways: list[object] = [{encoded(name): value for name, value in zip(ACCENTED, has, strict=True)}]
    present = [encoded(name) for name, value in zip(ACCENTED, has, strict=True) if value]
    if present:
        ways += [present, ";".join(present), "|".join(present).upper()]
    label = data.draw(st.sampled_from(ways))
    assert label_vector(label, "multilabel", names).tolist() == has
    positive = [encoded(ACCENTED[2]), encoded(ACCENTED[0])]
    assert label_vector(label, "binary", names, positive).tolist() == [max(has[0], has[2])]
    assert resolve_positive_classes("binary", names, positive) == [names[0], names[2]]


def test_two_ways_to_encode_an_accent_make_no_two_classes() -> None:
    both = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    with pytest.raises(SettingsError, match="class_names: .* are one name in labels"):
        check_class_names(both)
    with pytest.raises(SettingsError, match="Name each class once"):
        resolve_positive_classes("binary", [both[0], "b"], both)


def test_names_with_outer_spaces_are_found() -> None:
    assert label_vector("B;c", "multilabel", ("a", " b", "c ")).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cancer", "class_names: got 'cancer'"),
        ([], r"class_names: got \[\]"),
        (["a", 3], "class_names: 3 is no name"),
        (["a", " "], "class_names: ' ' is no name"),
        (["a;b", "c"], "class_names: 'a;b' has a separator of labels"),
        (["a|b", "c"], r"class_names: 'a\|b' has a separator"),
        (["slide", "c"], "class_names: 'slide' is taken. Choose other names than image, slide, id, label, part"),
        *(([key], f"class_names: '{key}' is taken") for key in (*KEYS, "split", "slide_id")),
        *(([key], f"class_names: '{key}' is taken") for key in ("head", "fold", "decision", "patient_number", "all")),
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


# --- one class a slide --------------------------------------------------------------------------------------

GRADES = ["normal", "lgd", "hgd", "cancer"]


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
@pytest.mark.parametrize(
    "label",
    ["hgd", " HGD ", ["hgd"], 2, 2.0, "2", "2.0", [2], ["2"], [0, 0, 1, 0], "[0,0,1,0]", "0;0;1;0", np.int64(2),
     {"normal": 0, "lgd": 0, "hgd": 1, "cancer": 0}],
)  # fmt: skip
def test_every_way_to_write_one_class_gives_it(task: str, label: object) -> None:
    vector = label_vector(label, task, GRADES)
    assert vector.tolist() == [0, 0, 1, 0]
    assert vector.dtype == np.float32


@pytest.mark.parametrize(("label", "place"), [(0, 0), ("0", 0), (1, 1), (True, 1), ("1.0", 1)])
def test_a_bare_0_or_1_is_the_number_of_a_class_where_a_slide_has_one(label: object, place: int) -> None:
    assert label_vector(label, "ordinal", GRADES).argmax() == place
    assert label_vector(label, "multiclass", GRADES).sum() == 1


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (
            "hgd;cancer",
            r"label 'hgd;cancer' has 2 classes \(hgd, cancer\), and in the ordinal task a slide has exactly",
        ),
        ([0, 0, 0, 0], r"label \[0, 0, 0, 0\] has no class, and in the ordinal task"),
        ("polyp", r"unknown class 'polyp'. The classes are: .* \(`class_names`\). Give the name of one of these, "),
        ("0;3", r"label '0;3' has 2 classes \(normal, cancer\)"),
        (4, r"label 4 has 4, which is no class index. The classes are: 0 normal, 1 lgd, 2 hgd, 3 cancer"),
        ("1.5", r"label '1.5' has 1.5, which is no class index"),
        (-1, r"label -1 has -1, which is no class index"),
        ("benign", r"unknown class 'benign'"),
        (None, r"no label. Give one of: normal, lgd, hgd, cancer; or its number, from 0 to 3, as `label`"),
    ],
)
def test_a_label_that_is_not_one_class_names_the_slide(label: object, told: str) -> None:
    with pytest.raises(DatalistError, match=rf"slide a: {told}"):
        label_vector(label, "ordinal", GRADES, subject="slide a")


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_one_class_of_several_has_no_positive_classes_and_is_one_of_two_or_more(task: str) -> None:
    assert output_names(task, GRADES) == GRADES
    assert resolve_positive_classes(task, GRADES, None) is None
    assert resolve_positive_classes(task, GRADES, []) is None
    with pytest.raises(SettingsError, match=f"the {task} task sets no classes against others"):
        resolve_positive_classes(task, GRADES, ["cancer"])
    with pytest.raises(SettingsError, match=r"class_names: got \['cancer'\].* Name two or more"):
        resolve_positive_classes(task, ["cancer"], None)
