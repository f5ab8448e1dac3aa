"""The methods that can be trained and compared: the network, heads, attention maps and loss of each.

Every function here raises a SettingsError if there is no such method, and if the magnifications cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from scripts.core.errors import SettingsError
from scripts.core.magnification import scale_names
from scripts.networks.bag_network import BagNetwork
from scripts.networks.baselines import MSMIL, SSMIL, HighestScaleMIL
from scripts.networks.losses import MultiScaleLoss, PhaseLoss
from scripts.networks.mustmil import BranchNetwork, MuSTMIL

__all__ = [
    "METHODS",
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
]

METHODS: dict[str, str] = {
    "mustmil": "MuSTMIL",
    "msmil": "MSMIL",
    "ssmil": "SSMIL",
    "mil_att": "MILModel att",
    "mil_att_trans": "MILModel att_trans",
}
"""The methods' names, and what tables and figures call them."""


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
    """The same method."""
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError("method", f"got {method!r}", f"Choose one of {', '.join(METHODS)}.")
    return method


def method_title(method: str) -> str:
    """What tables and figures call a method, for example ``"MuSTMIL"``."""
    return METHODS[check_method(method)]


def get_network(method: str, class_attention: str = "joint", **settings: Any) -> BagNetwork:
    """The network of a method.

    Args:
        method: one of :data:`METHODS`.
        class_attention: see :class:`BranchNetwork`; MONAI's MILModel has one attention and does not use it.
        settings: the other arguments of :class:`MuSTMIL`, which every method takes.
    """
    networks: dict[str, type[BranchNetwork]] = {"mustmil": MuSTMIL, "msmil": MSMIL, "ssmil": SSMIL}
    if check_method(method) in networks:
        return networks[method](class_attention=class_attention, **settings)
    return HighestScaleMIL(method.removeprefix("mil_"), **settings)


def get_loss(
    method: str, network: BagNetwork, alpha: float = 1.0, beta: float = 1.0, task: str = "multilabel"
) -> nn.Module:
    """The loss of a method: :class:`MultiScaleLoss` for MuSTMIL, for a baseline that of the head in training.

    Args:
        method: one of :data:`METHODS`.
        network: the network that is trained.
        alpha: weight of MuSTMIL's global head; the baselines do not use it.
        beta: weight of the head of each of MuSTMIL's scales; the baselines do not use it.
        task: one of :data:`scripts.core.tasks.TASKS`, else a SettingsError.
    """
    return MultiScaleLoss(alpha, beta, task) if check_method(method) == "mustmil" else PhaseLoss(network, task)


def result_heads(method: str, magnifications: Sequence[float]) -> list[str]:
    """The names of a method's heads, in order: ``["global", "5x", "10x"]`` for MuSTMIL.

    MSMIL has the global one alone, SSMIL one for each scale, MONAI's MILModel that of the highest scale.
    """
    scales = scale_names(magnifications)
    heads = {"mustmil": ["global", *scales], "msmil": ["global"], "ssmil": scales}
    return heads.get(check_method(method), scales[-1:])


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

    MuSTMIL's global attention lies on the patches of the highest scale, of which there is one in each row.
    MSMIL pools the patches of all scales as one bag: one attention, and a map for each scale of it.
    """
    scales = scale_names(magnifications)
    own = [MapSpec(name, name, s) for s, name in enumerate(scales)]
    if check_method(method) == "mustmil":
        return [MapSpec("global", "global", len(scales) - 1), *own]
    if method == "msmil":
        return [MapSpec(f"global_{name}", "global", s) for s, name in enumerate(scales)]
    return own if method == "ssmil" else own[-1:]
