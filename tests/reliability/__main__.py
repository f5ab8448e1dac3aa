"""``make reliability``: every fault, tried and counted, one part after the other; or the parts that are named."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.reliability.counters import Counts, write_table
from tests.reliability.kills import KILLED

PARTS = ("kills", "disk", "corruption", "soak")


def main() -> int:
    """Run the parts.

    Returns:
        The exit code: 1 if a fault had an outcome in capitals.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tries", type=int, help="how often each part tries; each has a number of its own")
    parser.add_argument("--only", choices=KILLED, metavar="JOB", help="of kills, this command alone")
    parser.add_argument("--seed", type=int, default=0, help="of the damage and its moments")
    parser.add_argument("--counts_dir", type=Path, default=ROOT / "output" / "reliability", help="the counts as JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md", help="gets the table")
    args = parser.parse_args()
    if args.only is not None and args.parts != ["kills"]:
        parser.error("--only is for kills")
    only = {} if args.only is None else {"only": args.only}
    bad: list[str] = []
    for part in args.parts or PARTS:
        print(f"\n== {part} ==", flush=True)
        module = importlib.import_module(f"tests.reliability.{part}")
        counts = Counts(args.counts_dir / f"{part}.json", _about(part, module.__doc__ or "", args))
        with tempfile.TemporaryDirectory(prefix=f"reliability_{part}_") as folder:
            module.run(counts, Path(folder), args.tries, args.seed, **only)
        print(counts.markdown(), flush=True)
        write_table(args.page, part, counts, PARTS, beside=bool(only))
        bad.extend(counts.bad())
    for fault in bad:
        print(f"not as promised: {fault}", file=sys.stderr)
    return 1 if bad else 0


def _about(part: str, doc: str, args: argparse.Namespace) -> str:
    """What a part is about, in the first words of its module, and the command that runs it alone."""
    options = [part]
    options += [] if args.tries is None else [f"--tries {args.tries}"]
    options += [] if args.only is None else [f"--only {args.only}"]
    options += [] if args.seed == 0 else [f"--seed {args.seed}"]
    return f"{doc.split(':')[0].strip()}, `make reliability ARGS={shlex.quote(' '.join(options))}`"


if __name__ == "__main__":
    sys.exit(main())
