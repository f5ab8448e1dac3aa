"""The bundles that an app serves: folders beside each other, each a version of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .reasons import SERVER_FAULT, RequestError

__all__ = ["find_bundles"]


def find_bundles(model_dir: str | Path, conf: Mapping[str, str]) -> dict[str, str]:
    """The folders to serve, by name. Unlike the stock app, nothing is looked up or downloaded.

    Args:
        model_dir: the app's folder ``model``.
        conf: of the server; ``models`` names folders, separated by commas, and by default all are served.

    Raises:
        RequestError: if there is no bundle, or none of a name.
    """
    found = {path.parents[1].name: str(path.parents[1]) for path in sorted(Path(model_dir).glob("*/configs/*.json"))}
    found = {name: path for name, path in found.items() if Path(path, "configs", "inference.json").is_file()}
    if not found:
        remedy = "Download one into it: python -m monai.bundle download --bundle_dir " + str(model_dir)
        raise RequestError(SERVER_FAULT, model_dir, "holds no bundle", remedy)
    names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()] or list(found)
    for name in names:
        if name not in found:
            raise RequestError(SERVER_FAULT, "models", f"there is no {name!r}", f"{model_dir} has {', '.join(found)}.")
    return {name: found[name] for name in names}
