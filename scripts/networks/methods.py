"""The methods that can be trained and compared: the network, heads, attention maps and loss of each.

Every function here raises a SettingsError if there is no such method, and if the magnifications cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from scripts.core.magnification import scale_names
from scripts.core.settings import LATER, check_settings
from scripts.networks.abmil import ABMIL, LateFusion, LinkedABMIL, MeanPooling
from scripts.networks.attention_entropy import AttentionEntropyLoss
from scripts.networks.bag_network import BagNetwork
from scripts.networks.baselines import MSMIL, SSMIL, HighestScaleMIL
from scripts.networks.clam import CLAM, ClusteringLoss
from scripts.networks.dsmil import DSMIL, DualStreamLoss
from scripts.networks.losses import MultiScaleLoss, PhaseLoss
from scripts.networks.mustmil import BranchNetwork, MuSTMIL
from scripts.networks.transmil import TransMIL

__all__ = [
    "METHODS",
    "USED_BY",
    "MapSpec",
    "attention_maps",
    "check_method",
    "get_loss",
    "get_network",
    "learning_heads",
    "method_title",
    "result_heads",
    "served_head",
    "trained_heads",
    "unused_settings",
]

METHODS: dict[str, str] = {
    "mustmil": "MuSTMIL",
    "msmil": "MSMIL",
    "ssmil": "SSMIL",
    "mil_att": "MILModel att",
    "mil_att_trans": "MILModel att_trans",
    "mean": "Mean pooling",
    "abmil": "ABMIL",
    "abmil_linked": "ABMIL on linked features",
    "late_fusion": "Late fusion",
    "clam_sb": "CLAM-SB",
    "clam_mb": "CLAM-MB",
    "dsmil": "DSMIL",
    "transmil": "TransMIL",
}
"""The methods' names, and what tables and figures call them."""

_NETWORKS: dict[str, Callable[..., BagNetwork]] = {
    "mustmil": MuSTMIL,
    "msmil": MSMIL,
    "ssmil": SSMIL,
    "mil_att": partial(HighestScaleMIL, "att"),
    "mil_att_trans": partial(HighestScaleMIL, "att_trans"),
    "mean": MeanPooling,
    "abmil": ABMIL,
    "abmil_linked": LinkedABMIL,
    "late_fusion": LateFusion,
    "clam_sb": partial(CLAM, False),
    "clam_mb": partial(CLAM, True),
    "dsmil": DSMIL,
    "transmil": TransMIL,
}
USED_BY: dict[str, tuple[str, ...]] = {
    "alpha": ("mustmil",),
    "attention_entropy": ("mustmil", "msmil", "ssmil"),
    "beta": ("mustmil",),
    "class_attention": ("mustmil", "msmil", "ssmil"),
    "instance_weight": ("clam_sb", "clam_mb"),
    # The others see the highest magnification alone, which is as it is, however rows are linked.
    "linking": ("mustmil", "msmil", "ssmil", "mean", "abmil", "abmil_linked", "late_fusion", "dsmil"),
    "num_nodes": tuple(method for method in METHODS if method not in ("mil_att", "mil_att_trans", "mean")),
}
"""The settings that not all methods use, and those that do."""
# As configs/train.json has them: nobody has asked for these.
_DEFAULTS = {**LATER, "alpha": 1.0, "beta": 1.0, "num_nodes": 128}
# The methods with a head for each scale, and those with the global one alone.
_OF_SCALES = ("ssmil", "mean", "abmil")
_GLOBAL = ("msmil", "abmil_linked", "late_fusion", "dsmil")


@dataclass(frozen=True)
class MapSpec:
    """One attention map of a method.

    Args:
        name: in files and tables: ``"global"``, ``"5x"``, ...
        head: the head that it explains.
        scale_index: whose patches it lies on; 0 is the lowest magnification.
    """

    name: str
    head: str
    scale_index: int


def check_method(method: str) -> str:
    """The same method; a SettingsError also where the package that it needs is not installed."""
    check_settings(method=method)
    return method


def method_title(method: str) -> str:
    """What tables and figures call a method, for example ``"MuSTMIL"``."""
    return METHODS[check_method(method)]


def unused_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are not as ``configs/train.json`` has them, and that the method does not use."""
    return {
        name: settings[name]
        for name, methods in USED_BY.items()
        if method not in methods and settings.get(name, _DEFAULTS[name]) != _DEFAULTS[name]
    }


def get_network(
    method: str, class_attention: str = "joint", attention_entropy: float = 0.0, **settings: Any
) -> BagNetwork:
    """The network of a method.

    Args:
        method: one of :data:`METHODS`.
        class_attention: see :class:`BranchNetwork`; methods that are none do not use it.
        attention_entropy: see :func:`get_loss`, whose network gives entropies unless it is 0.
        settings: the other arguments of :class:`MuSTMIL`, which every method takes.
    """
    make = _NETWORKS[check_method(method)]
    if isinstance(make, type) and issubclass(make, BranchNetwork):
        settings.update(class_attention=class_attention, gives_entropies=attention_entropy != 0)
    return make(**settings)


def get_loss(
    method: str,
    network: BagNetwork,
    alpha: float = 1.0,
    beta: float = 1.0,
    task: str = "multilabel",
    instance_weight: float = 0.3,
    attention_entropy: float = 0.0,
) -> nn.Module:
    """The loss of a method: for most the sum of those of the heads in training (:class:`PhaseLoss`).

    MuSTMIL weighs its heads (:class:`MultiScaleLoss`), CLAM also learns from instances (:class:`ClusteringLoss`), and
    DSMIL from each of its streams (:class:`DualStreamLoss`).

    Args:
        method: one of :data:`METHODS`.
        network: the network that is trained.
        alpha: weight of MuSTMIL's global head; other methods do not use it.
        beta: weight of the head of each of MuSTMIL's scales; other methods do not use it.
        task: one of :data:`scripts.core.tasks.TASKS`, else a SettingsError.
        instance_weight: weight of CLAM's instance loss; other methods do not use it.
        attention_entropy: weight of :class:`AttentionEntropyLoss`, which at 0 is left out; for networks that
            :func:`get_network` made with it, and of no use to methods that are no :class:`BranchNetwork`.
    """
    if check_method(method) in ("clam_sb", "clam_mb"):
        return ClusteringLoss(instance_weight, task)
    if method == "dsmil":
        return DualStreamLoss(task)
    of_heads: MultiScaleLoss | PhaseLoss
    of_heads = MultiScaleLoss(alpha, beta, task) if method == "mustmil" else PhaseLoss(network, task)
    if attention_entropy == 0 or not isinstance(network, BranchNetwork):
        return of_heads
    return AttentionEntropyLoss(of_heads, attention_entropy, len(network.computes))


def result_heads(method: str, magnifications: Sequence[float]) -> list[str]:
    """The names of a method's heads, in order: ``["global", "5x", "10x"]`` for MuSTMIL.

    Others have the global one alone (MSMIL), one for each scale (SSMIL), or that of the highest scale (CLAM).
    """
    scales = scale_names(magnifications)
    if check_method(method) == "mustmil":
        return ["global", *scales]
    if method in _GLOBAL:
        return ["global"]
    return scales if method in _OF_SCALES else scales[-1:]


def served_head(heads: Sequence[str]) -> int:
    """The index of the head whose scores stand for all: the global one or, without it, the highest magnification."""
    return list(heads).index("global") if "global" in heads else len(heads) - 1


def trained_heads(method: str, magnifications: Sequence[float]) -> list[str]:
    """The heads that have weights of their own in training: MSMIL trains each scale alone before the global one."""
    return ["global", *scale_names(magnifications)] if method == "msmil" else result_heads(method, magnifications)


def learning_heads(method: str, magnifications: Sequence[float], alpha: float = 1.0, beta: float = 1.0) -> list[str]:
    """Those of :func:`result_heads` that learn: MuSTMIL's scales do not with ``beta`` 0, nor does its global one with
    ``alpha`` 0.
    """
    heads = result_heads(method, magnifications)
    return [head for head in heads if method != "mustmil" or (alpha if head == "global" else beta) > 0]


def attention_maps(method: str, magnifications: Sequence[float]) -> list[MapSpec]:
    """The attention maps of a method, in the order in which its network gives them.

    MuSTMIL's global attention lies on the patches of the highest scale, of which there is one in each row, as does that
    of others over linked rows. MSMIL pools the patches of all scales as one bag: one attention, and a map for each
    scale of it. Late fusion has an attention for each scale. TransMIL has no map.
    """
    scales = scale_names(magnifications)
    of_rows = MapSpec("global", "global", len(scales) - 1)
    own = [MapSpec(name, name, s) for s, name in enumerate(scales)]
    if check_method(method) == "mustmil":
        return [of_rows, *own]
    if method in ("msmil", "late_fusion"):
        return [MapSpec(f"global_{name}", "global", s) for s, name in enumerate(scales)]
    if method in ("abmil_linked", "dsmil"):
        return [of_rows]
    if method == "transmil":
        return []
    return own if method in _OF_SCALES else own[-1:]
