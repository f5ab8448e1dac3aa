"""What made a file: configuration, versions, the code's git revision, and the hashes of what it was made from.

It holds no times, no names of machines or users, and no paths: the same run gives the same content anywhere, and a
file that is handed on tells nothing of whom it comes from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts import BUNDLE_ROOT, __version__
from scripts.core.files import file_sha256
from scripts.core.settings import values_with_role

__all__ = ["cohort_fingerprint", "data_source", "git_state", "made_by", "software"]


# Distributions on which features, weights or scores depend.
LIBRARIES = (
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "scikit-learn",
    "h5py",
    "opencv-python-headless",
    "itk",
    "albumentations",
    "openvino",
)
# Those with which slides are read, by the name of the backend: cuCIM's distribution is named after CUDA's version.
READERS = {
    "cucim": ("cucim-cu13", "cucim-cu12", "cucim"),
    "openslide": ("openslide-python", "openslide-bin"),
    "tifffile": ("tifffile", "imagecodecs"),
}
# Folders whose changes can change results.
CODE = ("scripts", "configs")

logger = logging.getLogger(__name__)


def made_by(
    settings: Mapping[str, Any],
    seed: int,
    datalist: str | Path | None = None,
    **hashes: Any,
) -> dict[str, Any]:
    """What a run writes into its files.

    Args:
        settings: all of the run, by name; those that decide what comes out are stored, and no paths.
        seed: of the run.
        datalist: the file, ``None`` where the slides come from none.
        hashes: SHA-256 sums of what else went in, by name: ``backbone_sha256``, ``weights_sha256``, ...

    Returns:
        what :func:`software` gives, ``configuration``, what :func:`data_source` gives, and the hashes.

    Raises:
        SettingsError: if the datalist cannot be read.
    """
    configuration = values_with_role(settings, "provenance")
    if "device" in configuration:
        configuration["device"] = str(configuration["device"]).partition(":")[0]
    made = {**software(), "configuration": configuration, **data_source(seed, datalist), **hashes}
    # A round trip through JSON, so that it equals what is read back.
    return dict(json.loads(json.dumps(made)))


def data_source(seed: int, datalist: str | Path | None = None) -> dict[str, Any]:
    """Where the slides of a run come from.

    Args:
        seed: of the run.
        datalist: as for :func:`made_by`.

    Returns:
        ``seed``, and ``datalist_sha256`` of the file's content, ``None`` without one.

    Raises:
        SettingsError: if the datalist cannot be read.
    """
    sha256 = None if datalist is None else file_sha256(Path(datalist).expanduser())
    return {"seed": seed, "datalist_sha256": sha256}


def software(reader: str | None = None) -> dict[str, Any]:
    """The code that runs.

    Args:
        reader: the backend that reads the slide, ``"cucim"``, ``"openslide"`` or ``"tifffile"``; by default all that
            are installed.

    Returns:
        ``bundle``, its name and version; ``git``, see :func:`git_state`; and ``versions``, of Python and of each
        library that has a part in the numbers and is installed.
    """
    readers = READERS.values() if reader is None else [READERS[reader]]
    names = [*LIBRARIES, *(name for names in readers for name in names)]
    found = {name: version for name in names if (version := _version(name)) is not None}
    return {
        "bundle": f"pathology-mustmil {__version__}",
        "git": git_state(),
        "versions": {"python": platform.python_version(), **found},
    }


def git_state(root: Path = BUNDLE_ROOT) -> dict[str, Any] | None:
    """The state of the bundle's own git work tree.

    Returns:
        ``revision``, the commit's hash, and ``changed``, whether a file of the code or of the configs is another than
        in that commit; ``None`` where the bundle is no work tree of its own, as one that was unpacked.
    """
    return _git_state(root) if (root / ".git").exists() else None


def cohort_fingerprint(**partitions: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a training learns from: which slides with which labels, in which order; where their files lie has no part.

    Args:
        partitions: the entries of each partition, with ``slide`` and ``label`` ``[K]``.

    Returns:
        for each partition ``slides``, their number, and ``sha256`` of names and labels.
    """
    return {
        name: {
            "slides": len(entries),
            "sha256": hashlib.sha256(
                json.dumps([[entry["slide"], [float(v) for v in entry["label"]]] for entry in entries]).encode()
            ).hexdigest(),
        }
        for name, entries in partitions.items()
    }


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_state(root: Path) -> dict[str, Any] | None:
    try:
        revision = _git(root, "rev-parse", "HEAD").strip()
        changed = bool(_git(root, "status", "--porcelain", "--", *CODE).strip())
    except (OSError, subprocess.CalledProcessError) as error:
        reason = next(iter(str(getattr(error, "stderr", None) or error).splitlines()), type(error).__name__)
        logger.warning("git does not tell the revision of %s (%s): what is written now will not name it", root, reason)
        return None
    return {"revision": revision, "changed": changed}


def _git(root: Path, *args: str) -> str:
    # A hook of git's that runs us sets these for a work tree of its own.
    foreign = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    # Without optional locks, since somebody may be at work in the tree.
    command = ["git", "--no-optional-locks", "-C", str(root), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
