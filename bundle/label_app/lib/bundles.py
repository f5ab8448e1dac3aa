"""The bundles that an app serves: folders beside each other, each a version of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .reasons import SERVER_FAULT, RequestError

__all__ = ["check_configs", "find_bundles"]


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


def check_configs(path: str | Path) -> None:
    """Refuse a bundle whose settings MONAI Label could not read: what it raises names neither bundle nor file.

    Args:
        path: the bundle's folder.

    Raises:
        RequestError: if a file is missing, no JSON, or lacks what it is read for.
    """
    configs = Path(path, "configs")
    _read_json(configs / "inference.json")
    if (configs / "train.json").exists():
        _read_json(configs / "train.json")
    metadata = _read_json(configs / "metadata.json")
    formats = metadata.get("network_data_format")
    for key in ("inputs", "outputs"):
        part = formats.get(key) if isinstance(formats, dict) else None
        if not isinstance(part, dict) or not part or not all(isinstance(entry, dict) for entry in part.values()):
            raise _config_error(configs / "metadata.json", f"has no network_data_format with {key}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _config_error(path, "there is no such file") from None
    except (OSError, ValueError) as error:
        raise _config_error(path, f"cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise _config_error(path, f"holds a {type(content).__name__}, not a dictionary")
    return content


def _config_error(path: Path, cause: str) -> RequestError:
    return RequestError(SERVER_FAULT, path, cause, "Download the bundle again.")
