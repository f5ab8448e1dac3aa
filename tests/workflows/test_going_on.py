"""``training`` from the weights of another, and ``evaluating`` on slides from elsewhere, as shipped."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.core.errors import mistake_in
from scripts.networks.state_record import weights_sha256
from scripts.weights.record import is_demonstration, read_origin, read_record, read_weights
from tests.worlds import CLASSES, LABELS, PARTITIONS, PICTURES, World

OTHERS = ["lgd", "hgd", "serrated"]


@pytest.fixture
def others(world: World) -> str:
    """A datalist of the same slides, on which somebody else has looked for other things."""
    lines = ["image,label,patient,partition"]
    for i, (label, partition) in enumerate(zip(LABELS, PARTITIONS, strict=True)):
        lines.append(f"s{i}.tif,{label.replace('cancer', 'serrated')},p{i},{partition}")
    (world.cohort / "others.csv").write_text("\n".join(lines) + "\n")
    return str(world.cohort / "others.csv")


def refused(world: World, config: str, **settings: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        world.run(config, **settings)
    return str(mistake_in(error.value))


# --- going on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mustmil", "ssmil", "msmil", "mil_att", "clam_mb"])
def test_a_training_that_learns_nothing_has_the_weights_from_which_it_started(world: World, method: str) -> None:
    source = world.train(method=method)
    served = max(source.glob("model*.pt"), key=lambda path: (path.name == "model.pt", len(path.name)))
    folder = world.train(method=method, pretrained=str(source), lr=0.0, weight_decay=0.0)
    assert weights_sha256(read_weights(folder / served.name)) == weights_sha256(read_weights(served))


def test_other_classes_start_as_usual_and_what_was_taken_is_told_and_recorded(
    world: World, others: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = world.trained / "models"
    settings = {"class_names": OTHERS, "datalist": others, "output_dir": "OUT/results"}
    made = world.settings_for("train", pretrained=str(source), **settings)
    world.run("train", **made)
    sha256 = weights_sha256(read_weights(source / "model.pt"))
    classes = {"taken": ["lgd", "hgd"], "new": ["serrated"], "dropped": ["cancer"]}
    told = capfd.readouterr().err
    assert f"starts from the weights in {source / 'model.pt'} (SHA-256 {sha256[:12]}...): the layers that" in told
    assert "classes taken lgd, hgd; new serrated; dropped cancer" in told
    folder = Path(made["ckpt_dir"])
    for name in ("model.pt", "model_5x.pt", "model_10x.pt"):
        record = read_record(folder / name)
        assert record["settings"]["class_names"] == OTHERS
        assert record["pretrained"] == {
            **read_record(source / "model.pt"), "weights_sha256": sha256, "classes": classes
        }  # fmt: skip
        assert read_origin(folder / name)["made_by"]["pretrained_sha256"] == sha256
        assert is_demonstration(record) == is_demonstration(read_record(source / "model.pt"))
    written = json.loads((Path(made["output_dir"]) / "training.json").read_text())
    assert written["made_by"]["pretrained_sha256"] == sha256
    evaluated = world.run("evaluate", ckpt_dir=str(folder), datalist=others, class_names=OTHERS)
    assert list(json.loads((evaluated / "metrics.json").read_text())["global"]["classes"]) == OTHERS


def test_resuming_goes_first_and_keeps_what_the_training_started_from(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(world.trained / "models", tmp_path / "source")
    whole = world.train(pretrained=str(source), epochs=2)
    made = world.settings_for("train", pretrained=str(source), epochs=1)
    world.run("train", **made)
    shutil.rmtree(source)
    world.run("train", **{**made, "epochs": 2, "resume": True})
    assert "`pretrained` is not read: the training goes on from its own checkpoint" in capfd.readouterr().err
    folder = Path(made["ckpt_dir"])
    for one in (folder, whole):
        state = torch.load(one / "last.ckpt", weights_only=True)["model"]
        assert weights_sha256(state) == weights_sha256(torch.load(whole / "last.ckpt", weights_only=True)["model"])
        assert read_record(one / "model.pt") == read_record(whole / "model.pt")
        assert read_origin(one / "model.pt")["made_by"]["pretrained_sha256"]


def test_weights_that_do_not_fit_end_the_training_in_one_line_before_anything_is_done(world: World) -> None:
    source = str(world.trained / "models")
    for settings, told in (
        ({"method": "ssmil"}, "cannot be gone on from: they were trained with other settings (method 'mustmil', now"),
        ({"magnifications": [10]}, "(magnifications [5, 10], now [10]). Train with these settings, or name other"),
        ({"num_nodes": 64}, "(num_nodes 128, now 64)"),
        ({"backbone_weights": str(world.weights)}, "(backbone_sha256 '"),
        ({"pretrained": "nowhere"}, "pretrained nowhere: there is no such folder or file"),
    ):
        made = world.settings_for("train", **{"pretrained": source, "feature_dir": "OUT/features", **settings})
        assert told in refused(world, "train", **made)
        assert not Path(made["feature_dir"]).exists()
        assert not Path(made["ckpt_dir"]).exists()


def test_comparing_does_not_go_on_from_weights(command: Any, world: World) -> None:
    done = command("comparing", "compare", pretrained=world.trained / "models")
    assert done.returncode == 1
    assert "error: pretrained: the config has no such option" in done.stderr
    assert "Traceback" not in done.stderr


# --- slides from elsewhere ---------------------------------------------------------------------------------


def test_an_evaluation_elsewhere_is_compared_with_the_internal_test(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    inside = world.run("evaluate")
    lines = ["image,label,patient,partition"]
    for i in (2, 3, 5):
        lines.append(f"elsewhere{i}.tif,{LABELS[i]},q{i},testing")
        shutil.copy(world.cohort / f"s{i}.tif", world.cohort / f"elsewhere{i}.tif")
    (world.cohort / "elsewhere.csv").write_text("\n".join(lines) + "\n")
    places = {"datalist": str(world.cohort / "elsewhere.csv"), "feature_dir": "OUT/features"}
    made = world.settings_for("evaluate", **places, **PICTURES, internal=str(inside))
    out = world.run("evaluate", **made)
    metrics, internal = (json.loads((folder / "metrics.json").read_text()) for folder in (out, inside))
    assert (metrics["internal"]["slides"], metrics["internal"]["patients"]) == (2, 2)
    for head in ("global", "5x", "10x"):
        for found, theirs, ours in (
            (metrics[head]["external"], internal[head], metrics[head]),
            *((of["external"]["operating_point"], own["operating_point"], of["operating_point"])
              for of, own in ((metrics[head], internal[head]),)),
        ):  # fmt: skip
            of = found["micro_f1"]
            assert (of["internal"], of["external"]) == pytest.approx(
                (theirs["micro_f1"]["value"], ours["micro_f1"]["value"])
            )
            assert of["difference"]["value"] == pytest.approx(of["external"] - of["internal"])
        frequency = metrics[head]["external"]["classes"]["hgd"]["frequency"]
        assert (frequency["internal"], frequency["external"]) == (0.5, 0.0)
    told = capfd.readouterr().err
    page = (out / "report.html").read_text()
    board = EventAccumulator(str(out / "tensorboard" / "evaluation"), size_guidance={"tensors": 0}).Reload()
    text = board.Tensors("evaluation/text_summary")[0].tensor_proto.string_val[0].decode()
    warning = "Differences to the internal test, internal test: its intervals rest on 2 patients, fewer than 10"
    assert warning in metrics["internal"]["warnings"][0]
    for place in (told, page, text):
        assert warning in place
    for place in (page, text):
        assert "Against the internal test (2 slides of 2 patients): external minus internal" in place
    # What was stored with the weights decides, and not these slides.
    with open(out / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == "global"]
    for name in CLASSES:
        threshold = metrics["global"]["operating_point"]["classes"][name]["threshold"]
        assert threshold == internal["global"]["operating_point"]["classes"][name]["threshold"]
        for row in rows:
            assert (name in row["decision"].split(";")) == (float(row[f"{name}_calibrated"]) >= threshold)


def test_what_cannot_be_compared_ends_in_one_line_before_anything_is_extracted(world: World) -> None:
    inside = world.run("evaluate")
    others = world.train(seed=1, split_seed=0)
    for settings, told in (
        ({"internal": str(inside), "ckpt_dir": str(others)}, "is of other weights (SHA-256 of head global: "),
        ({"internal": str(world.cohort)}, "there is no metrics.json. Name the `output_dir` of an `evaluating`"),
        ({"internal": str(inside), "output_dir": str(inside)}, "this evaluation would replace it"),
    ):
        made = world.settings_for("evaluate", **{"feature_dir": "OUT/features", **settings})
        before = (inside / "metrics.json").read_bytes()
        assert told in refused(world, "evaluate", **made)
        assert not Path(made["feature_dir"]).exists()
        assert (inside / "metrics.json").read_bytes() == before


def test_an_internal_test_at_another_operating_point_is_refused(world: World) -> None:
    own = world.folder / "recalibrated"
    shutil.copytree(world.trained / "models", own)
    inside = world.run("evaluate", ckpt_dir=str(own))
    made = world.settings_for("evaluate", internal=str(inside), ckpt_dir=str(own))
    world.run("evaluate", **made)
    # Thresholds of the new one would decide on probabilities that the old one calibrated.
    world.run("calibrate", ckpt_dir=str(own), threshold=0.9)
    assert "it decided at another operating point of these weights than they have now" in refused(
        world, "evaluate", **made
    )
