"""Run by every config, by this file's path: ``scripts`` is the package beside it, whatever folder a command is run in.

A config looks for this file under ``bundle_root`` and beside its own folder, which wins.
MONAI adds a bundle's folder to the import path only after ``initialize``. Until then ``scripts`` is found in the
working folder, or is missing there, or is another bundle's package of that name.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__: list[str] = []

OWN_FOLDER = Path(__file__).resolve().parent


def is_own() -> bool:
    """Whether the package ``scripts`` that this process has imported is the one that this file is part of."""
    file = getattr(sys.modules.get("scripts"), "__file__", None)
    return file is not None and Path(file).resolve().parent == OWN_FOLDER


if __name__ == "<run_path>":
    is_new = not is_own()
    if is_new:
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.path.insert(0, str(OWN_FOLDER.parent))
    # Whatever hinders it is said here: the config would say that there is no code.
    from scripts.core.start import import_again

    if is_new:
        import_again()
