"""Stacked experts that modulate features or convolve images."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps import kernels
from moeapps.errors import ArgumentError
from moeapps.gating.protocol import Experts
from moeapps.gating.routing import Routing
from moeapps.gating.stacked import Stacked, StackedNetworks
from moeapps.kernels import loop
from moeapps.kernels.networks import Networks
from moeapps.kernels.select import is_traced, wished


class StackedFiLM(StackedNetworks):
    r"""E feature modulations, mixed without evaluating each.

    .. math:: f_e(x) = (A_e x + a_e) \odot x + (B_e x + b_e)

    Args:
        num_experts: ``E``.
        features: ``D``.
        dynamic: Scale and shift depend on the row; if False they are the constants ``a_e, b_e``.

    Shape:
        - parameters ``w [E, 2D, D]`` (scale rows first; None if not dynamic), ``b [E, 2D]``
        - rows ``[*L, D] -> [*L, D]``; a dense routing may also hold one set of weights per image,
          ``weights [B, E]`` for ``x [B, ..., D]``

    Notes:
        Constants start at the identity (scale 1, shift 0) plus the spread of an ``nn.Linear``.

    Example:
        >>> experts = StackedFiLM(4, 8)
        >>> routing = Routing(torch.full((2, 4), 0.25), num_experts=4)
        >>> experts(torch.randn(2, 8), routing).shape
        torch.Size([2, 8])
    """

    def __init__(self, num_experts: int, features: int, *, dynamic: bool = True) -> None:
        super().__init__(num_experts)
        D = features
        self.w = nn.Parameter(torch.empty(num_experts, 2 * D, D)) if dynamic else None
        self.b = nn.Parameter(torch.empty(num_experts, 2 * D))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every map as its own ``nn.Linear`` would."""
        D = self.b.shape[1] // 2
        self._initialise({"w": D, "b": D})
        if self.w is None:
            with torch.no_grad():
                self.b[:, :D] += 1

    def networks(self) -> Networks:
        """The maps from a row to its scale and shift."""
        if self.w is None:
            raise ArgumentError("Constant modulations have no networks; they are only vectors.")
        return Networks(self.w, self.b)

    def functions(self) -> Sequence[Callable[..., Tensor]]:
        """One callable per expert."""
        if self.w is None:
            return [lambda x, both=both: modulate(both, x) for both in self.b.unbind(0)]
        return [lambda x, f=f: modulate(f(x), x) for f in super().functions()]

    def all(self, x: Tensor, *args: Any) -> Tensor:
        """Every expert's modulation of every row, ``[*L, E, D]``."""
        both = self.b if self.w is None else super().all(x)
        return modulate(both, x.unsqueeze(-2))

    def grouped(self, rows: Tensor, expert_ids: Tensor, offsets: Tensor) -> Tensor:
        """Each expert on its slice of sorted rows; see `Experts.grouped`."""
        if self.w is None:
            both = F.pad(self.b, (0, 0, 0, 1)).index_select(0, expert_ids)
        else:
            both = super().grouped(rows, expert_ids, offsets)
        return modulate(both, rows)

    def batched(self, x: Tensor) -> Tensor:
        """Expert ``e`` on its own batch ``x[e]``."""
        return modulate(self.b.unsqueeze(1) if self.w is None else super().batched(x), x)

    def routed(self, x: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Mix the chosen experts' scales and shifts, then modulate once."""
        if self.w is None:
            weights = Routing(weights_NK, self.num_experts, indices_NK, layout="token").dense()
            return kernels.film_mix(x, weights, None, self.b)
        if x.is_cuda or is_traced() or wished() is not None:
            return modulate(super().routed(x, indices_NK, weights_NK), x)
        # Each expert modulates its rows while they are in cache; half the width is put back.
        return loop.routed(x, indices_NK, weights_NK, self.functions())

    def _dense(self, x: Tensor, routing: Routing, *args: Any) -> Tensor:
        if routing.weights.dim() > x.dim():  # several gates per row
            return Experts._dense(self, x, routing, *args)
        return kernels.film_mix(x, routing.weights, self.w, self.b)

    def _slots(self, module: nn.Module) -> dict[str, Tensor | None]:
        if self.w is None or not isinstance(module, nn.Linear):
            raise ArgumentError(
                "Dynamic modulations are loaded from nn.Linear(D, 2 D), scale rows first; got "
                f"{type(module).__name__}. Set b directly for constants."
            )
        return {"w": module.weight, "b": module.bias}


def modulate(both: Tensor, x: Tensor) -> Tensor:
    """``scale * x + shift`` with ``both [..., 2D]`` holding scale and shift."""
    scale, shift = both.chunk(2, dim=-1)
    return torch.addcmul(shift, scale, x)


class StackedConv2d(Stacked):
    r"""E convolutions; the item that is routed is a whole image.

    .. math:: f_e(x) = W_e * x + b_e

    Args:
        num_experts: ``E``.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``; half the kernel if None, which keeps the size at stride 1.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``.
        bias: Each convolution has a bias.

    Shape:
        - parameters ``w [E, O, C / groups, k, k]``, ``b [E, O]``
        - images ``[*L, C, H, W] -> [*L, O, H', W']``

    Example:
        >>> experts = StackedConv2d(4, 3, 8, 3)
        >>> routing = Routing(torch.ones(2, 1), 4, torch.tensor([[0], [3]]), layout="token")
        >>> experts(torch.randn(2, 3, 5, 5), routing).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        num_experts: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(num_experts, item_dims=3)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"groups={groups} does not divide {in_channels} input and {out_channels} output "
                "channels. Choose a common divisor."
            )
        side = kernel_size
        shape = (num_experts, out_channels, in_channels // groups, side, side)
        self.w = nn.Parameter(torch.empty(shape))
        self.b = nn.Parameter(torch.empty(num_experts, out_channels)) if bias else None
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = dilation * (side // 2) if padding is None else padding
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every expert as its own ``nn.Conv2d`` would."""
        fan = math.prod(self.w.shape[2:])
        self._initialise({"w": fan, "b": fan})

    def functions(self) -> Sequence[Callable[..., Tensor]]:
        """One callable per expert."""
        biases = [None] * self.num_experts if self.b is None else self.b.unbind(0)
        shape = (self.stride, self.padding, self.dilation, self.groups)
        return [
            lambda x, w=w, b=b: F.conv2d(x, w, b, *shape)
            for w, b in zip(self.w.unbind(0), biases, strict=True)
        ]

    def all(self, x: Tensor, *args: Any) -> Tensor:
        """Every expert's output for every image, ``[*L, E, O, H', W']``."""
        lead = x.shape[:-3]
        images = x.flatten(0, -4)
        if self.groups > 1:
            y = torch.stack([f(images) for f in self.functions()], dim=1)
        else:
            bias = None if self.b is None else self.b.flatten()
            y = F.conv2d(
                images, self.w.flatten(0, 1), bias, self.stride, self.padding, self.dilation
            ).unflatten(1, (self.num_experts, self.w.shape[1]))
        return y.view(*lead, *y.shape[1:])

    def routed(self, x: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Weighted sum of the convolutions each image chose."""
        return kernels.routed_conv2d(
            x,
            indices_NK,
            weights_NK,
            self.w,
            self.b,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Conv2d]) -> "StackedConv2d":
        """Stack separate square ``nn.Conv2d``."""
        conv = modules[0]
        experts = cls(
            len(modules),
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            padding=int(conv.padding[0]),
            dilation=conv.dilation[0],
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        return experts.to(conv.weight.device, conv.weight.dtype).load_modules(modules)

    def to_modules(self) -> list[nn.Conv2d]:
        """Separate ``nn.Conv2d`` with copies of the weights."""
        E, out, channels, side, _ = self.w.shape
        return [
            self._unload(
                e,
                nn.Conv2d(
                    channels * self.groups,
                    out,
                    side,
                    self.stride,
                    self.padding,
                    self.dilation,
                    self.groups,
                    bias=self.b is not None,
                    device=self.w.device,
                    dtype=self.w.dtype,
                ),
            )
            for e in range(E)
        ]

    def _slots(self, module: nn.Module) -> dict[str, Tensor | None]:
        if not isinstance(module, nn.Conv2d):
            raise ArgumentError(f"Expected nn.Conv2d, got {type(module).__name__}.")
        return {"w": module.weight, "b": module.bias}
