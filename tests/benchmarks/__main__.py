"""``make bench``: every benchmark, one after the other, each in a process of its own; or those that are named."""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from pathlib import Path

PARTS = ("extraction", "stages", "memory", "ranks", "training", "operating_points", "int8")
# They make what they measure on.
OWN_DATA = ("training", "operating_points")


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    args = parser.parse_args()
    print(f"{datetime.date.today()}, {processor()}", flush=True)
    for part in args.parts:
        print(f"\n== {part} ==", flush=True)
        slides = [] if part in OWN_DATA else [f"--dataset_dir={args.dataset_dir}"]
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{part}", *slides], check=True)


def processor() -> str:
    """The kind of machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


if __name__ == "__main__":
    main()
