"""The frame of all counters: encoder, decoder, a density expert per scale, and their mixture."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.counting.pyramids import make_pyramid

Mixture = Callable[[int, int], nn.Module]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class CountingNetwork(nn.Module):
    r"""Images to density maps.

    The encoder gives a map per stride, the decoder joins each with the coarser ones, and an expert
    reads a density from each:

    .. math:: d_K = C(x_K), \quad d_k = C([x_k, \mathrm{up}(d_{k+1})]), \quad
        E_k = \mathrm{act}(W_2\, \mathrm{relu}(W_1 d_k))

    Densities are per pixel of the image, times the label scale, so coarser maps are repeated to the
    stride of the finest without rescaling.

    Args:
        mixture: Makes what mixes the maps from the number of experts and the channels of the
            features the gates read: those of the coarsest stride.
        num_experts: One per stride, or 1: the finest alone.
        backbone: ``"vgg16_bn"``, ``"plain"`` or a network of timm.
        backbone_args: Its further arguments.
        strides: Of the encoder's maps, finest first.
        decoder_width: Channels of the finest decoded map; doubles with every stride.
        norm: Batch norm in the decoder.
        expert_width: Hidden channels of an expert.
        expert_kernel: Kernel of an expert's first convolution.
        out_act: ``"relu"`` or ``"softplus"``, what makes densities positive.
        out_bias: Density, times the label scale, that the experts start near.
        label_scale: ``s``; the experts learn ``s`` times the density.
        weights: Local file of weights for the encoder.
        mean: Subtracted from the pixels of each channel, inside.
        std: Divided by then.

    Shape:
        - images ``[B, 3, H, W]`` with pixels from 0 to 1, of any size; density ``[B, 1, H, W]``,
          whose sum is the count
        - with ``return_aux``, also what the mixture gives, at the finest stride (gates, weights and
          attention at the coarsest), times the label scale

    Attributes:
        stride: Of the maps.
        gate_stride: Of gates and attention.

    Raises:
        ArgumentError: An expert per stride is not what ``num_experts`` says.
        UnknownNameError: There is no such activation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mixture: Mixture,
        num_experts: int,
        *,
        backbone: str = "vgg16_bn",
        backbone_args: dict[str, Any] | None = None,
        strides: Sequence[int] = (4, 8, 16),
        decoder_width: int = 128,
        norm: bool = False,
        expert_width: int = 64,
        expert_kernel: int = 1,
        out_act: Literal["relu", "softplus"] = "relu",
        out_bias: float = 0.3,
        label_scale: float = 100.0,
        weights: str | Path | None = None,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
    ) -> None:
        super().__init__()
        if num_experts not in (1, len(strides)):
            raise ArgumentError(
                f"{num_experts} experts do not fit {len(strides)} strides {list(strides)}; "
                "expected one per stride, or 1. Give more strides, such as (4, 8, 16, 32)."
            )
        if out_act not in ("relu", "softplus"):
            raise UnknownNameError("output activation", out_act, ("relu", "softplus"))
        if not label_scale > 0:
            raise ArgumentError(f"label_scale={label_scale} must be positive; usual is 100.")
        self.pyramid = make_pyramid(backbone, strides, weights, **(backbone_args or {}))
        channels = self.pyramid.channels
        widths = [decoder_width * 2**k for k in range(len(channels))]
        coarser = [*widths[1:], 0]
        self.decoder = nn.ModuleList(
            _decode(c + above, width, norm)
            for c, above, width in zip(channels, coarser, widths, strict=True)
        )
        bias = out_bias if out_act == "relu" else math.log(math.expm1(out_bias))
        self.experts = nn.ModuleList(
            _expert(width, expert_width, expert_kernel, bias) for width in widths[:num_experts]
        )
        self.mixture = mixture(num_experts, channels[-1])
        self.act = F.relu if out_act == "relu" else F.softplus
        self.stride, self.gate_stride = strides[0], strides[-1]
        self.label_scale = label_scale
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Densities, and everything they were mixed from if asked for."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ArgumentError(
                f"images have shape {list(images.shape)}; expected [B, 3, H, W] with pixels from 0 "
                "to 1. Repeat the channel of grey images."
            )
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        x = F.pad(x, (0, -width % self.gate_stride, 0, -height % self.gate_stride))
        features = self.pyramid(x)
        aux = self.mixture(self._expert_maps(features), features[-1])
        density = aux["output"] / self.label_scale
        density = _repeat(density, x.shape[-2:])[..., :height, :width]
        if not return_aux:
            return density
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        for name in ("experts", "groups", "output"):
            aux[name] = aux[name][..., :rows, :columns]
        return density, aux

    def _expert_maps(self, features: list[Tensor]) -> Tensor:
        """What every expert sees, ``[B, K, h, w]`` at the finest stride."""
        maps: list[Tensor] = []
        decoded = self.decoder[-1](features[-1])
        for k in reversed(range(len(features))):
            if k < len(features) - 1:
                size = features[k].shape[-2:]
                up = F.interpolate(decoded, size=size, mode="bilinear", align_corners=True)
                decoded = self.decoder[k](torch.cat([features[k], up], 1))
            if k < len(self.experts):
                map = self.act(self.experts[k](decoded))
                maps.insert(0, _repeat(map, features[0].shape[-2:]))
        return torch.cat(maps, 1)


def _repeat(map: Tensor, size: Sequence[int]) -> Tensor:
    return map if map.shape[-2:] == tuple(size) else F.interpolate(map, size=size, mode="nearest")


def _decode(inputs: int, width: int, norm: bool) -> nn.Sequential:
    """Two 3x3 convolutions, by way of twice the width."""
    layers: list[nn.Module] = []
    for a, b in ((inputs, 2 * width), (2 * width, width)):
        conv = nn.Conv2d(a, b, 3, padding=1, bias=not norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, nn.BatchNorm2d(b)] if norm else [conv]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _expert(inputs: int, width: int, kernel: int, bias: float) -> nn.Sequential:
    first, last = nn.Conv2d(inputs, width, kernel, padding=kernel // 2), nn.Conv2d(width, 1, 1)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.zeros_(first.bias)  # type: ignore[arg-type]
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.ReLU(inplace=True), last)
