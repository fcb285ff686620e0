"""LeNet-5, the global expert of the customisation experiments."""

import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import check_images


class LeNet5(nn.Module):
    """Two convolutions with pooling and three linear layers.

    Args:
        num_classes: Outputs.
        in_channels: Channels of an image.
        image_size: Height and width, a multiple of 4. From 20 on with kernels of 5 and two
            poolings, as published; smaller images with kernels of 3.

    Shape:
        - images ``[B, in_channels, size, size]`` -> logits ``[B, num_classes]``

    Raises:
        ArgumentError: The size is too small or no multiple of 4, or images do not fit.

    Notes:
        ReLU and max-pooling in place of the published sigmoids and scaled means.

    References:
        LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998.

    Example:
        >>> sum(p.numel() for p in LeNet5(10).parameters())
        61706
    """

    def __init__(self, num_classes: int, *, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size < 8 or image_size % 4:
            raise ArgumentError(f"image_size={image_size}: expected a multiple of 4 from 8 on.")
        self.in_channels, self.image_size = in_channels, (image_size, image_size)
        large = image_size >= 20
        kernel = 5 if large else 3
        self.conv1 = nn.Conv2d(in_channels, 6, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(6, 16, kernel, padding=0 if large else 1)
        side = (image_size // 2 - 4) // 2 if large else image_size // 4
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        check_images(images, self.in_channels, self.image_size)
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))
