"""How many patients and trainings it takes to tell the methods of a comparison apart: a table for planning one."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import norm

from scripts.core.tasks import get_task
from scripts.evaluation.bootstrap import FEWEST_PATIENTS
from scripts.evaluation.metrics import SCORE_TITLES
from scripts.evaluation.power import DifferenceSpread
from scripts.evaluation.score_texts import digits
from scripts.experiments.comparison_results import Row
from scripts.experiments.comparison_tables import Table

__all__ = ["HALF_WIDTHS", "power_table"]

# A normal difference with a mean of so many halves of its interval is more than one half in 80% of comparisons.
FOUND_80 = 1 + float(norm.ppf(0.8) / norm.ppf(0.975))
HALF_WIDTHS = (0.05, 0.02, 0.01)
"""Halves of the widths of the 95% intervals that the table is for, in units of the score."""


def power_table(rows: Sequence[Row], task: str, num_slides: int, num_patients: int) -> list[Table]:
    """The table, or none where nothing is compared with MuSTMIL's global output.

    Args:
        rows: the heads of the methods.
        task: one of :data:`scripts.core.tasks.TASKS`.
        num_slides: the number of test slides.
        num_patients: the number of their patients.
    """
    compared = [row for row in rows if row.behind is not None]
    if not compared:
        return []
    score = SCORE_TITLES[get_task(task).scores[1]]
    caption = (
        f"How many slides a comparison needs: test patients, and in brackets trainings of each method, with which the "
        f"95% interval of the difference to MuSTMIL's global output in {score} reaches so far to either side. "
    )
    if num_patients < FEWEST_PATIENTS:
        caption += f"It is not told, because the patients are fewer than {FEWEST_PATIENTS}."
    elif all(row.spread is None for row in compared):
        caption += "It is not told, because one training does not show how they vary, or the score is not defined."
    else:
        caption += (
            f"Worked out from the spread over the {num_patients} patients here, who have "
            f"{num_slides / num_patients:.2f} slides each, and over the trainings; for patients, classes and training "
            "slides like these. A difference that is measured is told from 0 if it is larger than that; a true one is "
            f"found four times in five if it is {FOUND_80:.2f} times as large, and half of the time if it is as large."
        )
    head = ["output", "sd over patients", "sd over trainings", "here", *(f"± {width}" for width in HALF_WIDTHS)]
    return [Table(caption, head, [[row.title, *_cells(row.spread)] for row in compared])]


def _cells(spread: DifferenceSpread | None) -> list[str]:
    if spread is None:
        return ["-"] * (3 + len(HALF_WIDTHS))
    needed = [spread.needed(width) for width in HALF_WIDTHS]
    return [
        digits(spread.patients_sd),
        digits(spread.trainings_sd),
        f"± {digits(spread.half_width(spread.num_patients, spread.num_trainings))}",
        *(f"{patients:,} ({trainings})" for patients, trainings in needed),
    ]
