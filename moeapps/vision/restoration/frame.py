"""A vision transformer from image to image, into which the feed-forward parts are put."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import record


class RestorationFrame(nn.Module):
    r"""Convolutions, patch tokens, transformer blocks and convolutions back to an image.

    Each block is :math:`x \leftarrow x + \mathrm{Attn}(\mathrm{LN}(x))`, then
    :math:`x \leftarrow x + \mathrm{ffn}(x)`; what the parts ``ffn`` are makes the model. There is
    no positional embedding, so an image may have any size.

    Args:
        ffns: One module ``[B, n, D] -> [B, n, D]`` per block; it normalises its own input.
        embed_dim: ``D``.
        patch_size: ``p``, side of the square of pixels behind a token.
        num_heads: Heads of attention.
        head_dim: Width of a head.
        dropout: After the output map of attention.
        head_channels: Channels before the tokens.
        tail_channels: Channels after the tokens, and after the first convolution that follows.
        residual_learning: The output is a change of the input instead of the image itself.

    Shape:
        - images ``[B, 3, H, W]`` from 0 to 1, any H and W; output the same
        - ``aux["routing"]``: one :class:`~moeapps.gating.Routing` per block that routes

    Raises:
        ArgumentError: The input is no batch of colour images.

    Notes:
        Sides are padded to a multiple of ``p`` by reflection (by repeating the border in images
        smaller than the padding) and cropped again. With ``residual_learning`` the network begins
        close to the identity, and its output is clamped to [0, 1] in eval mode only, where no
        gradient is lost.
    """

    def __init__(
        self,
        ffns: Sequence[nn.Module],
        *,
        embed_dim: int = 384,
        patch_size: int = 8,
        num_heads: int = 8,
        head_dim: int = 64,
        dropout: float = 0.1,
        head_channels: int = 32,
        tail_channels: tuple[int, int] | list[int] = (128, 64),
        residual_learning: bool = False,
    ) -> None:
        super().__init__()
        c, p, (wide, narrow) = head_channels, patch_size, tail_channels
        self.patch_size, self.residual_learning = p, residual_learning
        self.head = nn.Sequential(conv(3, c), ResBlock(c), ResBlock(c))
        self.embed = nn.Conv2d(c, embed_dim, p, stride=p)
        self.norm = nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(
            Block(Attention(embed_dim, num_heads, head_dim, dropout), ffn, embed_dim)
            for ffn in ffns
        )
        self.unpatch = nn.Linear(embed_dim, wide * p * p)
        last = conv(narrow, 3)
        if residual_learning:  # begins close to the identity: a random change would do harm
            with torch.no_grad():
                last.weight.mul_(0.01)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.tail = nn.Sequential(ResBlock(wide), conv(wide, narrow), ResBlock(narrow), last)

    def forward(
        self, images: Tensor, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Restored images; also the routings of the blocks if asked for."""
        if return_aux:
            with record(self) as rec:
                restored = self._restore(images)
            return restored, {"routing": [r for calls in rec.routings.values() for r in calls]}
        return self._restore(images)

    def _restore(self, images: Tensor) -> Tensor:
        change = self.tail(self._to_grid(self.features(images)))
        change = change[..., : images.shape[-2], : images.shape[-1]]
        if not self.residual_learning:
            return change.sigmoid()
        restored = images + change
        return restored if self.training else restored.clamp(0, 1)

    def features(self, images: Tensor) -> Tensor:
        """Tokens after the last block as a map ``[B, D, H / p, W / p]`` (rounded up)."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ArgumentError(
                f"Got {images.dtype} {list(images.shape)}, expected float images [B, 3, H, W] from "
                "0 to 1. Repeat a grey channel three times; add a first axis to a single image."
            )
        x = self.embed(self.head(2 * pad_to(images, self.patch_size) - 1))
        height, width = x.shape[-2:]
        x = self.norm(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, (height, width))

    def _to_grid(self, features: Tensor) -> Tensor:
        """Each token's vector as its square of pixels, in order (row, column, channel)."""
        p = self.patch_size
        x = self.unpatch(features.permute(0, 2, 3, 1)).unflatten(-1, (p, p, -1))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, H, W, C]
        return x.permute(0, 3, 1, 2)

    @torch.no_grad()
    def explain(self, images: Tensor) -> list[Tensor]:
        """Weights of the experts, per block that routes, as maps ``[B, N, H / p, W / p]``.

        A block that routes whole images gives the same weights everywhere.
        """
        height, width = (-(-side // self.patch_size) for side in images.shape[-2:])
        maps = []
        for routing in self(images, return_aux=True)[1]["routing"]:
            weights = routing.dense()
            if weights.dim() == 2:
                weights = weights.unsqueeze(1).expand(-1, height * width, -1)
            maps.append(weights.transpose(1, 2).unflatten(2, (height, width)))
        return maps


class Block(nn.Module):
    """Attention on normalised tokens, then a feed-forward part, each added to its input.

    Args:
        attention: ``[B, n, D] -> [B, n, D]``.
        ffn: The same; normalises by itself.
        dim: ``D``.
    """

    def __init__(self, attention: nn.Module, ffn: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm, self.attention, self.ffn = nn.LayerNorm(dim), attention, ffn

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, D] -> [B, n, D]``."""
        x = x + self.attention(self.norm(x))
        return x + self.ffn(x)


class Attention(nn.Module):
    """Full multi-head attention; the heads together may be wider than the tokens.

    Args:
        dim: ``D``.
        num_heads: Heads.
        head_dim: Width of a head.
        dropout: After the output map.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, D] -> [B, n, D]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))


class ResBlock(nn.Module):
    """``x + conv(relu(conv(x)))``.

    Args:
        channels: Of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H, W]``."""
        return x + self.conv2(F.relu(self.conv1(x)))


def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A padded 3x3 convolution with bias."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def pad_to(images: Tensor, multiple: int) -> Tensor:
    """Sides grown at the right and the bottom to a multiple, by reflection where it is possible."""
    height, width = images.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if down == right == 0:
        return images
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, down), mode=mode)
