"""Several trained networks as one: the mean of their calibrated probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.core.tasks import LEAST_PROBABILITY, get_task
from scripts.networks.bag_network import BagNetwork

__all__ = ["Ensemble"]


class Ensemble(BagNetwork):
    r"""E networks of the same kind on the same features, trained apart, whose probabilities are averaged.

    With the calibrated probabilities :math:`p_e` of member e (:class:`scripts.weights.operating_point.OperatingPoint`),
    the ensemble's are :math:`p = \frac{1}{E} \sum_e p_e` (Lakshminarayanan et al., "Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles", NeurIPS 2017, section 2.4). Its logits are those with which the task
    makes these probabilities, so that whatever takes the logits of one network takes an ensemble's. They are computed
    from logarithms: no probability is rounded to 0 or 1 on the way.

    Attention and contributions are the members' means. Attention so still sums to 1; contributions sum to the mean of
    the members' logits less the mean of their biases, which is not the logit of the mean probability.

    The members' calibration is in the state dict: ``shift``, ``slope`` and ``intercept`` ``[E, H, K]``.

    Args:
        members: the E networks, at least 2, without a backbone; they become part of this one.
        task: of the logits, one of :data:`scripts.core.tasks.TASKS`.

    Attributes:
        num_members: E.

    Raises:
        SettingsError: if there are fewer than two members.
    """

    def __init__(self, members: Sequence[BagNetwork], task: str = "multilabel") -> None:
        if len(members) < 2:
            raise SettingsError("members", f"got {len(members)}", "An ensemble has two or more.")
        first, kind = members[0], get_task(task)
        super().__init__(first.num_classes, first.num_scales, first.num_features)
        self.myfc = nn.Identity()  # type: ignore[assignment]
        self.members, self.num_members = nn.ModuleList(members), len(members)
        self.phases, self.map_heads = first.phases, first.map_heads
        self.is_exclusive = kind.is_exclusive
        num_outputs = kind.probabilities(torch.zeros(first.num_classes)).shape[-1]
        self.least_logarithm = math.log(LEAST_PROBABILITY)  # TorchScript reads no globals
        self.is_cumulative = num_outputs != first.num_classes
        shape = len(members), 1 + max(first.map_heads), num_outputs
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("slope", torch.ones(shape))
        self.register_buffer("intercept", torch.zeros(shape))

    @torch.jit.export
    def with_spread(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits, and how far the members are apart; arguments and errors as :meth:`BagNetwork.forward`.

        Returns:
            Logits ``[B, H, L]``, and the spread ``[B, H, K]``: the standard deviation, with E - 1 in the denominator,
            of the members' calibrated probabilities of each class, in 0..1.
        """
        x, weight = self._checked(self._encode(x), log_weight)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            logits: list[Tensor] = []
            for member in self.members:
                # [B, H, L], [B, N, M, L]
                y, _ = member._branches(x, weight)  # type: ignore[operator]
                logits.append(y)
            positive, negative = self._log_probabilities(logits)
            return self._of_mean(positive, negative), positive.exp().std(dim=0)

    def _branches(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        for member in self.members:
            # [B, H, L], [B, N, M, L]
            y, a = member._branches(x, log_weight)  # type: ignore[operator]
            logits.append(y)
            attention.append(a)
        positive, negative = self._log_probabilities(logits)
        return self._of_mean(positive, negative), torch.stack(attention).mean(dim=0)

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        contribution: list[Tensor] = []
        for member in self.members:
            # [B, H, L], [B, N, M, L], [B, N, M, L]
            y, a, c = member._explain(x, log_weight)  # type: ignore[operator]
            logits.append(y)
            attention.append(a)
            contribution.append(c)
        positive, negative = self._log_probabilities(logits)
        maps = torch.stack(attention).mean(dim=0), torch.stack(contribution).mean(dim=0)  # [B, N, M, L] each
        return self._of_mean(positive, negative), maps[0], maps[1]

    def _log_probabilities(self, of_members: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The logarithms ``[E, B, H, K]`` of the members' calibrated probabilities, and of 1 less these.

        Where a slide has exactly one class, nothing needs the latter: the former stand in their place.

        Args:
            of_members: their logits, ``[B, H, L]`` each.
        """
        logits = torch.stack(of_members)  # [E, B, H, L]
        if self.is_cumulative:
            logits = _of_ordered_classes(logits).clamp_min(self.least_logarithm)  # [E, B, H, K]
        shift: Tensor = self.shift.unsqueeze(1)  # type: ignore[operator]
        u = self.slope.unsqueeze(1) * (logits + shift) + self.intercept.unsqueeze(1)  # type: ignore[operator]
        if self.is_exclusive:
            positive = torch.log_softmax(u, dim=-1)
            return positive, positive
        return nn.functional.logsigmoid(u), nn.functional.logsigmoid(-u)

    def _of_mean(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The logits ``[B, H, L]`` of the mean of probabilities, of whose logarithms :meth:`_log_probabilities` says.

        In the multiclass task these are the logarithms of the mean probabilities.
        """
        total = torch.logsumexp(positive, dim=0)  # [B, H, K]
        if not self.is_exclusive:
            return total - torch.logsumexp(negative, dim=0)
        if not self.is_cumulative:
            return total - math.log(self.num_members)
        above: list[Tensor] = []
        for k in range(1, total.shape[-1]):
            above.append(torch.logsumexp(total[..., k:], dim=-1) - torch.logsumexp(total[..., :k], dim=-1))
        return torch.stack(above, dim=-1)  # [B, H, K - 1]


def _of_ordered_classes(logits: Tensor) -> Tensor:
    r"""The logarithms ``[..., K]`` of probabilities of ordered classes, of logits ``[..., K - 1]`` of being above each.

    Differences of probabilities in float32 would be rounded to 0 where one is near 1. Therefore
    :math:`\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{b - a})`. ONNX has no cumulative minimum.
    """
    falling = [logits[..., 0]]
    for k in range(1, logits.shape[-1]):
        falling.append(torch.minimum(falling[-1], logits[..., k]))
    above = torch.stack(falling, dim=-1)  # [..., K - 1]
    reached, missed = nn.functional.logsigmoid(above), nn.functional.logsigmoid(-above)  # [..., K - 1]
    apart = torch.log(-torch.expm1(above[..., 1:] - above[..., :-1]))  # [..., K - 2]
    between = reached[..., :-1] + missed[..., 1:] + apart  # [..., K - 2]
    return torch.cat([missed[..., :1], between, reached[..., -1:]], dim=-1)
