"""The multi-scale task network: one attention branch a magnification and one over all of them."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import MILModel
from monai.utils import OptionalImportError
from torch import Tensor, nn

from scripts.errors import SettingsError

__all__ = ["MuSTMIL"]


class MuSTMIL(MILModel):
    r"""Multi-scale task multiple-instance learning (Marini et al., PMLR 156:170-181, 2021).

    https://proceedings.mlr.press/v156/marini21a.html. A bag has N rows; a row is one patch of the highest
    magnification and the patches of the S - 1 lower ones that contain it, from low to high. In the paper's
    letters, for scale s, class k and row j with log weight g:

    .. math::
        h_{s,j} &= IL_s(x_{s,j}) \\
        a_{s,j,k} &= softmax_j(w_{s,k}^T tanh(V_s h_{s,j}) + g_{s,j}) \\
        z_{s,k} &= \sum_j a_{s,j,k} h_{s,j} \\
        y_s &= Cl_s([z_{s,1}, ..., z_{s,K}])

    The multi-scale branch does the same with :math:`h_j = [h_{1,j}, ..., h_{S,j}]` and the log weight of the
    highest scale, whose patches are the rows. There is no bias on w: softmax cancels it.

    The log weight is our addition. The paper attends over the unique patches X_s of a scale, but linked rows
    repeat a low patch c times; -log(c) on each of them makes softmax over rows equal softmax over patches.

    What MONAI's :class:`MILModel` calls ``net`` is ConvL, ``attention`` holds V and w of every branch and
    ``myfc`` holds Cl. Both lists, like every output here, are in the order global, then scales low to high.

    Args:
        num_classes: K, the number of logits of each output.
        num_scales: S, the number of magnifications.
        num_features: F, the length of a patch's feature vector.
        num_nodes: length of h, at least 2; V maps it to half of that.
        backbone: ``None`` for a network that takes features; a module that maps ``[n, 3, H, W]`` patches to
            ``[n, num_features]``; or the name of a torchvision model.
        freeze_backbone: never train the backbone, and keep it in eval mode (the module given is changed in
            place). Its weights are those of a published file, so they are left out of ``state_dict()`` and
            are not accepted by ``load_state_dict()``: a network on features and one on patches share
            checkpoints.
        pretrained: load torchvision's weights, if ``backbone`` is a name.
        encode_batch: how many patches pass at once through a backbone that is in eval mode.

    Raises:
        SettingsError: if ``num_nodes`` is too small, or the backbone is a name that cannot be used.
        ValueError: if ``num_classes``, ``num_scales`` or ``encode_batch`` is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        num_scales: int = 2,
        num_features: int = 512,
        num_nodes: int = 128,
        backbone: nn.Module | str | None = None,
        freeze_backbone: bool = True,
        pretrained: bool = True,
        encode_batch: int = 64,
    ) -> None:
        if num_nodes < 2:
            raise SettingsError("num_nodes", f"got {num_nodes}", "Set it to 2 or more; the paper has 128.")
        if num_scales < 1 or encode_batch < 1:
            raise ValueError(f"num_scales and encode_batch must be positive, got {num_scales} and {encode_batch}")
        try:
            # "mean" is the mode that adds no parameters besides the classifier, which is replaced below.
            super().__init__(
                num_classes,
                mil_mode="mean",
                pretrained=pretrained,
                backbone=nn.Identity() if backbone is None else backbone,
                backbone_num_features=num_features,
            )
        except OptionalImportError as error:
            raise SettingsError(
                "backbone",
                f"{backbone!r} is the name of a torchvision model, and torchvision is not installed",
                "Install torchvision, or give the backbone as a module.",
            ) from error
        if self.myfc.in_features != num_features:
            raise SettingsError(
                "num_features",
                f"is {num_features}, but {backbone!r} gives {self.myfc.in_features} features",
                f"Set it to {self.myfc.in_features}.",
            )
        self.num_classes, self.num_scales, self.num_features = num_classes, num_scales, num_features
        self.has_backbone = backbone is not None
        self.freeze_backbone, self.encode_batch = freeze_backbone, encode_batch

        self.embed = nn.ModuleList(nn.Linear(num_features, num_nodes) for _ in range(num_scales))
        widths = [num_scales * num_nodes] + [num_nodes] * num_scales
        self.attention: nn.ModuleList = nn.ModuleList(  # type: ignore[assignment]
            nn.Sequential(
                nn.Linear(width, num_nodes // 2),
                nn.Tanh(),
                nn.Linear(num_nodes // 2, num_classes, bias=False),
            )
            for width in widths
        )
        self.myfc: nn.ModuleList = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(num_classes * width, num_classes) for width in widths
        )
        if freeze_backbone:
            self.net.requires_grad_(False).eval()
            self.register_state_dict_post_hook(_leave_out_backbone)
            self.register_load_state_dict_pre_hook(_keep_own_backbone)

    def train(self, mode: bool = True) -> MuSTMIL:
        """Set the training mode of all but a frozen backbone, whose batch norms must not move."""
        super().train(mode)
        if self.freeze_backbone:
            self.net.eval()
        return self

    def forward(  # type: ignore[override]
        self, x: Tensor, log_weight: Tensor | None = None, no_head: bool = False
    ) -> Tensor:
        """The logits of every output.

        Args:
            x: features ``[B, N, S, F]``, or patches ``[B, N, S, 3, H, W]`` as the backbone takes them; scales
                from low to high.
            log_weight: ``[B, N, S]``, added to the attention logits: 0 for a plain row, -inf for padding,
                -log(c) where c rows of the bag share the patch. ``None`` is 0 everywhere.
            no_head: return the features instead.

        Returns:
            Logits ``[B, 1 + S, K]``: global, then the scales from low to high. With ``no_head`` the features
            ``[B, N, S, F]``.

        Raises:
            ValueError: if a shape does not fit, or a bag has no row that is not padding.
        """
        features = self._encode(x)  # [B, N, S, F]
        if no_head:
            return features
        return self.calc_head(features, log_weight)  # [B, 1 + S, K]

    def calc_head(self, x: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """The logits ``[B, 1 + S, K]`` of features ``[B, N, S, F]``; see :meth:`forward`."""
        return self._branches(x, log_weight)[0]  # [B, 1 + S, K]

    @torch.jit.export
    def attend(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits, and the attention that led to them.

        Args:
            x: features or patches, as for :meth:`forward`.
            log_weight: as for :meth:`forward`.

        Returns:
            Logits ``[B, 1 + S, K]`` and attention ``[B, N, 1 + S, K]``, both with the outputs in the order
            global, then scales low to high. The attention is after the softmax: it sums to 1 over the rows
            of a bag, is 0 on padding, and c rows that share a patch (log weight -log(c)) share its attention
            equally.

        Raises:
            ValueError: as :meth:`forward`.
        """
        return self._branches(self._encode(x), log_weight)

    def _encode(self, x: Tensor) -> Tensor:
        # TorchScript fails on a return before a no_grad block, hence the nested methods.
        return x if x.dim() == 4 else self._encode_patches(x)  # [B, N, S, F]

    def _encode_patches(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            _check_patches(x, self)
        patches = x.flatten(0, 2)  # [B * N * S, 3, H, W]
        if self.freeze_backbone:
            with torch.no_grad():
                features = self._run_backbone(patches)  # [B * N * S, F]
        else:
            features = self._run_backbone(patches)  # [B * N * S, F]
        return features.reshape(x.shape[0], x.shape[1], x.shape[2], -1)  # [B, N, S, F]

    def _run_backbone(self, patches: Tensor) -> Tensor:
        # Batch norm in training mode must see the whole bag; otherwise chunks bound the memory.
        size = patches.shape[0] if self.net.training else self.encode_batch
        return torch.cat([self.net(chunk) for chunk in patches.split(size)])  # [B * N * S, F]

    def _branches(self, x: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        if not torch.jit.is_scripting():
            _check_bags(x, log_weight, self)
        if log_weight is None:
            log_weight = torch.zeros(x.shape[:3], dtype=x.dtype, device=x.device)  # [B, N, S]
        else:
            # An attention of 0 does not silence padding that overflows half precision: 0 * inf is NaN.
            x = x.masked_fill(torch.isneginf(log_weight).unsqueeze(-1), 0.0)  # [B, N, S, F]

        inputs: list[Tensor] = []
        for s, il in enumerate(self.embed):
            inputs.append(il(x[:, :, s]))  # [B, N, num_nodes]
        inputs.insert(0, torch.cat(inputs, dim=2))  # [B, N, S * num_nodes]
        weights = torch.cat([log_weight[:, :, -1:], log_weight], dim=2)  # [B, N, 1 + S]
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        for branch, (score, classify) in enumerate(zip(self.attention, self.myfc)):  # noqa: B905 (TorchScript)
            h = inputs[branch]  # [B, N, width]
            a = torch.softmax(score(h) + weights[:, :, branch].unsqueeze(-1), dim=1)  # [B, N, K]
            z = a.transpose(1, 2).to(h.dtype) @ h  # [B, K, width]
            logits.append(classify(z.flatten(1)))  # [B, K]
            attention.append(a)
        return torch.stack(logits, dim=1), torch.stack(attention, dim=2)  # [B, 1 + S, K], [B, N, 1 + S, K]


def _check_patches(x: Tensor, network: MuSTMIL) -> None:
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    scales, features = network.num_scales, network.num_features
    if x.dim() != 6 or x.shape[2] != scales:
        raise ValueError(
            f"x must be features [B, N, {scales}, {features}] or patches [B, N, {scales}, 3, H, W], got {list(x.shape)}"
        )
    if not network.has_backbone:
        raise ValueError(f"x must be features, as this network has no backbone, got patches {list(x.shape)}")


def _check_bags(x: Tensor, log_weight: Tensor | None, network: MuSTMIL) -> None:
    # The last check reads values, which a recorded or compiled graph cannot do.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    scales, features = network.num_scales, network.num_features
    if x.dim() != 4 or x.shape[2:] != (scales, features):
        raise ValueError(f"features must be [B, N, {scales}, {features}], got {list(x.shape)}")
    if x.shape[1] == 0:
        raise ValueError(f"a bag needs at least one row, got features {list(x.shape)}")
    if log_weight is None:
        return
    if log_weight.shape != x.shape[:3]:
        raise ValueError(f"log_weight must be {list(x.shape[:3])}, got {list(log_weight.shape)}")
    padded = torch.isneginf(log_weight).all(dim=1).any(dim=1)  # [B]
    if bool(padded.any()):
        bags = padded.nonzero().flatten().tolist()
        raise ValueError(f"a bag needs at least one row that is not padding, got none in {bags} of the batch")


def _leave_out_backbone(network: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}net.")]:
        del state[key]


def _keep_own_backbone(
    network: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    unexpected: list[str],
    _errors: list[str],
) -> None:
    # A backbone that was trained is not this one, and must be noticed as any other misfit is.
    foreign = [key for key in state if key.startswith(f"{prefix}net.")]
    unexpected.extend(foreign)
    for key in foreign:
        del state[key]
    net: nn.Module = network.net  # type: ignore[assignment]
    state.update({f"{prefix}net.{key}": value for key, value in net.state_dict().items()})
