"""The page that the tissue benchmark prints: tables, and what they do and do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scripts.core.markdown import markdown_table
from scripts.evaluation.metrics import SCORE_TITLES, score_names
from scripts.evaluation.score_texts import digits
from tests.benchmarks.tissue.results import AT_POINT, Floats, Interval, Output, interval_over_groups, widening

__all__ = [
    "ablation_table",
    "chance_table",
    "claims_table",
    "cohort_text",
    "difference_table",
    "group_table",
    "localisation_table",
    "same_scales_table",
    "score_table",
    "time_table",
    "turned_away_table",
]

# Where half of the slides are positive, a guess has log 2 = 0.693.
GUESS = 0.6
# What the paper compares: outputs of MuSTMIL, each with one of a baseline.
CLAIMS = [
    ("global", "ssmil", "5x"),
    ("global", "ssmil", "10x"),
    ("global", "msmil", "global"),
    ("5x", "ssmil", "5x"),
    ("10x", "ssmil", "10x"),
]
MAPS = {"attention": "attention", "contribution": "contribution"}


def cohort_text(num_fields: int, num_patients: int, num_groups: int, num_slides: int) -> str:
    """What counts as one observation, and what follows for the intervals."""
    return (
        f"{num_slides} slides, made of {num_fields} fields of {num_patients} patients in {num_groups} groups. No field "
        "and no patient is in two groups; within a group, slides share both, so each group counts as one observation. "
        "Each group is tested by trainings that have seen none of it. A score is first averaged over the seeds, then "
        f"over the {num_groups} groups: mean ± standard deviation over groups, and for differences Student's 95% "
        f"interval over groups, with {num_groups - 1} degrees of freedom. The trainings of two groups share slides, so "
        "intervals have the correction of Nadeau and Bengio (Machine Learning 52:239-281, 2003), which makes them "
        f"{widening(num_groups):.2f} times as wide. They are wide also because {num_groups} groups are few. Intervals "
        "over slides would be narrower, and wrong: they would take slides of the same patients for independent. "
        "ROC-AUC is the mean over classes, so chance has 0.5; its intervals are cut off at 0 and 1. A difference, A "
        "less B, is above 0 where A is better."
    )


def group_table(
    in_groups: Sequence[Mapping[str, Sequence[int]]], patients: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> str:
    """Each group: its patients, and of each class the fields and the slides.

    Args:
        in_groups: for each group, by class, the numbers of its fields.
        patients: of each group.
        labels: of the slides of all groups, in order and as many of each group.
    """
    names, size = list(in_groups[0]), len(labels) // len(in_groups)
    body = []
    for group, (fields, own) in enumerate(zip(in_groups, patients, strict=True)):
        slides = labels[group * size : (group + 1) * size]
        cells = (f"{len(fields[name])}, {sum(name in label for label in slides)}" for name in names)
        body.append([str(group + 1), " ".join(own), *cells])
    return markdown_table(["group", "patients", *(f"{name}: fields, slides" for name in names)], body)


def score_table(outputs: Sequence[Output], task: str, epochs: int) -> str:
    """Scores, localisation and time of each output: mean ± standard deviation over groups.

    The column before the last says how many trainings had their lowest validation loss in the last of their
    ``epochs``; the last, of the binary task, how many of these losses are next to that of a guess.
    """
    lead = score_names(task)[1]
    title = SCORE_TITLES[lead]
    columns = {lead: f"{title} at 0.5", AT_POINT: f"{title} at the operating point", "roc_auc": "ROC-AUC"}
    maps = {name: f"{title}, ROC-AUC" for name, title in MAPS.items()} if _have_maps(outputs) else {}
    learnt = [f"validation loss above {GUESS}"] if task == "binary" else []
    body = [
        [
            output.title,
            *(_mean_sd(output.scores.get(name)) for name in [*columns, *maps]),
            digits(output.seconds, places=1),
            f"{output.best_epochs.count(epochs)} of {len(output.best_epochs)}" if output.best_epochs else "-",
            *(_share_above(output.best_losses) for _ in learnt),
        ]
        for output in outputs
    ]
    return markdown_table(
        ["output", *columns.values(), *maps.values(), "training in s", "best epoch the last", *learnt], body
    )


def _share_above(losses: Sequence[float]) -> str:
    return f"{sum(loss > GUESS for loss in losses)} of {len(losses)}" if losses else "-"


def difference_table(outputs: Sequence[Output], task: str) -> str:
    """How much better the reference is than each other output, group by group; empty without it."""
    names = _score_titles(task)
    reference = _reference(outputs)
    if reference is None:
        return ""
    body = []
    for output in outputs:
        if output is reference:
            continue
        both = {name: _difference(reference, output, name) for name in names}
        ahead = both["roc_auc"]
        of = "" if ahead is None else f"{int((ahead > 0).sum())} of {len(ahead)} groups"
        body.append([output.title, *(_interval(values) for values in both.values()), of])
    head = [
        "MuSTMIL global less",
        *(f"{title} [95%]" for title in names.values()),
        "groups in which it is ahead in ROC-AUC",
    ]
    return markdown_table(head, body)


def claims_table(outputs: Sequence[Output], task: str) -> str:
    """The differences that the paper's claims are about, of outputs that are there."""
    names, of = _score_titles(task), _plain(outputs)
    pairs = [(of.get(("mustmil", head)), of.get((other, of_other))) for head, other, of_other in CLAIMS]
    body = [
        [f"{first.title} less {second.title}", *(_interval(_difference(first, second, name)) for name in names)]
        for first, second in pairs
        if first is not None and second is not None
    ]
    if not body:
        return ""
    return markdown_table(["", *(f"{title} [95%]" for title in names.values())], body)


def ablation_table(outputs: Sequence[Output], task: str) -> str:
    """What each part of a method brings: each head of the method less that of the variant; empty without variants."""
    names = _score_titles(task) | {name: f"{title}, ROC-AUC" for name, title in MAPS.items()}
    plain = _plain(outputs)
    body = [
        [other.title, *(_interval(_difference(plain[other.method, other.head], other, name)) for name in names)]
        for other in outputs
        if other.variant != other.method and (other.method, other.head) in plain
    ]
    if not body:
        return ""
    return markdown_table(["the method less its variant", *(f"{title} [95%]" for title in names.values())], body)


def localisation_table(outputs: Sequence[Output]) -> str:
    """How well maps find the regions of a class, with intervals; empty without maps.

    The last column asks whether a variant's attention finds what the contribution of the method itself finds.
    """
    if not _have_maps(outputs):
        return ""
    plain, body = _plain(outputs), []
    for output in outputs:
        if not _have_maps([output]):
            continue
        attention, contribution = (output.scores[name] for name in MAPS)
        of_method = plain.get((output.method, output.head))
        against = None if of_method is None else attention - of_method.scores["contribution"]
        found = (_interval(attention, signed=False), _interval(contribution, signed=False))
        body.append([output.title, *found, _interval(attention - contribution), _interval(against)])
    head = ["output", *(f"{title} [95%]" for title in MAPS.values()), "attention less contribution [95%]"]
    return markdown_table([*head, "attention less contribution of the method itself [95%]"], body)


def turned_away_table(outputs: Sequence[Output]) -> str:
    """Where the attention of trainings that learnt lies, and that of those whose loss is next to that of a guess.

    For outputs of the binary task with maps: the ROC-AUC of attention against the regions, least to most over
    trainings. Attention that is turned away from the class has one near 0.
    """
    body = []
    for output in outputs:
        if not _have_maps([output]):
            continue
        losses, attentions = np.array(output.best_losses), np.array(output.attentions)
        learnt = [attentions[losses <= GUESS], attentions[losses > GUESS]]
        body.append([output.title, *(text for found in learnt for text in (str(len(found)), _range(found)))])
    head = ["output", "trainings that learnt", "attention, ROC-AUC", "that did not", "attention, ROC-AUC"]
    return markdown_table(head, body) if body else ""


def chance_table(outputs: Sequence[Output]) -> str:
    """The ROC-AUC of each output beside 0.5, and how many intervals leave it out."""
    body = []
    for output in outputs:
        if "roc_auc" in output.scores:
            found = interval_over_groups(output.scores["roc_auc"])
            inside = "-" if np.isnan(found.low) else "yes" if found.low <= 0.5 <= found.high else "no"
            body.append([output.title, _text(found), "0.5", inside])
    table = markdown_table(["output", "ROC-AUC [95%]", "by chance", "within the interval"], body)
    outside = sum(row[-1] == "no" for row in body)
    return (
        f"{table}\n\nOf {len(body)} intervals {outside} leave 0.5 out; of so many {0.05 * len(body):.1f} do by chance. "
        "All outputs are tested with one permutation, so they are not independent."
    )


def same_scales_table(real: Sequence[Output], same: Sequence[Output]) -> str:
    """How much better the reference is in ROC-AUC, with two scales and where both are the same; empty without it.

    Args:
        real: of the trainings with the control's seeds.
        same: of the control.
    """
    with_two = {output.title: output for output in real}
    references = _reference(real), _reference(same)
    if references[0] is None or references[1] is None:
        return ""
    body = []
    for output in same:
        if output.title in with_two and output is not references[1] and "roc_auc" in output.scores:
            two = _difference(references[0], with_two[output.title], "roc_auc")
            one = _difference(references[1], output, "roc_auc")
            change = None if two is None or one is None else two - one
            body.append([output.title, *(_interval(values) for values in (two, one, change))])
    head = ["MuSTMIL global less", "ROC-AUC, two scales [95%]", "both scales the same [95%]", "change [95%]"]
    return markdown_table(head, body)


def time_table(made: Sequence[tuple[str, int, float, float]]) -> str:
    """What trainings took: of each part its title, how many, seconds, and seconds of the processor's cores."""
    body = [
        [title, str(number), *(f"{value:.0f}" for value in (wall, cpu)), f"{wall / number:.1f}", f"{cpu / number:.1f}"]
        for title, number, wall, cpu in made
    ]
    return markdown_table(["part", "trainings", "s", "core s", "s each", "core s each"], body)


def _reference(outputs: Sequence[Output]) -> Output | None:
    return next((output for output in outputs if output.is_reference), None)


def _score_titles(task: str) -> dict[str, str]:
    lead = score_names(task)[1]
    return {lead: f"{SCORE_TITLES[lead]} at 0.5", AT_POINT: "at the operating point", "roc_auc": "ROC-AUC"}


def _plain(outputs: Sequence[Output]) -> dict[tuple[str, str], Output]:
    """The outputs of methods as they are, by method and head."""
    return {(output.method, output.head): output for output in outputs if output.variant == output.method}


def _difference(first: Output, second: Output, name: str) -> Floats | None:
    if name not in first.scores or name not in second.scores:
        return None
    return first.scores[name] - second.scores[name]


def _have_maps(outputs: Sequence[Output]) -> bool:
    return any(np.isfinite(output.scores.get(name, np.nan)).any() for output in outputs for name in MAPS)


def _mean_sd(values: Floats | None) -> str:
    if values is None or np.isnan(values).any():
        return "-"
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def _range(values: Floats) -> str:
    return f"{values.min():.3f} to {values.max():.3f}" if len(values) else "-"


def _interval(values: Floats | None, signed: bool = True) -> str:
    return "-" if values is None or np.isnan(values).any() else _text(interval_over_groups(values), signed)


def _text(found: Interval, signed: bool = False) -> str:
    values = found if signed else np.clip(found, 0.0, 1.0)
    mean, low, high = (f"{value:{'+' if signed else ''}.3f}" for value in values)
    return mean if np.isnan(found.low) else f"{mean} [{low}, {high}]"
