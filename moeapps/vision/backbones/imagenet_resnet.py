"""Residual networks for large images, the later stages once per expert."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.backbones.branches import Parts
from moeapps.vision.backbones.cifar_resnet import Pool
from moeapps.vision.backbones.weights import load_into, read_weights

_WIDTHS = (64, 128, 256, 512)
_REDUCED = (64, 128, 192, 384)
Block = Callable[[int, int, int], "Residual"]


class Residual(nn.Module):
    """Convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def residual(self, x: Tensor) -> Tensor:
        """The convolutions, without the last activation."""
        raise TypeError(f"{type(self).__name__} defines no residual(x)")

    def forward(self, x: Tensor) -> Tensor:
        """``ReLU(residual(x) + shortcut(x))``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.residual(x) + shortcut)
        return y


class Basic(Residual):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        """3x3, 3x3."""
        y: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y


class Bottleneck(Residual):
    """1x1 down, 3x3 (in groups for ResNeXt), 1x1 up; the stride is in the 3x3."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, *, groups: int = 1, base_width: int = 64
    ) -> None:
        super().__init__(in_channels, 4 * width, stride)
        inner = width * base_width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def residual(self, x: Tensor) -> Tensor:
        """1x1, 3x3, 1x1."""
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.bn3(self.conv3(y))
        return out


def _resnext(in_channels: int, width: int, stride: int) -> Residual:
    return Bottleneck(in_channels, width, stride, groups=32, base_width=4)


SIZES: dict[str, tuple[Block, int, tuple[int, int, int, int]]] = {
    "10": (Basic, 1, (1, 1, 1, 1)),
    "18": (Basic, 1, (2, 2, 2, 2)),
    "34": (Basic, 1, (3, 4, 6, 3)),
    "50": (Bottleneck, 4, (3, 4, 6, 3)),
    "101": (Bottleneck, 4, (3, 4, 23, 3)),
    "152": (Bottleneck, 4, (3, 8, 36, 3)),
    "50x4d": (_resnext, 4, (3, 4, 6, 3)),
}
"""Block, expansion and blocks per stage by depth; ``50x4d`` is ResNeXt-50 (32 groups of 4)."""


def imagenet_resnet(
    size: str | int = "50",
    *,
    num_experts: int = 1,
    reduce_width: bool = False,
    in_channels: int = 3,
    shared_stages: int = 2,
    weights: str | Path | None = None,
) -> Parts:
    r"""ResNet and ResNeXt: a stem of stride 4, four stages, mean.

    The stem and the first ``shared_stages`` stages form the trunk; every expert has the rest.

    Args:
        size: One of :data:`SIZES`.
        num_experts: Branches.
        reduce_width: Last two stages of 192 and 384 channels in place of 256 and 512.
        in_channels: Channels of an image.
        shared_stages: 2 for RIDE, SADE, BalPoE and MDCS; 3 to share stage 3 too (TLC; also the
            only choice that gives the cost published for ResNet-152 on Places).
        weights: Local file of weights with torchvision's names; every expert starts from the same
            ones. None starts at random; nothing is downloaded.

    Raises:
        UnknownNameError: No such size.
        ArgumentError: Nothing left for the experts.
        CheckpointError: Weights that do not fit.

    Notes:
        Departures from the papers: the pooling takes maps of any size. Convolutions start from
        :math:`N(0, \sqrt{2 / (k^2 \mathrm{out})})`.

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016; Xie et al.,
        *Aggregated Residual Transformations for Deep Neural Networks*, CVPR 2017.

    Example:
        >>> imagenet_resnet("10", num_experts=2, reduce_width=True).features
        384
    """
    if str(size) not in SIZES:
        raise UnknownNameError("size of a ResNet", size, SIZES)
    if not 0 <= shared_stages <= 3:
        raise ArgumentError(
            f"shared_stages={shared_stages} leaves the experts nothing of 4 stages. Choose 0 to 3."
        )
    block, expansion, depths = SIZES[str(size)]
    widths = _REDUCED if reduce_width else _WIDTHS
    inputs = (64, *(expansion * width for width in widths))

    def stages(numbers: range) -> list[tuple[str, nn.Module]]:
        made: list[tuple[str, nn.Module]] = []
        for n in numbers:
            blocks = [block(inputs[n], widths[n], 1 if n == 0 else 2)]
            blocks += [block(inputs[n + 1], widths[n], 1) for _ in range(depths[n] - 1)]
            made.append((f"layer{n + 1}", nn.Sequential(*blocks)))
        return made

    stem: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(64)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]
    trunk = nn.Sequential(OrderedDict(stem + stages(range(shared_stages))))
    bodies = [
        nn.Sequential(OrderedDict([*stages(range(shared_stages, 4)), ("pool", Pool())]))
        for _ in range(num_experts)
    ]
    for part in (trunk, *bodies):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5)
    if weights is not None:
        state = read_weights(weights)
        for part in (trunk, *bodies):
            load_into(part, state, weights)
    return Parts(trunk, bodies, inputs[-1], in_channels, stride=32)
