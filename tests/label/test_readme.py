"""The README's way from a clean folder to a prediction, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.label.fixtures import DRAWN, SCORE_ATOL, Oracle
from tests.label.servers import ROOT, Shell, free_port


def test_from_a_clean_folder_to_the_scores_of_inferring(
    tmp_path: Path, own_shell: Shell, bundle_url: str, studies: Path, oracle: Oracle
) -> None:
    (commands,) = re.findall(
        r"<!-- run: four -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(commands.splitlines()) == 4
    (tmp_path / "slides").mkdir()
    for slide in studies.glob(f"{DRAWN}.*"):
        shutil.copyfile(slide, tmp_path / "slides" / slide.name)
    # Other tests' servers have theirs.
    here = commands.replace("8000", str(free_port())).replace("demo_006", DRAWN)
    env = {**own_shell.env, "REPOSITORY": str(ROOT), "BUNDLE_URL": bundle_url}
    process = subprocess.Popen(
        ["bash", "-ec", here], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=300)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
    assert process.returncode == 0, (tmp_path / "server.log").read_text()[-3000:]
    reply = json.loads(printed.splitlines()[-1])
    for head, scores in oracle.scores[DRAWN].items():
        assert reply["scores"][head] == pytest.approx(scores, abs=SCORE_ATOL)
