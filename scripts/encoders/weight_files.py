"""Reading published weights: which file, whether it is whole, and whether it fits the network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError, unreadable_reason
from scripts.core.files import file_sha256, refuse_special
from scripts.encoders.entry import EncoderEntry, State

__all__ = ["hash_in_name", "load_weights", "weights_file"]

# Keys under which a published file may have its state dict.
WRAPPERS = ("state_dict", "model", "teacher")
# Of 8 bits torch cannot even tell whether they are finite.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMATS = "*.safetensors, *.bin, *.pth and *.pt"


def weights_file(path: str | Path, entry: EncoderEntry) -> Path:
    """The file of weights that a path means: itself, or the one of a downloaded snapshot's folder.

    Raises:
        SettingsError: if there is no such file, or a folder has none or several.
    """
    # Of os.path, which raises nothing at a name that is too long, or of no user.
    path = Path(os.path.expanduser(path))
    refuse_special(path)
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        or_none = ", or leave backbone_weights empty" if entry.default_weights() is not None else ""
        remedy = f"Give the path of a weights file for {entry.name}{or_none}."
        raise SettingsError(f"backbone_weights {path}", "no such file", remedy)
    for name in entry.hub_files:
        if (path / name).is_file():
            return path / name
    suffixes = (".safetensors", ".bin", ".pth", ".pt")
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
    remedy = f"Name the file that is {entry.title}'s."
    if (path / "snapshots").is_dir():
        remedy = f"Name the folder of a commit in {path / 'snapshots'}."
    if part := next((file.name for file in found if re.search(r"-\d+-of-\d+$", file.stem)), None):
        listed, remedy = f"has weights in parts ({part}), which are not put together", "Save them as one file."
    elif len(found) == 1:
        return found[0]
    else:
        listed = f"has {len(found) or 'none'} of {FORMATS}"
    raise SettingsError(f"backbone_weights {path}", f"the folder {listed}", remedy)


def load_weights(network: nn.Module, path: Path, entry: EncoderEntry) -> str:
    """Give a network the weights of a file: those that are floats in float32, others in the network's own type.

    Args:
        network: of ``entry``; its parameters may be on the meta device.
        path: the file, which may state its hash only if it has the name of that at the entry's ``url``.
        entry: whose weights they should be.

    Returns:
        the SHA-256 of the file, in hexadecimal.

    Raises:
        SettingsError: if the file is damaged or something else, or names or shapes do not fit; no code in it is run.
    """
    sha256 = file_sha256(path)
    # The end of the name of a file of one's own may be a date.
    expected = hash_in_name(path) if entry.url is not None and path.name == Path(entry.url).name else None
    if expected is not None and not sha256.startswith(expected):
        cause = f"its name says that its SHA-256 begins with {expected}, but it is {sha256}"
        remedy = "The file is damaged or another one: delete it and download it again."
        raise SettingsError(f"backbone_weights {path}", cause, remedy)
    _load_into(network, _read_state(path), path, entry)
    return sha256


def hash_in_name(path: Path) -> str | None:
    """The start of the file's SHA-256 that its name states, as ``b627a593`` in ``resnet34-b627a593.pth``."""
    match = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    return match.group(1) if match else None


def _read_state(path: Path) -> State:
    """The state dict of a file, on the CPU."""
    try:
        state: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except SettingsError:
        raise
    except Exception as error:  # torch does not document what it raises on a damaged file, and it varies
        raise SettingsError(
            f"backbone_weights {path}",
            f"not a readable weights file ({unreadable_reason(error)}); no code in it was run",
            "It may be cut off or contain more than tensors: download it again, or save a plain state_dict.",
        ) from error
    if isinstance(state, Mapping):
        wrapped = [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]
        state = wrapped[0] if wrapped else state
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise _unfit(path, "it is not a plain state_dict of tensors")
    return state


def _load_into(network: nn.Module, state: State, path: Path, entry: EncoderEntry) -> None:
    needed = {key: value for key, value in state.items() if not key.startswith(entry.dropped)}
    named = entry.naming(needed, network)
    if faults := list(_misfits(network.state_dict(), named)):
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise _unfit(path, f"{', '.join(faults[:3])}{more}")
    if broken := [key for key, value in named.items() if not torch.isfinite(value).all()]:
        raise _unfit(path, f"{broken[0]} has values that are no finite numbers")
    own = network.state_dict()
    # Tables of indices keep the network's own type.
    types = {key: torch.float32 if own[key].is_floating_point() else own[key].dtype for key in named}
    typed = {key: value.to(types[key]) for key, value in named.items()}
    network.load_state_dict(typed, strict=False, assign=True)
    if left := [key for key, value in (*network.named_parameters(), *network.named_buffers()) if value.is_meta]:
        raise _unfit(path, f"no file has {left[0]}, which {entry.name} needs")


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise SettingsError(f"backbone_weights {path}", str(error), "Run: pip install safetensors.") from error
    return load_file(path)


def _unfit(path: Path, cause: str) -> SettingsError:
    return SettingsError(
        f"backbone_weights {path}",
        f"the weights do not fit the backbone: {cause}",
        "Give the weights file of the backbone that is set.",
    )


def _misfits(expected: State, state: State) -> Iterator[str]:
    # Older files lack the batch counters; evaluation mode does not use them.
    yield from (f"{key} is missing" for key in expected if key not in state and not key.endswith("num_batches_tracked"))
    yield from (f"{key} is unknown" for key in state if key not in expected)
    for key, value in expected.items():
        if key in state and state[key].shape != value.shape:
            yield f"{key} is {list(state[key].shape)} instead of {list(value.shape)}"
        elif key in state and (state[key].is_meta or state[key].layout != torch.strided):
            yield f"{key} is no plain tensor"
        elif key.endswith("num_batches_tracked"):
            continue
        elif key in state and (state[key].dtype in FLOATS) != value.is_floating_point():
            yield f"{key} is of {state[key].dtype}"
