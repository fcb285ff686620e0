"""A shared trunk and a branch per expert."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError


@dataclass
class Parts:
    """A network without classifiers, cut into what is shared and what each expert has.

    Args:
        trunk: Images ``[B, in_channels, H, W]`` to hidden maps.
        bodies: One per expert, hidden maps to features ``[B, features]``.
        features: Width ``D`` of the features.
        in_channels: Channels of an image.
        stride: By how much the last maps are smaller than the image; 1 where there is no
            BatchNorm over the maps.
        image_size: The only height and width that fit; None if any does.
    """

    trunk: nn.Module
    bodies: Sequence[nn.Module]
    features: int
    in_channels: int = 3
    stride: int = 1
    image_size: tuple[int, int] | None = None


class Branches(nn.Module):
    r"""Experts that share their first layers.

    .. math:: z_k = \mathrm{head}_k(f_k(\mathrm{trunk}(x)))

    The branches run one after another: a loop can leave out rows (or whole branches) when an early
    exit needs no further expert.

    Args:
        parts: Trunk and bodies.
        heads: A classifier per body.

    Shape:
        - images ``[B, C, H, W]``; logits ``[B, K, classes]`` and features ``[B, K, D]``

    Raises:
        ArgumentError: In ``__init__`` for other than one head per body; in ``forward`` for images
            that do not fit.

    Notes:
        Departures from the papers: none.

    Example:
        >>> from moeapps.vision.backbones.cifar_resnet import cifar_resnet
        >>> parts = cifar_resnet(8, num_experts=3)
        >>> model = Branches(parts, [nn.Linear(parts.features, 10) for _ in range(3)])
        >>> logits, features = model(torch.randn(2, 3, 32, 32))
        >>> logits.shape, features.shape
        (torch.Size([2, 3, 10]), torch.Size([2, 3, 64]))
    """

    def __init__(self, parts: Parts, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.trunk = parts.trunk
        self.bodies = nn.ModuleList(parts.bodies)
        self.heads = nn.ModuleList(heads)
        self.features, self.in_channels = parts.features, parts.in_channels
        self.stride, self.image_size = parts.stride, parts.image_size
        if not len(self.bodies) == len(self.heads) >= 1:
            raise ArgumentError(
                f"{len(self.bodies)} bodies and {len(self.heads)} heads; expected one of each per "
                "expert, and at least one expert."
            )

    @property
    def num_experts(self) -> int:
        """``K``."""
        return len(self.bodies)

    def share(self, images: Tensor) -> Tensor:
        """What the trunk makes of the images, after checking that they fit."""
        self._check(images)
        hidden: Tensor = self.trunk(images)
        return hidden

    def branch(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, classes]`` and features ``[B, D]`` of expert ``k``."""
        features = self.bodies[k](hidden)
        return self.heads[k](features), features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of all experts."""
        hidden = self.share(images)
        outputs = [self.branch(k, hidden) for k in range(self.num_experts)]
        logits, features = zip(*outputs, strict=True)
        return torch.stack(logits, 1), torch.stack(features, 1)

    def _check(self, images: Tensor) -> None:
        check_images(images, self.in_channels, self.image_size)
        size = images.shape[-2:]
        one_value = self.stride > 1 and max(size) <= self.stride
        if self.training and one_value and images.shape[0] == 1:
            raise ArgumentError(
                f"one image of {size[0]}x{size[1]} pixels cannot train a BatchNorm: after "
                f"stride {self.stride} there is one value per channel. Use larger batches (and "
                "drop_last=True), larger images, or model.eval()."
            )


def check_images(
    images: Tensor, in_channels: int, image_size: tuple[int, int] | None = None
) -> None:
    """Refuse images that a backbone does not take.

    Raises:
        ArgumentError: With what to do.
    """
    if images.dim() != 4 or images.shape[1] != in_channels:
        raise ArgumentError(
            f"images are {list(images.shape)}, expected [B, {in_channels}, H, W]. "
            + _advice(images, in_channels)
        )
    if not images.is_floating_point():
        raise ArgumentError(
            f"images are {images.dtype}, expected float, normalised. Convert them: "
            "(images / 255 - mean) / std."
        )
    size = tuple(images.shape[-2:])
    if image_size is not None and size != image_size:
        raise ArgumentError(
            f"images are {size[0]}x{size[1]} pixels, this backbone takes "
            f"{image_size[0]}x{image_size[1]}. Resize them, or build the backbone with that "
            "img_size."
        )


def _advice(images: Tensor, channels: int) -> str:
    if images.dim() == 3:
        return "Add the batch axis: images.unsqueeze(0)."
    if images.dim() == 4 and images.shape[-1] == channels:
        return "The channels come last: images.permute(0, 3, 1, 2)."
    if images.dim() == 4 and images.shape[1] in (1, 3):
        return f"Convert their mode, or build the model with in_channels={images.shape[1]}."
    return "Give a batch of images, channels first."
