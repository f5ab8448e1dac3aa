"""Fetching published weights, which happens only where ``backbone_weights: hub`` asks for it."""

from __future__ import annotations

import http.client
import logging
import socket
from pathlib import Path

import torch

from scripts.core.errors import SettingsError, reason_of
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.weight_files import hash_in_name

__all__ = ["HUB", "cached", "download"]

logger = logging.getLogger(__name__)

HUB = "hub"
"""The value of ``backbone_weights`` that asks for a download."""
DOWNLOAD_TIMEOUT_S = 10.0


def cached(url: str) -> Path | None:
    """The file of an address in the cache of ``torch.hub``, if it is there."""
    path = _in_cache(url)
    return path if path.is_file() else None


def download(entry: EncoderEntry) -> Path:
    """The weights file of an encoder, from its cache or downloaded into it.

    Raises:
        SettingsError: if it cannot be downloaded; of gated weights, with how to be let in.
    """
    if entry.url is not None:
        return cached(entry.url) or _from_url(entry, entry.url)
    if entry.hub is not None:
        return _from_hub(entry, entry.hub)
    cause = f"{entry.title} is on no hub"
    raise SettingsError("backbone_weights hub", cause, "Leave backbone_weights empty, or give the path of a file.")


def _in_cache(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _from_url(entry: EncoderEntry, url: str) -> Path:
    path = _in_cache(url)
    logger.info("downloading %s to %s", url, path)
    timeout = socket.getdefaulttimeout()
    # torch.hub offers no timeout of its own, and without one a firewall that drops packets costs minutes.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name(path))
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise SettingsError(
            f"backbone {entry.name}",
            f"its weights cannot be downloaded from {url} to {path.parent} ({error})",
            "Download that file by hand and pass backbone_weights=PATH, "
            "or use backbone=efficientnet_lite0, whose weights are installed with it.",
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _from_hub(entry: EncoderEntry, repository: str) -> Path:
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise SettingsError("backbone_weights hub", str(error), "Run: pip install huggingface-hub.") from error
    for name in entry.hub_files:
        if isinstance(path := try_to_load_from_cache(repository, name), str):
            return _of_commit(repository, path)
    for name in entry.hub_files:
        try:
            # Asked first, because where there is no network `hf_hub_download` asks for 23 s, with warnings.
            get_hf_file_metadata(hf_hub_url(repository, name))
            return _of_commit(repository, hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise _not_downloaded(entry, repository, name, error) from error
        except EntryNotFoundError:
            continue  # The file may have the next name.
        except Exception as error:  # of the package that speaks HTTP, which is another one in each version of the hub's
            raise _not_downloaded(entry, repository, name, error) from error
    cause = f"{repository} has none of {', '.join(entry.hub_files)}"
    raise SettingsError(f"backbone {entry.name}", cause, "Download its weights by hand and pass backbone_weights=PATH.")


def _of_commit(repository: str, path: str) -> Path:
    # The folder of a snapshot has the name of its commit.
    logger.info("taking %s of %s on the Hugging Face hub, commit %s", Path(path).name, repository, Path(path).parts[-2])
    return Path(path)


def _not_downloaded(entry: EncoderEntry, repository: str, name: str, error: Exception) -> SettingsError:
    by_hand = "or download the file elsewhere and pass backbone_weights=PATH"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        gated = "are gated" if entry.is_gated else "may be gated, or gone"
        page = f"https://huggingface.co/{repository}"
        remedy = f"The weights {gated}: ask for access at {page}, then run `hf auth login`, {by_hand}."
        return SettingsError(f"backbone {entry.name}", f"the hub does not let you in ({status})", remedy)
    cause = f"{name} cannot be downloaded from {repository} ({reason_of(error)})"
    return SettingsError(f"backbone {entry.name}", cause, f"Check the network, {by_hand}.")
