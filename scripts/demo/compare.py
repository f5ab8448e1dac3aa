"""``make compare-demo``: the paper's comparison on synthetic slides, on a quarter of them, and on a control."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
from tqdm import tqdm

from scripts import BUNDLE_ROOT
from scripts.core.errors import show_one_line
from scripts.core.files import output_folder, replacing, write_json
from scripts.demo.run import run_config
from scripts.experiments.variants import read_variants
from scripts.features.bank_writing import seal_bank
from scripts.networks.methods import METHODS as EVERY_METHOD
from scripts.synthetic.cohort import ensure_cohort

__all__ = ["all_methods", "main", "write_control_banks", "write_few"]

# Not those of `make demo`, which were in use while the software was written.
COHORT_SEED = 1
NUM_SLIDES = 200
METHODS = ["mustmil", "msmil", "ssmil", "mil_att"]
# The transformer of MONAI's MILModel (50 million weights) would take most of the time on a machine without a GPU.
TOO_LARGE = "mil_att_trans"
MORE_VARIANTS = [
    "mustmil classifier_init=zeros",
    "mustmil alpha=3",
    "mustmil lr=0.0001",
    "clam_sb instance_weight=0",
    "clam_mb instance_weight=0",
    "mustmil attention_entropy=1",
    "mustmil attention_entropy=-1",
]
# Those that differ only in how they use the scales.
SCALE_METHODS = METHODS[:3]
# With every training slide, the methods of several scales make hardly any mistake; with one in FEW, they differ.
FEW = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and its control; every step is a command that a user could type."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.compare", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/compare"), help="gets the slides")
    parser.add_argument("--output_dir", type=Path, default=Path("output/compare-demo"))
    parser.add_argument("--num_slides", type=int, default=NUM_SLIDES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--few_methods", nargs="+", default=SCALE_METHODS, help="of few slides; all: rivals, ablations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5, help="of each phase; 5 as in the paper")
    parser.add_argument("--num_processes", type=int, default=2, help="trainings at the same time")
    args = parser.parse_args(argv)

    of_few = all_methods() if args.few_methods == ["all"] else args.few_methods
    for methods in (args.methods, of_few):
        read_variants(methods, {"magnifications": [5, 10], "epochs": args.epochs})
    start = time.perf_counter()
    ensure_cohort(args.dataset_dir, args.num_slides, seed=COHORT_SEED)
    features = args.output_dir / "features"
    settings = {key: value for key, value in vars(args).items() if key not in ("num_slides", "few_methods")}
    settings["feature_dir"] = features
    code = run_config("comparing", "compare", settings)
    if code == 0:
        few = args.output_dir / "few"
        datalist = write_few(args.dataset_dir / "datalist.json", few / "datalist.json", FEW)
        print(f"\nThe same with one training slide in {FEW}, each sampled {FEW} times as often.")
        more = {"epochs": FEW * args.epochs, "methods": of_few, "datalist": datalist}
        code = run_config("comparing", "compare", {**settings, **more, "output_dir": few})
    if code == 0:
        control = args.output_dir / "control"
        same = control / "features"
        write_control_banks(features, same)
        print("\nThe control: the same slides, but each 10x patch has the features of the 5x patch around it.")
        controlled = {"methods": SCALE_METHODS, "output_dir": control, "feature_dir": same}
        code = run_config("comparing", "compare", {**settings, **controlled})
    if code == 0:
        print("Synthetic slides: they show how the methods differ on them, and say nothing about tissue.")
        print(f"Tables, pictures and curves are in {args.output_dir}; it took {time.perf_counter() - start:.0f} s.")
    return code


def all_methods() -> list[str]:
    """Every method but one, variants that question a part of it, and the ablations of ``configs/ablations.json``.

    ``mil_att_trans`` has to be named: it takes twenty times as long as the others.
    """
    ablations = json.loads((BUNDLE_ROOT / "configs" / "ablations.json").read_text(encoding="utf-8"))["methods"]
    methods = [method for method in EVERY_METHOD if method != TOO_LARGE]
    return list(dict.fromkeys([*methods, *MORE_VARIANTS, *ablations]))


def write_few(datalist: Path, path: Path, step: int) -> Path:
    """Write a datalist with every ``step``-th training slide of another one, and all its other slides."""
    entries = json.loads(datalist.read_text(encoding="utf-8"))
    entries["training"] = entries["training"][::step]
    write_json(path, entries)
    return path


def write_control_banks(feature_dir: Path, control_dir: Path) -> None:
    """Write copies of banks in which every scale carries the information of the lowest; existing ones are kept.

    Each patch of a higher scale gets the features of the lowest scale's patch around it; slides, rows and geometry
    stay. A method that wins on these by more than chance does not win because of a second scale.
    """
    output_folder(control_dir)
    for source in tqdm(sorted(feature_dir.glob("*.h5")), desc="control banks", unit="slide"):
        path = control_dir / source.name
        if path.exists():
            continue
        with replacing(path) as part:
            shutil.copyfile(source, part)
            with h5py.File(part, "r+") as bank:
                rows = bank["rows"][:]
                names = sorted((name for name in bank if name != "rows"), key=lambda name: float(name.rstrip("x")))
                lowest = bank[names[0]]["features"][:]
                for s, name in enumerate(names[1:], start=1):
                    features = bank[name]["features"][:]
                    features[rows[:, s]] = lowest[rows[:, 0]]
                    bank[name]["features"][:] = features
                seal_bank(bank, names)
                bank.attrs["control"] = f"every scale has the features of {names[0]}"


if __name__ == "__main__":
    show_one_line()
    sys.exit(main())
