from hypothesis import given
from hypothesis import strategies as st

from scripts.datalists.patients import look_of, one_spelling


@given(st.lists(st.text(max_size=8), max_size=8))
def test_names_have_one_spelling_just_where_they_look_alike(names: list[str]) -> None:
    spelled = one_spelling(names)
    assert set(spelled) <= set(names)
    for one, name in zip(spelled, names, strict=True):
        for other, other_name in zip(spelled, names, strict=True):
            assert (one == other) == (look_of(name) == look_of(other_name))


def test_case_accents_widths_and_signs_that_cannot_be_seen_are_no_other_name() -> None:
    assert (
        len({look_of(name) for name in ("M\u00fcller", "mu\u0308LLER", "\uff2d\u00fcller", "M\u00fcl\u200bler")}) == 1
    )
    assert len({look_of(name) for name in ("1", "01", "1.0", "P 1", "P1")}) == 5
