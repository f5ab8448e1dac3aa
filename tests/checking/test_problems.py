from scripts.checking.problems import BLOCKS, WARNS, Problem, Problems
from scripts.core.errors import SlideError


def test_a_problem_says_what_its_error_says():
    error = SlideError("s.svs", "it is torn", "Copy it again.")
    assert Problem.of(error, "file", slide="s") == Problem(BLOCKS, "file", "s.svs", "it is torn", "Copy it again.", "s")


def test_warnings_do_not_block():
    assert Problem(BLOCKS, "a", "b", "c", "d").blocks
    assert not Problem(WARNS, "a", "b", "c", "d").blocks


def test_a_step_that_fails_is_a_problem_and_others_go_on():
    def torn():
        raise SlideError("s.svs", "it is torn", "Copy it again.")

    problems = Problems("s.svs", "s")
    assert problems.attempt("file", torn) is None
    assert problems.attempt("pyramid", lambda: 7) == 7
    problems.add(WARNS, "tissue", "little of it", "Look at it.")
    assert problems == [
        Problem(BLOCKS, "file", "s.svs", "it is torn", "Copy it again.", "s"),
        Problem(WARNS, "tissue", "s.svs", "little of it", "Look at it.", "s"),
    ]


def test_what_a_library_raises_on_a_damaged_file_is_a_problem_of_that_file():
    problems = Problems("s.svs", "s")
    assert problems.attempt("pyramid", lambda: 1 / 0) is None
    assert [(p.severity, p.where, p.what) for p in problems] == [
        (BLOCKS, "s.svs", "looking at its pyramid failed (ZeroDivisionError: division by zero)")
    ]
