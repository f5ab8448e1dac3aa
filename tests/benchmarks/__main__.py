"""``make bench``: every benchmark, one after the other, each in a process of its own; or those that are named."""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from pathlib import Path

PARTS = ("costs", "extraction", "stages", "memory", "ranks", "training", "gpu", "operating_points", "int8")
# They make what they measure on.
OWN_DATA = ("training", "gpu", "operating_points")
# It needs other tools, and runs only if it is named.
PEERS = "peers"


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    known = [*PARTS, PEERS]
    # Python 3.11 compares the empty list of no parts with the choices, too.
    parser.add_argument("parts", nargs="*", choices=[*known, []], metavar="PART", help=", ".join(known))
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--peers", type=Path, help="the other tools' folder, for the part `peers`")
    args = parser.parse_args()
    if (PEERS in args.parts) != (args.peers is not None):
        parser.error("peers, and no other part, needs the other tools' folder: make bench ARGS=peers PEERS=FOLDER")
    print(f"{datetime.date.today()}, {processor()}", flush=True)
    for name in args.parts or PARTS:
        print(f"\n== {name} ==", flush=True)
        options = [] if name in OWN_DATA else [f"--dataset_dir={args.dataset_dir}"]
        options += [f"--peers={args.peers}"] if name == PEERS else []
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *options], check=True)


def processor() -> str:
    """The kind of machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


if __name__ == "__main__":
    main()
