"""The file in which MONAI Label looks for the app: ``monailabel start_server --app <this folder>``."""

# MONAI Label puts this folder on the path while it loads this file, and only then.
from lib.app import SlideApp  # type: ignore[import-not-found]

__all__ = ["SlideApp"]
