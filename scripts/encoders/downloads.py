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
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise SettingsError("backbone_weights hub", str(error), "Run: pip install huggingface-hub.") from error
    by_hand = "or download the file elsewhere and pass backbone_weights=PATH"
    page = f"https://huggingface.co/{repository}"
    gate = f"The weights are gated: ask for access at {page}, then run `hf auth login`, {by_hand}."
    remedy = gate if entry.is_gated else f"Check the network, {by_hand}."
    for name in entry.hub_files:
        logger.info("taking %s of %s from the Hugging Face hub or its cache", name, repository)
        try:
            return Path(hf_hub_download(repository, name))
        except GatedRepoError as error:
            raise SettingsError(f"backbone {entry.name}", "the hub does not let you in", gate) from error
        except LocalEntryNotFoundError as error:
            cause = f"{repository} cannot be reached, and {name} is not in the cache ({reason_of(error)})"
            raise SettingsError(f"backbone {entry.name}", cause, remedy) from error
        except EntryNotFoundError:
            continue  # The file may have the next name.
        except (HfHubHTTPError, OSError) as error:
            cause = f"its weights cannot be downloaded from {repository} ({reason_of(error)})"
            raise SettingsError(f"backbone {entry.name}", cause, remedy) from error
    cause = f"{repository} has none of {', '.join(entry.hub_files)}"
    raise SettingsError(f"backbone {entry.name}", cause, "Download its weights by hand and pass backbone_weights=PATH.")
