"""The methods that can be trained and compared: the network, heads, attention maps and loss of each.

Every function here raises a SettingsError if there is no such method, and if the magnifications cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from scripts.core.magnification import scale_names
from scripts.core.settings import check_settings
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
    "Method",
    "attention_maps",
    "check_method",
    "get_loss",
    "get_network",
    "learning_heads",
    "method_title",
    "result_heads",
    "sees_links",
    "served_head",
    "trained_heads",
    "untrained_heads",
]

# Settings that not every method uses.
_OF_BRANCHES = ("attention_entropy", "class_attention", "linking", "num_nodes")
_OF_ROWS = ("linking", "num_nodes")  # the others see the highest magnification alone, however rows are linked


@dataclass(frozen=True)
class Method:
    """A method that can be trained and compared.

    Args:
        title: what tables and figures call it.
        network: makes its network from the arguments of :func:`get_network`.
        heads: those that have results: ``"global and scales"``, ``"global"``, ``"scales"``, or ``"highest"``, the head
            of the highest magnification.
        uses: the settings that it uses, of those that not every method does.
        lies_on: what the attention of its global head lies on: ``"rows"``, so that the head sees which patches are
            linked; or ``"scales"``, the patches of each, with a map for each. ``"nothing"`` if its network has no map.
    """

    title: str
    network: Callable[..., BagNetwork]
    heads: Literal["global and scales", "global", "scales", "highest"]
    uses: tuple[str, ...] = ()
    lies_on: Literal["rows", "scales", "nothing"] = "rows"


METHODS: dict[str, Method] = {
    "mustmil": Method("MuSTMIL", MuSTMIL, "global and scales", ("alpha", "beta", *_OF_BRANCHES)),
    "msmil": Method("MSMIL", MSMIL, "global", _OF_BRANCHES, lies_on="scales"),
    "ssmil": Method("SSMIL", SSMIL, "scales", _OF_BRANCHES),
    "mil_att": Method("MILModel att", partial(HighestScaleMIL, "att"), "highest"),
    "mil_att_trans": Method("MILModel att_trans", partial(HighestScaleMIL, "att_trans"), "highest"),
    "mean": Method("Mean pooling", MeanPooling, "scales", ("linking",)),
    "abmil": Method("ABMIL", ABMIL, "scales", _OF_ROWS),
    "abmil_linked": Method("ABMIL on linked features", LinkedABMIL, "global", _OF_ROWS),
    "late_fusion": Method("Late fusion", LateFusion, "global", _OF_ROWS, lies_on="scales"),
    "clam_sb": Method("CLAM-SB", partial(CLAM, False), "highest", ("instance_weight", "num_nodes")),
    "clam_mb": Method("CLAM-MB", partial(CLAM, True), "highest", ("instance_weight", "num_nodes")),
    "dsmil": Method("DSMIL", DSMIL, "global", _OF_ROWS),
    "transmil": Method("TransMIL", TransMIL, "highest", ("num_nodes",), lies_on="nothing"),
}
"""The methods, by the name that the setting ``method`` has."""

USED_BY: dict[str, tuple[str, ...]] = {
    setting: tuple(name for name, method in METHODS.items() if setting in method.uses)
    for setting in sorted({setting for method in METHODS.values() for setting in method.uses})
}
"""The settings that not all methods use, and those that do."""


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
    return METHODS[check_method(method)].title


def sees_links(method: str) -> bool:
    """Whether it makes a difference to a method which patches of its scales are linked."""
    found = METHODS[check_method(method)]
    return "global" in found.heads and found.lies_on == "rows"


def get_network(
    method: str,
    class_attention: str = "joint",
    attention_entropy: float = 0.0,
    classifier_init: str = "random",
    **settings: Any,
) -> BagNetwork:
    """The network of a method.

    Args:
        method: one of :data:`METHODS`.
        class_attention: see :class:`BranchNetwork`; methods that are none do not use it.
        attention_entropy: see :func:`get_loss`, whose network gives entropies unless it is 0.
        classifier_init: initial weights of the classifiers of bags, ``"random"``, PyTorch's default, or ``"zeros"``. A
            random classifier may score the instances of a class as evidence against it; attention then turns away from
            them, and the classifier sees little to learn from. One of zeros passes no gradient on before it has learnt.
        settings: the other arguments of :class:`MuSTMIL`, which every method takes.
    """
    check_settings(classifier_init=classifier_init)
    make = METHODS[check_method(method)].network
    if isinstance(make, type) and issubclass(make, BranchNetwork):
        settings.update(class_attention=class_attention, gives_entropies=attention_entropy != 0)
    network = make(**settings)
    if classifier_init == "zeros":
        for values in network.myfc.parameters():
            nn.init.zeros_(values)
    return network


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
    scales, heads = scale_names(magnifications), METHODS[check_method(method)].heads
    if heads == "highest":
        return scales[-1:]
    return [*(["global"] if "global" in heads else []), *(scales if "scales" in heads else [])]


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


def untrained_heads(settings: Mapping[str, Any]) -> list[str]:
    """Those of :func:`result_heads` that a training with these settings does not train; none if they do not say."""
    if not {"method", "magnifications", "alpha", "beta"} <= settings.keys():
        return []
    given = settings["method"], settings["magnifications"]
    learning = learning_heads(*given, settings["alpha"], settings["beta"])
    return [head for head in result_heads(*given) if head not in learning]


def attention_maps(method: str, magnifications: Sequence[float]) -> list[MapSpec]:
    """The attention maps of a method, in the order in which its network gives them.

    MuSTMIL's global attention lies on the patches of the highest scale, of which there is one in each row, as does that
    of others over linked rows. MSMIL pools the patches of all scales as one bag: one attention, and a map for each
    scale of it. Late fusion has an attention for each scale. TransMIL has no map.
    """
    scales, found = scale_names(magnifications), list[MapSpec]()
    lies_on = METHODS[check_method(method)].lies_on
    for head in result_heads(method, magnifications) if lies_on != "nothing" else ():
        if head != "global":
            found.append(MapSpec(head, head, scales.index(head)))
        elif lies_on == "rows":
            found.append(MapSpec(head, head, len(scales) - 1))
        else:
            found += [MapSpec(f"{head}_{name}", head, s) for s, name in enumerate(scales)]
    return found
