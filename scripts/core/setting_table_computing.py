"""The part of the table of settings that says how the backbone computes."""

from __future__ import annotations

from scripts.core import setting_checks as checks
from scripts.core.setting_checks import AUTO
from scripts.core.setting_entry import Setting, entry

__all__ = ["COMPUTING", "FEATURE_DTYPES", "RUNTIMES"]

RUNTIMES = ("torch", "compile", "openvino")
FEATURE_DTYPES = ("float32", "float16")

COMPUTING: list[tuple[str, Setting]] = [
    entry(
        "encode_batch",
        "patches that the backbone encodes at once; `auto` is 32 on a CPU, and on a GPU what its memory allows: see "
        "[Chosen for the machine](clusters.md#chosen-for-the-machine)",
        checks.number(1, 4096, or_auto=True),
        "provenance free",
    ),
    entry(
        "num_workers",
        "threads that read patches; `auto` is one for every four cores, at least 2, and for a GPU one for each core",
        checks.number(0, or_auto=True),
        "free",
    ),
    entry(
        "amp",
        "bfloat16 in the backbone, by default where `device` is fast at it, else float32 without TF32; the heads "
        "compute in float32 always",
        checks.switch,
        "provenance",
    ),
    entry(
        "runtime",
        "what computes the backbone: `torch`, `compile` or `openvino`, see [Speed](clusters.md#speed); `auto` is what "
        "made the banks in `feature_dir`, or the features of the weights in `ckpt_dir`; without both `torch`, and "
        "with `precision` int8 `openvino`",
        checks.choice(*RUNTIMES, AUTO),
        "provenance",
    ),
    entry(
        "precision",
        "of the backbone: as `amp` says, or `int8` with `runtime` openvino: see [INT8](encoders.md#int8-on-cpus)",
        checks.choice("amp", "int8"),
        "decides fixed provenance shared",
    ),
    entry(
        "feature_dtype",
        "`float32`, or `float16`: features of half the size, rounded where they are made; training computes in "
        "float32 with either. See [Half the disk](clusters.md#half-the-disk)",
        checks.choice(*FEATURE_DTYPES),
        "recorded fixed provenance shared",
    ),
]
