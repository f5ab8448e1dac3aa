"""The page of a report: one HTML file with its style, its script and its figures inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from scripts.core.files import replacing
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.images import shade_colours

__all__ = ["figure_url", "write_page"]

TEMPLATES = Path(__file__).parent
# Stops of the colour bars.
RAMP = np.linspace(0, 100, 13)
# What a page may lack.
LISTS = ("heads", "classes", "slides", "failed", "tables", "figures", "warnings")
SWITCHES = ("has_labels", "has_decisions", "has_spread")
# The same figure gives the same bytes: no date, and ids that depend on the content alone.
SVG: Any = {"svg.hashsalt": "report", "svg.fonttype": "none", "font.family": "sans-serif"}


def write_page(path: str | Path, **content: Any) -> None:
    """Write a report.

    Args:
        path: of the page.
        content: what ``page.html`` names: ``title``; ``facts``, pairs of a name and a text; ``warnings``, texts;
            ``data``, plain values for the page's script; and, where there are any, ``heads``, ``classes``, ``slides``,
            ``failed``, ``tables`` and ``figures``.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_script"] = _in_script
    defaults: dict[str, Any] = {**dict.fromkeys(LISTS, ()), **dict.fromkeys(SWITCHES, False), "data": {}}
    defaults["ramps"] = {
        kind: [f"rgb({r} {g} {b})" for r, g, b in shade_colours(RAMP, kind).tolist()] for kind in KINDS
    }
    page = environment.get_template("page.html").render({**defaults, **content})
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")


def figure_url(figure: Figure) -> str:
    """A figure as SVG in a ``data:`` URL, for the ``src`` of an image."""
    drawing = io.BytesIO()
    with mpl.rc_context(SVG):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode("ascii")


def _in_script(data: Mapping[str, Any]) -> Markup:
    """Plain values as JSON that may stand in a ``<script>``: no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
