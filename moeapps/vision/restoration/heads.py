"""Downstream tasks on the features of a restoration network: classes of images and of pixels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import UnknownNameError
from moeapps.vision.restoration.frame import RestorationFrame

TASKS = ("segmentation", "classification")


class SegmentationHead(nn.Module):
    """Two convolutions on a feature map, then bilinear enlargement.

    Args:
        in_channels: Channels of the features.
        num_classes: ``C``.
        hidden: Channels between the convolutions.

    Shape:
        - features ``[B, D, h, w]``, size ``(H, W)``; logits ``[B, C, H, W]``

    Example:
        >>> SegmentationHead(16, 5)(torch.zeros(1, 16, 3, 4), (24, 30)).shape
        torch.Size([1, 5, 24, 30])
    """

    def __init__(self, in_channels: int, num_classes: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of every pixel."""
        return F.interpolate(self.layers(features), size, mode="bilinear", align_corners=False)


class ClassificationHead(nn.Module):
    """Mean of a feature map, normalised, through one linear layer.

    Args:
        in_channels: Channels of the features.
        num_classes: ``C``.

    Shape:
        - features ``[B, D, h, w]``; logits ``[B, C]``

    Example:
        >>> ClassificationHead(16, 5)(torch.zeros(1, 16, 3, 4)).shape
        torch.Size([1, 5])
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(in_channels), nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every image."""
        return self.linear(self.norm(features.flatten(2).mean(-1)))


class DownstreamModel(nn.Module):
    """A restoration network that answers another question about the degraded image.

    Args:
        restorer: A trained network; its tokens are read.
        num_classes: ``C``.
        task: ``"segmentation"`` or ``"classification"``.
        freeze: Train the head only; the network stays in eval mode.

    Shape:
        - images ``[B, 3, H, W]`` from 0 to 1; logits ``[B, C, H, W]`` or ``[B, C]``

    Raises:
        UnknownNameError: There is no such task.

    Notes:
        Departures from the paper: it puts networks trained on clean images behind the restored
        image. Those take :attr:`restorer`'s output as it is; this reads the tokens instead.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024 (its downstream tasks).

    Example:
        >>> from moeapps.vision.restoration.restoration_vit import RestorationViT
        >>> restorer = RestorationViT(embed_dim=16, depth=1, num_heads=2, head_dim=8)
        >>> DownstreamModel(restorer, 5)(torch.rand(1, 3, 20, 33)).shape
        torch.Size([1, 5, 20, 33])
    """

    def __init__(
        self,
        restorer: RestorationFrame,
        num_classes: int,
        *,
        task: Literal["segmentation", "classification"] = "segmentation",
        freeze: bool = True,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise UnknownNameError("downstream task", task, TASKS)
        self.restorer, self.freeze = restorer, freeze
        if freeze:
            restorer.requires_grad_(False)
        dim = restorer.embed.out_channels
        self.head = (
            SegmentationHead(dim, num_classes)
            if task == "segmentation"
            else ClassificationHead(dim, num_classes)
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "DownstreamModel":
        """A frozen network stays in eval mode."""
        super().train(mode)
        if self.freeze:
            self.restorer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = self.restorer.features(images)
        if isinstance(self.head, SegmentationHead):
            height, width = images.shape[-2:]
            p = self.restorer.patch_size
            padded = (p * features.shape[-2], p * features.shape[-1])
            return self.head(features, padded)[..., :height, :width]
        return self.head(features)
