"""The multi-scale task network: one attention branch a magnification and one over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.settings import check_settings
from scripts.networks.attention_entropy import attention_entropies
from scripts.networks.bag_network import BagNetwork

__all__ = ["BranchNetwork", "MuSTMIL"]


class BranchNetwork(BagNetwork):
    r"""The components of MuSTMIL: an instance layer for each scale, and a branch for each head.

    In the paper's letters a branch over instances h_j with log weights g_j is, for class k,

    .. math::
        a_{j,k} &= softmax_j(w_k^T tanh(V h_j) + g_j) \\
        z_k &= \sum_j a_{j,k} h_j \\
        y &= Cl([z_1, ..., z_K])

    There is no bias on w: softmax cancels it. This is the paper's ``class_attention``, ``joint``. With ``separate`` the
    logit of a class sees the vector of its own attention alone, :math:`y_k = c_k^T z_k + b_k`. With ``shared`` there is
    one attention for all classes, :math:`y = Cl(z)`, and its map is that of every class. With one logit the three
    are the same network.

    The log weight is our addition. The paper attends over the unique patches X_s of a scale, but linked rows
    repeat a low patch c times; -log(c) on each of them makes softmax over rows equal softmax over patches.

    The subclasses say which instances each branch pools (``_inputs``), and how the branches' logits and maps
    become the network's (``_logits``, ``_maps``).

    What MONAI's :class:`MILModel` calls ``net`` is ConvL; ``embed`` contains IL of every scale from low to high,
    ``attention`` V and w of every branch, and ``myfc`` Cl.

    Args:
        widths: the length of the instances that each branch pools.
        num_nodes: length of h, at least 2 (else a SettingsError); V maps each branch's instances to half of that.
        class_attention: ``"joint"``, ``"separate"`` or ``"shared"`` (else a SettingsError).
        gives_entropies: whether in training mode the entropies of the heads' attention follow their logits, for
            :class:`scripts.networks.attention_entropy.AttentionEntropyLoss`. An exported network never gives them.
        settings: the other arguments are those of :class:`BagNetwork`.
    """

    def __init__(
        self,
        widths: list[int],
        num_classes: int,
        num_scales: int,
        num_features: int,
        num_nodes: int,
        class_attention: str = "joint",
        gives_entropies: bool = False,
        **settings: Any,
    ) -> None:
        check_settings(class_attention=class_attention, num_nodes=num_nodes)
        super().__init__(num_classes, num_scales, num_features, **settings)
        self.embed = nn.ModuleList(nn.Linear(num_features, num_nodes) for _ in range(num_scales))
        half = num_nodes // 2
        self.class_attention, self.gives_entropies = class_attention, gives_entropies
        self.is_joint, self.is_separate = class_attention == "joint", class_attention == "separate"
        num_maps = 1 if class_attention == "shared" else num_classes
        num_seen = num_classes if self.is_joint else 1  # pooled vectors that a logit sees
        self.attention: nn.ModuleList = nn.ModuleList(  # type: ignore[assignment]
            nn.Sequential(nn.Linear(width, half), nn.Tanh(), nn.Linear(half, num_maps, bias=False)) for width in widths
        )
        self.myfc: nn.ModuleList = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(num_seen * width, num_classes) for width in widths
        )
        # Which instance layers and which branches are computed: all, but in a phase that trains others.
        self.embeds = [True] * num_scales
        self.computes = [True] * len(widths)

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of w for each class, unless one is shared; a row of Cl, and in it a part for each joint attention."""
        axes: dict[str, tuple[int, ...]] = {}
        for branch in range(len(self.attention)):
            axes[f"myfc.{branch}.bias"] = (0,)
            axes[f"myfc.{branch}.weight"] = (0, 1) if self.is_joint else (0,)
            if self.class_attention != "shared":
                axes[f"attention.{branch}.2.weight"] = (0,)
        return axes

    def _embed(self, x: Tensor) -> list[Tensor]:
        """h of each scale, ``[B, N, num_nodes]``; without rows where nothing needs it."""
        embedded: list[Tensor] = []
        for s, il in enumerate(self.embed):
            weight: Tensor = il.weight  # type: ignore[assignment]
            rows = x[:, :, s] if self.embeds[s] else x[:, :0, s]  # [B, N, F]
            embedded.append(il(rows.to(weight.dtype)))  # [B, N, num_nodes]
        return embedded

    def _branches(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        inputs, log_weights = self._inputs(x, log_weight)
        of_branches, attention = self._pool(inputs, log_weights)
        logits = self._logits(of_branches)  # [B, H, K]
        if not torch.jit.is_scripting() and self.training and self.gives_entropies:
            entropies = self._logits(attention_entropies(attention, log_weights))  # [B, H, K]
            logits = torch.cat([logits, entropies], dim=1)  # [B, 2 * H, K]
        return logits, self._maps(attention)  # [B, H, K], in training mode perhaps [B, 2 * H, K]; [B, N, M, K]

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, log_weights = self._inputs(x, log_weight)
        logits, attention = self._pool(inputs, log_weights)
        contribution = self._maps(self._contribute(inputs, attention))
        return self._logits(logits), self._maps(attention), contribution  # [B, H, K], twice [B, N, M, K]

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The instances ``[B, n, width]`` and the log weights ``[B, n]`` of each branch."""
        raise NotImplementedError

    def _logits(self, of_branches: list[Tensor]) -> Tensor:
        """The network's logits (or entropies) ``[B, H, K]`` from those of the branches, ``[B, K]`` each."""
        return torch.stack(of_branches, dim=1)

    def _maps(self, of_branches: list[Tensor]) -> Tensor:
        """The network's maps ``[B, N, M, K]`` from those of the branches, ``[B, n, K]`` each."""
        return torch.stack(of_branches, dim=2)

    def _pool(self, inputs: list[Tensor], log_weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits ``[B, K]`` and attention ``[B, n, K]`` of each branch over ``[B, n, width]`` and ``[B, n]``."""
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        for branch, (score, classify) in enumerate(zip(self.attention, self.myfc)):  # noqa: B905 (TorchScript)
            h = inputs[branch]  # [B, n, width]
            if self.computes[branch]:
                a = torch.softmax(score(h) + log_weights[branch].unsqueeze(-1), dim=1)  # [B, n, K], shared [B, n, 1]
                z = a.transpose(1, 2).to(h.dtype) @ h  # [B, K, width], shared [B, 1, width]
                if self.is_separate:
                    weight: Tensor = classify.weight  # type: ignore[assignment]
                    bias: Tensor = classify.bias  # type: ignore[assignment]
                    logits.append((z * weight).sum(dim=2) + bias)  # [B, K]
                else:
                    logits.append(classify(z.flatten(1)))  # [B, K]
                attention.append(a.expand(-1, -1, self.num_classes))  # [B, n, K]
            else:
                shape = log_weights[branch].shape
                logits.append(h.new_full([shape[0], self.num_classes], torch.nan))  # [B, K]
                attention.append(h.new_full([shape[0], shape[1], self.num_classes], torch.nan))  # [B, n, K]
        return logits, attention

    def _contribute(self, inputs: list[Tensor], attention: list[Tensor]) -> list[Tensor]:
        """What each instance adds to each logit of its branch, ``[B, n, K]``: see :meth:`BagNetwork.explain`."""
        contribution: list[Tensor] = []
        for branch, classify in enumerate(self.myfc):
            a = attention[branch]  # [B, n, K]
            if self.computes[branch]:
                weight: Tensor = classify.weight  # type: ignore[assignment]
                if self.is_joint:
                    weight = weight.unflatten(1, [self.num_classes, -1])  # [K, K (of the attention), width]
                    votes = torch.einsum("kcw,bnw->bnkc", weight, inputs[branch])  # [B, n, K, K (of the attention)]
                    contribution.append((votes * a.unsqueeze(2)).sum(dim=3))  # [B, n, K]
                else:
                    contribution.append(nn.functional.linear(inputs[branch], weight) * a)  # [B, n, K]
            else:
                contribution.append(a)  # NaN, as the logits are
        return contribution


class MuSTMIL(BranchNetwork):
    r"""Multi-scale task multiple-instance learning (Marini et al., PMLR 156:170-181, 2021).

    https://proceedings.mlr.press/v156/marini21a.html. In the paper's letters, for scale s and row j:

    .. math:: h_{s,j} = IL_s(x_{s,j})

    The branch of scale s is over :math:`h_{s,j}`; the multi-scale one is over
    :math:`h_j = [h_{1,j}, ..., h_{S,j}]` with the log weight of the highest scale, whose patches are the rows.

    The heads, as the attention maps and the entries of ``attention`` and ``myfc``, are in the order global,
    then scales from low to high. Arguments and errors are those of :class:`BranchNetwork`.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        widths = [num_scales * num_nodes] + [num_nodes] * num_scales
        super().__init__(widths, num_classes, num_scales, num_features, num_nodes, **settings)
        self.phases = [list(range(1 + num_scales))]
        self.map_heads = list(range(1 + num_scales))

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs = self._embed(x)  # S of [B, N, num_nodes]
        inputs.insert(0, torch.cat(inputs, dim=2))  # [B, N, S * num_nodes]
        log_weights = [log_weight[:, :, -1]] + [log_weight[:, :, s] for s in range(self.num_scales)]  # of [B, N]
        return inputs, log_weights
