"""Knowledge Concentration: one student learns what a specialist per vertical knows."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Branches
from moeapps.vision.backbones.table import make_parts
from moeapps.vision.specialists.sc_head import Connection, SCHead, SelfPacedScale


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Each class a yes-or-no question, soft or hard.

    .. math:: L = -\frac1B \sum_i \sum_j \big[z_{ij} \log \sigma(x_{ij})
        + (1 - z_{ij}) \log (1 - \sigma(x_{ij}))\big]

    Args:
        logits: ``[B, N]``.
        targets: ``[B, N]``, 0 to 1.

    Example:
        >>> sigmoid_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3)).item() / 3
        0.6931471824645996
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


class KnowledgeConcentration(nn.Module):
    r"""A student for the classes of all verticals: backbone, split head, self-paced scale.

    Trained with :func:`sigmoid_cross_entropy` to the targets of a
    :class:`~moeapps.vision.specialists.specialist_pool.SpecialistPool`. A specialist is the same
    network with one vertical, a generalist the same network trained on labels.

    Args:
        num_classes: ``N``.
        class_to_vertical: The vertical of every class; None for one vertical.
        s1: Units of the head's first layer.
        s2: Units of the second that a class reads.
        shared: How many of ``s2`` the verticals share.
        connect: ``("fc", "sc")`` as in the paper's best student, or see
            :class:`~moeapps.vision.specialists.sc_head.SCHead`.
        self_paced: ``"vertical"``, ``"class"``, ``"fixed"`` or None for plain logits.
        backbone: Name in ``backbones.table.BACKBONES``, or ``timm/NAME``.
        in_channels: Channels of an image.
        backbone_args: Further options of the backbone.

    Shape:
        - images ``[B, in_channels, H, W]`` -> logits ``[B, N]``

    Raises:
        ArgumentError: The verticals do not fit the classes.

    Notes:
        The paper's trunk is Inception-V2. With self-pacing each logit is at most its vertical's
        :math:`\gamma` in size, and there is no bias after it, as in the paper's formula.

    References:
        Gao et al., *Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN*,
        arXiv 1711.07607.

    Example:
        >>> student = KnowledgeConcentration(
        ...     4, [0, 0, 1, 1], s1=8, s2=4, backbone="resnet8", in_channels=1
        ... )
        >>> student(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        num_classes: int,
        class_to_vertical: Sequence[int] | None = None,
        *,
        s1: int = 256,
        s2: int = 64,
        shared: int = 0,
        connect: tuple[Connection, Connection] = ("fc", "sc"),
        self_paced: Literal["vertical", "class", "fixed"] | None = "vertical",
        backbone: str = "resnet32",
        in_channels: int = 3,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        groups = [0] * num_classes if class_to_vertical is None else list(class_to_vertical)
        if len(groups) != num_classes:
            raise ArgumentError(
                f"class_to_vertical has {len(groups)} entries for {num_classes} classes. Give "
                "every class a vertical."
            )
        parts = make_parts(
            backbone, num_experts=1, reduce_width=False, in_channels=in_channels,
            **(backbone_args or {}),
        )  # fmt: skip
        head = SCHead(s1, s2, groups, shared, in_features=parts.features, connect=connect)
        self.backbone = Branches(parts, [head])
        self.scale = SelfPacedScale(groups, self_paced) if self_paced else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all classes."""
        logits, _ = self.backbone(images)
        logits = logits[:, 0]
        return logits if self.scale is None else self.scale(logits)

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Of each class by itself; a row need not sum to 1."""
        return logits.sigmoid()


def average_precision(scores: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    r"""Mean over ``classes`` of the average precision of ranking images by the class's score.

    .. math:: AP = \frac{1}{n_+} \sum_{i:\ y_i = 1} \frac{\text{positives among the first } i}{i}

    Args:
        scores: ``[B, N]``.
        labels: ``[B]``.
        classes: Those without an image do not count.

    Notes:
        Equal scores keep the order of the images.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.7]])
        >>> average_precision(scores, torch.tensor([0, 1, 0]), [0])
        0.8333333333333333
    """
    found = []
    for label in classes:
        order = scores[:, label].argsort(descending=True, stable=True)
        hits = (labels[order] == label).double()
        if hits.any():
            precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
            found.append(float((precision * hits).sum() / hits.sum()))
    return sum(found) / len(found) if found else float("nan")


def vertical_precision(
    scores: Tensor, labels: Tensor, members: Sequence[Sequence[int]]
) -> list[float]:
    """Average precision of each vertical, among the images of its classes.

    Specialists never saw other images, so this is where they can be compared with a student.

    Args:
        scores: ``[B, N]``.
        labels: ``[B]``.
        members: Classes of each vertical.

    Returns:
        One number per vertical; NaN for one without images.
    """
    found = []
    for classes in members:
        inside = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
        found.append(average_precision(scores[inside], labels[inside], classes))
    return found
