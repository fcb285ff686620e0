"""LDAM-DRW: margins by class size, and class weights late in training."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.losses import drw_weights, ldam_cross_entropy, ldam_margins


class LDAM(LongTailModel):
    r"""Label-distribution-aware margins with deferred re-weighting.

    .. math:: L = \sum_k \mathrm{CE}(z_k - s\, m_y\, 1_y,\ y;\ w), \qquad
        m_j \propto n_j^{-1/4},\ \max_j m_j = m_{\max}

    The weights :math:`w` are those of :func:`drw_weights` once ``epoch > drw_epoch``, 1 before.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        drw_epoch: Last epoch (counted from 1) without class weights; None for never.
        max_margin: Margin of the rarest class.
        beta: Of the effective number of images.
        num_experts: ``K``.
        **common: Options of every model, see `LongTailModel`.

    Shape:
        - images ``[B, C, H, W]`` -> logits ``[B, classes]``

    Notes:
        Departures from the paper: none.

    References:
        Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*,
        NeurIPS 2019.

    Example:
        >>> import torch
        >>> model = LDAM(2, [16, 1], backbone="resnet8")
        >>> aux = {"logits": torch.tensor([[[15.0, 7.5]]])}
        >>> model.loss(aux, torch.tensor([0]), epoch=1)  # margin 30 * 0.25 makes them equal
        tensor(0.6931)
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        drw_epoch: int | None = 160,
        max_margin: float = 0.5,
        beta: float = 0.9999,
        num_experts: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, class_counts, num_experts=num_experts, **common)
        self.drw_epoch, self.max_margin, self.beta = drw_epoch, max_margin, beta

    def reweights(self, epoch: int) -> bool:
        """Whether class weights are on in this epoch, counted from 1."""
        return self.drw_epoch is not None and epoch > self.drw_epoch

    def individual_loss(self, logits: Tensor, target: Tensor, epoch: int) -> Tensor:
        """The loss of one expert's logits ``[B, C]``."""
        margins = ldam_margins(self.counts, self.max_margin)
        weight = drw_weights(self.counts, self.beta) if self.reweights(epoch) else None
        return ldam_cross_entropy(logits, target, margins, self.scale, weight)

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The loss of the experts."""
        logits = aux["logits"]
        losses = [self.individual_loss(z, target, epoch) for z in logits.unbind(1)]
        return {"ldam": sum(losses, logits.new_zeros(()))}
