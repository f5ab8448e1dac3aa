"""Tables as Markdown."""

from scripts.core.markdown import markdown_table


def test_columns_line_up_and_a_bar_does_not_end_a_cell():
    assert markdown_table(["a", "long"], [["x|y", "1"], ["", "22"]]).splitlines() == [
        "| a    | long |",
        "| ---- | ---- |",
        "| x\\|y | 1    |",
        "|      | 22   |",
    ]
