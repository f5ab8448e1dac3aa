"""What the user says of imported features whose files do not: the setting ``features_are``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingsError
from scripts.core.imported import features_are
from scripts.features.layouts.foreign import ForeignFile

__all__ = ["FeaturesAreError", "GivenValues", "MissingValueError"]


class FeaturesAreError(SettingsError):
    """What the user says of features does not fit the files of a slide: those of all slides, or of this one alone."""


class MissingValueError(FeaturesAreError):
    """A value that a file does not say and the user did not give.

    Args:
        file: that does not say it.
        what: the value, in words.
        given: what the user gave, which stays in the option that is shown.
        example: the key of ``features_are``, and a value that contradicts no other file of the slide.
    """

    def __init__(self, file: ForeignFile, what: str, given: GivenValues, **example: object) -> None:
        option = f'--features_are "{ {**given.values, **example} }"'
        super().__init__(file.path, f"does not say {what}", f"Give it, for example {option}.")
        (self.key,) = example


@dataclass(frozen=True)
class GivenValues:
    """What the user says of features whose files do not; see the setting ``features_are``.

    Args:
        encoder: the name of what made the features.
        patch_size: side of a patch in pixels.
        patch_size_level0: of each folder, in the order in which they are given: side of a patch in level-0 pixels.
        mpp: micrometres per pixel of level 0.
        magnifications: of each folder.
        patches: of each folder, where the positions are (CLAM).
        values: all of it, as it was given.
    """

    encoder: str | None
    patch_size: int | None
    patch_size_level0: tuple[float | None, ...]
    mpp: float | None
    magnifications: tuple[float | None, ...]
    patches: tuple[Path | None, ...]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any], num_folders: int) -> GivenValues:
        """From the setting's value.

        Raises:
            SettingsError: if it has no such value, or a list does not have one item for each folder.
        """
        features_are("features_are", values)

        def each(key: str) -> tuple[Any, ...]:
            value = values.get(key)
            listed = list(value) if isinstance(value, list | tuple) else [value] * num_folders
            is_one = key == "magnifications" and value is not None and not isinstance(value, list | tuple)
            if len(listed) != num_folders or (is_one and num_folders > 1):
                cause = f"got {value!r} for {num_folders} folders in `features`"
                raise SettingsError(f"features_are#{key}", cause, "Give one for each folder, in their order.")
            return tuple(listed)

        return cls(
            encoder=values.get("encoder"),
            patch_size=values.get("patch_size"),
            patch_size_level0=each("patch_size_level0"),
            mpp=values.get("mpp"),
            magnifications=each("magnifications"),
            patches=tuple(None if path is None else Path(path).expanduser() for path in each("patches")),
            values=values,
        )
