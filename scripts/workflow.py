"""What the configs' expressions call."""

from scripts import BUNDLE_ROOT
from scripts.core.start import start, started

__all__ = ["BUNDLE_ROOT", "start", "started"]
