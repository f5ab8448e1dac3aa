"""Trained and packed bundles, served on loopback, downloaded, and run by real MONAI Label servers.

Collected where MONAI Label is installed alone: `make test-label`. Everything is made once for all tests, since a server
takes ten seconds to start and a real slide as long to encode.
"""

from __future__ import annotations

import importlib.util
import os

# Set before anything imports torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["MPLBACKEND"] = "Agg"

if importlib.util.find_spec("monailabel"):
    pytest_plugins = ["tests.label.fixtures"]
else:
    collect_ignore_glob = ["test_*.py"]
