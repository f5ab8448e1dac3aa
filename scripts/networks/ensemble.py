"""Several trained networks as one: the mean of their calibrated probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.core.tasks import cumulative_logits, get_task, log_probabilities_in_order
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
        self.is_cumulative = num_outputs != first.num_classes
        shape = len(members), 1 + max(first.map_heads, default=0), num_outputs
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

        Where a slide has exactly one class, nothing needs the latter: the former stand in their place. An ordered class
        that a member rules out has minus infinity.

        Args:
            of_members: their logits, ``[B, H, L]`` each.
        """
        logits = torch.stack(of_members)  # [E, B, H, L]
        shift: Tensor = self.shift.unsqueeze(1)  # type: ignore[operator]
        slope: Tensor = self.slope.unsqueeze(1)  # type: ignore[operator]
        intercept: Tensor = self.intercept.unsqueeze(1)  # type: ignore[operator]
        if self.is_cumulative:
            width = logits.shape[-1]
            corrected = cumulative_logits(log_probabilities_in_order(logits) + shift)  # [E, B, H, L]
            steps = slope[..., :width] * corrected + intercept[..., :width]
            positive = log_probabilities_in_order(steps)  # [E, B, H, K]
            return positive, positive
        u = slope * (logits + shift) + intercept
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
        return cumulative_logits(total)  # [B, H, K - 1]
