"""Packing: from a trained repository to the one zip that is handed on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bundle.archive import write_archive
from bundle.contents import NAME, NECESSARY, base_config, shared_files
from bundle.defaults import set_defaults
from bundle.large_files import MAX_MB, over_limit, read_large_files
from bundle.metadata import BLOCK_START, CARD_TOP, METADATA, check_version, describe, fill_block, fit_metadata
from scripts.core.errors import SettingsError, printable
from scripts.core.imported import IMPORTED
from scripts.encoders.int8_networks import find_int8
from scripts.encoders.registry import ENCODERS
from scripts.networks.methods import METHODS, result_heads
from scripts.weights.operating_point import OPERATING_POINT
from scripts.weights.paths import weights_path
from scripts.weights.record import DEMONSTRATION, is_demonstration, read_origin, read_training

__all__ = ["Packed", "pack"]

TEXTS = ("name", "description", "intended_use")
USED = ("version", *TEXTS, "network_data_format")
# What is said of weights.
DESCRIBED = ("method", "task", "class_names", "magnifications", "backbone")
# What MONAI takes for code or a reference at the start of a text in a config.
EVALUATED = ("$", "@", "%", "_target_")
CARD = "docs/README.md"
CARDS = (CARD, "models/README.md")
TRAIN = "python -m monai.bundle run training --config_file configs/train.json"


@dataclass(frozen=True)
class Packed:
    """A zip that was packed.

    Args:
        path: the zip.
        sha256: its SHA-256, in hexadecimal.
        sizes: the bytes of each file in it, by name from the bundle's root.
        record: what its weights were trained with and on.
        points: the operating point of its outputs, by head; empty where the weights have none.
        left_out: files beside those, which do not belong into it.
        large: those that the Model Zoo wants to download, since they are too large for its repository.
    """

    path: Path
    sha256: str
    sizes: Mapping[str, int]
    record: Mapping[str, Any]
    points: Mapping[str, Any]
    left_out: Sequence[str]
    large: Sequence[str]

    def __str__(self) -> str:
        """What was packed, for the user."""
        folders: dict[str, list[int]] = {}
        for name, size in self.sizes.items():
            parts = PurePosixPath(name).parts
            folders.setdefault(parts[0] if len(parts) > 1 else "files beside them", []).append(size)
        lines = [f"{folder:<17} {len(sizes):4d} files {_size(sum(sizes)):>9}" for folder, sizes in folders.items()]
        lines.extend(
            f"  {name:<27}{_size(self.sizes[name]):>9}" for name in self.sizes if name.endswith((".pt", ".zip"))
        )
        if self.left_out:
            lines.append(
                f"left out (unknown to git, or no part of a bundle): {', '.join(map(printable, self.left_out))}"
            )
        lines.extend(
            f"{name} has more than {MAX_MB} MB: leave it out of a pull request to the zoo" for name in self.large
        )
        lines.append(describe(self.record, self.points).removeprefix(DEMONSTRATION).strip())
        lines.append(f"{self.path} {_size(self.path.stat().st_size)}")
        lines.append(f"SHA-256 {self.sha256}")
        if is_demonstration(self.record):
            lines.append(DEMONSTRATION)
        return "\n".join(lines)


def pack(root: Path, ckpt_dir: Path, output_dir: Path) -> Packed:
    """Pack a bundle.

    Args:
        root: the repository; nothing in it is changed.
        ckpt_dir: the folder that training wrote its weights to.
        output_dir: where the zip and the file with its checksum go.

    Raises:
        SettingsError: if weights are missing, have no record or are not of one training; if the INT8 network of their
            encoder is missing, or may not be handed on; if a file that a bundle has to
            have is missing or of another form; if the cards have no place for what is true of the weights; if a file
            is too large for the Model Zoo; or if the zip cannot be written.
    """
    weights, record, points = _weights(ckpt_dir)
    names, left_out = shared_files(root)
    files = {name: _read(root / name) for name in names}
    files.update({name: _read(path) for name, path in weights.items()})

    for name in NECESSARY:
        _text(files, name)
    metadata = _metadata(files)
    files[METADATA] = _fitted(metadata, record, points)
    for name in names:
        config = PurePosixPath(name)
        # The settings of paper.json are the paper's, whatever the weights were trained with.
        if config.match("configs/*.json") and name != METADATA and base_config(config.name) is None:
            files[name] = _with_defaults(name, _text(files, name), record["settings"]).encode()
    for name in CARDS:
        files[name] = fill_block(_text(files, name), name, record, points).encode()
    _check_top(files[CARD].decode())

    large = over_limit({name: len(content) for name, content in files.items()})
    unnamed = sorted(set(large) - {entry["path"] for entry in read_large_files(root)})
    if unnamed:
        raise SettingsError(
            unnamed[0],
            f"has {_size(len(files[unnamed[0]]))}, and the Model Zoo takes files of at most {MAX_MB} MB",
            "Make it smaller, or name it in large_files.yml with an address to download it from.",
        )
    path = output_dir / f"{NAME}_v{metadata['version']}.zip"
    sha256 = write_archive(files, path)
    sizes = {name: len(files[name]) for name in sorted(files)}
    return Packed(path, sha256, sizes, record, points, left_out, large)


def _weights(ckpt_dir: Path) -> tuple[dict[str, Path], dict[str, Any], dict[str, Any]]:
    """The files of weights by their name in the bundle, their one record, and the operating point that is served."""
    main = weights_path(ckpt_dir, "global")
    others = sorted(ckpt_dir.glob("model_*.pt"))
    if not main.is_file() and others:
        method = read_training(others[0])["record"]["settings"]["method"]
        raise _not_served(others[0], method)
    if not main.is_file():
        raise SettingsError(
            main, "there is no such file", f"Train first ({TRAIN}), or give the folder of the weights: --ckpt_dir"
        )
    training = read_training(main)
    record: dict[str, Any] = training["record"]
    settings = record["settings"]
    _check_settings(main, settings)
    heads = result_heads(settings["method"], settings["magnifications"])
    paths = [weights_path(ckpt_dir, head) for head in heads]
    if main not in paths:
        raise _not_served(main, settings["method"])
    for path in paths:
        if read_training(path) != training:
            raise SettingsError(
                path,
                f"is not of the same training as {main.name}",
                "Pack the weights of one training, from a folder that no other training wrote to.",
            )
    found = read_origin(main).get(OPERATING_POINT, {})
    points = {head: found[head] for head in heads if head in found}
    _refuse_code(main, points)
    return {f"models/{path.name}": path for path in (*paths, *_int8(main, settings))}, record, points


def _int8(main: Path, settings: Mapping[str, Any]) -> list[Path]:
    """The file of the encoder's INT8 network, if the weights were trained with one."""
    sha256, encoder = settings.get("int8_sha256"), ENCODERS.get(settings["backbone"])
    if sha256 is None:
        return []
    if encoder is not None and encoder.is_gated:
        cause = f"its INT8 network contains the weights of {encoder.name}, which are gated"
        raise SettingsError(main, cause, "Train with `precision` amp to hand the weights on.")
    return [find_int8(sha256, [main.parent]).path]


def _not_served(path: Path, method: str) -> SettingsError:
    cause = f"is of the method {method}, which has no global output to be served"
    served = [name for name in METHODS if "global" in result_heads(name, (5, 10))]
    return SettingsError(path, cause, f"Pack weights of one of {', '.join(served)}.")


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("backbone") == IMPORTED:
        cause = "was trained on imported features, and a bundle has to encode slides itself"
        raise SettingsError(path, cause, "Pack weights of a training with the encoder as `backbone`.")
    if (linking := settings.get("linking")) in ("shuffled", "pooled"):
        cause = f"was trained with linking {linking}, an ablation that sees other rows than the slide has"
        raise SettingsError(path, cause, "Pack weights of a training with `linking` linked.")
    missing = [key for key in DESCRIBED if key not in settings]
    if missing:
        raise SettingsError(path, f"its record has no {', '.join(missing)}", "Give a file that training wrote.")
    _refuse_code(path, settings)


def _refuse_code(path: Path, values: Mapping[str, Any]) -> None:
    # They become part of configs and metadata, of which MONAI runs some texts as code.
    for key, value in values.items():
        if any(f'"{sign}' in json.dumps(value) for sign in EVALUATED):
            raise SettingsError(
                path, f"its record has code or a reference as {printable(key)}", "Give a file that training wrote."
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(path, f"cannot be read ({error.strerror})", "Let it be read by you.") from error


def _fitted(metadata: Mapping[str, Any], record: Mapping[str, Any], points: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(fit_metadata(metadata, record, points), indent=4, ensure_ascii=False) + "\n").encode()
    except (ValueError, RecursionError) as error:
        raise SettingsError(METADATA, f"cannot be written again ({error})", "Mend it.") from error


def _with_defaults(name: str, text: str, settings: Mapping[str, Any]) -> str:
    try:
        return set_defaults(text, settings)
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            name, f"cannot be given the settings of the weights: {error}", "Write it as JSON, indented by four spaces."
        ) from error


def _check_top(card: str) -> None:
    line = card[: card.index(BLOCK_START)].count("\n") + 1
    if line > CARD_TOP:
        raise SettingsError(
            CARD,
            f"says what its weights are on line {line}, which readers may not reach",
            f"Move the block {BLOCK_START} to its first {CARD_TOP} lines.",
        )


def _text(files: Mapping[str, bytes], name: str) -> str:
    if name not in files:
        raise SettingsError(name, "there is no such file, or git does not know it", "Add it: a bundle has to have it.")
    try:
        return files[name].decode()
    except ValueError as error:
        raise SettingsError(name, f"is not UTF-8 ({error})", "Save it as UTF-8.") from error


def _metadata(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        content = json.loads(_text(files, METADATA))
    except (ValueError, RecursionError) as error:
        raise SettingsError(METADATA, f"is not JSON ({error})", "Mend it.") from error
    if not isinstance(content, dict):
        raise SettingsError(METADATA, "holds no JSON object", "Mend it.")
    missing = [key for key in USED if key not in content]
    if missing:
        raise SettingsError(METADATA, f"has no {', '.join(missing)}", "Add it: packing needs it.")
    check_version(content["version"])
    for key in TEXTS:
        if not isinstance(content[key], str):
            raise SettingsError(f"{METADATA}#{key}", "is no text", "Mend it.")
    return content


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
