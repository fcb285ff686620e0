"""Logit adjustment in training, and Balanced Softmax, its best known member."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.losses import logit_adjusted_cross_entropy


class LogitAdjustment(LongTailModel):
    r"""Cross-entropy on logits to which a multiple of the log prior is added.

    .. math:: L = \sum_k \mathrm{CE}(z_k + \lambda_k \log \pi, y)

    An expert so trained implies a test prior proportional to :math:`\pi^{1 - \lambda_k}`; the mean
    of the logits behaves as the mean lambda.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        lam: Lambda of all experts, or of each.
        num_experts: ``K``.
        **common: Options of every model, see `LongTailModel`.

    Shape:
        - images ``[B, C, H, W]`` -> logits ``[B, classes]``

    Raises:
        ArgumentError: Not one lambda per expert.

    Notes:
        Departures from the papers: none. Nothing is added at inference.

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021.

    Example:
        >>> import torch
        >>> model = LogitAdjustment(2, [9, 1], lam=1.0, backbone="resnet8")
        >>> aux = {"logits": torch.zeros(1, 1, 2)}
        >>> model.loss(aux, torch.tensor([1]), epoch=1)  # log(10)
        tensor(2.3026)
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        lam: float | Sequence[float] = 1.0,
        num_experts: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, class_counts, num_experts=num_experts, **common)
        self.lam = [float(lam)] * num_experts if isinstance(lam, int | float) else [*lam]
        if len(self.lam) != num_experts:
            raise ArgumentError(
                f"lam has {len(self.lam)} values for {num_experts} experts. Give one per expert, "
                "or one number for all."
            )

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The adjusted cross-entropy of the experts."""
        logits, prior = aux["logits"], self.log_prior
        losses = [
            logit_adjusted_cross_entropy(z, target, prior, lam)
            for z, lam in zip(logits.unbind(1), self.lam, strict=True)
        ]
        return {"adjusted_cross_entropy": sum(losses, logits.new_zeros(()))}


class BalancedSoftmax(LogitAdjustment):
    r"""Logit adjustment with lambda 1: the experts expect a uniform prior.

    .. math:: L = \sum_k \mathrm{CE}(z_k + \log n, y)

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        **common: ``num_experts`` (1) and the options of every model, see `LongTailModel`.

    Shape:
        - images ``[B, C, H, W]`` -> logits ``[B, classes]``

    Notes:
        Departures from the paper: none; its meta sampler is not part of the loss.

    References:
        Ren et al., *Balanced Meta-Softmax for Long-Tailed Visual Recognition*, NeurIPS 2020.

    Example:
        >>> import torch
        >>> BalancedSoftmax(4, [40, 20, 8, 2], backbone="resnet8")(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, class_counts, lam=1.0, **common)
