"""MuSTMIL: multi-scale task multiple-instance learning for whole slide images, as a MONAI bundle."""

__version__ = "0.4.0"
