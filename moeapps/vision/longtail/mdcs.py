"""MDCS: experts of different leaning that learn to say the same of two views."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.logit_adjustment import LogitAdjustment
from moeapps.vision.longtail.schedules import CIFAR, SGD


class MDCS(LogitAdjustment):
    r"""More diverse experts, with consistency self-distillation.

    .. math::
        L = \sum_k \mathrm{CE}(a_k, y) + \omega \min(\mathrm{epoch} / R, 1)
        \sum_k \mathrm{KL}\big(\mathrm{softmax}(a_k^{\mathrm{weak}})\ \|\
        \mathrm{softmax}(a_k^{\mathrm{strong}})\big), \qquad a_k = z_k + \lambda_k \log \pi

    The first term runs over both views, the second over those images that expert k gets right in
    the weak view (confident instance sampling); the weak view is the teacher. At inference the
    logits :math:`z_k` are averaged without adjustment.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        lam: Leaning of every expert: -0.5 sharpens the training prior, 1 is balanced, 2.5
            favours rare classes. Their mean is 1, as balanced accuracy wants it.
        consistency: :math:`\omega`.
        ramp_epochs: :math:`R`; 0 for the full weight from the start.
        num_experts: ``K``, as many as ``lam``.
        reduce_width: Narrower branches, as published for CIFAR.
        **common: Options of every model, see `LongTailModel`.

    Raises:
        ArgumentError: Not one lambda per expert; a loss on a single view.

    Notes:
        Departures from the paper: none. Give both views to one call, ``torch.cat([weak, strong])``,
        so that they share the batch statistics; the target is not duplicated.

    References:
        Zhao et al., *MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed
        Recognition*, ICCV 2023.

    Example:
        >>> model = MDCS(4, [40, 20, 10, 5], backbone="resnet8")
        >>> weak, strong = torch.randn(2, 6, 3, 32, 32)
        >>> output, aux = model(torch.cat([weak, strong]), return_aux=True)
        >>> list(model.loss_parts(aux, torch.arange(6) % 4, epoch=1))
        ['adjusted_cross_entropy', 'consistency']
    """

    views = 2
    schedules: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar": CIFAR
        | {"epochs": 400, "batch_size": 64, "milestones": [200, 320, 380], "warmup_epochs": 20},
        "imagenet": SGD
        | {"epochs": 180, "batch_size": 256, "lr": 0.1, "weight_decay": 5e-4, "cosine": True},
        "inaturalist": CIFAR
        | {
            "epochs": 400,
            "batch_size": 512,
            "lr": 0.2,
            "weight_decay": 2e-4,
            "milestones": [200, 300, 380],
        },
        "places": SGD
        | {
            "epochs": 30,
            "batch_size": 64,
            "lr": 0.01,
            "trunk_lr": 0.001,
            "weight_decay": 4e-4,
            "milestones": [10, 20],
            "gamma": 0.1,
            "warmup_epochs": 0,
        },
    }
    schedule = schedules["cifar"]

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        lam: float | Sequence[float] = (-0.5, 1.0, 2.5),
        consistency: float = 0.6,
        ramp_epochs: int = 20,
        num_experts: int = 3,
        reduce_width: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(
            num_classes,
            class_counts,
            lam=lam,
            num_experts=num_experts,
            reduce_width=reduce_width,
            **common,
        )
        self.consistency, self.ramp_epochs = consistency, ramp_epochs

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The experts' cross-entropies, and the consistency with its weight."""
        logits = aux["logits"]
        if len(logits) != 2 * len(target):
            raise ArgumentError(
                f"MDCS got {len(logits)} outputs for {len(target)} labels; expected two views of "
                "every image, torch.cat([weak, strong]). In a data module set views=2."
            )
        prior = self.log_prior
        adjusted = logits + prior.new_tensor(self.lam).outer(prior)
        weak, strong = adjusted.chunk(2)
        consistency = consistency_kl(weak, strong, target).sum()
        return {
            **super().loss_parts(aux, torch.cat([target, target]), epoch),
            "consistency": self._weight(epoch) * consistency,
        }

    def _weight(self, epoch: int) -> float:
        return self.consistency * min(epoch / max(self.ramp_epochs, 1), 1.0)


def consistency_kl(weak: Tensor, strong: Tensor, target: Tensor) -> Tensor:
    r"""How far the strong view is from the weak view, over the images whose weak view is right.

    .. math::
        \frac{1}{|S_k|} \sum_{i \in S_k} \mathrm{KL}\big(\mathrm{softmax}
        (a_{ik}^{\mathrm{weak}})\ \|\ \mathrm{softmax}(a_{ik}^{\mathrm{strong}})\big), \qquad
        S_k = \{i : \arg\max a_{ik}^{\mathrm{weak}} = y_i\}

    Args:
        weak: Adjusted logits of the teacher's view; no gradient flows into it.
        strong: Adjusted logits of the student's view.
        target: int64 ``[B]``.

    Shape:
        - ``[B, K, C]``, ``[B, K, C]``, ``[B]`` -> ``[K]``

    Notes:
        An expert that gets no image right has loss 0, still connected to its parameters.

    Example:
        >>> weak = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]]])  # two images, one expert
        >>> strong = torch.zeros(2, 1, 2)
        >>> consistency_kl(weak, strong, torch.tensor([0, 1]))  # only the first is right
        tensor([0.3278])
    """
    weak = weak.detach()
    right = weak.argmax(-1) == target.unsqueeze(1)  # [B, K]
    log_weak = F.log_softmax(weak, -1)
    divergence = (log_weak.exp() * (log_weak - F.log_softmax(strong, -1))).sum(-1)
    return (divergence * right).sum(0) / right.sum(0).clamp(min=1)
