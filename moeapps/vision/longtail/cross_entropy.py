"""Cross-entropy, the baseline, with an optional adjustment of the logits after training."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from moeapps.vision.longtail.aggregate import MeanLogits, PriorCorrected
from moeapps.vision.longtail.base import LongTailModel


class CrossEntropy(LongTailModel):
    r"""Plain cross-entropy on each expert; post-hoc logit adjustment at inference on request.

    .. math:: L = \sum_k \mathrm{CE}(z_k, y), \qquad
        \hat y = \arg\max_j\ \bar z_j - \tau \log \pi_j

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class; needed for ``tau``.
        tau: Strength of the post-hoc adjustment; 0 for none, 1 to expect a uniform prior.
        num_experts: ``K``.
        **common: Options of every model, see `LongTailModel`.

    Shape:
        - images ``[B, C, H, W]`` -> logits ``[B, classes]``

    Notes:
        Departures from the papers: none.

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021.

    Example:
        >>> import torch
        >>> model = CrossEntropy(4, [40, 20, 8, 2], tau=1, backbone="resnet8")
        >>> model(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        tau: float = 0.0,
        num_experts: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, class_counts, num_experts=num_experts, **common)
        if tau:
            self.aggregate = PriorCorrected(MeanLogits(), self.counts, lam=1 - tau)

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The cross-entropy of the experts."""
        logits = aux["logits"]
        losses = [F.cross_entropy(z, target) for z in logits.unbind(1)]
        return {"cross_entropy": sum(losses, logits.new_zeros(()))}
