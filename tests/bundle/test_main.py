"""``python -m bundle``, as a user calls it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.__main__ import main
from bundle.archive import unpack
from bundle.checked import own_scripts
from scripts.core.errors import SettingsError
from tests.bundles import DRAWN, copied, make_weights
from tests.conftest import ROOT
from tests.preloaded import Preloaded


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bundle", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_pack_writes_next_to_the_repository_and_takes_its_weights(
    trained_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(trained_repository, tmp_path)
    assert main(["pack", "--bundle_root", str(root)]) == 0
    (path,) = (root / "dist").glob("*.zip")
    assert f"{path} " in capsys.readouterr().out


def test_pack_takes_other_weights_to_another_place(
    trained_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = make_weights(tmp_path / "weights", DRAWN)
    places = ["--ckpt_dir", str(weights), "--output_dir", str(tmp_path / "out")]
    assert main(["pack", "--bundle_root", str(trained_repository), *places]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".sha256", ".zip"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Demonstration weights: synthetic slides were among those they were trained on, so they are unfit for tissue."
    )


def test_verify_prints_one_line_a_rule_and_a_sum(
    trained_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(trained_repository, tmp_path)
    (root / "models" / "model.pt").unlink()
    assert main(["verify", str(root)]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    counts = [sum(line.startswith(state) for line in lines) for state in ("ok ", "FAILED ", "not checked ")]
    assert sum(counts) == len(lines)
    assert counts[1] == 0
    assert total == f"{counts[0]} ok, 0 FAILED, {counts[2]} not checked"

    (root / "LICENSE").unlink()
    assert main(["verify", str(root)]) == 1
    assert "2 FAILED" in capsys.readouterr().out.splitlines()[-1]


def test_verify_of_the_sums_alone_runs_no_code_of_the_bundle(
    packed_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unpack(packed_zip, tmp_path)
    with (root / "scripts" / "__init__.py").open("a") as code:
        code.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    assert main(["verify", "--sums_only", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[:-1]] == ["else", "checksums"]
    assert "scripts/__init__.py: is not what was packed: its SHA-256 begins with" in lines[1]
    assert not (tmp_path / "ran").exists()
    with own_scripts(root):
        importlib.import_module("scripts")
    assert (tmp_path / "ran").exists(), "the code does nothing, so that this test says nothing"


@pytest.mark.parametrize(
    "arguments", [["verify", "--sums_only", ""], ["verify", ""], ["pack", "--ckpt_dir", ""], ["pack", "--output_dir="]]
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(arguments: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"a path of the command: is empty\. Give one"):
        main(arguments)


def test_another_schema_is_used(trained_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text('{"required": ["moon"]}', encoding="utf-8")
    root = copied(trained_repository, tmp_path)
    (root / "models" / "model.pt").unlink()
    assert main(["verify", str(root), "--schema", str(tmp_path / "schema.json")]) == 1
    assert "'moon' is a required property" in capsys.readouterr().out


def test_a_mistake_ends_with_one_line_and_exit_code_1(preloaded: Preloaded, tmp_path: Path) -> None:
    result = preloaded.run("bundle", "pack", "--ckpt_dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/model.pt: there is no such file. Train first (python -m monai.bundle")


@pytest.mark.parametrize("command", ["pack", "verify"])
def test_help_names_the_options_at_once(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    for option in {
        "pack": ("--bundle_root", "--ckpt_dir", "--output_dir"),
        "verify": ("PATH", "--schema", "--sums_only"),
    }[command]:
        assert option in result.stdout
