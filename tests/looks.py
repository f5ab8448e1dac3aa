"""Looks at what a config makes of its settings: functions of a world, a config and settings that give plain values."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import scripts.experiments.comparison
import scripts.experiments.cross_validation
import scripts.experiments.search
from scripts.core.errors import mistake_in
from scripts.encoders.runtimes import get_forward
from scripts.experiments.comparison_figure import choose_figure_slides
from scripts.features.bank import BankReader
from scripts.features.encoding import Encoder
from scripts.slides.slide import Slide
from scripts.weights.record import read_origin, read_weights
from tests.conftest import ROOT
from tests.worlds import CLASSES, World, load

OTHER_COLUMNS = ("slide", "head", "decision", "label", "patient_number")


def rows(world: World, config: str, **settings: Any) -> Any:
    """The linked grid of a slide."""
    grid = world.parse(config, "bag_builder", **settings).look({"image": world.slide}).grid
    return [(scale.name, scale.patch_um, scale.patch_size_px) for scale in grid.scales], list(grid.coords), grid.rows


def coded(world: World, config: str, **settings: Any) -> Any:
    """The grid of a slide whose mask has several values, or why there is none."""
    builder = world.parse(config, "bag_builder", **settings)
    entry = {"image": world.slide, "mask": world.coded_mask}
    return outcome(lambda: ("a grid", list(builder.look(entry).grid.coords)))


def annotated(world: World, config: str, **settings: Any) -> Any:
    """The grid of a slide whose annotations have several classes, or why there is none."""
    builder = world.parse(config, "bag_builder", **settings)
    entry = {"image": world.slide, "mask": world.annotations}
    return outcome(lambda: ("a grid", list(builder.look(entry).grid.coords)))


def pixels(world: World, config: str, **settings: Any) -> Any:
    """The patches of a slide."""
    bag = world.parse(config, "bag_builder", **settings).look({"image": world.slide})
    return [patches.astype(float) for patches in bag.read_all()]


def levels(world: World, config: str, **settings: Any) -> Any:
    """The level of the slide that each scale is read from."""
    return [
        scale.level for scale in world.parse(config, "bag_builder", **settings).look({"image": world.slide}).grid.scales
    ]


def backend(world: World, config: str, **settings: Any) -> Any:
    """What reads a slide."""
    slide: Slide = world.parse(config, "bag_builder", **settings).look({"image": world.slide}).slide
    return slide.backend


def copied(world: World, config: str, **settings: Any) -> Any:
    """Whether a slide is read from a copy, or why it cannot be."""
    staging, entry = world.parse(config, "bag_builder", **settings).staging, {"image": world.slide}
    with staging.holding(entry):
        return outcome(lambda: str(Path(staging.local(entry)["image"]) != Path(world.slide)))


def encoder(world: World, config: str, **settings: Any) -> Encoder:
    found = world.parse(config, "make_encoder" if config == "check" else "encoder", **settings)
    made: Encoder = found() if config == "check" else found
    return made


def features(world: World, config: str, **settings: Any) -> Any:
    """The features of a slide's patches; in 32 bits, unless they are asked for otherwise."""
    made = encoder(world, config, **{"amp": False, **settings})
    return world.once("features", made, lambda: made.encode_rows(world.bag))


def batches(world: World, config: str, **settings: Any) -> Any:
    """How many patches are encoded at once."""
    made = encoder(world, config, **settings)

    def largest() -> int:
        sizes: list[int] = []
        made.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        made.encode_rows(world.bag)
        return max(sizes)

    return world.once("batches", made, largest)


def threads(world: World, config: str, **settings: Any) -> Any:
    """Whether the main thread reads patches, or others do."""
    made, seen, read = encoder(world, config, **settings), set(), Slide.read_pixels

    def note(self: Slide, *args: Any) -> Any:
        seen.add(threading.current_thread() is threading.main_thread())
        return read(self, *args)

    def who() -> list[bool]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Slide, "read_pixels", note)
            made.encode_rows(world.bag)
        return sorted(seen)

    return world.once("threads", made, who)


def device(world: World, config: str, **settings: Any) -> Any:
    """Where patches are encoded, or why not there: never elsewhere in silence."""
    return outcome(lambda: str(encoder(world, config, **settings).device))


def data(world: World, config: str, **settings: Any) -> Any:
    """The slides that a workflow uses, with their labels."""
    if config in ("evaluate", "inference", "calibrate"):
        found = [world.parse(config, "data", **settings)]
    elif config == "cross_validate":
        found = list(world.parse(config, "split", **settings).parts("training", "testing").values())
    else:
        made = world.parse(config, "train#slides" if config == "train" else "slides", **settings)
        found = [made.training, made.testing if config == "compare" else made.others]
    return [[(entry["image"], np.asarray(entry.get("label", []))) for entry in part] for part in found]


def names(world: World, config: str, **settings: Any) -> Any:
    """What the outputs' scores are called in predictions.csv."""
    return world.parse(config, "handlers", **settings)[0].class_names


def places(world: World, config: str, **settings: Any) -> Any:
    """The folders that a config uses by itself."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / f"{config}.json"))
    parser.update(settings)
    others = [key for key in ("output_dir", "ckpt_dir", "feature_dir") if key in load(config) and key not in settings]
    return [parser.get_parsed_content(key) for key in others]


def weights(world: World, config: str, **settings: Any) -> Any:
    """The weights at the end of a training, or of an ensemble."""
    made = world.settings_for(config, **settings)
    world.run(config, **made)
    folder = Path(made["ckpt_dir"])
    trained = folder / "last.ckpt"
    state = torch.load(trained, weights_only=True)["model"] if trained.exists() else read_weights(folder / "model.pt")
    return {key: value.numpy() for key, value in state.items()}


def points(world: World, config: str, **settings: Any) -> Any:
    """The operating point that rides with the weights of a training, once the workflow ends."""
    made = world.settings_for(config, **settings)
    world.run(config, **made)
    return read_origin(Path(made["ckpt_dir"]) / "model.pt")["operating_point"]


def shapes(world: World, config: str, **settings: Any) -> Any:
    """The network's tensors."""
    return {key: tuple(v.shape) for key, v in world.parse(config, "network_def", **settings).state_dict().items()}


def last_epoch(world: World, config: str, **settings: Any) -> Any:
    """How long a training was, and when it was validated."""
    told = json.loads((world.run(config, **settings) / "training.json").read_text())
    return [phase["epochs"] for phase in told["phases"]], [best["epoch"] for best in told["best"].values()]


def files(world: World, config: str, **settings: Any) -> Any:
    """The files that a workflow writes."""
    settings, out = world.settings_for(config, **settings), world.last
    world.run(config, **settings)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return [name for name in found if "tfevents" not in name]


def images(world: World, config: str, **settings: Any) -> Any:
    """The pictures that a workflow shows in TensorBoard."""
    (folder,) = (world.run(config, **settings) / "tensorboard").iterdir()
    return sorted(EventAccumulator(str(folder)).Reload().Tags()["images"])


def exported(world: World, config: str, **settings: Any) -> Any:
    """The files that ``exporting`` writes."""
    settings, out = world.settings_for(config, **settings), world.last
    world.run(config, "exporting", **settings)
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def imported(world: World, config: str, **settings: Any) -> Any:
    """How ``importing`` ends, and where level 0 of the banks is said to be."""
    settings, out = world.settings_for(config, **{"feature_dir": "OUT/banks", **settings}), world.last
    told = outcome(lambda: world.run(config, "importing", **settings) and "to its end")
    found = {}
    for path in out.rglob("*.h5"):
        with h5py.File(path) as bank:
            found[path.name] = (bank.attrs["mpp"], bank.attrs["mpp_source"])
    return told, found


def contents(world: World, config: str, **settings: Any) -> Any:
    """What is in the files that a workflow writes, and how it ends."""
    settings, out = world.settings_for(config, **settings), world.last
    told = outcome(lambda: world.run(config, **settings) and "to its end")
    return told, {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def end(world: World, config: str, **settings: Any) -> Any:
    """How a workflow ends."""
    return outcome(lambda: world.run(config, **settings) and "to its end")


BROKEN = {
    "dataset_dir": lambda world: str(world.broken), "datalist": lambda world: world.fewer,
    "feature_dir": "OUT/features",
}  # fmt: skip


def extraction(world: World, config: str, **settings: Any) -> Any:
    """How the extraction of a cohort ends of which slides are broken, and the banks that it writes."""
    settings = world.settings_for(config, **BROKEN, **settings)
    out = world.last
    told = outcome(world.parse(config, "extractor", **settings).run)
    return told, sorted(path.name for path in out.rglob("*.h5"))


def opened(world: World, config: str, **settings: Any) -> Any:
    """How often a training reads a feature bank."""
    count = []
    read = BankReader.read

    def counted(reader: BankReader, path: Path) -> Any:
        count.append(path)
        return read(reader, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BankReader, "read", counted)
        world.run(config, **settings)
    return len(count)


def bags(world: World, config: str, **settings: Any) -> Any:
    """How many bags are in a batch."""
    extractor, loader = world.parse(config, "extractor", "dataloader", **settings)
    extractor.run()
    return [len(batch["image"]) for batch in loader]


def intervals(world: World, config: str, **settings: Any) -> Any:
    """The intervals of an evaluation's metrics."""
    told = json.loads((world.run(config, **settings) / "metrics.json").read_text())
    scores = [score for head in ("global", "5x", "10x") for score in told[head].values()]
    return [score["ci95"] for score in scores if isinstance(score, dict) and "ci95" in score]


def sections(world: World, config: str, **settings: Any) -> Any:
    """What an evaluation's metrics have beside and in the first head."""
    told = json.loads((world.run(config, **settings) / "metrics.json").read_text())
    return list(told), list(told["global"])


def source(world: World, config: str, **settings: Any) -> Any:
    """What bags are made of."""
    return type(world.parse(config, "train#dataset" if config == "train" else "dataset", **settings)).__name__


def linked(world: World, config: str, **settings: Any) -> Any:
    """The rows of a bag: features and log weights."""
    if config == "inference":
        return world.parse(config, "encode", **settings)({"image": world.slide})["image"].numpy()
    world.parse(config, "extractor", **settings).run()
    dataset = world.parse(config, "dataset", **settings)
    return dataset[0]["image"].numpy(), dataset[0]["log_weight"].numpy()


def heads(world: World, config: str, **settings: Any) -> Any:
    """The outputs."""
    return world.parse(config, "heads", **settings)


def forward(world: World, config: str, **settings: Any) -> Any:
    """What computes the backbone."""
    made = encoder(world, config, **settings)
    return type(get_forward(made.runtime, made.backbone, made.batch_size)).__name__


def precision(world: World, config: str, **settings: Any) -> str:
    """What the backbone computes in."""
    return encoder(world, config, **settings).precision


def figure(world: World, config: str, **settings: Any) -> Any:
    """The slides of a comparison's figure."""
    made = world.parse(config, "comparison", **settings)
    return choose_figure_slides(made.testing_data, CLASSES, made.figure_slides)


def plans(world: World, config: str, **settings: Any) -> Any:
    """The trainings and evaluations that are to be run: where, with which settings, and how many at a time."""
    planned: list[Any] = []

    def plan(experiments: Any, bundle_root: Any, num_processes: int, desc: str) -> None:
        for one in experiments:
            planned.append((str(one.folder), [one.settings_for(step, ROOT) for step in one.steps]))
        planned.append(num_processes)
        raise InterruptedError

    settings = {"output_dir": "planned", "feature_dir": "planned/features", **settings}
    name = {"compare": "comparison", "cross_validate": "cross_validation"}.get(config, config)
    made = world.parse(config, name, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(scripts.experiments, name), "run_experiments", plan)
        for before in ("check_banks", "write_datalist"):
            patch.setattr(getattr(scripts.experiments, name), before, lambda *_: None, raising=False)
        with pytest.raises(InterruptedError):
            made.run()
    return planned


def reads(world: World, config: str, **settings: Any) -> Any:
    """How many regions of slides a workflow reads."""
    count, read = [], Slide.read_pixels

    def note(self: Slide, *args: Any) -> Any:
        count.append(1)
        return read(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slide, "read_pixels", note)
        outcome(lambda: world.run(config, **settings))
    return len(count)


def room(world: World, config: str, **settings: Any) -> Any:
    """The room that a check says the banks of a cohort need, and where."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        world.run(config, **settings)
    (found,) = re.findall(r"; (\S+ \S+ in \S+) \(", told.getvalue())
    return found


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        mistake = mistake_in(error)
        if mistake is None:
            raise
        return type(mistake).__name__, mistake.cause


def predictions(world: World, config: str, **settings: Any) -> Any:
    """The probabilities that a workflow writes, by slide and output."""
    out = world.run(config, **settings)
    with open(out / "predictions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return {
        (row["slide"], row["head"]): np.array([float(row[name]) for name in row if name not in OTHER_COLUMNS])
        for row in found
    }
