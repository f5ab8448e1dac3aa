"""The fixtures of the tests against a real server; apart from conftest, which the other environment reads too."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from scripts.core.sums import SUMS
from scripts.datalists.labels import CLASS_NAMES
from scripts.networks.methods import get_network
from scripts.synthetic.cohort import make_cohort
from scripts.weights.checkpoints import load_weights
from tests.hostile import RunsCode
from tests.label.servers import ROOT, Server, Shell, free_port, served, wait_for
from tests.pyramids import BOUNDS_SLIDE

NAME = "pathology_mustmil_classification"
SECOND = "candidate_classification"
TRAINED = "trained_classification"
MISSING, PREFIXED, TRUNCATED = "missing_classification", "prefixed_classification", "truncated_classification"
WITHOUT = "weightless_classification"
TEXT, MISRECORDED, UNRECORDED = "text_classification", "misrecorded_classification", "unrecorded_classification"
EXITING, FORMLESS = "exiting_classification", "formless_classification"
CHANGED, PICKLED = "changed_classification", "pickled_classification"
ENSEMBLE = "ensemble_classification"
# Bundles with weights of the other tasks, of the other unit, and of an ensemble, by what their trainings are told.
OTHERS: dict[str, dict[str, str]] = {
    "multiclass_classification": {"task": "multiclass"},
    "ordinal_classification": {"task": "ordinal"},
    "patient_classification": {"task": "ordinal", "unit": "patient"},
    ENSEMBLE: {"task": "multiclass"},
}
GRADES = ["normal", "LGD", "hgd"]
STEPS = ["above normal", "above LGD"]

REAL_SLIDE = ROOT.parent / "shared" / "slides" / "CMU-1-Small-Region.svs"
REAL, DRAWN = REAL_SLIDE.stem, "demo_000"
NUM_SLIDES = 3
# What `predictions.csv` writes is rounded to fewer digits than the server's JSON.
SCORE_ATOL = 1e-4


@dataclass(frozen=True)
class Oracle:
    """What ``inferring`` says of the slides.

    Args:
        scores: by slide, output and class.
        decisions: by slide, output and class, the calibrated probability and whether the class is decided.
        folder: with the heatmaps.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    decisions: dict[str, dict[str, dict[str, tuple[float, bool]]]]
    folder: Path

    def features(self, slide: str, name: str) -> list[dict[str, Any]]:
        """The tiles of a heatmap in GeoJSON."""
        path = self.folder / "heatmaps" / slide / f"{name}.geojson"
        return list(json.loads(path.read_text(encoding="utf-8"))["features"])


def workflow(root: Path, run_id: str, config: str, **settings: Any) -> None:
    """Run a workflow of a bundle by its command, from the bundle's folder."""
    options = [f"--{key}={value}" for key, value in settings.items()]
    call = [sys.executable, "-m", "monai.bundle", "run", run_id, f"--config_file=configs/{config}.json", *options]
    run(call, root)


def run(call: list[str], root: Path = ROOT) -> None:
    """Run a command from a folder; whatever ends otherwise than well fails the test with what it said."""
    done = subprocess.run(call, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def infer_with(root: Path, slides: Path, output: Path, names: Sequence[str] = CLASS_NAMES, **settings: Any) -> Oracle:
    """Predict a folder of slides with the bundle in a folder, without any server.

    Args:
        root: the bundle's folder.
        slides: the folder of slides.
        output: gets what the workflow writes.
        names: the bundle's classes.
        settings: of the workflow.
    """
    settings = {"heatmap_classes": "['cancer','normal']", **settings}
    workflow(root, "inferring", "inference", dataset_dir=slides, output_dir=output, **settings)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    decisions: dict[str, dict[str, dict[str, tuple[float, bool]]]] = {}
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            slide = row["slide"] if "slide" in row else row["patient"]
            scores.setdefault(slide, {})[row["head"]] = {name: float(row[name]) for name in names}
            # Weights without an operating point have no such columns.
            decisions.setdefault(slide, {})[row["head"]] = {
                name: (float(row[f"{name}_calibrated"]), name in row["decision"].split(";"))
                for name in names
                if f"{name}_calibrated" in row
            }
    return Oracle(scores, decisions, output)


def assert_scores(found: dict[str, dict[str, float]], wanted: dict[str, dict[str, float]]) -> None:
    """Every output's score of every class agrees."""
    assert list(found) == list(wanted)
    for head, scores in wanted.items():
        assert found[head] == pytest.approx(scores, abs=SCORE_ATOL), head


def assert_decisions(
    found: dict[str, dict[str, dict[str, Any]]], wanted: dict[str, dict[str, tuple[float, bool]]]
) -> None:
    """Every output's calibrated probability and decision of every class agree."""
    assert list(found) == list(wanted)
    for head, of_head in wanted.items():
        assert list(found[head]) == list(of_head)
        for name, (calibrated, decision) in of_head.items():
            assert found[head][name]["calibrated"] == pytest.approx(calibrated, abs=SCORE_ATOL)
            assert found[head][name]["decision"] is decision


def patches_of_geojson(features: list[dict[str, Any]]) -> dict[tuple[float, ...], tuple[list[Any], float]]:
    """By top left corner, the ring and the value of each tile that ``inferring`` wrote."""
    patches = {}
    for feature in features:
        ring = feature["geometry"]["coordinates"][0]
        measured = feature["properties"]["measurements"]
        (value,) = (number for name, number in measured.items() if "percentile" not in name)
        patches[tuple(ring[0])] = (ring, value)
    return patches


def assert_is_map(element: dict[str, Any], features: list[dict[str, Any]]) -> None:
    """An element of the reply shows every tile of a heatmap of ``inferring``, with its value."""
    wanted = patches_of_geojson(features)
    assert len(element["contours"]) == len(wanted)
    for contour, value in zip(element["contours"], element["values"], strict=True):
        ring, of_ring = wanted[tuple(contour[0])]
        assert [*contour, contour[0]] == ring
        # Through bfloat16 or another number of threads the last digits may differ.
        assert value == pytest.approx(of_ring, abs=SCORE_ATOL)


def prediction_of(reply: dict[str, Any]) -> dict[str, float]:
    """MONAI Label's own form of the scores, as a mapping."""
    return {entry["label"]: entry["score"] for entry in reply["prediction"]}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a drawn cohort."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, NUM_SLIDES, seed=0)
    return folder


@pytest.fixture(scope="session")
def slides(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slides that every server and ``inferring`` predict: a real one, if it is there, and a drawn one."""
    folder = tmp_path_factory.mktemp("slides")
    shutil.copy(cohort / "slides" / f"{DRAWN}.tiff", folder)
    if REAL_SLIDE.is_file():
        shutil.copy(REAL_SLIDE, folder)
    return folder


@pytest.fixture(scope="session")
def studies(cohort: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the servers read: these slides, those to train on, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("studies")
    for path in [*slides.iterdir(), *(cohort / "slides").glob("*.tiff")]:
        shutil.copy(path, folder)
    white = np.full((3000, 3000, 3), 255, np.uint8)
    per_cm = 1e4 / 0.5
    tifffile.imwrite(folder / "glass.tiff", white, tile=(256, 256), resolution=(per_cm, per_cm), resolutionunit=3)
    with tifffile.TiffFile(cohort / "slides" / f"{DRAWN}.tiff") as slide:
        tissue = slide.pages[0].asarray()
    middle = tuple(slice(size // 2 - 1000, size // 2 + 1000) for size in tissue.shape[:2])
    tifffile.imwrite(folder / "unscaled.tiff", tissue[middle], photometric="rgb", tile=(256, 256), compression="zlib")
    if BOUNDS_SLIDE.is_file():
        shutil.copy(BOUNDS_SLIDE, folder)
    (folder / "broken.svs").write_bytes((folder / f"{DRAWN}.tiff").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="session")
def packed(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip that is handed on, with weights of a short training."""
    output = tmp_path_factory.mktemp("packed")
    settings = {"dataset_dir": cohort, "output_dir": output, "ckpt_dir": output / "models"}
    workflow(ROOT, "training", "train", epochs=1, **settings)
    return pack(output)


def pack(output: Path) -> Path:
    """The bundle with the weights in the ``models`` of a folder, packed into that folder by its command."""
    call = [sys.executable, "-m", "bundle", "pack", f"--ckpt_dir={output / 'models'}", f"--output_dir={output}"]
    run(call)
    (path,) = output.glob(f"{NAME}_v*.zip")
    return path


@pytest.fixture(scope="session")
def packed_others(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The zips with weights of the other tasks and unit, and of an ensemble, by the names of their bundles."""
    root = tmp_path_factory.mktemp("packed_others")
    datalist = {
        "training": [{"image": "slides/demo_001.tiff", "label": "hgd"}, {"image": "slides/demo_002.tiff", "label": 0}],
        "validation": [{"image": "slides/demo_000.tiff", "label": "LGD"}],
    }
    for entry in (entry for entries in datalist.values() for entry in entries):
        entry["patient"] = str(entry["image"])
    (root / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")

    settings = {"dataset_dir": str(cohort), "datalist": str(root / "datalist.json"), "class_names": GRADES, "epochs": 1}
    settings["feature_dir"] = str(root / "features")
    jobs: list[dict[str, Any]] = []
    for name, own in OTHERS.items():
        folder = root / name
        seeds = {seed: str(folder / f"seed_{seed}" if name == ENSEMBLE else folder / "models") for seed in range(2)}
        for seed, models in seeds.items() if name == ENSEMBLE else [(0, seeds[0])]:
            places = {"output_dir": str(folder), "ckpt_dir": models, "seed": seed}
            jobs.append({"run_id": "training", "config_file": "configs/train.json", **settings, **places, **own})
    of_ensemble = {"members": list(seeds.values()), "ckpt_dir": str(root / ENSEMBLE / "models")}
    jobs.append({"run_id": "ensembling", "config_file": "configs/ensemble.json", **of_ensemble})
    # In one process, which loads PyTorch once.
    program = "import json, sys, monai.bundle\nfor job in json.loads(sys.argv[1]): monai.bundle.run(**job)"
    run([sys.executable, "-c", program, json.dumps(jobs)])
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(OTHERS, threads.map(pack, (root / name for name in OTHERS)), strict=True))


@pytest.fixture(scope="session")
def bundle_url(packed: Path) -> Iterator[str]:
    """The address of the zip on loopback."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(packed.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{packed.name}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def names(bundle_url: str, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the guide asks a user to set, but for the port."""
    labels = tmp_path_factory.mktemp("labels")
    for number, label in enumerate(([1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0])):
        content = {"label": dict(zip(CLASS_NAMES, label, strict=True))}
        (labels / f"demo_{number:03}.json").write_text(json.dumps(content), encoding="utf-8")
    return {
        "APPS": str(tmp_path_factory.mktemp("apps")),
        "STUDIES": str(studies),
        "BUNDLE_URL": bundle_url,
        "LABELS": str(labels),
        "SLIDE": DRAWN,
        "MODEL": NAME,
        # Nothing may leave this machine, and loopback is on no proxy's list.
        "no_proxy": "127.0.0.1",
    }


@dataclass(frozen=True)
class Training:
    """What a training on a server did.

    Args:
        before: the reply for the drawn slide with the weights that it went on from.
        unlabelled: the task of a training without labels; ``None`` where that was not tried.
        task: the task of the training, as the server told it at last.
        after: the reply for the drawn slide after it.
        wanted: what ``inferring`` says with the weights that it left.
        files: the names of the files of weights.
    """

    before: dict[str, Any]
    unlabelled: dict[str, Any] | None
    task: dict[str, Any]
    after: dict[str, Any]
    wanted: dict[str, dict[str, float]]
    files: list[str]


@pytest.fixture(scope="session")
def shells(names: dict[str, str], packed_others: dict[str, Path]) -> tuple[Shell, Shell]:
    """Our app and the stock app with their bundles, got by the guide: downloaded, upgraded, a second version beside."""
    # A folder of slides belongs to one server: what one saves there, the other would read.
    studies = f"{names['STUDIES']}-stock"
    shutil.copytree(names["STUDIES"], studies)
    own = Shell({**names, "PORT": str(free_port())})
    stock = Shell({**names, "PORT": str(free_port()), "STUDIES": studies})
    with ThreadPoolExecutor() as threads:
        list(threads.map(Shell.run, (own, stock), ("get", "stock-get")))
        list(threads.map(Shell.run, (own, own), ("upgrade", "second")))
    models = Path(names["APPS"], "mustmil", "model")
    make_second_version(models / SECOND)
    make_variants(models)
    for name, path in packed_others.items():
        with zipfile.ZipFile(path) as bundle, tempfile.TemporaryDirectory(dir=models.parent) as folder:
            bundle.extractall(folder)
            Path(folder, NAME).rename(models / name)
    for name in (*OTHERS, SECOND, TRAINED, MISSING, PREFIXED):
        shutil.copytree(models / name, Path(names["APPS"], "monaibundle", "model", name))
    return own, stock


@pytest.fixture(scope="session")
def own_shell(shells: tuple[Shell, Shell]) -> Shell:
    """The commands of the guide for our app."""
    return shells[0]


@pytest.fixture(scope="session")
def stock_shell(shells: tuple[Shell, Shell]) -> Shell:
    """The commands of the guide for the stock app."""
    return shells[1]


@pytest.fixture(scope="session")
def running(
    shells: tuple[Shell, Shell], slides: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server, dict[str, Oracle]]]:
    """Both servers, and by folder what ``inferring`` says with the downloaded bundle and its second version."""
    own_shell, stock_shell = shells
    logs = tmp_path_factory.mktemp("logs")
    models = Path(own_shell.names["APPS"], "mustmil", "model")
    outputs = {name: tmp_path_factory.mktemp(f"oracle_{name}") for name in (NAME, SECOND)}
    stock_shell.env["MODEL"] = ",".join([NAME, SECOND, TRAINED, MISSING, PREFIXED, *OTHERS])
    with (
        served(own_shell, "start", logs / "own.log") as own,
        served(stock_shell, "stock-start", logs / "stock.log") as stock,
        ThreadPoolExecutor() as threads,
    ):
        jobs = {name: threads.submit(infer_with, models / name, slides, out) for name, out in outputs.items()}
        # The names of all models are for the start alone.
        stock_shell.env["MODEL"] = NAME
        for server in (own, stock):
            wait_for(server)
        yield own, stock, {name: job.result() for name, job in jobs.items()}


@pytest.fixture(scope="session")
def own(running: tuple[Server, Server, dict[str, Oracle]]) -> Server:
    """Our app's server."""
    return running[0]


@pytest.fixture(scope="session")
def stock(running: tuple[Server, Server, dict[str, Oracle]]) -> Server:
    """The stock app's server."""
    return running[1]


@pytest.fixture(scope="session")
def oracles(running: tuple[Server, Server, dict[str, Oracle]]) -> dict[str, Oracle]:
    """What ``inferring`` says with each version, by folder."""
    return running[2]


@pytest.fixture(scope="session")
def oracle(oracles: dict[str, Oracle]) -> Oracle:
    """What ``inferring`` says with the downloaded bundle."""
    return oracles[NAME]


@pytest.fixture(scope="session")
def trainings(
    own: Server, stock: Server, shells: tuple[Shell, Shell], slides: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Training]:
    """Trainings of a copy of the bundle on both servers, by the guide, from labels that were uploaded."""

    def train(app: str, server: Server, shell: Shell, try_unlabelled: bool) -> Training:
        folder = Path(shell.names["APPS"], app, "model", TRAINED)
        shell = Shell({**shell.names, "MODEL": TRAINED})
        before = server.infer(TRAINED, DRAWN)
        unlabelled = server.train(shell) if try_unlabelled else None
        shell.run("label")
        task = server.train(shell)
        after = server.infer(TRAINED, DRAWN)
        wanted = infer_with(folder, slides, tmp_path_factory.mktemp(f"trained_{app}")).scores[DRAWN]
        return Training(before, unlabelled, task, after, wanted, [path.name for path in folder.glob("models/*.pt")])

    with ThreadPoolExecutor() as threads:
        jobs = {
            "mustmil": threads.submit(train, "mustmil", own, shells[0], True),
            "monaibundle": threads.submit(train, "monaibundle", stock, shells[1], False),
        }
        return {app: job.result() for app, job in jobs.items()}


@pytest.fixture(scope="session")
def other_oracles(
    running: tuple[Server, Server, dict[str, Oracle]],
    shells: tuple[Shell, Shell],
    slides: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Oracle]:
    """What ``inferring`` says of the drawn slide with the bundles of the other tasks and unit."""
    root = tmp_path_factory.mktemp("other_oracles")
    (root / "patients.csv").write_text(f"image,patient\n{DRAWN}.tiff,{DRAWN}\n", encoding="utf-8")

    def infer(name: str) -> Oracle:
        maps = GRADES if OTHERS[name]["task"] == "multiclass" else STEPS
        settings = {"datalist": root / "patients.csv", "heatmap_classes": maps, "heatmap_formats": ["geojson"]}
        models = Path(shells[0].names["APPS"], "mustmil", "model")
        return infer_with(models / name, slides, root / name, GRADES, **settings)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(OTHERS, threads.map(infer, OTHERS), strict=True))


@pytest.fixture(params=[REAL, DRAWN])
def slide(request: pytest.FixtureRequest, slides: Path) -> str:
    """The id of each slide that there is an oracle for."""
    if request.param == REAL and not REAL_SLIDE.is_file():
        pytest.skip(f"no file {REAL_SLIDE}: put OpenSlide's test slide there")
    return str(request.param)


def make_second_version(folder: Path) -> None:
    """Turn a copy of the bundle into another version: other weights, another number, code that halves every score."""
    metadata = folder / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content["version"] = "99.0.0"
    content["changelog"]["99.0.0"] = "halves every score"
    metadata.write_text(json.dumps(content), encoding="utf-8")
    code = folder / "scripts" / "inference" / "transforms.py"
    changed = """

class Halved(ServingHeadd):
    def __call__(self, data):
        chosen = super().__call__(data)
        return {**chosen, "pred": chosen["pred"] / 2, "head_scores": chosen["head_scores"] / 2}


ServingHeadd = Halved
"""
    code.write_text(code.read_text(encoding="utf-8") + changed, encoding="utf-8")
    network = get_network("mustmil", num_classes=len(CLASS_NAMES), num_scales=2, num_features=1280)
    weights = folder / "models" / "model.pt"
    load_weights(network, weights)
    unlist_weights(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
    torch.save(network.state_dict(), weights)
    # As files out of one zip can have it.
    written = weights.stat().st_mtime
    os.utime(weights.with_name("model_5x.pt"), (written, written))
    os.utime(weights, (written, written))


def unlist_weights(bundle: Path) -> None:
    """Remove ``model.pt`` from a bundle's list of checksums, as whoever puts another file there has to."""
    lines = (bundle / SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith("  models/model.pt\n")]
    (bundle / SUMS).write_text("".join(kept), encoding="utf-8")


def make_variants(models: Path) -> None:
    """Copies of the bundle: one to be trained, and some whose weights are broken."""
    others = (TEXT, MISRECORDED, UNRECORDED, PICKLED)
    for name in (TRAINED, WITHOUT, CHANGED, EXITING, FORMLESS):
        shutil.copytree(models / NAME, models / name)
    for name in (MISSING, PREFIXED, TRUNCATED, *others):
        shutil.copytree(models / NAME, models / name)
        unlist_weights(models / name)
    state = torch.load(models / NAME / "models" / "model.pt", weights_only=True)
    half = dict(list(state.items())[::2])
    torch.save(half, models / MISSING / "models" / "model.pt")
    torch.save({f"module.{key}": value for key, value in state.items()}, models / PREFIXED / "models" / "model.pt")
    whole = (models / NAME / "models" / "model.pt").read_bytes()
    (models / TRUNCATED / "models" / "model.pt").write_bytes(whole[:1000])
    (models / WITHOUT / "models" / "model.pt").unlink()
    (models / TEXT / "models" / "model.pt").write_text("error 404: not found\n", encoding="utf-8")
    torch.save(dict(state), models / UNRECORDED / "models" / "model.pt")
    state._metadata[""]["record"] = "{"
    torch.save(state, models / MISRECORDED / "models" / "model.pt")
    # Whole weights with a true record: the list of checksums alone knows that they are others.
    shutil.copy(models / CHANGED / "models" / "model_5x.pt", models / CHANGED / "models" / "model.pt")
    torch.save({"model": RunsCode(models / PICKLED / "ran")}, models / PICKLED / "models" / "model.pt")
    with (models / EXITING / "scripts" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write("\nraise SystemExit(3)\n")
    metadata = models / FORMLESS / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content["network_data_format"] = {}
    metadata.write_text(json.dumps(content), encoding="utf-8")
