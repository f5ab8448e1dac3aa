"""CLAM: attention pooling of the highest scale that also learns to tell the patches of a class from others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.modules.loss import _Loss

from scripts.core.errors import SettingsError
from scripts.core.tasks import get_task
from scripts.networks.bag_network import BagNetwork
from scripts.networks.losses import head_losses
from scripts.networks.pooling import GatedBranch, pooled_votes

__all__ = ["CLAM", "ClusteringLoss"]

# As in the paper and its code.
NUM_SAMPLED = 8
DROPOUT = 0.25


class CLAM(BagNetwork):
    """Clustering-constrained attention MIL (Lu et al., Nature Biomedical Engineering 5:555-570, 2021).

    https://doi.org/10.1038/s41551-020-00682-w. Gated attention (:class:`GatedBranch`) over the patches of the highest
    scale, and a linear classifier for each class: with one attention for all classes (CLAM-SB), or with one for each
    (CLAM-MB). There is one head, that of the highest scale.

    In training mode more follows the head's logits, which :class:`ClusteringLoss` needs: of each class an instance
    classifier says of the patches with the most and with the least attention whether they show the class. Patches of
    the highest scale are taken to be in one row each, as those of the bundle's bags are.

    Args:
        is_multi: whether each class has an attention of its own.
        num_classes: K, the number of logits.
        num_scales: S, the number of magnifications.
        num_features: F, the length of a patch's feature vector.
        num_nodes: the length of an embedded instance (512 in the paper); half of that is the length within the
            attention (256).
        settings: further arguments of :class:`BagNetwork`, which also says what is raised.

    Attributes:
        num_sampled: the largest number of patches of either kind.
    """

    def __init__(
        self,
        is_multi: bool,
        num_classes: int,
        num_scales: int = 2,
        num_features: int = 512,
        num_nodes: int = 128,
        **settings: Any,
    ) -> None:
        super().__init__(num_classes, num_scales, num_features, **settings)
        self.is_multi, self.num_sampled = is_multi, NUM_SAMPLED
        self.branch = GatedBranch(num_features, num_nodes, num_classes if is_multi else 1, DROPOUT)
        self.myfc = nn.Linear(num_nodes, num_classes)
        self.instance_classifier = nn.Linear(num_nodes, 2 * num_classes)

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of the classifier for each class, two of the instance classifier, and where it has one, its w."""
        names = ["myfc.weight", "myfc.bias", "instance_classifier.weight", "instance_classifier.bias"]
        return dict.fromkeys([*names, *(["branch.score.weight"] if self.is_multi else [])], (0,))

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = log_weight[:, :, -1]  # [B, N]
        h, scores = self.branch(x[:, :, -1].to(self.myfc.weight.dtype))  # [B, N, num_nodes], [B, N, 1 or K]
        a, c = pooled_votes(h, scores, weight, self.myfc.weight)  # [B, N, K] each
        logits = (c.sum(dim=1) + self.myfc.bias).unsqueeze(1)  # [B, 1, K]
        if self.training:
            logits = torch.cat([logits, self._instance_logits(h, scores, weight)], dim=1)  # [B, 1 + 2 * k, K]
        return logits, a.unsqueeze(2), c.unsqueeze(2)

    def _instance_logits(self, h: Tensor, scores: Tensor, log_weight: Tensor) -> Tensor:
        """How far an instance classifier holds the k patches with most attention, then those with least, for its class.

        Args:
            h: instances ``[B, N, num_nodes]``.
            scores: of their attention, ``[B, N, 1 or K]``.
            log_weight: ``[B, N]``.

        Returns:
            The differences of the two logits ``[B, 2 * k, K]``, k being 8 or, if that is less, N. NaN stands for the
            patches that a bag lacks.
        """
        both = self.instance_classifier(h).unflatten(2, [self.num_classes, 2])  # [B, N, K, 2]
        difference = both[..., 1] - both[..., 0]  # [B, N, K]
        padding = torch.isneginf(log_weight).unsqueeze(-1)  # [B, N, 1]
        found: list[Tensor] = []
        for sign in (1.0, -1.0):
            order = (sign * scores).masked_fill(padding, -math.inf).expand_as(difference)  # [B, N, K]
            highest, rows = torch.topk(order, min(self.num_sampled, h.shape[1]), dim=1)  # [B, k, K] each
            found.append(difference.gather(1, rows).masked_fill(torch.isneginf(highest), math.nan))
        return torch.cat(found, dim=1)


class ClusteringLoss(_Loss):
    r"""The loss of CLAM: (1 - w) times the cross-entropy of the bag, and w times the mean instance loss of the classes.

    A class that the bag has should be seen in the k patches with the most attention, and not in the k with the least; a
    class that it lacks, not in the k with the most. (The code calls the latter ``subtyping``: CLAM has one class a
    slide.) Each loss is a mean over these patches of the smooth top-1 SVM loss (Berrada et al., ICLR 2018) with margin
    and temperature 1, as in CLAM's code. Of two classes with logits z this is

    .. math:: \log(1 + e^{1 - t (z_1 - z_0)}), \qquad t = 1 \text{ for patches that should show it, else } -1

    In the ordinal task, what is said here of a class is said of being above one.

    Args:
        instance_weight: w, within 0 to 1; at 0 instances are not learned from.
        task: see :class:`scripts.networks.losses.MultiScaleLoss`.

    Raises:
        SettingsError: if the weight is outside of that, or there is no such task.
    """

    def __init__(self, instance_weight: float = 0.3, task: str = "multilabel") -> None:
        super().__init__()
        if not 0 <= instance_weight <= 1:
            raise SettingsError("instance_weight", f"got {instance_weight}", "Set it within 0 to 1; CLAM has 0.3.")
        self.instance_weight, self.kind = instance_weight, get_task(task)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            input: what :class:`CLAM` gives in training mode, ``[B, 1 + 2 * k, L]``.
            target: labels ``[B, K]``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if input.shape[1] < 3:
            raise ValueError(f"wanted logits of a bag and of its instances, [B, 1 + 2 * k, L], got {list(input.shape)}")
        of_bag = head_losses(input[:, :1], target, self.kind.name).sum()
        most, least = input[:, 1:].chunk(2, dim=1)  # [B, k, L] each
        has = self.kind.targets(target.to(input.dtype)).unsqueeze(1)  # [B, 1, L]
        wanted = torch.cat([2 * has - 1, -torch.ones_like(has)], dim=1)  # [B, 2, L]
        counts = torch.cat([torch.ones_like(has), has], dim=1)  # [B, 2, L]
        losses = torch.stack([_mean(softplus(1 - wanted[:, i, None] * z)) for i, z in enumerate((most, least))], dim=1)
        of_classes = (losses * counts).sum(dim=1) / counts.sum(dim=1)  # [B, L]
        return (1 - self.instance_weight) * of_bag + self.instance_weight * of_classes.mean()  # []


def _mean(values: Tensor) -> Tensor:
    """The mean ``[B, L]`` of those of ``[B, k, L]`` that are no NaN, of which there is at least one."""
    is_there = ~values.isnan()
    return values.masked_fill(~is_there, 0.0).sum(dim=1) / is_there.sum(dim=1)
