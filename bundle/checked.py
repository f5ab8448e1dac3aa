"""A bundle that is checked: its files, read once, and its own `scripts`, apart from those of the repository."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bundle.contents import is_repository, shared_files
from scripts.core.errors import SettingsError
from scripts.core.files import refuse_special

__all__ = ["Bundle", "NotChecked", "own_scripts"]

TRAIN = "python -m monai.bundle run training --config_file configs/train.json"


class NotChecked(Exception):  # noqa: N818 (it is no error)
    """Raised by a rule that cannot be checked here, with the reason."""


@dataclass
class Bundle:
    """A bundle that is checked.

    Args:
        root: its folder.
        kind: ``"repository"``, whose folder has more than belongs into a bundle; ``"folder"``; or ``"zip"``, which was
            unpacked into ``root``.
        schema: the JSON schema that its metadata has to meet.
    """

    root: Path
    kind: Literal["repository", "folder", "zip"]
    schema: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, root: Path, schema: Mapping[str, Any]) -> Bundle:
        """The bundle, or the repository of bundles, in a folder."""
        return cls(root, "repository" if is_repository(root) else "folder", schema)

    @cached_property
    def files(self) -> list[str]:
        """The names of its files, sorted; of a repository those that are packed, with the weights that are there."""
        if self.kind != "repository":
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        weights = [path.relative_to(self.root).as_posix() for path in self.root.glob("models/model*.pt")]
        return sorted(shared_files(self.root)[0] + weights)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """``configs/metadata.json``; errors as :meth:`json`."""
        return self.json("configs/metadata.json")

    def config(self, name: str) -> dict[str, Any]:
        """``configs/<name>.json``; errors as :meth:`json`."""
        return self.json(f"configs/{name}.json")

    def json(self, name: str) -> dict[str, Any]:
        """A file that contains an object in JSON.

        Raises:
            SettingsError: if it is missing, or no such file.
        """
        try:
            content = json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise SettingsError(name, f"is not JSON ({error})", "Mend it.") from error
        if not isinstance(content, dict):
            raise SettingsError(name, "holds no JSON object", "Mend it.")
        return content

    def text(self, name: str) -> str:
        """A text file.

        Raises:
            SettingsError: if it is missing, is no file, or is not UTF-8.
        """
        refuse_special(self.root / name)
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(name, f"cannot be read ({error.strerror})", "Add it.") from error
        except ValueError as error:
            raise SettingsError(name, f"is not UTF-8 ({error})", "Save it as UTF-8.") from error

    def weights(self) -> Path:
        """``models/model.pt``, for the rules that need trained weights.

        Raises:
            NotChecked: if there is none, and the bundle is not yet one to be handed on.
            SettingsError: if it is a zip.
        """
        path = self.root / "models" / "model.pt"
        if path.is_file():
            return path
        if self.kind == "zip":
            raise SettingsError("models/model.pt", "there is no such file", "Train, and pack again.")
        raise NotChecked(f"there is no models/model.pt. Run training: {TRAIN}")


@contextmanager
def own_scripts(root: Path) -> Iterator[None]:
    """Let ``scripts`` be the package of a bundle until the block ends; what was imported before is back after it.

    Raises:
        SettingsError: if the bundle has no such package.
    """
    # A folder alone would be no match for the package of the repository, which is also on the path.
    if not (root / "scripts" / "__init__.py").is_file():
        raise SettingsError("scripts/__init__.py", "there is no such file", "Add it: it makes scripts a package.")
    kept = _take_scripts()
    path, writes = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(root.resolve()))
    # Checking leaves no caches in the bundle.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        _take_scripts()
        sys.modules.update(kept)
        sys.path[:], sys.dont_write_bytecode = path, writes


def _take_scripts() -> dict[str, Any]:
    names = [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]
    return {name: sys.modules.pop(name) for name in names}
