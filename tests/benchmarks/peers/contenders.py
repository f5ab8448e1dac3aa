"""Who is measured: the commands of the other tools and of ours, on the same slides, threads and weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import h5py
import torch

from scripts.bags.bag import BagBuilder
from scripts.encoders.backbones import get_backbone
from scripts.features.int8 import Int8
from tests.benchmarks.extraction import settings

__all__ = ["FLOAT32", "INT8", "OTHERS", "Contender", "Features", "Other", "Ours", "Work", "make_int8", "ours"]

FLOAT32, INT8 = "float32", "INT8"
RUNNERS = Path(__file__).parent


class Work(NamedTuple):
    """What each contender has to do.

    Args:
        slides: a folder of nothing but slides.
        magnifications: at which they are cut into patches.
        weights: a state dict of ResNet34, with torchvision's names.
        threads: to compute with, and at most as many to read with.
    """

    slides: Path
    magnifications: Sequence[float]
    weights: Path
    threads: int = 2
    patch_size: int = 224
    min_tissue: float = 0.7
    batch_size: int = 32


class Features(NamedTuple):
    """What a contender left: the number of patches that it encoded, and when it had the first, since the epoch."""

    patches: int
    first_batch_at: float


class Contender(Protocol):
    """Something that extracts features."""

    @property
    def name(self) -> str: ...

    @property
    def arithmetic(self) -> str: ...

    def command(self, work: Work, output: Path) -> list[str]:
        """The command that does the work and writes into ``output``, an empty folder."""
        ...

    def features(self, output: Path) -> Features:
        """What that command left."""
        ...


@dataclass(frozen=True)
class Other:
    """Another tool, which a runner here calls from within its environment, ``FOLDER/<key>/env``.

    Args:
        name: as its makers write it.
        key: its folder, and the name of its runner.
        root: the folder of all tools.
        has_checkout: whether it is no package, but a checkout in ``FOLDER/<key>/checkout``.
    """

    name: str
    key: str
    root: Path
    has_checkout: bool
    arithmetic: str = FLOAT32

    @property
    def python(self) -> Path:
        return self.root / self.key / "env" / "bin" / "python"

    @property
    def checkout(self) -> Path:
        return self.root / self.key / "checkout"

    def missing(self) -> Path | None:
        """What has to be there, and is not."""
        needed = [self.python, *([self.checkout] if self.has_checkout else [])]
        return next((path for path in needed if not path.exists()), None)

    def command(self, work: Work, output: Path) -> list[str]:
        return [
            str(self.python),
            str(RUNNERS / f"run_{self.key}.py"),
            *([f"--checkout={self.checkout}"] if self.has_checkout else []),
            f"--slides={work.slides}",
            f"--output={output}",
            f"--weights={work.weights}",
            "--magnifications",
            *(f"{magnification:g}" for magnification in work.magnifications),
            f"--patch_size={work.patch_size}",
            f"--min_tissue={work.min_tissue}",
            f"--batch_size={work.batch_size}",
            f"--threads={work.threads}",
            f"--report={output / 'report.json'}",
        ]

    def features(self, output: Path) -> Features:
        return Features(**json.loads((output / "report.json").read_text(encoding="utf-8")))

    def commit(self) -> str:
        """The commit of its checkout."""
        return subprocess.check_output(["git", "-C", self.checkout, "rev-parse", "--short", "HEAD"], text=True).strip()


# In the order in which they are measured: name, key, whether it is a checkout.
OTHERS = (
    ("TRIDENT", "trident", True),
    ("CLAM", "clam", True),
    ("LazySlide", "lazyslide", False),
    ("hs2p + slide2vec", "hs2p", False),
)


@dataclass(frozen=True)
class Ours:
    """``extracting``, as a user types it.

    Args:
        runtime: its setting.
        amp: its setting.
        int8: of ``precision`` int8, the folder with the encoder's INT8 network, which is made once a cohort.
    """

    runtime: str
    amp: bool
    int8: Path | None = None

    @property
    def name(self) -> str:
        return f"ours, {self.runtime}"

    @property
    def arithmetic(self) -> str:
        if self.int8 is not None:
            return INT8
        return "bfloat16" if self.amp else FLOAT32

    def command(self, work: Work, output: Path) -> list[str]:
        if self.int8 is not None:
            shutil.copytree(self.int8, output / "features")
        overlay, datalist = output / "first_batch.json", output / "datalist.json"
        noting = {
            "_target_": "tests.benchmarks.peers.first_batch.noting_first_batch",
            "encoder": "@encoder",
            "path": str(output / "first_batch_at"),
        }
        overlay.write_text(json.dumps({"extractor#encoder": noting}), encoding="utf-8")
        # Extraction needs no labels, but a datalist has some.
        entries = [{"image": path.name, "label": [0, 0, 0, 0, 1]} for path in sorted(work.slides.iterdir())]
        datalist.write_text(json.dumps({"training": entries}), encoding="utf-8")
        magnifications = ",".join(f"{magnification:g}" for magnification in work.magnifications)
        return [
            *(sys.executable, "-m", "monai.bundle", "run", "extracting"),
            f"--config_file=['configs/extract.json','{overlay}']",
            f"--dataset_dir={work.slides}",
            f"--datalist={datalist}",
            f"--output_dir={output}",
            "--backbone=resnet34",
            f"--backbone_weights={work.weights}",
            f"--magnifications=[{magnifications}]",
            f"--patch_size={work.patch_size}",
            f"--min_tissue={work.min_tissue}",
            f"--encode_batch={work.batch_size}",
            f"--num_workers={work.threads}",
            f"--runtime={self.runtime}",
            f"--amp={self.amp}",
            f"--precision={'amp' if self.int8 is None else 'int8'}",
            "--device=cpu",
        ]

    def features(self, output: Path) -> Features:
        patches = sum(sum(_patches(path)) for path in output.glob("features/*.h5"))
        return Features(patches, float((output / "first_batch_at").read_text(encoding="utf-8")))


def ours(int8: Path | None = None) -> list[Ours]:
    """The runtimes and arithmetics of ours that this machine's processor has; INT8, if there is a network for it."""
    measured = [
        Ours(runtime, amp) for runtime, amp in settings(torch.device("cpu")) if runtime in ("torch", "openvino")
    ]
    return measured if int8 is None else [*measured, Ours("openvino", amp=False, int8=int8)]


def make_int8(folder: Path, weights: Path, slides: Sequence[Path]) -> None:
    """Make the INT8 network of ResNet34 on patches of some slides, and store it in a folder."""
    entries = [{"image": str(slide), "slide": slide.stem} for slide in slides]
    Int8(folder).prepare(get_backbone("resnet34", str(weights), amp=False), entries, BagBuilder())


def _patches(path: Path) -> Iterator[int]:
    """The number of patches in a feature bank, of each scale."""
    with h5py.File(path) as bank:
        yield from (len(bank[key]["features"]) for key in bank if key != "rows")
