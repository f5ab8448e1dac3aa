"""``python -m bundle``: pack the distributable, and check it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.core.errors import SettingsError, show_one_line

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line.

    Returns:
        The exit code: 1 if a rule is broken.

    Raises:
        SettingsError: if a path is empty, there is no such file, weights cannot be packed, or nothing can be written.
    """
    options = _parser().parse_args(arguments)
    # Imported here, so that --help answers at once.
    if options.command == "pack":
        from bundle.pack import pack

        root = options.bundle_root
        print(pack(root, options.ckpt_dir or root / "models", options.output_dir or root / "dist"))
        return 0

    from bundle.verify import FAILED, NOT_CHECKED, OK, RULES, SUM_RULES, load_schema, verify

    states = []
    for finding in verify(options.path, load_schema(options.schema), SUM_RULES if options.sums_only else RULES):
        print(finding, flush=True)
        states.append(finding.state)
    print(", ".join(f"{states.count(state)} {state}" for state in (OK, FAILED, NOT_CHECKED)))
    return 1 if FAILED in states else 0


def _path(text: str) -> Path:
    # What a shell makes of a variable that is not set would be the folder that one is in.
    if not text:
        raise SettingsError("a path of the command", "is empty", "Give one: is a variable of the shell not set?")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bundle",
        description="Make the bundle that is handed on, and check it against the rules of the MONAI Model Zoo.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = commands.add_parser(
        "pack",
        help="make the bundle's zip from the repository and trained weights",
        description="Make the bundle's zip, and beside it a file with its SHA-256. The same files give the same bytes. "
        "The settings that the weights were trained with become the defaults of the packed configs, and the packed "
        "metadata and cards say what the weights were trained on.",
    )
    pack.add_argument(
        "--bundle_root",
        type=_path,
        default=ROOT,
        metavar="DIR",
        help="the repository (default: the one of this command)",
    )
    pack.add_argument(
        "--ckpt_dir", type=_path, metavar="DIR", help="the folder of the weights (default: models in there)"
    )
    pack.add_argument("--output_dir", type=_path, metavar="DIR", help="where the zip goes (default: dist in there)")

    verify = commands.add_parser(
        "verify",
        help="check a repository, a bundle's folder or its zip",
        description="Check every rule of the MONAI Model Zoo and of MONAI Label, one line each: ok; FAILED, with "
        "the reason and what to do; or not checked, with the reason. It runs the bundle's own code, but with "
        "--sums_only. The exit code is 1 if a rule failed. A zip has to have trained weights; elsewhere, without them, "
        "their rules are not checked.",
    )
    verify.add_argument(
        "path", type=_path, nargs="?", default=ROOT, metavar="PATH", help="a folder or a zip (default: the repository)"
    )
    verify.add_argument(
        "--sums_only",
        action="store_true",
        help="check nothing but whether the bundle is whole: names and sizes in the zip, the checksum beside it, and "
        "the checksums inside",
    )
    verify.add_argument(
        "--schema",
        metavar="PATH_OR_URL",
        help="MONAI's own schema of the metadata, which the zoo's CI downloads from the address in "
        "configs/metadata.json (default: bundle/zoo_metadata_schema.json, which says the same and needs no network)",
    )
    return parser


if __name__ == "__main__":
    show_one_line()
    sys.exit(main())
