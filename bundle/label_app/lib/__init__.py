"""The MONAI Label app of the bundle. Imports within it are relative: MONAI Label loads it as ``lib``."""
