"""The tables of docs/encoders.md, made from the registry of encoders: ``python -m bundle.encoders_page``."""

from __future__ import annotations

import re

from scripts import BUNDLE_ROOT
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.registry import ENCODERS

__all__ = ["PAGE", "filled"]

PAGE = BUNDLE_ROOT / "docs" / "encoders.md"

START, END = "<!-- encoders -->", "<!-- /encoders -->"
VALUES = """| `backbone` | features | pooling | patches | mean | deviation | computed in | magnification |
|---|---|---|---|---|---|---|---|
"""
ORIGINS = """
| `backbone` | encoder | weights | licence | read in |
|---|---|---|---|---|
"""


def filled(page: str) -> str:
    """The page with the tables of the registry between its two marks."""
    entries = ENCODERS.values()
    values = "".join(map(_values, entries))
    origins = "".join(map(_origin, entries))
    block = f"{START}\n{VALUES}{values}{ORIGINS}{origins}{END}"
    return re.sub(f"{re.escape(START)}.*{re.escape(END)}", lambda _: block, page, flags=re.DOTALL)


def _values(entry: EncoderEntry) -> str:
    patches = f"{entry.input_px} px, {entry.resize}" if entry.input_px else "any size"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (entry.mean, entry.std))
    cells = (
        f"`{entry.name}`",
        entry.num_features,
        entry.pooling,
        patches,
        mean,
        std,
        entry.precision,
        entry.magnification,
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def _origin(entry: EncoderEntry) -> str:
    hub = (
        f"[{entry.hub}](https://huggingface.co/{entry.hub}){', gated' if entry.is_gated else ''}" if entry.hub else None
    )
    where = hub or (f"[download.pytorch.org]({entry.url})" if entry.url else "installed")
    cells = (f"`{entry.name}`", f"{entry.title}: {entry.paper}", where, entry.licence, "; ".join(entry.sources))
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
