"""Every command of the guide runs as it stands there, and says what the guide says."""

from __future__ import annotations

import json
import re
import subprocess
import time
import xml.etree.ElementTree as ET

import pytest

from tests.label.fixtures import DRAWN, NAME, SCORE_ATOL, prediction_of
from tests.label.servers import GUIDE, ROOT, guide_commands

# Run by the fixtures and by the tests of the two apps.
ELSEWHERE = {"get", "upgrade", "second", "start", "save", "label", "train", "progress"}
STOCK = {"stock-get", "stock-start", "stock-predict", "stock-wsi"}
HERE = {"names", "install", "activate", "info", "predict", "batch", "choose", "asap", "dsa"}


def test_every_shell_command_of_the_guide_is_run():
    commands = guide_commands()
    assert set(commands) == ELSEWHERE | STOCK | HERE
    # None is outside of a block with a name.
    assert GUIDE.read_text(encoding="utf-8").count("```sh\n") == len(commands)


def test_the_guide_names_every_variable_that_its_commands_use(own_shell):
    asked = set(re.findall(r"export (\w+)=", guide_commands()["names"]))
    assert asked == {name for name in own_shell.names if name.isupper()}


def test_a_second_installation_does_nothing(own_shell):
    start = time.monotonic()
    assert "Nothing to be done" in own_shell.run("install") or time.monotonic() - start < 5


def test_the_environment_is_activated(own_shell):
    command = f"{own_shell.commands['activate']}\ncommand -v monailabel"
    done = subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str((ROOT / ".venv-label").resolve() / "bin" / "monailabel")


def test_the_server_names_its_models(own, own_shell):
    assert NAME in json.loads(own_shell.run("info"))["models"]


def test_a_slide_is_predicted(own, own_shell, oracle):
    reply = json.loads(own_shell.run("predict"))
    assert prediction_of(reply) == pytest.approx(oracle.scores[DRAWN]["global"], abs=SCORE_ATOL)
    named = set(re.findall(r"^\| `(\w+)`", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"prediction", "scores", "annotation", "heatmap", "model"} <= named & reply.keys()


def test_bands_of_several_shares_are_drawn_for_all_classes(own, own_shell):
    reply = json.loads(own_shell.run("choose"))
    assert reply["heatmap"]["kind"] == "contribution"
    assert reply["heatmap"]["map"] == "10x"
    possible = {f"{name} top {share}%" for name in reply["label_names"] for share in (2, 10)}
    assert set() < reply["annotation"]["labels"].keys() <= possible


def test_annotations_come_for_asap_and_dsa(own, own_shell):
    assert ET.fromstring(own_shell.run("asap")).tag == "ASAP_Annotations"
    elements = json.loads(own_shell.run("dsa"))["elements"]
    assert elements
    assert elements[0]["type"] == "polyline"


def test_a_cohort_is_predicted_in_the_background_and_saved(own, own_shell):
    own_shell.run("batch")
    end = time.monotonic() + 200
    while (task := own.ok("GET", "/batch/infer").json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, own.log_tail()
        time.sleep(1)
    assert task["status"] == "DONE", "\n".join(task["details"])
    # One slide that cannot be used does not stop the others, and its reason stands in the outcome.
    assert "no tissue was found" in task["details"][-1]
    objects = own.ok("GET", "/datastore/?output=all").json()["objects"]
    assert {"demo_001", "demo_002"} <= {name for name, entry in objects.items() if "original" in entry["labels"]}


def test_it_says_what_it_is_not_for():
    text = GUIDE.read_text(encoding="utf-8")
    assert "For research only" in text
    assert "fit for diagnosis" in text
