"""RIDE: LDAM experts pushed apart, and distilled from more experts if there is a teacher."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.ldam import LDAM
from moeapps.vision.longtail.losses import diversity_kl, temperatures


class RIDE(LDAM):
    r"""Routing diverse distribution-aware experts, stage 1.

    .. math::
        L = \sum_k \Big[ \mathrm{CE}(z_k - s\, m_y\, 1_y,\ y;\ w)
            + \gamma\, \bar T^2\, \mathrm{KL}\big(\mathrm{softmax}(\bar z / T)\ \|\
            \mathrm{softmax}(z_k / T)\big) \Big]

    with :math:`\bar z` the mean logits without gradient, :math:`\gamma < 0`, and ``T`` 1 until the
    class weights come, then one temperature per class (:func:`temperatures`).

    Stage 2, which lets easy images leave early, is in
    :mod:`moeapps.vision.longtail.expert_assignment`.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        diversity: ``gamma``: -0.45 on CIFAR, -0.2 is common elsewhere; 0 for no such term.
        epsilon: How far the temperatures differ: 0.05; 0.02 in some ImageNet settings.
        collaborative: The experts' individual losses become those of the mean logits.
        distill_temperature: Of the distillation, see `distill_from`.
        distill_mean: Whose distribution weighs the divergence: ``"student"`` for
            :math:`\mathrm{KL}(\bar p \| p^{\text{teacher}})`, ``"teacher"`` for the other way.
        reference_scale: As the released program: with a teacher the whole loss is multiplied by
            ``K``.
        num_experts: ``K``.
        reduce_width: Narrower branches.
        **common: ``drw_epoch`` and more of `LDAM`, and the options of every model.

    Shape:
        - images ``[B, C, H, W]`` -> logits ``[B, classes]``

    Notes:
        Departures from the paper: in the released program ``diversity=0`` also turns
        ``collaborative`` on; here they are separate.

    References:
        Wang et al., *Long-tailed Recognition by Routing Diverse Distribution-Aware Experts*, ICLR
        2021. https://arxiv.org/abs/2010.01809

    Example:
        >>> model = RIDE(4, [40, 20, 8, 2], backbone="resnet8")
        >>> output, aux = model(torch.randn(2, 3, 16, 16), return_aux=True)
        >>> sorted(model.loss_parts(aux, torch.tensor([0, 3]), epoch=1))
        ['diversity', 'ldam']
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        diversity: float = -0.45,
        epsilon: float = 0.05,
        collaborative: bool = False,
        distill_temperature: float = 1.5,
        distill_mean: Literal["student", "teacher"] = "student",
        reference_scale: bool = False,
        num_experts: int = 3,
        reduce_width: bool = True,
        **common: Any,
    ) -> None:
        if distill_mean not in ("student", "teacher"):
            raise ArgumentError(
                f"distill_mean={distill_mean!r} is unknown. Choose 'student' or 'teacher'."
            )
        super().__init__(
            num_classes,
            class_counts,
            num_experts=num_experts,
            reduce_width=reduce_width,
            **common,
        )
        self.diversity, self.epsilon, self.collaborative = diversity, epsilon, collaborative
        self.distill_temperature, self.distill_mean = distill_temperature, distill_mean
        self.reference_scale = reference_scale
        self._teacher: tuple[nn.Module, ...] = ()  # a tuple: the teacher is no part of the model

    def distill_from(self, teacher: nn.Module) -> None:
        """Learn also from a trained model (in the paper RIDE with 6 experts) from now on.

        It is not saved with this model and is never trained. Its logits stand in ``aux["teacher"]``
        in training.
        """
        self._teacher = (teacher.eval().requires_grad_(False),)

    def forward(
        self, images: Tensor, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Aggregated logits; in training ``aux`` also holds what the teacher says."""
        if not (self.training and return_aux and self._teacher):
            return super().forward(images, return_aux)
        output, aux = super().forward(images, return_aux)
        with torch.no_grad():
            return output, {**aux, "teacher": self._teacher[0].to(images.device)(images)}

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The individual losses, the diversity term, and distillation if there is a teacher."""
        logits = aux["logits"]
        mean = logits.mean(1)
        if self.collaborative:
            individual = self.num_experts * self.individual_loss(mean, target, epoch)
        else:
            individual = super().loss_parts(aux, target, epoch)["ldam"]
        parts = {"ldam": individual}
        if self.diversity:
            late = self.reweights(epoch)
            temperature = temperatures(self.counts, self.epsilon) if late else 1.0
            parts["diversity"] = self.diversity * diversity_kl(logits, temperature).mean(0).sum()
        if "teacher" in aux:
            parts["distillation"] = distillation_kl(
                mean, aux["teacher"], self.distill_temperature, self.distill_mean
            )
            if self.reference_scale:
                parts = {name: self.num_experts * part for name, part in parts.items()}
        return parts


def distillation_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.5,
    mean: Literal["student", "teacher"] = "student",
) -> Tensor:
    r"""Divergence between a student's and a teacher's softened predictions, mean over images.

    .. math:: T^2\, \mathrm{KL}\big(\mathrm{softmax}(z / T)\ \|\
        \mathrm{softmax}(z^{\text{teacher}} / T)\big)

    Args:
        student: Logits ``[B, C]``.
        teacher: Logits ``[B, C]``; no gradient flows into them.
        temperature: ``T``.
        mean: ``"teacher"`` exchanges the two distributions.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> distillation_kl(z, torch.zeros(1, 2), temperature=1.0)
        tensor(0.3278)
    """
    p = F.log_softmax(student / temperature, -1)
    q = F.log_softmax(teacher.detach() / temperature, -1)
    weighing, other = (p, q) if mean == "student" else (q, p)
    divergence: Tensor = (weighing.exp() * (weighing - other)).sum(-1).mean()
    return temperature**2 * divergence
