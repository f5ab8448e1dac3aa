"""The comparison on slides made of real H&E fields: ``python -m tests.benchmarks.tissue FIELDS``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.core.errors import SettingsError, show_one_line
from scripts.core.files import replacing
from scripts.core.settings import check_settings
from scripts.demo.compare import all_methods, write_control_banks
from scripts.demo.run import run_config
from scripts.experiments.variants import read_variants
from tests.benchmarks.operating_points import Clock
from tests.benchmarks.tissue.cohort import Cohort, make_cohort
from tests.benchmarks.tissue.fields import Fields, read_fields
from tests.benchmarks.tissue.groups import fields_of_groups, group_patients
from tests.benchmarks.tissue.mosaics import LEAST_FIELD_UM
from tests.benchmarks.tissue.results import MAGNIFICATIONS, SHARED, Output, read_outputs
from tests.benchmarks.tissue.tables import (
    ablation_table,
    chance_table,
    claims_table,
    cohort_text,
    difference_table,
    group_table,
    localisation_table,
    same_scales_table,
    score_table,
    time_table,
    turned_away_table,
)

__all__ = ["PARTS", "main"]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Args:
        title: its heading on the page.
        task: what is predicted.
        datalist: in the cohort's folder.
        is_control: whether nothing can be learnt, or gained. A leak, or a gain from nothing, would show with every
            seed: one is enough.
        views: augmented views of the slides of the rarest classes; of other slides fewer.
    """

    title: str
    task: str = "multilabel"
    datalist: str = "datalist.csv"
    is_control: bool = False
    views: int = 0


PAPER = json.loads((BUNDLE_ROOT / "configs" / "paper.json").read_text(encoding="utf-8"))
PARTS = {
    "multilabel": Part("All classes"),
    "binary": Part("Malignant or not", "binary"),
    "permuted": Part("Control: permuted labels", datalist="permuted.csv", is_control=True),
    "same_scales": Part("Control: both scales the same", datalist="without_regions.csv", is_control=True),
    "augmented": Part("Augmented views", views=PAPER["views"]),
}
"""The parts of the benchmark: two comparisons, two controls, and what augmented views bring."""
# The trainings of the first part with the seeds of the controls.
SAME_SEEDS = "multilabel, seeds of the controls"
WITH_AND_WITHOUT_VIEWS = ["mustmil", "mustmil views=0"]
EPOCHS = 20
"""Of each phase: docs/evidence.md says how they were chosen."""


def methods_of(part: str, methods: Sequence[str], epochs: int) -> list[str]:
    """Those of the methods that a part compares."""
    if part == "augmented":
        return WITH_AND_WITHOUT_VIEWS
    if PARTS[part].task != "binary":
        return list(methods)
    # With one logit it is the same how classes share attention.
    variants = zip(methods, read_variants(list(methods), shared_of(part, epochs)), strict=True)
    return [name for name, variant in variants if "class_attention" not in variant.settings]


def shared_of(part: str, epochs: int) -> dict[str, Any]:
    """What all trainings of a part share, as far as variants may differ in it."""
    return {**SHARED, "task": PARTS[part].task, "epochs": epochs, "views": PARTS[part].views}


def refuse_wrong(args: argparse.Namespace) -> None:
    """Refuse before anything is made what a part would refuse when its turn comes."""
    check_settings(num_processes=args.num_processes, epochs=args.epochs)
    for seed in args.seeds:
        check_settings(seed=seed)
    for name, given in (("seeds", args.seeds), ("parts", args.parts)):
        if len(set(given)) < len(given):
            raise SettingsError(name, f"got {given}", "Name each once.")
    if args.parts == ["augmented"] and args.methods != all_methods():
        cause = f"got {args.methods}, and the part augmented compares MuSTMIL with itself"
        raise SettingsError("methods", cause, "Leave them out, or name other parts as well.")
    for part in args.parts:
        if not read_variants(methods_of(part, args.methods, args.epochs), shared_of(part, args.epochs)):
            raise SettingsError(
                "methods", f"none of {args.methods} differs in the part {part}", "Name mustmil as well."
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the slides, run the comparisons that are not done, and print the page of tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tissue", description=__doc__)
    parser.add_argument("fields", type=Path, metavar="FIELDS", help="a folder: fields.csv, or CLASS/PATIENT/pictures")
    parser.add_argument("--output_dir", type=Path, default=Path("output/tissue"), help="gets slides, banks and results")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the fields; those of GlaS are 0.62")
    parser.add_argument("--positive_classes", nargs="+", help="the malignant ones, where fields.csv does not say so")
    parser.add_argument("--num_slides", type=int, default=20, help="of each group")
    parser.add_argument("--num_cells", type=int, nargs=2, default=(9, 30), metavar=("LEAST", "MOST"), help="of a slide")
    parser.add_argument("--seed", type=int, default=0, help="of groups, slides and the permutation")
    parser.add_argument("--methods", nargs="+", default=all_methods(), help="as `comparing` takes them")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the trainings; controls take the first"
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each phase")
    parser.add_argument("--num_processes", type=int, default=2, help="trainings at the same time")
    args = parser.parse_args(argv)

    refuse_wrong(args)
    clock, output_dir = Clock(), args.output_dir.resolve()
    fields = read_fields(args.fields, args.mpp, args.positive_classes, LEAST_FIELD_UM)
    groups = group_patients(fields.fields, fields.class_names, args.seed)
    cohort = make_cohort(output_dir / "slides", fields, groups, args.num_slides, tuple(args.num_cells), args.seed)
    print(f"{cohort.folder / 'contact_sheet.png'} shows some of the slides.", flush=True)
    clock.tell("slides")
    common: dict[str, Any] = {
        "dataset_dir": cohort.folder,
        "feature_dir": output_dir / "features",
        "class_names": list(fields.class_names),
        "magnifications": list(MAGNIFICATIONS),
    }
    own: dict[str, Any] = {"output_dir": output_dir, "datalist": cohort.folder / PARTS["multilabel"].datalist}
    code = run_config("extracting", "extract", {**common, **own})
    if code != 0:
        return code
    clock.tell("features")
    common |= {"folds": len(set(groups.values()))}
    common |= {"num_processes": args.num_processes, "epochs": args.epochs}
    made, seeds = [], {part: args.seeds[:1] if PARTS[part].is_control else args.seeds for part in args.parts}
    for part in args.parts:
        about = PARTS[part]
        own = {"output_dir": output_dir / part, "task": about.task, "datalist": cohort.folder / about.datalist}
        own |= {"seeds": seeds[part], "methods": methods_of(part, args.methods, args.epochs), "views": about.views}
        if part == "binary":
            own["positive_classes"] = list(fields.positive_classes)
        if part == "same_scales":
            own["feature_dir"] = output_dir / part / "features"
            write_control_banks(common["feature_dir"], own["feature_dir"])
        print(f"\n{about.title}", flush=True)
        before, cpu_before = done_in(output_dir / part), processor_seconds()
        if (code := run_config("comparing", "compare", {**common, **own})) != 0:
            return code
        clock.tell(part)
        if number := done_in(output_dir / part) - before:
            made.append((about.title, number, clock.steps[part], processor_seconds() - cpu_before))

    def outputs_of(part: str, seeds: Sequence[int]) -> list[Output]:
        methods = methods_of(part, args.methods, args.epochs)
        return read_outputs(output_dir / part, PARTS[part].task, methods, seeds, shared_of(part, args.epochs))

    found = {part: outputs_of(part, seeds[part]) for part in args.parts}
    if "multilabel" in found and "same_scales" in found:
        found[SAME_SEEDS] = outputs_of("multilabel", seeds["same_scales"])
    page = page_of(fields, cohort, found, args.parts, args.seeds, args.epochs)
    page += f"\nSeconds of this run: {clock}.\n"
    if made:
        page += f"\nTrainings with their evaluation, {args.num_processes} at a time:\n\n{time_table(made)}\n"
    with replacing(output_dir / "tissue.md") as part_file:
        part_file.write_text(page, encoding="utf-8")
    print(f"\n{page}\nThis page is {output_dir / 'tissue.md'}; each part's folder has its own tables and pictures.")
    return 0


def done_in(folder: Path) -> int:
    """How many trainings of a comparison have finished."""
    return len(list(folder.glob("runs/*/seed_*/fold_*/done.json")))


def processor_seconds() -> float:
    """Seconds of the processor's cores that all commands so far have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def page_of(
    fields: Fields,
    cohort: Cohort,
    found: Mapping[str, list[Output]],
    names: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
) -> str:
    """The page of tables of the named parts."""
    number = len(set(cohort.groups.values()))
    patients = [sorted(p for p, group in cohort.groups.items() if group == own) for own in range(number)]
    in_groups = fields_of_groups(fields.fields, fields.class_names, cohort.groups)
    parts = [
        cohort_text(len(fields.fields), len(cohort.groups), number, len(cohort.mosaics)),
        group_table(in_groups, patients, cohort.labels),
        f"Malignant: {', '.join(fields.positive_classes)}. {epochs} epochs a phase. Seeds {' '.join(map(str, seeds))}, "
        f"of the controls {seeds[0]}.",
    ]
    for part in names:
        parts += [f"## {PARTS[part].title}", *tables_of(part, found[part], found, epochs)]
    return "\n\n".join(text for text in parts if text) + "\n"


def tables_of(part: str, outputs: list[Output], found: Mapping[str, list[Output]], epochs: int) -> list[str]:
    """The tables of a part, with what to expect of a control."""
    if part == "permuted":
        expected = "The labels are permuted within each group: nothing can be learnt, and a ROC-AUC should be near 0.5."
        return [expected, chance_table(outputs)]
    if part == "same_scales":
        expected = "Each 10x patch has the features of the 5x patch around it: no method should gain from linking them."
        table = same_scales_table(found.get(SAME_SEEDS, []), outputs)
        return [expected, score_table(outputs, PARTS[part].task, epochs), table]
    task, views = PARTS[part].task, PARTS[part].views
    if views:
        expected = f"With {views} augmented views of the slides of the rarest classes, fewer of others, and without."
        return [expected, score_table(outputs, task, epochs), ablation_table(outputs, task)]
    tables = [score_table(outputs, task, epochs), difference_table(outputs, task)]
    if claims := claims_table(outputs, task):
        tables += ["What the paper compares:", claims]
    if ablations := ablation_table(outputs, task):
        tables += ["What each part brings:", ablations]
    if maps := localisation_table(outputs):
        tables += ["Do maps find the regions of a class, patch by patch (0.5 by chance)?", maps]
    if task == "binary" and (turned := turned_away_table(outputs)):
        tables += ["Is attention turned away where nothing was learnt? Least to most over trainings:", turned]
    return tables


if __name__ == "__main__":
    show_one_line()
    sys.exit(main())
