"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, in columns that line up as plain text as well."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *body]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
