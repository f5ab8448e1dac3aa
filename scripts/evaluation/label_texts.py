"""Labels and decisions as texts, in files and for readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

__all__ = ["classes_text", "label_of_text", "label_text"]


def label_text(label: NDArray[Any], class_names: Sequence[str]) -> str:
    """A label ``[K]`` as a datalist's CSV has it: the names of its classes joined by ``;``, or a 0 for each class.

    Of one class, or of the binary task's one output, it is 0 or 1.
    """
    names = [name for name, value in zip(class_names, label, strict=True) if value > 0.5]
    if len(class_names) == 1:
        return str(len(names))
    return ";".join(names or ["0"] * len(class_names))


def classes_text(values: NDArray[Any], class_names: Sequence[str]) -> str:
    """Decisions or a label ``[K]`` in words: classes with 0.5 or more; else ``none``, of one class ``not ...``."""
    names = [name for name, value in zip(class_names, values, strict=True) if value >= 0.5]
    return ", ".join(names) or ("none" if len(class_names) > 1 else f"not {class_names[0]}")


def label_of_text(text: str, class_names: Sequence[str]) -> list[float]:
    """The label ``[K]`` that :func:`label_text` wrote; up to version 0.3.0 that was names alone, or nothing."""
    words = text.split(";")
    return [float(name in words or (len(class_names) == 1 and text == "1")) for name in class_names]
