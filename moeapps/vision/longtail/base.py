"""What every classifier for long-tailed classes shares: experts, counts, aggregation."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Branches
from moeapps.vision.backbones.cosine import CosineClassifier
from moeapps.vision.backbones.table import make_parts
from moeapps.vision.longtail.aggregate import Aggregator, MeanLogits
from moeapps.vision.longtail.losses import log_prior


class LongTailModel(nn.Module):
    r"""Experts on a shared trunk, and the loss of a method.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class, ``[C]``; only the loss needs them, and loaded
            weights bring theirs.
        backbone: Name in ``backbones.table.BACKBONES``, or ``timm/NAME``.
        num_experts: ``K``.
        classifier: ``"cosine"`` (scaled cosines, no bias) or ``"linear"``.
        scale: Of the cosine classifier; a linear one has scale 1.
        reduce_width: Narrower branches (24 and 48 channels of 32 and 64; 192 and 384 of 256 and
            512).
        in_channels: Channels of an image.
        backbone_args: Further options of the backbone: ``shared_stages``, ``widths``, ``weights``.

    Shape:
        - images ``[B, in_channels, H, W]`` -> logits ``[B, C]``; with ``return_aux`` also
          ``{"logits": [B, K, C], "features": [B, K, D]}``

    Raises:
        ArgumentError: Counts that do not fit, or a class without a training image.

    Notes:
        In eval mode an image's output does not depend on the other images. ``aggregate`` may be
        replaced at any time: by test-time weights, a prior correction, or an early exit, which
        computes no more branches than its images need.
    """

    views: ClassVar[int] = 1
    """Views of each image that the loss wants, concatenated along the batch."""
    class_counts: Tensor | None

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        backbone: str = "resnet32",
        num_experts: int = 3,
        classifier: Literal["cosine", "linear"] = "cosine",
        scale: float = 30.0,
        reduce_width: bool = False,
        in_channels: int = 3,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1 or num_classes < 2:
            raise ArgumentError(
                f"num_experts={num_experts} and num_classes={num_classes}; expected at least one "
                "expert and two classes."
            )
        if classifier not in ("cosine", "linear"):
            raise ArgumentError(f"classifier={classifier!r} is unknown. Choose cosine or linear.")
        parts = make_parts(
            backbone,
            num_experts=num_experts,
            reduce_width=reduce_width,
            in_channels=in_channels,
            **(backbone_args or {}),
        )
        self._count(num_classes, class_counts)
        self.scale = scale if classifier == "cosine" else 1.0
        heads: list[nn.Module] = []
        for _ in range(num_experts):
            if classifier == "cosine":
                heads.append(CosineClassifier(parts.features, num_classes, scale=scale))
            else:
                linear = nn.Linear(parts.features, num_classes)
                nn.init.kaiming_normal_(linear.weight)
                heads.append(linear)
        self.backbone = Branches(parts, heads)
        self.aggregate: Aggregator = MeanLogits()

    def _count(self, num_classes: int, class_counts: Sequence[int] | Tensor | None) -> None:
        """Take the classes, and their counts if they are known."""
        self.num_classes = num_classes
        self.register_buffer("class_counts", None)
        if class_counts is not None:
            self.class_counts = checked_counts(class_counts, num_classes)

    @property
    def num_experts(self) -> int:
        """``K``."""
        return self.backbone.num_experts

    @property
    def counts(self) -> Tensor:
        """Training images of every class, ``[C]``.

        Raises:
            ArgumentError: The model was built without them.
        """
        if self.class_counts is None:
            raise ArgumentError(
                f"{type(self).__name__} has no class_counts, which its loss needs. Build it with "
                "class_counts=[...], the number of training images of every class."
            )
        return self.class_counts

    @property
    def log_prior(self) -> Tensor:
        """Logarithm of the training share of every class, ``[C]``."""
        return log_prior(self.counts)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Without counts take those of the weights that are loaded."""
        counts = state_dict.get(f"{prefix}class_counts")
        if self.class_counts is None and counts is not None:
            self.class_counts = torch.empty_like(counts, device=next(self.parameters()).device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def trunk(self, images: Tensor) -> Tensor:
        """What all experts share."""
        return self.backbone.share(images)

    def branch(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]`` and features ``[B, D]`` of expert ``k`` on the trunk's output."""
        return self.backbone.branch(k, hidden)

    def forward(
        self, images: Tensor, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Aggregated logits (or log-probabilities, as the aggregator gives)."""
        if self.aggregate.skips and not (return_aux or self.training):
            return self.aggregate.run(self.trunk(images), self.branch, self.num_experts)
        logits, features = self.backbone(images)
        aux = {"logits": logits, "features": features}
        output: Tensor = self.aggregate(logits, features)
        return (output, aux) if return_aux else output

    def fuse_for_inference(self, *, grouped: bool | None = None) -> "LongTailModel":
        """A copy for serving, in eval mode; its outputs agree to 1e-5.

        BatchNorm goes into the convolutions before it.

        Args:
            grouped: Whether all experts run in one pass as groups of the convolutions: faster for
                small batches and reduced widths, but nothing can be skipped. None groups several
                experts of a ResNet unless ``aggregate`` is an early exit.

        Raises:
            ArgumentError: The experts cannot be grouped.
        """
        from moeapps.vision.backbones.fused import GroupedBranches, can_group, folded

        if grouped is None:
            grouped = can_group(self.backbone) and not self.aggregate.skips
        if grouped and self.aggregate.skips:
            raise ArgumentError(
                "grouped=True computes all experts, so the early exit would skip nothing. Use "
                "grouped=False, or replace aggregate first."
            )
        with torch.no_grad():
            fused = copy.deepcopy(self).eval().requires_grad_(False)
            make = GroupedBranches if grouped else folded
            fused.backbone = make(fused.backbone)  # type: ignore[assignment]
        return fused

    def loss(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> Tensor:
        """The method's loss, a scalar: the sum of its parts.

        Args:
            aux: What ``forward(..., return_aux=True)`` gave.
            target: int64 ``[B]``.
            epoch: Counted from 1.
        """
        check_target(target, self.num_classes)
        return torch.stack([*self.loss_parts(aux, target, epoch).values()]).sum()

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The terms of the loss by name."""
        raise TypeError(
            f"{type(self).__name__} defines no loss_parts(aux, target, epoch); a method must."
        )


def checked_counts(class_counts: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """Counts as int64 ``[C]``.

    Raises:
        ArgumentError: Not one count per class, or a class without a training image.

    Example:
        >>> checked_counts([5, 0], 2)
        Traceback (most recent call last):
        moeapps.errors.ArgumentError: class 1 has no training image...
    """
    counts = torch.as_tensor(class_counts).to(torch.int64)
    if counts.shape != (num_classes,):
        raise ArgumentError(
            f"class_counts has shape {list(counts.shape)}, expected [{num_classes}]. Count the "
            "training images of every class: torch.bincount(labels, minlength=num_classes)."
        )
    empty = (counts < 1).nonzero().flatten().tolist()
    if empty:
        raise ArgumentError(
            f"{without_images([*map(str, empty)])}, so the prior has no logarithm. Every class "
            "needs at least one: leave such classes out (empty_classes: drop of LongTailData)."
        )
    return counts


def without_images(names: Sequence[str], most: int = 10) -> str:
    """What is wrong with classes that have no training image.

    Example:
        >>> without_images(["ant"]), without_images(["ant", "bee", "cow"], most=2)
        ('class ant has no training image', 'classes ant, bee and 1 more have no training image')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    kind, has = ("class", "has") if len(names) == 1 else ("classes", "have")
    return f"{kind} {', '.join(names[:most])}{more} {has} no training image"


def check_target(target: Tensor, num_classes: int) -> None:
    """Refuse labels out of range; on an accelerator, where looking would wait, the loss does.

    Raises:
        ArgumentError: With the label.
    """
    if not target.is_cpu or not target.numel():
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= num_classes:
        raise ArgumentError(
            f"label {low if low < 0 else high} is out of range: expected 0 to {num_classes - 1}. "
            "Check num_classes and the labels of the data set."
        )
