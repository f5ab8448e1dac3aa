"""What the registry of settings says of each one."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.core.setting_checks import Check

__all__ = ["Setting", "entry"]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: its key in the configs.
        help: its line in docs/settings.md.
        check: raises a :class:`SettingsError` at a wrong value; ``None`` where the component that takes it checks it.
        roles: what depends on it:

            - ``decides``: with another value, scores of the same weights are meaningless. Stored in the record of the
              weights; whatever uses the weights takes it from there, and refuses another value.
            - ``recorded``: stored in the record of the weights; another value is warned of.
            - ``fixed``: a training is resumed with the same value alone.
            - ``provenance``: stored in every file that comes out.
            - ``grid``: ``searching`` tries several values.
            - ``free``: says where and how a run computes. Workflows of many trainings use results with other values.
            - ``shared``: decides the slides, their labels or their banks, which all runs of ``comparing`` share.
            - ``own``: of a workflow itself; workflows of many trainings do not hand it to these.
    """

    name: str
    help: str
    check: Check | None = None
    roles: frozenset[str] = frozenset()


def entry(name: str, help_line: str, check: Check | None = None, roles: str = "") -> tuple[str, Setting]:
    """A setting by its name; ``roles`` are divided by spaces."""
    return name, Setting(name, help_line, check, frozenset(roles.split()))
