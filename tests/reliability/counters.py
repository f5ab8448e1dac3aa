"""Counting: which fault was tried how often, and what came of it; the table of ``docs/reliability.md``."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.core.files import replacing
from tests.benchmarks.__main__ import processor

__all__ = ["BEGIN", "END", "Counts", "write_table"]

BEGIN, END = "<!-- begin: make reliability -->", "<!-- end -->"
PART = re.compile(r"<!-- part: (\w+) -->\n(.*?)(?=<!-- part: |\Z)", re.DOTALL)


class Counts:
    """What became of the faults of one part.

    Every number is counted here. An outcome in capitals is a failure, and makes the command fail.

    Args:
        path: a JSON file with the counts so far; ``None`` keeps them in memory alone.
        about: what the part is about, the command that runs it: written above its rows.
    """

    def __init__(self, path: Path | None = None, about: str = "") -> None:
        self.path, self.about = path, about
        self.rows: dict[str, Counter[str]] = {}

    def add(self, fault: str, outcome: str) -> None:
        """Count one try.

        Args:
            fault: what was done, the row of the table.
            outcome: what came of it, in a few words; in capitals if it is a failure.
        """
        self.rows.setdefault(fault, Counter())[outcome] += 1
        if self.path is not None:
            with replacing(self.path) as part:
                part.write_text(json.dumps(self.content(), indent=2) + "\n", encoding="utf-8")

    def content(self) -> dict[str, object]:
        """The counts as plain values, with the day, the machine and the command."""
        rows = {fault: dict(outcomes) for fault, outcomes in self.rows.items()}
        return {"date": str(datetime.date.today()), "machine": processor(), "about": self.about, "rows": rows}

    def bad(self) -> list[str]:
        """The faults with an outcome in capitals."""
        return [fault for fault, outcomes in self.rows.items() if any(outcome.isupper() for outcome in outcomes)]

    def markdown(self) -> str:
        """The rows as a table, each with the number of tries and of each outcome."""
        lines = ["| fault | tried | outcome |", "|---|---|---|"]
        for fault, outcomes in self.rows.items():
            outcome_cell = ", ".join(f"{number} x {outcome}" for outcome, number in outcomes.most_common())
            lines.append(f"| {_cell(fault)} | {outcomes.total()} | {_cell(outcome_cell)} |")
        return "\n".join(lines)


def write_table(page: Path, part: str, counts: Counts, order: Sequence[str], beside: bool = False) -> None:
    """Put the rows of a part between the markers of a page; those of the other parts stay as they are.

    Args:
        page: a Markdown file with :data:`BEGIN` and :data:`END`.
        part: whose rows are replaced.
        counts: the rows.
        order: all parts, as they follow each other on the page.
        beside: put the rows below those of the part, in place of those that the same command made.

    Raises:
        ValueError: if the page has not each marker once, in this order.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise ValueError(f"{page} must have {BEGIN!r} and {END!r} once each, in this order")
    parts = {name: content.strip() for name, content in PART.findall(text[begin + len(BEGIN) : end])}
    content = counts.content()
    table = f"{counts.about}: {content['date']}, {content['machine']}.\n\n{counts.markdown()}"
    if beside:
        tables = re.split(r"\n\n(?!\|)", parts.get(part, ""))
        table = "\n\n".join([*(text for text in tables if text and not text.startswith(f"{counts.about}:")), table])
    parts[part] = table
    blocks = "".join(f"\n<!-- part: {name} -->\n{parts[name]}\n" for name in order if name in parts)
    with replacing(page) as new:
        new.write_text(f"{text[:begin]}{BEGIN}{blocks}\n{text[end:]}", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
