"""What `checking` writes: checking.csv, slides.csv, and the same on the screen."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.checking.cost import bank_bytes
from scripts.checking.datalist import CheckedList
from scripts.checking.problems import Problem
from scripts.checking.slides import SlideFacts
from scripts.core.errors import printable
from scripts.core.files import write_csv
from scripts.core.magnification import scale_names
from scripts.core.repeats import first_names

__all__ = ["PROBLEM_COLUMNS", "shown_duration", "shown_problems", "shown_size", "write_problems", "write_slides"]

PROBLEM_COLUMNS = ("severity", "check", "slide", "where", "what", "what_to_do")
# Lines on the screen; the file has all.
SHOWN_PROBLEMS = 50


def write_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """Write ``checking.csv``: one line a problem.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    lines = ([" ".join(getattr(problem, name).splitlines()) for name in PROBLEM_COLUMNS] for problem in problems)
    write_csv(path, PROBLEM_COLUMNS, lines)


def write_slides(
    path: str | Path,
    checked: CheckedList,
    facts: Sequence[SlideFacts],
    problems: Sequence[Problem],
    magnifications: Sequence[float],
    class_names: Sequence[str],
    feature_bytes: int | None,
) -> None:
    """Write ``slides.csv``: one line a slide, which is a datalist again.

    Its columns are ``slide``, ``image`` (absolute), ``patient``, ``mpp``, ``mask`` and ``mask_tissue`` where they were
    given, ``partition``, one column a class (or ``label``, where labels are only high risk or not), ``sha256``; what
    was found; and the user's own. Where patients are offered (see :class:`scripts.checking.datalist.CheckedList`),
    ``patient`` has them, and a ``partition`` that was not given stays empty, to be split by them.

    Args:
        path: the file.
        checked: the datalist.
        facts: of each slide.
        problems: all of them.
        magnifications: the scales.
        class_names: the classes in order.
        feature_bytes: of the features of a patch; ``None`` if no encoder could be built.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    names = scale_names(magnifications)
    labels = ["label"] if checked.class_values is None else list(class_names)
    given = ["slide", "image", "patient", "partition", *labels, "mpp", "mask", "mask_tissue", "mask_excluded", "sha256"]
    found = ["problems", "mpp_used", "mpp_source", "width_px", "height_px", "levels", "rows"]
    found += [f"patches_{name}" for name in names] + ["tissue_mm2", "covered_mm2", "bytes", "bank_bytes"]
    # A list that is checked again has what was found the last time.
    own = {key: None for slide in checked.slides for key in slide.row.fields if not key.startswith("patches_")}
    columns = [*given, *found, *(key for key in own if key not in (*given, *found))]
    count = Counter(problem.slide for problem in problems)
    lines = []
    for i, (slide, entry, fact) in enumerate(zip(checked.slides, checked.entries(), facts, strict=True)):
        line: dict[str, Any] = {key: value for key, value in entry.items() if key in columns and key not in found}
        line |= {"patient": slide.row.fields.get("patient"), "partition": slide.partition, "sha256": fact.sha256}
        if any(checked.offered):
            # A split that was made without patients would be refused with them.
            line |= {"patient": checked.offered[i], "partition": slide.row.partition}
        line |= _label_cells(checked, i, class_names)
        for key in ("mask_tissue", "mask_excluded"):
            if (listed := getattr(slide, key)) is not None:
                line[key] = ";".join(map(str, listed))
        line |= {"problems": count[slide.name], "levels": fact.num_levels, "bytes": fact.num_bytes}
        line |= {"rows": fact.num_rows}
        if fact.resolution is not None:
            line |= {"mpp_used": f"{fact.resolution.mpp:.6g}", "mpp_source": fact.resolution.source}
        if fact.size_level0 is not None:
            line["width_px"], line["height_px"] = fact.size_level0
        if fact.num_patches is not None and fact.num_rows is not None:
            line |= {f"patches_{name}": n for name, n in zip(names, fact.num_patches, strict=True)}
            line |= {"tissue_mm2": f"{fact.tissue_mm2:.4g}", "covered_mm2": f"{fact.covered_mm2:.4g}"}
            if feature_bytes is not None:
                line["bank_bytes"] = bank_bytes(fact.num_patches, fact.num_rows, feature_bytes)
        lines.append([_cell(line.get(column)) for column in columns])
    write_csv(path, columns, lines)


def shown_problems(problems: Sequence[Problem], path: str | Path, width: int | None = None) -> str:
    """The problems as a table for the screen, at most :data:`SHOWN_PROBLEMS` lines.

    The same problem of several slides is one line, with a count and the first few names.

    Args:
        problems: those that block first.
        path: the file that lists all of them.
        width: of the table in characters; by default the terminal's.
    """
    width = width or min(shutil.get_terminal_size((120, 24)).columns, 160)
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.cause, []).append(problem)
    shown = list(groups.values())[:SHOWN_PROBLEMS]
    first, second = (max(len(getattr(group[0], key)) for group in shown) for key in ("severity", "check"))
    indent, lines = " " * (first + second + 4), []
    for group in shown:
        start = f"{group[0].severity:<{first}}  {group[0].check:<{second}}  "
        room = max(width, len(indent) + 40)
        text = printable(" ".join(_sentence(group).splitlines()))
        fill = textwrap.TextWrapper(room, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False).fill
        lines.append(fill(text))
    if left := len(problems) - sum(map(len, shown)):
        lines.append(f"... and {left} more in {path}")
    counts = Counter(problem.check for problem in problems)
    blocking = sum(problem.blocks for problem in problems)
    by_check = ", ".join(f"{check} {number}" for check, number in sorted(counts.items()))
    return "\n".join([*lines, f"{blocking} block, {len(problems) - blocking} warn ({by_check}): {path}"])


def _sentence(group: Sequence[Problem]) -> str:
    """Problems with one cause."""
    first, names = group[0], [problem.slide or next(iter(problem.names), problem.where) for problem in group]
    if len(group) == 1:
        return f"{first.where}: {first.what}. {first.what_to_do}"
    noun = "slides" if all(problem.slide for problem in group) else "times"
    of_first = "" if all(problem.what == first.what for problem in group) else "the first: "
    return f"{len(group)} {noun} ({first_names(names)}): {of_first}{first.what}. {first.what_to_do}"


def shown_duration(seconds: float) -> str:
    """``"48 s"``, ``"12 min"``, ``"3.5 h"``, ``"4.2 days"``."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def shown_size(num_bytes: float) -> str:
    """``"12.3 MB"``, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _label_cells(checked: CheckedList, index: int, class_names: Sequence[str]) -> Mapping[str, Any]:
    if checked.class_values is not None:
        values = checked.class_values[index]
        return {} if values is None else dict(zip(class_names, values, strict=True))
    label = checked.slides[index].label
    return {} if label is None else {"label": int(label[0])}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
