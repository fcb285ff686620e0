"""The router of a whole network: a small ResNet on the image."""

from collections.abc import Sequence

from torch import Tensor, nn

from moeapps.gating import Gate
from moeapps.vision.backbones.cifar_resnet import cifar_resnet
from moeapps.vision.robust.moe_conv import choose


class ImageScore(nn.Module):
    """Scores of the experts from the image: a CIFAR ResNet and a linear layer.

    Args:
        num_experts: ``N``.
        depth: Layers, ``6 n + 2``.
        widths: Channels of the three stages.
        in_channels: Channels of an image.

    Shape:
        - images ``[B, in_channels, H, W] -> [B, num_experts]``

    Example:
        >>> import torch
        >>> ImageScore(2, depth=8)(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        num_experts: int,
        *,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        parts = cifar_resnet(depth, widths=widths, in_channels=in_channels)
        self.trunk, self.body = parts.trunk, parts.bodies[0]
        self.linear = nn.Linear(parts.features, num_experts)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the experts."""
        scores: Tensor = self.linear(self.body(self.trunk(images)))
        return scores


def image_gate(
    num_experts: int,
    *,
    depth: int = 20,
    widths: Sequence[int] = (16, 32, 64),
    in_channels: int = 3,
) -> Gate:
    """A gate that gives each image one expert by `ImageScore`."""
    score = ImageScore(num_experts, depth=depth, widths=widths, in_channels=in_channels)
    return Gate(score, choose)
