"""The tables of a comparison: Markdown to read, CSV for further use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scripts.core.files import write_csv
from scripts.core.markdown import markdown_table
from scripts.core.tasks import get_task
from scripts.evaluation.bootstrap import FEWEST_PATIENTS, PairedDifference, patients_text
from scripts.evaluation.head_report import decided_scores
from scripts.evaluation.metrics import SCORE_TITLES, score_names
from scripts.evaluation.score_texts import digits, mean_sd_text
from scripts.experiments.comparison_results import MAP_SCORES, MapRow, Row, Run

__all__ = ["Table", "comparison_tables", "markdown", "mean_and_sd", "point_caption", "write_runs", "write_summary"]

SUMMARY_COLUMNS = (
    "method", "output", "class", "score", "mean", "sd", "trainings", "behind", "behind_low", "behind_high", "p_value",
    "brings", "brings_low", "brings_high", "brings_p_value",
)  # fmt: skip
OPERATING_POINT = "operating_point_"
"""What the names of scores at the operating points begin with in CSV."""


class Table(NamedTuple):
    """A table of a comparison: what it shows, its head, and its rows, all of texts."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison_tables(
    rows: Sequence[Row],
    maps: Sequence[MapRow],
    task: str,
    num_slides: int,
    num_patients: int,
    seeds: Sequence[int],
    chance: Mapping[str, float],
    patients_known: bool = True,
    folds: int | None = None,
) -> list[Table]:
    """The tables of a comparison.

    Args:
        rows: the heads of the methods.
        maps: their maps of attention and contribution.
        task: one of :data:`scripts.core.tasks.TASKS`.
        num_slides: the number of test slides.
        num_patients: the number of their patients.
        seeds: the seeds of the trainings.
        chance: the scores of class frequencies alone, see :func:`scripts.evaluation.metrics.frequency_baseline`.
        patients_known: whether the datalist names the patients; if not, each slide counts as one.
        folds: into how many the patients were divided, so that each slide was tested once; ``None`` for one split.
    """
    names = score_names(task)
    head = [
        "output", *(SCORE_TITLES[name] for name in names),
        f"behind MuSTMIL global in {SCORE_TITLES[names[1]]} [95%]", "p", "phases", "weights trained", "training in s",
    ]  # fmt: skip
    body = []
    for row in rows:
        cost = [str(row.phases), f"{row.parameters:,}", _mean_sd(row.seconds, places=1)]
        body.append([row.title, *(_mean_sd(row.scores[name]) for name in names), *_behind(row.behind), *cost])
    body.append(["class frequencies alone", *(digits(chance[name]) for name in names), *[""] * 5])
    intervals = (
        "its interval and p come from a bootstrap over patients and trainings. Each p is of one difference alone: of "
        "twenty without a cause, one is below 0.05."
    )
    if num_patients < FEWEST_PATIENTS:
        intervals = f"it has no interval and no p, because the patients are fewer than {FEWEST_PATIENTS}."
    tested = patients_text(num_slides, num_patients if patients_known else None, "test slides")
    if folds is not None:
        tested += f" in {folds} folds, each tested once, and scored together"
    caption = (
        f"{tested}, {len(seeds)} trainings of each method (seeds {', '.join(map(str, seeds))}): mean ± standard "
        f"deviation over trainings. The difference to MuSTMIL's global output is on the same slides; {intervals}"
    )
    tables = [Table(caption, head, body), *_decided_table(rows, task, folds), *_parts_table(rows, task, intervals)]
    for score in ("f1", "roc_auc"):
        classes = list(rows[0].classes)
        body = [[row.title, *(_mean_sd(row.classes[name][score]) for name in classes)] for row in rows]
        tables.append(Table(f"{SCORE_TITLES[score]} of each class:", ["output", *classes], body))
    for score in MAP_SCORES if maps else ():
        classes = list(maps[0].classes)
        body = [[m.title, m.kind, m.scale, *(_mean_sd(m.classes[name][score]) for name in classes)] for m in maps]
        for scale in dict.fromkeys(m.scale for m in maps):
            m = next(m for m in maps if m.scale == scale)
            chances = [(m.slides[name], 0.5 if score == "roc_auc" else m.positive_share[name]) for name in classes]
            cells = [f"{digits(value)} ({slides})" if slides else "- (0)" for slides, value in chances]
            body.append(["chance (slides)", "", scale, *cells])
        caption = (
            f"Heatmaps against the regions of the classes, patch by patch, {SCORE_TITLES[score]}, mean over the slides "
            "of the class in which some patches, and not all, lie in its regions:"
        )
        tables.append(Table(caption, ["map", "kind", "patches", *classes], body))
    return tables


def _decided_table(rows: Sequence[Row], task: str, folds: int | None) -> list[Table]:
    """The scores at the operating points; none where some weights have none."""
    if not all(row.decided for row in rows):
        return []
    names = list(rows[0].decided)
    behind = f"behind MuSTMIL global in {SCORE_TITLES[score_names(task)[1]]} [95%]"
    body = [[row.title, *(_mean_sd(row.decided[name]) for name in names), *_behind(row.decided_behind)] for row in rows]
    caption = f"{point_caption(task, 'training' if folds is None else 'fold')}:"
    return [Table(caption, ["output", *(SCORE_TITLES[name] for name in names), behind, "p"], body)]


def _parts_table(rows: Sequence[Row], task: str, intervals: str) -> list[Table]:
    """Each variant beside its method, head by head; none without variants of a method that is there."""
    lead, of_output = score_names(task)[1], {(row.method, row.head): row for row in rows}
    title = SCORE_TITLES[lead]
    variants = [row for row in rows if row.brings is not None]
    if not variants:
        return []
    head = ["output", title, f"{title} of the method", "the part brings [95%]", "p"]
    has_points = all(row.decided_brings is not None for row in variants)
    if has_points:
        point = "at the operating point"
        head += [f"{title} {point}", f"of the method {point}", f"the part brings {point} [95%]", f"p {point}"]
    body = []
    for row in variants:
        plain = of_output[str(row.variant_of), row.head]
        cells = [*(_mean_sd(one.scores[lead]) for one in (row, plain)), *_behind(row.brings)]
        if has_points:
            cells += [*(_mean_sd(one.decided[lead]) for one in (row, plain)), *_behind(row.decided_brings)]
        body.append([row.title, *cells])
    caption = (
        "What each part brings: each variant beside its method, output by output, on the same slides. The difference "
        f"is above 0 where the method is better; {intervals}"
    )
    return [Table(caption, head, body)]


def point_caption(task: str, trained: str = "training") -> str:
    """The caption of scores at the operating points that belong to each ``trained``."""
    kind = get_task(task)
    rule = kind.decision if kind.is_exclusive else "decided at its thresholds"
    return f"The same at the operating point of each {trained}: calibrated on its validation slides, {rule}"


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, in columns that line up as plain text as well."""
    return "\n\n".join(text for t in tables for text in (t.caption, markdown_table(t.head, t.rows))) + "\n"


def write_summary(path: Path, rows: Sequence[Row], maps: Sequence[MapRow]) -> None:
    """Write ``comparison.csv``: one line for each number of the tables, with its mean and standard deviation.

    ``output`` is a head, or the kind and name of a map; an empty ``class`` means all. The columns from ``behind`` on
    are filled for the score in which methods are compared, those from ``brings`` on for variants of a method alone.
    Scores at the operating points have names that begin with :data:`OPERATING_POINT`.
    """
    lines: list[list[object]] = []
    for row in rows:
        lead = list(row.scores)[1]
        found = [
            ("", row.scores, (row.behind, row.brings)),
            (OPERATING_POINT, row.decided, (row.decided_behind, row.decided_brings)),
        ]
        for prefix, scores, differences in found:
            for name, values in scores.items():
                compared = [cell for b in differences for cell in _numbers(b if name == lead else None)]
                lines.append([row.method, row.head, "", prefix + name, *_cells(values), *compared])
        for class_name, scores in row.classes.items():
            lines += [[row.method, row.head, class_name, name, *_cells(values)] for name, values in scores.items()]
        lines.append([row.method, row.head, "", "training_seconds", *_cells(row.seconds)])
        for name, value in (("phases", row.phases), ("parameters", row.parameters)):
            lines.append([row.method, row.head, "", name, value])
    for m in maps:
        for class_name, scores in m.classes.items():
            output = [m.method, f"{m.kind} {m.map_name}", class_name]
            lines += [[*output, f"localisation_{name}", *_cells(values)] for name, values in scores.items()]
    filled = ([*line, *[""] * (len(SUMMARY_COLUMNS) - len(line))] for line in lines)
    write_csv(path, SUMMARY_COLUMNS, filled)


def write_runs(path: Path, runs: Sequence[Run], task: str) -> None:
    """Write ``runs.csv``: one line for each run, of folds for each of them, and head: scores, time and best epoch.

    Scores at the operating points have names that begin with :data:`OPERATING_POINT`.
    """
    names, of_points = score_names(task), decided_scores(task) if any(run.decisions for run in runs) else []
    has_folds = any(run.fold is not None for run in runs)
    lines = []
    for run in runs:
        for head, found in run.scores.items():
            values = [found[name] for name in names]
            values += [run.decisions[head].scores[name] if run.decisions else np.nan for name in of_points]
            scores = ["" if np.isnan(value) else f"{value:.6g}" for value in values]
            best = run.training["best"][head]
            costs = [f"{best['validation_loss']:.6g}", best["epoch"], f"{run.seconds(head):.3f}"]
            lines.append([run.variant.name, run.seed, *([run.fold] if has_folds else []), head, *scores, *costs])
    own = ["method", "seed", *(["fold"] if has_folds else []), "output"]
    scored = [*names, *(OPERATING_POINT + name for name in of_points)]
    write_csv(path, [*own, *scored, "validation_loss", "best_epoch", "training_seconds"], lines)


def mean_and_sd(values: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation, with n - 1 in the denominator, of what is not NaN; NaN without enough."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if known.size else np.nan
    return mean, float(known.std(ddof=1)) if known.size > 1 else np.nan


def _cells(values: NDArray[np.float64]) -> list[object]:
    """Mean, standard deviation and number of the values, as CSV has them."""
    numbers = ("" if np.isnan(number) else f"{number:.6g}" for number in mean_and_sd(values))
    return [*numbers, int((~np.isnan(values)).sum())]


def _mean_sd(values: NDArray[np.float64], places: int = 3) -> str:
    return mean_sd_text(*mean_and_sd(values), places)


def _numbers(b: PairedDifference | None) -> list[str]:
    """A difference with its interval and p, as CSV has them."""
    return [""] * 4 if b is None else [f"{v:.6g}" for v in (b.difference, b.low, b.high, b.p_value)]


def _behind(b: PairedDifference | None) -> tuple[str, str]:
    """The difference with its interval, and p."""
    if b is None:
        return "", ""
    if np.isnan(b.p_value):
        return f"{b.difference:+.3f}", "-"
    p = "< 0.001" if b.p_value < 0.001 else digits(b.p_value)
    return f"{b.difference:+.3f} [{b.low:+.3f}, {b.high:+.3f}]", p
