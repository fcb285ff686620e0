"""Convolutional networks whose 3x3 convolutions may have experts: ResNet-18 and a small one."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Routing
from moeapps.vision.backbones.branches import check_images
from moeapps.vision.robust.moe_conv import MoEConv2d, Route

MakeConv = Callable[[int, int, int], nn.Module]
"""From input channels, output channels and stride to a 3x3 convolution."""


class Normalise(nn.Module):
    """Pixels from 0..1 to mean 0 and deviation 1, inside the network: attacks see plain pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(images - mean) / std``.

        Raises:
            ArgumentError: Images of another kind than float pixels ``[B, in_channels, H, W]``.
        """
        if not images.is_floating_point():
            raise ArgumentError(
                f"images are {images.dtype}, expected float pixels from 0 to 1. Divide 8-bit "
                "images by 255."
            )
        check_images(images, self.in_channels)
        return (images - self.mean) / self.std


class PathwayUnit(nn.Module):
    """Convolution, norm and ReLU; the norm belongs to all experts together."""

    def __init__(self, conv: MakeConv, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, stride)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, routing: Routing | None, route: Route) -> Tensor:
        """One layer."""
        return F.relu(self.norm(_convolve(self.conv, x, routing, route)))


class PathwayBlock(nn.Module):
    """The basic block of ResNet; its 1x1 shortcut is an ordinary convolution."""

    def __init__(self, conv: MakeConv, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, routing: Routing | None, route: Route) -> Tensor:
        """Two layers and the shortcut."""
        y = F.relu(self.norm1(_convolve(self.conv1, x, routing, route)))
        y = self.norm2(_convolve(self.conv2, y, routing, route))
        return F.relu(y + self.shortcut(x))


def _convolve(conv: nn.Module, x: Tensor, routing: Routing | None, route: Route) -> Tensor:
    y: Tensor = conv(x, routing, route) if isinstance(conv, MoEConv2d) else conv(x)
    return y


class PathwayNetwork(nn.Module):
    """A stem that all images share, layers with pathways, the mean over the image, a classifier.

    Args:
        stem: Output channels of the stem, an ordinary 3x3 convolution.
        plan: ``(channels, stride)`` of each layer.
        layer: `PathwayUnit` or `PathwayBlock`.
        conv: Makes the layers' convolutions.
        in_channels: Channels of an image.
        num_classes: Outputs.

    Shape:
        - images ``[B, in_channels, H, W]`` of any size ``-> [B, num_classes]``
    """

    def __init__(
        self,
        stem: int,
        plan: Sequence[tuple[int, int]],
        layer: type[PathwayUnit] | type[PathwayBlock],
        conv: MakeConv,
        *,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        inputs = [stem, *[channels for channels, _ in plan]]
        self.layers = nn.ModuleList(
            layer(conv, before, channels, stride)
            for before, (channels, stride) in zip(inputs, plan, strict=False)
        )
        self.classifier = nn.Linear(inputs[-1], num_classes)
        initialise(self)

    def forward(self, images: Tensor, routing: Routing | None, route: Route) -> Tensor:
        """Logits ``[B, num_classes]``."""
        x = F.relu(self.norm(self.stem(images)))
        for layer in self.layers:
            x = layer(x, routing, route)
        logits: Tensor = self.classifier(x.mean((-2, -1)))
        return logits


def initialise(network: nn.Module) -> None:
    """Kaiming normal by fan-out for convolutions, one expert at a time; N(0, 0.01) for linear."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, MoEConv2d):
            with torch.no_grad():
                for kernel in module.experts.w:
                    nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


_RESNET18 = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
_SMALL = [(32, 1), (64, 2), (64, 2)]
PLANS: dict[str, tuple[int, list[tuple[int, int]], type[PathwayUnit] | type[PathwayBlock]]] = {
    "resnet18": (64, _RESNET18, PathwayBlock),
    "small_cnn": (16, _SMALL, PathwayUnit),
}
"""Stem, layers and kind of layer by name, at full width."""


def make_network(
    name: str,
    ratio: float,
    *,
    in_channels: int,
    num_classes: int,
    num_experts: int | None = None,
    own_gates: bool = False,
    thin_stem: bool = False,
) -> PathwayNetwork:
    """A network by name with all layers at ``ratio`` of their width.

    Args:
        name: ``"resnet18"`` (of CIFAR) or ``"small_cnn"``.
        ratio: Share of the full width.
        in_channels: Channels of an image.
        num_classes: Outputs.
        num_experts: Experts of each 3x3 convolution; None for ordinary ones.
        own_gates: Every layer decides by itself.
        thin_stem: The stem shrinks with the layers, as in the dense baselines.

    Raises:
        UnknownNameError: There is no such network.
        ArgumentError: The ratio leaves a layer without channels.
    """
    if name not in PLANS:
        raise UnknownNameError("robust backbone", name, PLANS)
    stem, full, layer = PLANS[name]
    plan = [(int(ratio * channels), stride) for channels, stride in full]
    if min(channels for channels, _ in plan) < 1:
        raise ArgumentError(f"ratio={ratio} leaves no channels. Choose a share such as 0.5.")

    def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
        if num_experts is None:
            return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return MoEConv2d(
            inputs, outputs, num_experts=num_experts, stride=stride, own_gate=own_gates
        )

    return PathwayNetwork(
        int(ratio * stem) if thin_stem else stem,
        plan,
        layer,
        conv,
        in_channels=in_channels,
        num_classes=num_classes,
    )
