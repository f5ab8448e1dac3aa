"""What a client may choose of a slide's result: which output, classes and kind of map, and how much of it is drawn."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .reasons import BAD_REQUEST, RequestError, show

__all__ = [
    "DEFAULTS",
    "KEYS",
    "Choice",
    "Offer",
    "check_logging",
    "check_training",
    "read_choice",
    "read_device",
    "read_mpp",
    "read_switch",
]

KINDS = ("attention", "contribution")
# As the bundle's scripts/slides/frames.py has them.
COORDINATES = ("qupath", "level0")
DEFAULTS: dict[str, Any] = {"classes": "predicted", "kind": KINDS[0], "share": 0.1}
KEYS = ("head", "classes", "kind", "share", "threshold", "coordinates")
# All that this app reads of a request beside what MONAI Label names.
OWN = (*KEYS, "save_label", "label_tag", "mpp", "mask", "mask_tissue", "mask_excluded", "device", "model_filename")
MOST_SHARES = 5
# Micrometres per pixel of level 0 that a slide scanner, or its overview, can have.
MPP_RANGE = (0.02, 20.0)
# What MONAI Label fills in where a client names no region. Nobody's rectangle is taken for it in practice.
STOCK_REGION = (0.0, 0.0, 2048.0, 2048.0)


@dataclass(frozen=True)
class Offer:
    """What a bundle's network has.

    Args:
        heads: the names of its outputs.
        maps: the names of its maps, and the output that each explains.
        class_names: what the scores of an output stand for.
        coordinates: the frames that it knows; up to 0.3.0 they know level 0's alone, and no ``mask_tissue``.
        map_classes: what its maps are of, if not of the classes.
    """

    heads: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...]
    coordinates: tuple[str, ...] = COORDINATES
    map_classes: tuple[str, ...] | None = None

    @property
    def shown_classes(self) -> tuple[str, ...]:
        """What ``classes`` may be: the names of the maps' classes."""
        return self.class_names if self.map_classes is None else self.map_classes

    @property
    def served_head(self) -> str:
        """The output whose scores stand for all: the global one or, without it, the highest magnification."""
        return "global" if "global" in self.heads else self.heads[-1]

    @property
    def map_names(self) -> list[str]:
        """What ``head`` may be: the maps by name, and the outputs that have one."""
        return list(dict.fromkeys([*(head for _, head in self.maps), *(name for name, _ in self.maps)]))

    def map_index(self, head: str) -> int:
        """The map of that name; or, of an output with one on each scale, the one on the highest."""
        named = [m for m, (name, _) in enumerate(self.maps) if name == head]
        return (named or [m for m, (_, of) in enumerate(self.maps) if of == head])[-1]


@dataclass(frozen=True)
class Choice:
    """A client's choice, checked.

    Args:
        head: the map's output, or the map.
        classes: the classes to draw; ``None`` for those that the output predicts.
        kind: ``"attention"`` or ``"contribution"``.
        shares: the shares of the patches to draw, ascending, each a band of its own; empty for none.
        threshold: instead of shares, the smallest value to draw.
        region: (x, y, width, height) in level-0 pixels, counted from where the frame starts, outside of which nothing
            is drawn; ``None`` for the slide.
        coordinates: the frame of the region and of the polygons.
    """

    head: str
    classes: tuple[str, ...] | None
    kind: str
    shares: tuple[float, ...]
    threshold: float | None
    region: tuple[float, float, float, float] | None
    coordinates: str = "level0"


def read_choice(request: Mapping[str, Any], offer: Offer, defaults: Mapping[str, Any] | None = None) -> Choice:
    """Check what a client asks for.

    Args:
        request: its parameters; those of MONAI Label beside ours stay unread, but for ``location`` and ``size``.
        offer: what there is to choose from.
        defaults: the server's own, for parameters that the request lacks. Values may be text, as ``--conf`` gives.

    Raises:
        RequestError: if a value is none of ours.
    """
    _check_names(request)
    given = {key: request[key] for key in KEYS if request.get(key) is not None}
    # A client that shows the options of /info/ may send the whole list back, for its first entry.
    given = {
        key: value
        for key, value in given.items()
        if value not in (offer.map_names, list(KINDS), list(offer.coordinates))
    }
    if "share" in given and "threshold" in given:
        raise RequestError(BAD_REQUEST, "share, threshold", "both were given", "Give one of the two.")
    of_client = {"head": offer.map_names[0], "coordinates": _client_coordinates(request, offer)}
    merged = {**of_client, **DEFAULTS, **(defaults or {}), **given}
    if "share" in given:
        merged.pop("threshold", None)
    threshold = merged.get("threshold")
    return Choice(
        head=_one_of("head", merged["head"], offer.map_names),
        classes=_classes(merged["classes"], offer.shown_classes),
        kind=_one_of("kind", merged["kind"], KINDS),
        shares=() if threshold is not None else _shares(merged["share"]),
        threshold=None if threshold is None else _number("threshold", threshold),
        region=_region(request.get("location"), request.get("size")),
        coordinates=_one_of("coordinates", merged["coordinates"], offer.coordinates),
    )


def read_switch(key: str, value: object) -> bool:
    """A switch: true or false, or text that says so.

    Raises:
        RequestError: if it is neither.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False}
    said = str(value).strip().lower()
    if said not in words:
        raise RequestError(BAD_REQUEST, key, f"got {show(value)}", "Give true or false.")
    return words[said]


def read_mpp(value: object) -> float:
    """The micrometres per pixel of a slide.

    Raises:
        RequestError: if it is no number, or none that a slide can have.
    """
    low, high = MPP_RANGE
    # As the bundle has it: text is no number.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        remedy = f"Give the micrometres per pixel of the slide, a number in {low:g}..{high:g}."
        raise RequestError(BAD_REQUEST, "mpp", f"got {show(value)}", remedy)
    return float(value)


def read_device(value: object, names: Sequence[str]) -> str | None:
    """The name of a device; ``None`` to leave it to the server.

    Args:
        value: a name, or the list of names of ``/info/``, for its first.
        names: those that the remedy gives.

    Raises:
        RequestError: if it is no name.
    """
    first = value[0] if isinstance(value, list | tuple) and value else value
    if first is None or first == "":
        return None
    if not isinstance(first, str):
        raise device_error(value, names)
    return first


def device_error(value: object, names: Sequence[str]) -> RequestError:
    """The refusal of a device that is not there, or cannot run the bundle."""
    remedy = f"Give one of {', '.join(names)}; or leave it out."
    return RequestError(BAD_REQUEST, "device", f"got {show(value)}", remedy)


def check_logging(value: object) -> None:
    """Refuse a level of the log that is none.

    Raises:
        RequestError: if it is none.
    """
    levels = [name for name in logging.getLevelNamesMapping() if name != "NOTSET"]
    if value is not None and not (isinstance(value, str) and value.upper() in levels):
        raise RequestError(BAD_REQUEST, "logging", f"got {show(value)}", f"Give one of {', '.join(levels)}.")


def check_training(request: Mapping[str, Any], files: Sequence[str]) -> None:
    """Check what a client asks of a training.

    A ``val_split`` below 0 would make MONAI Label leave the bundle to validate on slides of its own.

    Args:
        request: its parameters.
        files: the names of the files of weights to go on from.

    Raises:
        RequestError: if ``val_split``, ``max_epochs`` or ``model_filename`` is none.
    """
    split, epochs, file = (request.get(key) for key in ("val_split", "max_epochs", "model_filename"))
    if "val_split" in request and (isinstance(split, bool) or not isinstance(split, int | float) or not 0 < split < 1):
        remedy = "Give the share of the labelled slides to validate on, above 0 and below 1."
        raise RequestError(BAD_REQUEST, "val_split", f"got {show(split)}", remedy)
    if "max_epochs" in request and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
        raise RequestError(BAD_REQUEST, "max_epochs", f"got {show(epochs)}", "Give a whole number from 1 on.")
    # A client that shows the options of /info/ may send the whole list back, for its first entry.
    names = file if isinstance(file, list) and file else [file]
    if "model_filename" in request and any(name not in files for name in names):
        remedy = f"Give one of {', '.join(files)}."
        raise RequestError(BAD_REQUEST, "model_filename", f"got {show(file)}", remedy)


def _client_coordinates(request: Mapping[str, Any], offer: Offer) -> str:
    """The frame of a client that names none.

    QuPath's extension asks for ASAP's XML, and is the only client that sends its clicks with that, be there any or not.
    """
    is_qupath = request.get("output") == "asap" and "foreground" in request and "background" in request
    return "qupath" if is_qupath and "qupath" in offer.coordinates else "level0"


def _check_names(request: Mapping[str, Any]) -> None:
    """Refuse a misspelt parameter, which would otherwise leave its default to act; clients send many of their own."""
    for name in request:
        near = difflib.get_close_matches(str(name), OWN, n=1, cutoff=0.8)
        if near and name not in OWN:
            raise RequestError(BAD_REQUEST, name, "there is no such parameter", f"Write {near[0]}, or leave it out.")


def _one_of(key: str, value: object, names: Sequence[str]) -> str:
    if value not in names:
        raise RequestError(BAD_REQUEST, key, f"got {show(value)}", f"Give one of {', '.join(names)}.")
    return str(value)


def _classes(value: object, class_names: Sequence[str]) -> tuple[str, ...] | None:
    if isinstance(value, str):
        if value not in class_names and value in ("predicted", "all"):
            return None if value == "predicted" else tuple(class_names)
        value = [value] if value in class_names else [name.strip() for name in value.split(",")]
    if not isinstance(value, list | tuple) or not value or any(name not in class_names for name in value):
        remedy = f"Give one or more of {', '.join(class_names)}; or predicted, or all."
        raise RequestError(BAD_REQUEST, "classes", f"got {show(value)}", remedy)
    return tuple(name for name in class_names if name in value)


def _shares(value: object) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    shares = sorted({_number("share", part) for part in parts})
    if not 1 <= len(parts) <= MOST_SHARES or not 0 <= shares[0] <= shares[-1] <= 1:
        remedy = f"Give the share of the patches to draw, in 0..1, or up to {MOST_SHARES} of them; 0 draws none."
        raise RequestError(BAD_REQUEST, "share", f"got {show(value)}", remedy)
    return tuple(share for share in shares if share > 0)


def _number(key: str, value: object) -> float:
    try:
        # A switch is a number to Python, and nobody means it so.
        number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise RequestError(BAD_REQUEST, key, f"got {show(value)}", "Give a number.")
    return number


def _region(location: object, size: object) -> tuple[float, float, float, float] | None:
    """The client's rectangle. Sizes that are not positive mean the whole slide, as the plugins send it."""
    corner, extent = ([0, 0] if part is None else part for part in (location, size))
    if not all(isinstance(part, list | tuple) and len(part) == 2 for part in (corner, extent)):
        cause = f"got {show(location)} and {show(size)}"
        raise RequestError(BAD_REQUEST, "location, size", cause, "Give (x, y) and (width, height) in level-0 pixels.")
    x, y = (_number("location", part) for part in corner)  # type: ignore[attr-defined]
    width, height = (_number("size", part) for part in extent)  # type: ignore[attr-defined]
    region = (x, y, width, height)
    return None if width <= 0 or height <= 0 or region == STOCK_REGION else region
