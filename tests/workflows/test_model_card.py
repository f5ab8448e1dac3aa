"""The model card's commands and examples, run as they stand there, in the bundle as it is handed on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bundle.contents import NAME
from bundle.pack import pack
from scripts.weights.record import read_record
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(trained, cohort, tmp_path_factory) -> Path:
    """The unpacked bundle, and beside its own files what the card takes for given: slides and their labels."""
    where = tmp_path_factory.mktemp("card")
    packed = pack(ROOT, trained / "models", where)
    with zipfile.ZipFile(packed.path) as archive:
        archive.extractall(where)
    bundle = where / NAME
    (bundle / "slides").symlink_to(cohort / "slides", target_is_directory=True)
    (bundle / "new_slides").mkdir()
    shutil.copyfile(next((cohort / "slides").iterdir()), bundle / "new_slides" / "c.tif")
    with open(bundle / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "partition", "patient", "cancer", "hgd", "lgd", "hyperplastic", "normal"])
        for partition, entries in json.loads((cohort / "datalist.json").read_text()).items():
            for entry in entries:
                writer.writerow([Path(entry["image"]).name, partition, entry["patient"], *entry["label"]])
    # Extracting takes most of the time, and is tested elsewhere.
    shutil.copytree(trained / "features", bundle / "output" / "features")
    return bundle


def blocks(folder: Path, language: str) -> list[str]:
    text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(python: str, folder: Path, *command: str, text: str | None = None) -> str:
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, input=text, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_command_of_the_card_does_what_it_says(folder, preloaded):
    before = read_record(folder / "models" / "model.pt")
    commands = blocks(folder, "sh")
    called = re.findall(r"^python -m monai\.bundle (?:run )?(\w+)", "\n".join(commands), flags=re.MULTILINE)
    assert called == ["training", "evaluating", "inferring", "ckpt_export", "onnx_export"]
    for command in commands:
        run(preloaded.python, folder, "bash", "-ec", command)
    assert read_record(folder / "models" / "model.pt") == before  # the same slides
    assert {"global", "5x", "10x"} <= json.loads((folder / "output" / "metrics.json").read_text()).keys()
    assert (folder / "output" / "inference" / "predictions.csv").read_text().count("\nc,") == 3
    assert (folder / "models" / "model.onnx").stat().st_size > 100_000

    *examples, exported = blocks(folder, "python")
    printed = run(preloaded.python, folder, preloaded.python, "-", text="\n".join(examples)).splitlines()
    # MONAI logs there as well.
    assert [line for line in printed if line in expected(*examples)] == expected(*examples)
    # In a process that cannot import the bundle.
    assert run(sys.executable, folder, sys.executable, "-I", "-", text=exported).splitlines() == expected(exported)


def expected(*examples: str) -> list[str]:
    return re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(examples), flags=re.MULTILINE)


def test_the_packages_to_install_are_those_of_the_metadata(folder):
    (install,) = blocks(folder, "console")
    listed = run(sys.executable, folder, "bash", "-ec", install.replace("pip install", "echo")).split()
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    pins = {line.split("==")[0]: line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert all(pins[pin.split("==")[0].replace("_", "-")] == pin.replace("_", "-") for pin in listed)
    assert {pin.split("==")[0] for pin in listed} == {"monai", "torch", "numpy", *metadata["required_packages_version"]}


def test_the_card_begins_with_what_the_weights_are_and_are_unfit_for(folder):
    top = (folder / "docs" / "README.md").read_text(encoding="utf-8").splitlines()[:10]
    assert any("Demonstration weights" in line and "unfit" in line for line in top)
    assert any("Not for diagnosis" in line for line in top)
