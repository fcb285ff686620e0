"""Encoders that give feature maps at several strides, finest first."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.lazy import needs_extra
from moeapps.vision.backbones.weights import load_into, read_weights


class Pyramid(nn.Module):
    """Gives one map per stride.

    Attributes:
        strides: Of the maps, finest first.
        channels: Of the maps.
    """

    strides: list[int]
    channels: list[int]


class VGGPyramid(Pyramid):
    """VGG16 with batch norm, cut before its poolings; the last pooling is left out.

    Args:
        strides: Which maps, of 1, 2, 4, 8 and 16.
        weights: Local file of torchvision's ``vgg16_bn``.

    Example:
        >>> VGGPyramid().channels
        [256, 512, 512]
    """

    def __init__(
        self, strides: Sequence[int] = (4, 8, 16), weights: str | Path | None = None
    ) -> None:
        super().__init__()
        with needs_extra("vision"):
            from torchvision.models.vgg import cfgs, make_layers
        layers = make_layers(
            cfgs["D"], batch_norm=True
        )  # without the 124 million of the classifier
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if weights is not None:
            load_into(nn.ModuleDict({"features": layers}), read_weights(weights), weights)
        starts, widths = (0, 6, 13, 23, 33, 43), (64, 128, 256, 512, 512)
        _check_strides(strides, [2**i for i in range(5)], "vgg16_bn")
        last = strides[-1].bit_length()
        self.stages = nn.ModuleList(layers[starts[i] : starts[i + 1]] for i in range(last))
        self.strides = list(strides)
        self.channels = [widths[s.bit_length() - 1] for s in strides]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at the strides."""
        return _chosen(self.stages, x, [s.bit_length() - 1 for s in self.strides])


class PlainPyramid(Pyramid):
    """A small network for small images: per stride some 3x3 convolutions.

    Args:
        strides: Which maps.
        widths: Channels at every stride from ``first_stride`` on.
        first_stride: Of the first convolution.
        depth: Convolutions per stride.
        norm: Batch norm after each.
        weights: Local file of its state dict.

    Example:
        >>> import torch
        >>> [list(x.shape[1:]) for x in PlainPyramid((2, 4), (8, 16), 2)(torch.rand(1, 3, 8, 12))]
        [[8, 4, 6], [16, 2, 3]]
    """

    def __init__(
        self,
        strides: Sequence[int] = (2, 4, 8),
        widths: Sequence[int] = (16, 32, 64),
        first_stride: int = 2,
        depth: int = 2,
        norm: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        known = [first_stride * 2**i for i in range(len(widths))]
        _check_strides(strides, known, "plain")
        inputs, stages = 3, []
        for stride, width in zip(known, widths, strict=True):
            layers: list[nn.Module] = [] if stride == first_stride else [nn.MaxPool2d(2)]
            for i in range(depth):
                step = first_stride if stride == first_stride and i == 0 else 1
                conv = nn.Conv2d(inputs, width, 3, step, padding=1, bias=not norm)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
                layers += [conv, nn.BatchNorm2d(width)] if norm else [conv]
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            stages.append(nn.Sequential(*layers))
        self.places = [known.index(stride) for stride in strides]
        self.stages = nn.ModuleList(stages[: self.places[-1] + 1])
        self.strides = list(strides)
        self.channels = [widths[place] for place in self.places]
        if weights is not None:
            load_into(self, read_weights(weights), weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at the strides."""
        return _chosen(self.stages, x, self.places)


class TimmPyramid(Pyramid):
    """The feature maps of any network of timm that gives maps at these strides.

    Args:
        name: Of the network.
        strides: Which maps.
        weights: Local file of weights for the whole network, in timm's names.
        **options: Further options of ``timm.create_model``.

    Raises:
        ArgumentError: timm has no such network, or it has no maps at these strides.

    Example:
        >>> TimmPyramid("resnet18", (4, 8, 16)).channels
        [64, 128, 256]
    """

    def __init__(
        self, name: str, strides: Sequence[int], weights: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__()
        with needs_extra("vision"):
            import timm
        if options.get("pretrained"):
            raise ArgumentError(
                "pretrained=True would download weights. Give weights=PATH of a local file instead."
            )
        if not timm.is_model(name):
            similar = timm.list_models(f"*{name.partition('_')[0]}*")[:5]
            raise ArgumentError(
                f"backbone {name!r} is neither 'vgg16_bn' nor 'plain' nor a network of timm. "
                f"Similar: {', '.join(similar) or 'none'}. See timm.list_models()."
            )
        if weights is not None:
            read_weights(weights)  # a missing or broken file is named
            overlay = {"file": str(weights)}
            options = {**options, "pretrained": True, "pretrained_cfg_overlay": overlay}
        try:
            model = timm.create_model(name, features_only=True, **options)
        except (RuntimeError, AttributeError) as error:
            raise ArgumentError(
                f"{name!r} gives no feature maps ({error}). Choose a network that timm can build "
                "with features_only=True, such as resnet18 or convnext_tiny."
            ) from error
        info: Any = model.feature_info
        known = info.reduction()
        _check_strides(strides, known, name)
        self.model, self.strides = model, list(strides)
        self.channels_last = getattr(model.output_fmt, "value", "NCHW") == "NHWC"
        self.places = [known.index(stride) for stride in strides]
        self.channels = [info.channels()[place] for place in self.places]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at the strides, channels first whatever the network."""
        maps = self.model(x)
        chosen = [maps[place] for place in self.places]
        return [m.movedim(-1, 1) for m in chosen] if self.channels_last else chosen


def make_pyramid(
    name: str, strides: Sequence[int], weights: str | Path | None = None, **options: Any
) -> Pyramid:
    """An encoder by name: ``"vgg16_bn"``, ``"plain"`` or any network of timm.

    Example:
        >>> make_pyramid("plain", (2, 4)).channels
        [16, 32]
    """
    if name == "vgg16_bn":
        return VGGPyramid(strides, weights, **options)
    if name == "plain":
        return PlainPyramid(strides, weights=weights, **options)
    return TimmPyramid(name, strides, weights, **options)


def _chosen(stages: nn.ModuleList, x: Tensor, places: Sequence[int]) -> list[Tensor]:
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return [maps[place] for place in places]


def _check_strides(strides: Sequence[int], known: Sequence[int], name: str) -> None:
    doubling = all(b == 2 * a for a, b in itertools.pairwise(strides))
    if not strides or not doubling or not set(strides) <= set(known):
        raise ArgumentError(
            f"{name!r} has no maps at strides {list(strides)}; it has {list(known)}, and each has "
            "to be twice the one before. Choose among them, finest first."
        )
