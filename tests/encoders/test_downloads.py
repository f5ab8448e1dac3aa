"""Weights from the Hugging Face hub: a server on this machine answers as the hub does."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone
from scripts.encoders.baselines import build_resnet50
from scripts.encoders.downloads import download
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.registry import ENCODERS

huggingface_hub = pytest.importorskip("huggingface_hub")

REPOSITORY = "makers/encoder"
COMMIT = "0123456789" * 4


@dataclass
class Hub:
    """What the hub has, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path:  # of the file, and not what else the package asks the hub
            self.hub.asked.append(f"{self.command} {name}")
        content = self.hub.files.get(name)
        refusal = self.hub.refusal or (None if content is not None else (404, "EntryNotFound"))
        self.send_response(refusal[0] if refusal else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if refusal:
            self.send_header("X-Error-Code", refusal[1])
            content = b""
        assert content is not None
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_args: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, made)) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # The package waits seconds before it asks again.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
        yield made
        server.shutdown()


def entry(**changes: object) -> EncoderEntry:
    return EncoderEntry("encoder", "Encoder", 1024, build_resnet50, hub=REPOSITORY, **changes)  # type: ignore[arg-type]


def weights() -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build_resnet50().state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_the_published_file_is_downloaded_once_and_then_comes_from_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files["pytorch_model.bin"] = weights()
    monkeypatch.setitem(ENCODERS, "encoder", entry())
    first = get_backbone("encoder", "hub")
    assert first.weights_sha256 == hashlib.sha256(hub.files["pytorch_model.bin"]).hexdigest()
    # Of the names that the file may have, the first is not there.
    heads = ["HEAD model.safetensors", "HEAD pytorch_model.bin", "HEAD pytorch_model.bin"]
    assert hub.asked == [*heads, "GET pytorch_model.bin"]
    hub.asked.clear()
    with caplog.at_level("INFO"):
        assert get_backbone("encoder", "hub").weights_sha256 == first.weights_sha256
    assert hub.asked == []
    assert f"taking pytorch_model.bin of {REPOSITORY} on the Hugging Face hub, commit {COMMIT}" in caplog.text


@pytest.mark.parametrize("refusal", [(401, "GatedRepo"), (403, "GatedRepo"), (401, "RepoNotFound"), (403, "Other")])
def test_gated_weights_say_how_to_be_let_in(hub: Hub, refusal: tuple[int, str]) -> None:
    hub.refusal = refusal
    with pytest.raises(SettingsError) as caught:
        download(entry(is_gated=True))
    message = str(caught.value)
    start = f"backbone encoder: the hub does not let you in ({refusal[0]}). The weights are gated: ask for access at"
    assert message.startswith(start)
    assert f"https://huggingface.co/{REPOSITORY}, then run `hf auth login`, or download the file elsewhere" in message
    assert "\n" not in message


def test_a_repository_without_the_file_names_those_that_were_looked_for(hub: Hub) -> None:
    with pytest.raises(SettingsError, match=r"makers/encoder has none of model\.safetensors, pytorch_model\.bin\."):
        download(entry())
    assert hub.asked == ["HEAD model.safetensors", "HEAD pytorch_model.bin"]


@pytest.mark.parametrize("is_gated", [True, False])
def test_without_a_network_the_error_says_so_at_once_and_in_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_gated: bool
) -> None:
    def wait(_seconds: float) -> None:
        raise AssertionError("it waits, to ask again")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    told = r"model\.safetensors cannot be downloaded from makers/encoder \(.*refused\)\. Check the network, or download"
    with pytest.raises(SettingsError, match=told) as caught:
        download(entry(is_gated=is_gated))
    assert "gated" not in str(caught.value)
    assert not caplog.records


def test_an_answer_that_is_no_file_is_told_in_one_line(hub: Hub) -> None:
    hub.refusal = (500, "Broken")
    with pytest.raises(SettingsError, match=r"backbone encoder: .*makers/encoder.* Check the network") as caught:
        download(entry())
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SettingsError, match=r"backbone_weights hub: .*Run: pip install huggingface-hub"):
        download(entry())
    with pytest.raises(SettingsError, match=r"EfficientNet-Lite0 is on no hub\. Leave backbone_weights empty"):
        get_backbone("efficientnet_lite0", "hub")
