"""What every network here shares: the backbone, the checks of a bag, and the phases of its training."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import MILModel
from torch import Tensor, nn

from scripts.core.devices import use_full_float32
from scripts.core.errors import SettingsError
from scripts.networks.state_record import keep_record

__all__ = ["BagNetwork"]


class BagNetwork(MILModel):
    """A MONAI :class:`MILModel` over bags of linked rows, as features or as patches.

    A bag has N rows; a row is one patch of the highest magnification and the patches of the S - 1 lower ones
    that contain it, from low to high. A subclass pools the features in ``_branches`` and ``_explain``. These compute in
    the precision of their weights, whatever autocast is around the network, so that contributions sum to the logit and
    no probability is rounded to 0.5; and a network switches TF32 off in its process. The backbone may compute in less.

    A training has one or more phases. Phase p trains the heads ``phases[p]`` and no others (:meth:`start_phase`).

    Args:
        num_classes: K, the number of logits of each head.
        num_scales: S, the number of magnifications.
        num_features: F, the length of a patch's feature vector.
        backbone: ``None`` for a network that takes features; a module that maps ``[n, 3, H, W]`` patches to
            ``[n, num_features]``; or the name of a torchvision model.
        freeze_backbone: never train the backbone, and keep it in eval mode (the module given is changed in place). Its
            weights are those of a published file: ``state_dict()`` leaves them out and ``load_state_dict()`` refuses
            them, so a network on features and one on patches share checkpoints.
        pretrained: load torchvision's weights, if ``backbone`` is a name.
        encode_batch: how many patches pass at once through a backbone that is in eval mode.
        mil_mode: the components of MONAI's model that the subclass keeps; ``"mean"`` adds none besides ``myfc``.

    Attributes:
        phases: for each phase of the training, the heads (their indices) that it trains.
        map_heads: for each attention map, the index of the head that it explains; empty where a network has no maps.
        num_members: of how many networks this one is the mean (:class:`scripts.networks.ensemble.Ensemble`): 1.
        record, origin, weights_problem: see :func:`scripts.networks.state_record.keep_record`.

    Raises:
        SettingsError: if the backbone is a name that gives other features.
        ValueError: if ``num_classes``, ``num_scales`` or ``encode_batch`` is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        num_scales: int = 2,
        num_features: int = 512,
        backbone: nn.Module | str | None = None,
        freeze_backbone: bool = True,
        pretrained: bool = True,
        encode_batch: int = 64,
        mil_mode: str = "mean",
    ) -> None:
        if num_scales < 1 or encode_batch < 1:
            raise ValueError(f"num_scales and encode_batch must be positive, got {num_scales} and {encode_batch}")
        use_full_float32()
        net = nn.Identity() if backbone is None else backbone
        super().__init__(num_classes, mil_mode, pretrained, net, num_features)
        if self.myfc.in_features != num_features:
            cause = f"is {num_features}, but {backbone!r} gives {self.myfc.in_features} features"
            raise SettingsError("num_features", cause, f"Set it to {self.myfc.in_features}.")
        self.num_classes, self.num_scales, self.num_features = num_classes, num_scales, num_features
        self.has_backbone = backbone is not None
        self.freeze_backbone, self.encode_batch = freeze_backbone, encode_batch
        self.phases: list[list[int]] = [[0]]
        self.map_heads: list[int] = [0]
        self.phase, self.num_members = -1, 1
        if freeze_backbone:
            self.net.requires_grad_(False).eval()
            self.register_state_dict_post_hook(_leave_out_backbone)
        keep_record(self, left_out="net" if freeze_backbone else None)
        if freeze_backbone:
            self.register_load_state_dict_pre_hook(_keep_own_backbone)

    def train(self, mode: bool = True) -> BagNetwork:
        """Set the training mode of all but a frozen backbone, whose batch norms must not move."""
        super().train(mode)
        if self.freeze_backbone:
            self.net.eval()
        return self

    def start_phase(self, phase: int | None) -> None:
        """Train the heads of one phase and nothing else: all other weights stand still to the last bit.

        Heads of other phases are not computed: their logits are NaN.

        After the training (``None``) every result is computed, and every weight but a frozen backbone's may be trained.
        """
        self.phase = -1 if phase is None else phase
        trained = set(self.parameters()) if phase is None else set(self.phase_parameters(phase))
        if self.freeze_backbone:
            trained -= set(self.net.parameters())
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in trained)
            # A gradient of 0 that is left over would still let momentum and weight decay move a weight.
            parameter.grad = None

    def phase_parameters(self, phase: int) -> list[nn.Parameter]:
        """The weights that a phase trains; here, where there is one phase, all."""
        return list(self.parameters())

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """Which axes of which tensors of the state dict are divided among the K classes, in K equal parts, by name."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self, x: Tensor, log_weight: Tensor | None = None, no_head: bool = False
    ) -> Tensor:
        """The logits of every head.

        Args:
            x: features ``[B, N, S, F]``; features and, as the last channel, log weight ``[B, N, S, F + 1]``, where
                only one tensor can travel; or patches ``[B, N, S, 3, H, W]`` as the backbone takes them, of which each
                passes the backbone, also where rows share one. Scales are from low to high.
            log_weight: ``[B, N, S]``, added to the attention logits: 0 for a plain row, -inf for padding,
                -log(c) where c rows of the bag share the patch. ``None`` is that of x, or 0 everywhere.
            no_head: return the features instead.

        Returns:
            Logits ``[B, H, K]``, of the network's H heads in order. In training mode those that the method's loss needs
            beside them may follow. With ``no_head`` the features ``[B, N, S, F]``.

        Raises:
            ValueError: if a shape does not fit, or a bag has no row that is not padding.
        """
        features = self._encode(x)  # [B, N, S, F]
        if no_head:
            return features
        return self.calc_head(features, log_weight)  # [B, H, K]

    def calc_head(self, x: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """The logits ``[B, H, K]`` of features ``[B, N, S, F]``; see :meth:`forward`."""
        return self._attend(x, log_weight)[0]  # [B, H, K]

    @torch.jit.export
    def attend(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits, and the attention that led to them; arguments and errors as :meth:`forward`.

        Returns:
            Logits ``[B, H, K]`` and attention ``[B, N, M, K]`` of the network's M attention maps. The attention
            of a head is after the softmax: over the rows (and, where it pools several scales as one bag,
            over these) it sums to 1, is 0 on padding, and c rows that share a patch (log weight -log(c)) share
            its attention equally.
        """
        return self._attend(self._encode(x), log_weight)

    @torch.jit.export
    def explain(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        r"""The logits, the attention, and what each row adds to each logit; arguments and errors as :meth:`forward`.

        The attention for class k need not lie where class k is: a classifier may see the pooled vectors of all
        classes, so that each attention may speak for any class, or against it. But pooling and classifier are linear
        in the instances, so a logit is a sum over them. With attention a, instances h and the classifier's
        weights W and bias b, of which :math:`W_{k,k'}` takes the vector that attention k' pooled, row j adds

        .. math:: c_{j,k} = \sum_{k'} a_{j,k'} W_{k,k'} \cdot h_j, \qquad \sum_j c_{j,k} = y_k - b_k

        to the logit of class k: above 0 where it speaks for the class, below where it speaks against it. It is
        exact, with a held as it is: it does not say what the logit would be without the row.

        Returns:
            Logits ``[B, H, K]`` and attention ``[B, N, M, K]`` as :meth:`attend` gives them, and the contribution
            ``[B, N, M, K]``, in logits. Over the rows, and over all maps of the head (``map_heads``), it sums
            to the logit less the classifier's bias. It is 0 on padding, and c rows that share a patch (log weight
            -log(c)) share its contribution equally.
        """
        x, weight = self._checked(self._encode(x), log_weight)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return self._explain(x, weight)

    def _attend(self, x: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        x, weight = self._checked(x, log_weight)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return self._branches(x, weight)

    def _branches(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """The first two of :meth:`_explain`; a subclass has one of its own where that is worth its while."""
        logits, attention, _ = self._explain(x, log_weight)
        return logits, attention

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[B, H, K]``, attention and contribution ``[B, N, M, K]`` of ``[B, N, S, F]``, of any dtype, and
        ``[B, N, S]``.
        """
        raise NotImplementedError

    def _encode(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return x  # [B, N, S, F]
        if not torch.jit.is_scripting():
            _check_patches(x, self)
        patches = x.flatten(0, 2)  # [B * N * S, 3, H, W]
        # Batch norm in training mode must see the whole bag; otherwise chunks bound the memory.
        size = patches.shape[0] if self.net.training else self.encode_batch
        features = torch.cat([self.net(chunk) for chunk in patches.split(size)])  # [B * N * S, F]
        return features.reshape(x.shape[0], x.shape[1], x.shape[2], -1)  # [B, N, S, F]

    def _checked(self, x: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features ``[B, N, S, F]``, without what padding contains, and log weights ``[B, N, S]``."""
        if log_weight is None and x.dim() == 4 and x.shape[-1] == self.num_features + 1:
            x, log_weight = x[..., :-1], x[..., -1]  # [B, N, S, F], [B, N, S]
        if not torch.jit.is_scripting():
            _check_bags(x, log_weight, self)
        if log_weight is None:
            return x, torch.zeros(x.shape[:3], dtype=x.dtype, device=x.device)
        padding = torch.isneginf(log_weight)  # [B, N, S]
        if torch.jit.is_scripting() or _needs_silence(x, padding):
            # An attention of 0 does not silence padding that overflows half precision: 0 * inf is NaN.
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)  # [B, N, S, F]
        return x, log_weight


def _needs_silence(x: Tensor, padding: Tensor) -> bool:
    """Whether padding contains anything but zeros. To fill it would copy all features, most often for nothing."""
    return _cannot_read_values() or (bool(padding.any()) and bool(x[padding].any()))


def _cannot_read_values() -> bool:
    """Whether a graph is being recorded or compiled, which must be the same for all values."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def _check_patches(x: Tensor, network: BagNetwork) -> None:
    if _cannot_read_values():
        return
    scales, features = network.num_scales, network.num_features
    if x.dim() != 6 or x.shape[2] != scales:
        wanted = f"features [B, N, {scales}, {features}] or patches [B, N, {scales}, 3, H, W]"
        raise ValueError(f"x must be {wanted}, got {list(x.shape)}")
    if not network.has_backbone:
        raise ValueError(f"x must be features, as this network has no backbone, got patches {list(x.shape)}")


def _check_bags(x: Tensor, log_weight: Tensor | None, network: BagNetwork) -> None:
    if _cannot_read_values():
        return
    if x.dim() != 4 or x.shape[2:] != (network.num_scales, network.num_features):
        raise ValueError(f"features must be [B, N, {network.num_scales}, {network.num_features}], got {list(x.shape)}")
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
    network: Any,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: Any,
    _missing: Any,
    unexpected: list,
    _errors: Any,
) -> None:
    # A backbone that was trained is not this one, and must be noticed as any other misfit is.
    foreign = [key for key in state if key.startswith(f"{prefix}net.")]
    unexpected.extend(foreign)
    for key in foreign:
        del state[key]
    state.update({f"{prefix}net.{key}": value for key, value in network.net.state_dict().items()})
