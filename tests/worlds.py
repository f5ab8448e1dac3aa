"""A cohort of small slides, a training on it, and the shipped configs run on them with any settings."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.core.overrides import place_advanced
from scripts.core.running import ADVANCED
from scripts.core.settings import SETTINGS
from scripts.encoders.backbones import get_backbone
from scripts.encoders.baselines import build_resnet34
from scripts.features.encoding import Encoder
from tests.cohorts import SIZES, draw_slide
from tests.conftest import ROOT

CONFIGS = {
    "train": "training", "evaluate": "evaluating", "inference": "inferring", "extract": "extracting",
    "inspect": "inspecting", "check": "checking", "compare": "comparing", "search": "searching",
    "cross_validate": "cross_validating", "calibrate": "calibrating", "ensemble": "ensembling",
}  # fmt: skip
CLASSES = ["cancer", "hgd", "lgd"]
LABELS = ["cancer", "hgd", "cancer;lgd", "lgd", "cancer;hgd", "lgd", "hgd", "cancer"]
PARTITIONS = ["training"] * 4 + ["validation"] * 2 + ["testing"] * 2

Settings = dict[str, Any]

# Pictures, in TensorBoard and the report, take ten times as long as all else of an evaluation together.
NO_PICTURES: Settings = {"report": False}
PICTURES: Settings = {"report": True}


class World:
    """Eight small slides, a training on them, and files to point settings at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.cohort = folder / "cohort"
        self.cohort.mkdir()
        for i in range(len(LABELS)):
            draw_slide(self.cohort / f"s{i}.tif", SIZES[i % len(SIZES)], seed=i)
        self.slide = str(self.cohort / "s0.tif")
        self.write_list("datalist.csv", range(len(LABELS)))
        self.fewer = self.write_list("fewer.csv", [0, 1, 4, 6, 7])
        self.fewest = self.write_list("fewest.csv", [0, 4, 6])
        self.paired = self.write_list("paired.csv", range(len(LABELS)), paired=True)
        self.unsplit = self.write_list("unsplit.csv", range(len(LABELS)), partitions=False)
        self.other = folder / "other"
        shutil.copytree(self.cohort, self.other)
        self.broken = folder / "broken"
        shutil.copytree(self.cohort, self.broken)
        for name in ("s0.tif", "s6.tif"):
            (self.broken / name).write_bytes(b"no slide")
        mask = np.zeros((512, 1024), dtype=np.uint8)
        mask[:, :512] = 255
        cv2.imwrite(str(folder / "mask.png"), mask)
        self.mask = str(folder / "mask.png")
        mask[:, 512:] = 2
        mask[:, :512] = 1
        cv2.imwrite(str(folder / "coded.png"), mask)
        self.coded_mask = str(folder / "coded.png")
        self.annotations = str(folder / "annotations.geojson")
        shapes = [("Tissue", 0, 1024), ("Pen", 512, 1024)]
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[x, 0], [end, 0], [end, 512], [x, 512], [x, 0]]]},
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": [0, 0, 0]}},
            }
            for name, x, end in shapes
        ]
        collection = {"type": "FeatureCollection", "features": features}
        Path(self.annotations).write_text(json.dumps(collection), encoding="utf-8")
        self.weights = folder / "weights.pth"
        state = get_backbone("efficientnet_lite0", None, False).network.state_dict()
        torch.save({key: value * 1.1 if "_conv_stem" in key else value for key, value in state.items()}, self.weights)
        torch.manual_seed(0)
        self.resnet = folder / "resnet.pth"
        torch.save(build_resnet34().state_dict(), self.resnet)
        self.script = folder / "script.pt"
        averages = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        torch.jit.save(torch.jit.script(averages), self.script)
        said = {"size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
        self.script.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
        self.trained = folder / "trained"
        own = {
            "output_dir": self.trained,
            "feature_dir": self.trained / "features",
            "ckpt_dir": self.trained / "models",
        }
        self.seen: dict[Any, Any] = {}
        self.seeds: dict[int, Path] = {}
        self.bag = self.parse("extract", "bag_builder").look({"image": self.slide})
        self.run("train", **{key: str(path) for key, path in own.items()})
        self.trainings = {"[]": self.trained / "models"}

    def write_list(self, name: str, slides: Any, partitions: bool = True, paired: bool = False) -> str:
        """Write a datalist, in which each slide is a patient of its own, or each two are one patient."""
        with open(self.cohort / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label", "patient", *(["partition"] if partitions else [])])
            for i in slides:
                writer.writerow(
                    [
                        f"s{i}.tif",
                        LABELS[i],
                        f"q{i // 2}" if paired else f"p{i}",
                        *([PARTITIONS[i]] if partitions else []),
                    ]
                )
        return str(self.cohort / name)

    def out(self) -> Path:
        """A folder that nothing was written to."""
        self.count += 1
        folder = self.folder / "out" / str(self.count)
        folder.mkdir(parents=True)
        return folder

    def settings_for(self, config: str, **given: Any) -> Settings:
        """The settings with which looks begin, as far as the config has them, and others.

        Training and evaluation draw nothing; with :data:`PICTURES` they do.
        A text that begins with ``OUT/`` is a path in a folder that nothing was written to, ``self.last``.
        """
        out = self.out()
        begin: Settings = {
            "dataset_dir": self.slide if config == "inference" else str(self.cohort),
            "output_dir": "OUT/results",
            "class_names": CLASSES,
            "patch_size": 64,
            "epochs": 1,
            "image": self.slide,
            "feature_dir": None if config == "inference" else str(self.trained / "features"),
            "ckpt_dir": "OUT/models" if config in ("train", "ensemble") else str(self.trained / "models"),
            "members": World.members,
            **(NO_PICTURES if config in ("train", "evaluate") else {}),
        }
        if config == "calibrate" and "ckpt_dir" not in given:
            # It writes into the files of weights, and others need these.
            shutil.copytree(self.trained / "models", out / "models")
            begin["ckpt_dir"] = "OUT/models"
        used = {key: value for key, value in (begin | given).items() if key in load(config) or key in given}
        used = {key: value(self) if callable(value) else value for key, value in used.items()}
        self.last = out
        return {key: str(out / v[4:]) if isinstance(v, str) and v.startswith("OUT/") else v for key, v in used.items()}

    def train(self, **given: Any) -> Path:
        """A copy of the folder of the weights of a training, which the caller may change; it is run once for all."""
        key = repr(sorted(given.items()))
        if key not in self.trainings:
            made = self.settings_for("train", **given)
            self.run("train", **made)
            self.trainings[key] = Path(made["ckpt_dir"])
        return Path(shutil.copytree(self.trainings[key], self.out() / "models"))

    def members(self, seeds: Sequence[int] = (1, 2)) -> list[str]:
        """The folders of the weights of trainings, one for each seed."""
        for seed in seeds:
            if seed not in self.seeds:
                self.seeds[seed] = self.folder / f"seed_{seed}"
                self.run("train", seed=seed, split_seed=0, ckpt_dir=str(self.seeds[seed]))
        return [str(self.seeds[seed]) for seed in seeds]

    def once(self, look: str, encoder: Encoder, work: Callable[[], Any]) -> Any:
        """What an encoder shows on a slide: configs whose encoders are alike share it."""
        key = (look, repr(encoder.settings()), encoder.batch_size, encoder.num_workers, str(encoder.device))
        if key not in self.seen:
            self.seen[key] = work()
        return self.seen[key]

    def parse(self, config: str, *ids: str, **given: Any) -> Any:
        """Parts of a config."""
        parser = ConfigParser()
        parser.read_config(str(ROOT / "configs" / f"{config}.json"))
        parser.update(self.settings_for(config, **given))
        place_advanced(parser)
        parts = [parser.get_parsed_content(id_) for id_ in ids]
        return parts[0] if len(parts) == 1 else parts

    def run(self, config: str, run_id: str | None = None, **given: Any) -> Path:
        """Run a workflow, by default the config's first, in this process; returns its ``output_dir``."""
        given = self.settings_for(config, **given)
        workflow = self.start(config, run_id, **given)
        workflow.run()
        workflow.finalize()
        return Path(given.get("output_dir", self.last))

    def start(self, config: str, run_id: str | None = None, **given: Any) -> ConfigWorkflow:
        """A workflow that is ready to run."""
        path, given = ROOT / "configs" / f"{config}.json", self.settings_for(config, **given)
        workflow = ConfigWorkflow(str(path), workflow_type="infer", run_id=run_id or CONFIGS[config], **given)
        workflow.initialize()
        return workflow


def load(config: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    return content


def settings_of(config: str) -> set[str]:
    """The settings that a config has: its plain values, and expressions that stand for a default."""
    content = load(config)
    plain = {key for key, value in content.items() if key in SETTINGS or _is_plain(key, value)}
    return plain | content.get(ADVANCED, {}).keys()


def _is_plain(key: str, value: Any) -> bool:
    if key in ("imports", "initialize", "finalize", "run") or isinstance(value, dict):
        return False
    values = value if isinstance(value, list) else [value]
    return not any(isinstance(item, dict) or str(item).startswith(("$", "@")) for item in values)
