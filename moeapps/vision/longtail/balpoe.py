"""BalPoE: experts whose biases towards rare and frequent classes cancel out."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from moeapps.vision.longtail.logit_adjustment import LogitAdjustment
from moeapps.vision.longtail.schedules import CIFAR


class BalPoE(LogitAdjustment):
    r"""A balanced product of experts.

    .. math:: L = \frac{1}{K} \sum_k \mathrm{CE}(z_k + \lambda_k \log \pi), \qquad
        \lambda_k = \lambda_{\max} \frac{k - 1}{K - 1}

    The mean of the logits behaves as one expert of the mean :math:`\lambda`: it is consistent for
    the balanced error if and only if that is 1, which :math:`\lambda_{\max} = 2` gives for any K.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        lambda_max: Of the last expert; published with 2 (CIFAR, iNaturalist) and 2.5 (ImageNet-LT).
        num_experts: ``K``; a single expert has the mean, ``lambda_max / 2``.
        **common: Options of every model, see `LongTailModel`.

    Notes:
        Departures from the paper: none. It trains on mixed images, which calibrates the experts;
        the target may be probabilities ``[B, C]`` as `mixup` gives them.

    References:
        Sanchez Aimar et al., *Balanced Product of Calibrated Experts for Long-Tailed Recognition*,
        CVPR 2023.

    Example:
        >>> model = BalPoE(4, [40, 20, 10, 5], backbone="resnet8")
        >>> model.lam
        [0.0, 1.0, 2.0]
        >>> images, target = mixup(torch.randn(6, 3, 32, 32), torch.arange(6) % 4, num_classes=4)
        >>> output, aux = model(images, return_aux=True)
        >>> model.loss(aux, target, epoch=1).shape
        torch.Size([])
    """

    schedules: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar": CIFAR | {"mixup_alpha": 0.4},
        "cifar_long": CIFAR
        | {"mixup_alpha": 0.4, "epochs": 400, "milestones": [320, 360], "warmup_epochs": 10},
    }
    schedule = schedules["cifar"]

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        lambda_max: float = 2.0,
        num_experts: int = 3,
        **common: Any,
    ) -> None:
        lam = torch.linspace(0, lambda_max, num_experts, dtype=torch.float64).tolist()
        if num_experts == 1:
            lam = [lambda_max / 2]
        super().__init__(num_classes, class_counts, lam=lam, num_experts=num_experts, **common)

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The mean of the experts' cross-entropies."""
        parts = super().loss_parts(aux, target, epoch)
        return {name: part / self.num_experts for name, part in parts.items()}


def mixup(
    images: Tensor, target: Tensor, *, num_classes: int, alpha: float = 0.4
) -> tuple[Tensor, Tensor]:
    r"""Mix every image of a batch with another one, by one share for the batch.

    .. math:: x' = \beta x + (1 - \beta) x_\pi, \qquad \beta \sim \mathrm{Beta}(\alpha, \alpha)

    The cross-entropy with the mixed targets is the mixture of the two cross-entropies.

    Args:
        images: ``[B, C, H, W]``, in the order of a shuffled loader: each meets its neighbour.
        target: int64 ``[B]``.
        num_classes: Width of the mixed target.
        alpha: 0.4 for CIFAR, 0.3 for ImageNet; 0 mixes nothing.

    Shape:
        - images of the same shape; target ``[B, num_classes]``

    Notes:
        torchvision's ``MixUp``; the share is drawn from torch's global generator.

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x, y = mixup(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]),
        ...              num_classes=2)
        >>> bool((x.flatten() == y[:, 1]).all()), y.sum(1).tolist()
        (True, [1.0, 1.0])
    """
    if alpha == 0:
        return images, torch.nn.functional.one_hot(target, num_classes).to(images.dtype)
    from torchvision.transforms import v2

    mixed, shares = v2.MixUp(alpha=alpha, num_classes=num_classes)(images, target)
    return mixed, shares.to(images.dtype)
