"""What was measured, as one table a cohort, and the aims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.benchmarks.peers.contenders import Contender, Features, Ours
from tests.benchmarks.peers.measuring import Measured

__all__ = ["Run", "aim_line", "result_table"]

COLUMNS = ("tool", "arithmetic", "patches", "patches/s", "of each run", "first features, s", "peak MB")
# Of all that is ours, what is compared with each tool: like with like, and at its best.
RATIOS = ("torch float32 / it", "our fastest / it")


class Run(NamedTuple):
    """One run of a contender: from its start, how long until it had features of the first batch, and until its end."""

    patches: int
    seconds: float
    first_features_s: float
    peak_mb: float

    @classmethod
    def of(cls, measured: Measured, features: Features) -> Run:
        first = features.first_batch_at - measured.began_at
        return cls(features.patches, measured.seconds, first, measured.peak_mb)

    @property
    def rate(self) -> float:
        """Patches a second, the start of the process and all else included."""
        return self.patches / self.seconds


Runs = Mapping[Contender, Sequence[Run]]


def result_table(runs: Runs) -> str:
    """A line for each contender: means over its runs, and how many times as fast ours are; in Markdown.

    Args:
        runs: of each contender, at least one.
    """
    like = next((rate(runs, one) for one in runs if one == Ours("torch", amp=False)), None)
    best = max((rate(runs, one) for one in runs if isinstance(one, Ours)), default=None)
    lines = ["| " + " | ".join((*COLUMNS, *RATIOS)) + " |", "|---" * len((*COLUMNS, *RATIOS)) + "|"]
    for one, of_it in runs.items():
        cells = [
            one.name,
            one.arithmetic,
            " or ".join(str(count) for count in sorted({run.patches for run in of_it})),
            f"{rate(runs, one):.1f}",
            ", ".join(f"{run.rate:.1f}" for run in of_it),
            f"{mean([run.first_features_s for run in of_it]):.1f}",
            f"{max(run.peak_mb for run in of_it):.0f}",
            *(f"{ratio / rate(runs, one):.2f}" if ratio else "-" for ratio in (like, best)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def aim_line(runs: Runs, other: str, arithmetic: str, times: float) -> str:
    """Whether the fastest of ours in an arithmetic reaches an aim: ``times`` the patches a second of another tool."""
    aim = f"Aim: in {arithmetic} at least {times:g} times the patches/s of {other}"
    theirs = [rate(runs, one) for one in runs if one.name == other]
    mine = [rate(runs, one) for one in runs if isinstance(one, Ours) and one.arithmetic == arithmetic]
    if not theirs or not mine:
        return f"{aim}: not measured."
    ratio = max(mine) / theirs[0]
    return f"{aim}: {ratio:.2f}, {'reached' if ratio >= times else 'NOT reached'}."


def rate(runs: Runs, one: Contender) -> float:
    """Patches a second, the mean over a contender's runs."""
    return mean([run.rate for run in runs[one]])


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
