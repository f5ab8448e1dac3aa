"""The part of the table of settings that says what network is trained, and what its loss weighs."""

from __future__ import annotations

from scripts.core import setting_checks as checks
from scripts.core.setting_entry import Setting, entry

__all__ = ["NETWORK"]

NETWORK: list[tuple[str, Setting]] = [
    entry(
        "num_nodes",
        "size of an instance's embedding, in `dsmil` of its query; `mean` has none, MONAI's `MILModel` its own",
        checks.number(2),
        "decides fixed provenance grid",
    ),
    entry(
        "class_attention",
        "`joint`: the logit of a class sees the attentions of all; `separate`: its own; `shared`: one for all; see "
        "[Ablations](methods.md#ablations)",
        checks.choice("joint", "separate", "shared"),
        "decides fixed provenance",
    ),
    entry(
        "attention_entropy",
        "weight of the attention's entropy: above 0 attention is spread over the patches, below 0 concentrated on few; "
        "of MuSTMIL, MSMIL and SSMIL: see [Attention entropy](methods.md#attention-entropy)",
        checks.number(-10.0, 10.0),
        "fixed provenance grid",
    ),
    entry(
        "classifier_init",
        "initial weights of the classifiers: `random` or `zeros`; see "
        "[Initial weights of the classifiers](methods.md#initial-weights-of-the-classifiers)",
        checks.choice("random", "zeros"),
        "fixed provenance grid",
    ),
    entry(
        "linking",
        "what links rows: `linked`, `repeated`, `shuffled` or `pooled`: see [Ablations](methods.md#ablations)",
        checks.choice("linked", "repeated", "shuffled", "pooled"),
        "decides fixed provenance",
    ),
    entry(
        "alpha",
        "weight of MuSTMIL's global loss; other methods do not use it",
        checks.number(0.0),
        "fixed provenance grid",
    ),
    entry("beta", "weight of the loss of each of MuSTMIL's scales", checks.number(0.0), "fixed provenance grid"),
    entry(
        "instance_weight",
        "weight of CLAM's instance loss, and 1 less it that of the bag: see [CLAM](methods.md#rivals)",
        checks.number(0.0, 0.99),
        "fixed provenance grid",
    ),
]
