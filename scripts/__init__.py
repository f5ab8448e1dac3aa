"""MuSTMIL: multi-scale task multiple-instance learning for whole slide images, as a MONAI bundle."""

from pathlib import Path

__version__ = "0.4.0"

BUNDLE_ROOT = Path(__file__).resolve().parents[1]
"""The folder that contains this bundle's ``configs`` and ``scripts``."""
