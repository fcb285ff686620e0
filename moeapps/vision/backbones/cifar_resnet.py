"""The small residual network for images of 32 pixels, its later stages once per expert."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.backbones.branches import Parts

_WIDTHS = (16, 32, 64)
_REDUCED = (16, 24, 48)


class BasicBlock(nn.Module):
    r"""Two 3x3 convolutions beside a shortcut without parameters ("option A").

    .. math:: y = \mathrm{ReLU}(f(x) + \mathrm{pad}(x_{::s,\,::s}))

    The shortcut drops every other pixel and pads the new channels with zeros, half on each side.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, not fewer.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        new = channels - in_channels
        self.padding = (new // 2, new - new // 2)
        self.groups = 1  # blocks of several experts side by side

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, channels, H / stride, W / stride]``."""
        shortcut = x
        if self.stride > 1:
            shortcut = x[:, :, :: self.stride, :: self.stride]
        if any(self.padding):
            shortcut = shortcut.unflatten(1, (self.groups, -1))
            shortcut = F.pad(shortcut, (0, 0, 0, 0, *self.padding)).flatten(1, 2)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + shortcut, inplace=True)


class Pool(nn.Module):
    """Mean over the image, ``[B, D, H, W] -> [B, D]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Average every channel."""
        return x.mean((-2, -1))


def cifar_resnet(
    depth: int = 32,
    *,
    num_experts: int = 1,
    reduce_width: bool = False,
    in_channels: int = 3,
    widths: Sequence[int] | None = None,
    shared_stages: int = 1,
) -> Parts:
    """The CIFAR ResNet of ``6 n + 2`` layers: stem, three stages of ``n`` blocks, mean.

    The stem and the first ``shared_stages`` stages form the trunk; every expert has the rest.

    Args:
        depth: 8, 20, 32, 44, 56, ...
        num_experts: Branches.
        reduce_width: Stages of 16, 24 and 48 channels in place of 16, 32 and 64.
        in_channels: Channels of an image.
        widths: Channels of the three stages; overrules ``reduce_width``.
        shared_stages: 1 for RIDE, SADE, BalPoE and MDCS; 0 for TLC (only the stem is shared).

    Raises:
        ArgumentError: No such depth, widths that shrink, or nothing left for the experts.

    Notes:
        Departures from the papers: none. Convolutions start from the Kaiming normal distribution.

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016 (section 4.2).

    Example:
        >>> parts = cifar_resnet(32, num_experts=3, reduce_width=True)
        >>> parts.features, len(parts.bodies)
        (48, 3)
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ArgumentError(
            f"depth={depth} is no CIFAR ResNet. Choose 6 n + 2: 8, 20, 32, 44, 56 or 110."
        )
    if not 0 <= shared_stages <= 2:
        raise ArgumentError(
            f"shared_stages={shared_stages} leaves the experts nothing of 3 stages. Choose 0, 1 or "
            "2."
        )
    widths = tuple(widths or (_REDUCED if reduce_width else _WIDTHS))
    if len(widths) != 3 or sorted(widths) != list(widths):
        raise ArgumentError(
            f"widths={list(widths)}; expected 3 stages that do not shrink, as the shortcut only "
            f"adds channels. For example {list(_WIDTHS)}."
        )
    inputs = (widths[0], *widths[:-1])

    def stage(number: int) -> nn.Sequential:
        first = BasicBlock(inputs[number], widths[number], stride=1 if number == 0 else 2)
        more = [BasicBlock(widths[number], widths[number]) for _ in range(blocks - 1)]
        return nn.Sequential(first, *more)

    trunk = nn.Sequential(
        nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
        *[stage(number) for number in range(shared_stages)],
    )
    bodies = [
        nn.Sequential(*[stage(number) for number in range(shared_stages, 3)], Pool())
        for _ in range(num_experts)
    ]
    for module in (*trunk.modules(), *[m for body in bodies for m in body.modules()]):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return Parts(trunk, bodies, widths[-1], in_channels, stride=4)
