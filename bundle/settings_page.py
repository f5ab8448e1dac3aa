"""docs/settings.md, made from the registry of settings and the configs: ``python -m bundle.settings_page``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.core.running import ADVANCED
from scripts.core.settings import SETTINGS

__all__ = ["PAGE", "settings_page"]

PAGE = BUNDLE_ROOT / "docs" / "settings.md"

# In the order in which a user meets them; a default is that of the first config that has one of its own.
CONFIGS = (
    "train",
    "evaluate",
    "inference",
    "extract",
    "check",
    "inspect",
    "compare",
    "cross_validate",
    "search",
    "calibrate",
    "ensemble",
)

HEAD = """# Settings

An option of a command sets a setting: `--epochs 20`, `--magnifications "[5, 10, 20]"`. It works only in configs that
have the setting; unknown options and `None` are refused. Settings that few users change are in the section `advanced`
of a config, and are options like all others.

`evaluate.json`, `inference.json` and `calibrate.json` take `method`, `task`, `class_names`, `positive_classes`, `unit`,
`magnifications`, `patch_size`, `min_tissue`, `overlap`, `grid_origin`, `tissue`, `read_level`, `backbone`, `precision`,
`num_nodes`, `class_attention` and `linking` from the weights in `ckpt_dir`: do not repeat them. An option that
contradicts the weights is refused
(`min_tissue`, `overlap`, `grid_origin`, `tissue`, `read_level`: a warning); see [Weights](outputs.md#weights).

This page is made from `scripts/core/setting_table.py` and the configs: `python -m bundle.settings_page`.

| setting | default | in | what it is |
|---|---|---|---|
"""


def settings_page(root: Path = BUNDLE_ROOT) -> str:
    """The page.

    Args:
        root: the repository, whose configs are read.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in SETTINGS}
    for config in CONFIGS:
        content = json.loads((root / "configs" / f"{config}.json").read_text(encoding="utf-8"))
        for name, value in {**content, **content.get(ADVANCED, {})}.items():
            if name in found:
                found[name][config] = value
    lines = []
    for name, by_config in found.items():
        lacking = [config for config in CONFIGS if config not in by_config]
        where = ", ".join(by_config) if len(lacking) > 1 else " but ".join(["all", *lacking])
        lines.append(f"| `{name}` | {_default(by_config)} | {where} | {SETTINGS[name].help} |\n")
    return HEAD + "".join(lines)


def _default(by_config: dict[str, Any]) -> str:
    """The default in words, and those of other configs where they differ."""
    shown: dict[str, list[str]] = {}
    for config, value in by_config.items():
        if not str(value).startswith(("$@trained", "$@decided")):
            shown.setdefault(_in_words(value), []).append(config)
    first, *others = shown
    more = [f"{', '.join(shown[words])}: {words}" for words in others]
    return f"{first} ({'; '.join(more)})" if more else first


def _in_words(value: Any) -> str:
    if value in (None, [], ""):
        return "none"
    if isinstance(value, str) and value.startswith("@"):
        return f"as `{value[1:]}`"
    if isinstance(value, str) and (path := re.fullmatch(r"\$@(\w+) \+ '/(.*)'", value)):
        return f"`{path[2]}`" if path[1] == "bundle_root" else f"`{path[1]}/{path[2]}`"
    if isinstance(value, str) and value.startswith("$"):
        return "what fits the machine"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
