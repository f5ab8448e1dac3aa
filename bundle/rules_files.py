"""Rules on a bundle's files: which there are, how large they are, what licence and model card say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from bundle.checked import Bundle, NotChecked
from bundle.contents import NAME, NECESSARY, belongs
from bundle.large_files import LARGE_FILES, MAX_MB, over_limit, read_large_files
from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256
from scripts.core.sums import SUMS, read_sums

__all__ = ["RULES"]

DATA_LICENSE = "docs/data_license.txt"
CARD = "docs/README.md"

# MONAI Label takes a bundle whose name contains one of these for another kind of task.
OTHER_TASKS = ("deepedit", "deepgrow", "detection", "segmentation")

# Of the terms of the Apache License 2.0, from its title to the end of the terms, with one space between words.
TITLE, END = "Apache License Version 2.0", "END OF TERMS AND CONDITIONS"
TERMS_SHA256 = "d5e4c8942091934e8f11f49efe6055366918b8034549dbfffc2e71a2c4f5de32"

# The Model Zoo's template has these in this order; those that are marked may be left out.
SECTIONS = {
    "Authors": True,
    "Tags": True,
    "Model Description": True,
    "Data": True,
    "Training configuration": True,
    "Input": True,
    "Output": True,
    "Performance": True,
    "MONAI Bundle Commands": True,
    "Additional Usage Steps": False,
    "System Configuration": True,
    "Limitations": False,
    "Citation Info": False,
    "References": False,
}


def folder_name(bundle: Bundle) -> None:
    """The folder's name is the bundle's, from which MONAI Label takes the kind of task."""
    if bundle.kind == "repository":
        raise NotChecked("a repository's folder may have any name; packing names the bundle's")
    name = bundle.root.resolve().name
    if name != NAME:
        wrong = "classification" not in name or any(task in name for task in OTHER_TASKS)
        served = ", so MONAI Label would not serve it as a classification" if wrong else ""
        raise SettingsError(name, f"is not the bundle's name{served}", f"Name the folder {NAME}.")


def necessary_files(bundle: Bundle) -> None:
    """The files that the zoo wants to see are there."""
    for name in NECESSARY:
        if name not in bundle.files:
            raise SettingsError(name, "there is no such file", "Add it: the Model Zoo asks for it.")


def weights_file(bundle: Bundle) -> None:
    """There is a ``model.pt``, here or to be downloaded, and among the weights no name is as short."""
    if "models/model.pt" not in {entry["path"] for entry in read_large_files(bundle.root)}:
        bundle.weights()
    for path in bundle.root.glob("models/*.pt"):
        if path.name != "model.pt" and len(path.name) <= len("model.pt"):
            raise SettingsError(
                f"models/{path.name}",
                "has a name as short as model.pt, so MONAI Label would serve it",
                "Give it a longer name, or another suffix.",
            )


def nothing_else(bundle: Bundle) -> None:
    """A packed bundle has nothing but what belongs into it."""
    if bundle.kind != "zip":
        raise NotChecked("only a zip must have nothing beside a bundle's files; packing leaves the rest out")
    strange = [name for name in bundle.files if not belongs(name)]
    if strange:
        raise SettingsError(
            strange[0], f"does not belong into a bundle{_others(strange)}", "Pack with `python -m bundle pack`."
        )


def checksums(bundle: Bundle) -> None:
    """Every file has the checksum that packing wrote."""
    remedy = "Get the zip again, or pack again."
    if SUMS not in bundle.files:
        if bundle.kind != "zip":
            raise NotChecked(f"there is no {SUMS}; packing writes it")
        raise SettingsError(SUMS, "there is no such file", remedy)
    try:
        listed = read_sums(bundle.root / SUMS)
    except SettingsError as error:
        raise SettingsError(SUMS, error.cause, remedy) from error
    for name, sha256 in listed.items():
        if name not in bundle.files:
            raise SettingsError(name, f"there is no such file, and {SUMS} lists it", remedy)
        if (found := file_sha256(bundle.root / name)) != sha256:
            cause = f"is not what was packed: its SHA-256 begins with {found[:12]}, and {SUMS} has {sha256[:12]}"
            raise SettingsError(name, cause, remedy)
    # A folder that was used has caches and results.
    unlisted = [name for name in bundle.files if name != SUMS and name not in listed]
    if unlisted and bundle.kind == "zip":
        raise SettingsError(unlisted[0], f"is not listed in {SUMS}{_others(unlisted)}", remedy)


def file_sizes(bundle: Bundle) -> None:
    """No file is larger than the zoo's repository takes, unless it is downloaded from elsewhere."""
    elsewhere = {entry["path"] for entry in read_large_files(bundle.root)}
    sizes = {name: (bundle.root / name).stat().st_size for name in bundle.files if belongs(name)}
    for name in over_limit(sizes):
        if name not in elsewhere:
            raise SettingsError(
                name,
                f"has {sizes[name] / 1024**2:.0f} MB, and the Model Zoo takes files of at most {MAX_MB} MB",
                f"Make it smaller, or name it in {LARGE_FILES} with an address to download it from.",
            )


def large_files(bundle: Bundle) -> None:
    """``large_files.yml`` has the zoo's form, and what it says of files that are there is true."""
    for entry in read_large_files(bundle.root):
        path, value = bundle.root / entry["path"], entry.get("hash_val")
        if not value or not path.is_file():
            continue
        found = hashlib.new(entry.get("hash_type") or "md5", path.read_bytes()).hexdigest()
        if found != value:
            raise SettingsError(
                LARGE_FILES, f"its hash_val of {entry['path']} is not the file's", f"Write {found}, or mend the file."
            )


def licence(bundle: Bundle) -> None:
    """``LICENSE`` is the Apache License 2.0, word for word."""
    words = " ".join(bundle.text("LICENSE").split())
    terms = words[max(words.find(TITLE), 0) :].partition(END)[0]
    if hashlib.sha256(terms.encode()).hexdigest() != TERMS_SHA256:
        raise SettingsError(
            "LICENSE", "is not the text of the Apache License 2.0", "Put the licence there, word for word."
        )


def data_licence(bundle: Bundle) -> None:
    """``docs/data_license.txt`` says under which licences the data stand."""
    if not bundle.text(DATA_LICENSE).strip():
        raise SettingsError(DATA_LICENSE, "is empty", "Say under which licences the data stand.")


def model_card(bundle: Bundle) -> None:
    """``docs/README.md`` has the sections of the zoo's template, in its order."""
    # A line in a code block may begin with the same sign.
    text = re.sub(r"^(```|~~~).*?^\1", "", bundle.text(CARD), flags=re.DOTALL | re.MULTILINE)
    headings = [_plain(line) for line in re.findall(r"^(#{1,6} .*)$", text, flags=re.MULTILINE)]
    if not headings or _plain(headings[0]) in {_plain(name) for name in SECTIONS}:
        raise SettingsError(CARD, "has no title", "Begin it with the model's name as a heading.")
    missing = [name for name, needed in SECTIONS.items() if needed and _plain(name) not in headings]
    if missing:
        raise SettingsError(
            CARD, f"has no section {', '.join(missing)}", "Add it: the template of the Model Zoo has it."
        )
    there = [name for name in SECTIONS if _plain(name) in headings]
    found = sorted(there, key=lambda name: headings.index(_plain(name)))
    if found != there:
        raise SettingsError(
            CARD, f"has its sections in the order {', '.join(found)}", f"Order them as {', '.join(there)}."
        )


def _plain(heading: str) -> str:
    """A heading without marks, and without its remark that it is optional."""
    return re.sub(r"\(optional\)|[#*_:]", "", heading.lower()).strip()


def _others(names: list[str]) -> str:
    return f", nor do {len(names) - 1} others" if len(names) > 1 else ""


RULES: dict[str, Callable[[Bundle], None]] = {
    "folder name": folder_name,
    "necessary files": necessary_files,
    "weights file": weights_file,
    "nothing else": nothing_else,
    "checksums": checksums,
    "file sizes": file_sizes,
    "large_files.yml": large_files,
    "licence": licence,
    "data licence": data_licence,
    "model card": model_card,
}
"""The rules of this file by name."""
