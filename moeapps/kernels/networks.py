"""E small networks of one shape with stacked weights: what the strategies evaluate."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError

Activation = Callable[[Tensor], Tensor]


class Networks(NamedTuple):
    r"""Parameters of ``E`` networks, each in the layout of its own ``nn.Linear``.

    .. math:: f_e(x) = W^2_e\,\mathrm{act}(W^1_e x + b^1_e) + b^2_e

    With ``gated`` the first layer is twice as wide and its second half multiplies the activated
    first half. Without ``w2`` a network is its first layer alone, :math:`W^1_e x + b^1_e`.
    """

    w1: Tensor  # [E, F, D]
    b1: Tensor | None = None  # [E, F]
    w2: Tensor | None = None  # [E, O, F]
    b2: Tensor | None = None  # [E, O]
    act: Activation = F.gelu
    gated: bool = False
    dropout: float = 0.0  # probability on the hidden layer; 0 outside training

    @property
    def num_experts(self) -> int:
        """E."""
        return self.w1.shape[0]

    @property
    def out_features(self) -> int:
        """O."""
        return self.w1.shape[1] if self.w2 is None else self.w2.shape[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width a matrix product of these networks has."""
        last = () if self.w2 is None else self.w2.shape[1:]
        return (*self.w1.shape[1:], *last)

    def check(self, in_features: int) -> None:
        """Raise `ArgumentError` unless all shapes agree."""
        E, F1, _ = self.w1.shape
        want = {"w1": (self.w1, (E, F1, in_features)), "b1": (self.b1, (E, F1))}
        if self.w2 is not None:
            hidden, out = F1 // 2 if self.gated else F1, self.out_features
            want |= {"w2": (self.w2, (E, out, hidden)), "b2": (self.b2, (E, out))}
        for name, (tensor, shape) in want.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ArgumentError(
                    f"{name} has shape {list(tensor.shape)}, expected {list(shape)} for rows of "
                    f"width {in_features}. Stack the weights as [experts, out, in]."
                )

    def to(self, dtype: torch.dtype) -> "Networks":
        """The same networks in another dtype, each tensor cast once."""
        if self.w1.dtype == dtype:
            return self
        b1, w2, b2 = (None if t is None else t.to(dtype) for t in self[1:4])
        return self._replace(w1=self.w1.to(dtype), b1=b1, w2=w2, b2=b2)

    def activate(self, h: Tensor) -> Tensor:
        """Activation, gate and dropout on the first layer's output ``[..., F]``."""
        if self.gated:
            h, scale = h.chunk(2, dim=-1)
            h = self.act(h) * scale
        else:
            h = self.act(h)
        return F.dropout(h, self.dropout) if self.dropout > 0 else h

    def functions(self) -> list[Activation]:
        """One callable per expert.

        The stacked tensors are split once by ``unbind``: indexing ``w[e]`` in a loop would make a
        full-size zero gradient for every use.
        """
        parts = [_unbind(t, self.num_experts) for t in self[:4]]
        return [partial(self._one, *tensors) for tensors in zip(*parts, strict=True)]

    def _one(
        self, w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, x: Tensor
    ) -> Tensor:
        h = F.linear(x, w1, b1)
        return h if w2 is None else F.linear(self.activate(h), w2, b2)


def _unbind(stacked: Tensor | None, n: int) -> tuple[Tensor | None, ...]:
    return (None,) * n if stacked is None else stacked.unbind(0)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype the products run in: autocast's where it is on, else that of ``x``.

    Autocast does not reach ``grouped_mm``, so the strategies cast by themselves. Like autocast,
    float64 is left alone.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ):
        return torch.get_autocast_dtype(device)
    return x.dtype
