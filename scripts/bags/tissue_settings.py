"""The constants of tissue detection, each of which the setting ``tissue`` may change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from scripts.core.errors import SettingsError

__all__ = ["TissueSettings", "tissue_settings"]


@dataclass(frozen=True)
class TissueSettings:
    """How :func:`scripts.bags.tissue.find_tissue` finds tissue; docs/methods.md has the source of each default.

    Args:
        mpp: resolution of the mask in micrometres per pixel.
        threshold: (lowest, highest) of the threshold on stain strength, max(R, G, B) - min(R, G, B) in 0..255, between
            which Otsu's is kept: equal ones fix it. Otsu splits whatever it is given, also a slide without tissue or
            without background; the defaults are what paper-white noise and faint eosin reach.
        closing_um: radius of the disc that closes gaps, in micrometres; less than half a pixel closes none.
        smallest_um2: smaller objects are removed, in square micrometres.
        largest_hole_um2: smaller holes are filled, in square micrometres.
    """

    mpp: float = 8.0
    threshold: tuple[float, float] = (12.0, 30.0)
    closing_um: float = 32.0
    smallest_um2: float = 100.0**2
    largest_hole_um2: float = 150.0**2

    def changed(self) -> dict[str, Any]:
        """Those that differ from the defaults, as plain values."""
        own, default = asdict(self), asdict(TissueSettings())
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in own.items()
            if value != default[name]
        }


# Least and most of each: a mask finer than 1 um/px or coarser than 64 um/px shows cells, or no glands.
LIMITS = {
    "mpp": (1.0, 64.0),
    "threshold": (0.0, 255.0),
    "closing_um": (0.0, 1000.0),
    "smallest_um2": (0.0, math.inf),
    "largest_hole_um2": (0.0, math.inf),
}


def tissue_settings(changed: Mapping[str, Any]) -> TissueSettings:
    """The constants, of which some are changed.

    Args:
        changed: values by the names of :class:`TissueSettings`.

    Raises:
        SettingsError: if there is no such constant, or it has no such value.
    """
    names = [field.name for field in fields(TissueSettings)]
    if not isinstance(changed, Mapping):
        raise SettingsError("tissue", f"got {changed!r}", "Give a mapping, for example \"{'closing_um': 16}\".")
    values: dict[str, Any] = {}
    for name, value in changed.items():
        if name not in LIMITS:
            raise SettingsError("tissue", f"there is no {name!r}", f"It takes {', '.join(names)}.")
        least, most = LIMITS[name]
        numbers = value if name == "threshold" and isinstance(value, list | tuple) else [value]
        if (
            not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
            or not all(math.isfinite(v) and least <= v <= most for v in numbers)
            or len(numbers) != (2 if name == "threshold" else 1)
            or list(numbers) != sorted(numbers)
        ):
            kind = "two numbers, the lower first," if name == "threshold" else "a number"
            upper = " up" if most == math.inf else f" to {most:g}"
            raise SettingsError("tissue", f"{name} is {value!r}", f"Give {kind} from {least:g}{upper}.")
        values[name] = tuple(map(float, numbers)) if name == "threshold" else float(value)
    return TissueSettings(**values)
