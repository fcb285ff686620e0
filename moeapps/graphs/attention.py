"""Attention over a node's neighbours, head by head, in compressed rows.

Letters: ``V`` nodes, ``M`` entries of the pattern, ``H`` heads, ``D`` width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moeapps.graphs.csr import Pattern, entry_products


def attend(
    to_source: Tensor,
    to_target: Tensor,
    z: Tensor,
    pattern: Pattern,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
) -> Tensor:
    r"""Mean of the neighbours by attention, differentiable once in all three tensors.

    .. math::
        y_{ih} = \sum_{j \in N(i)} \frac{\delta_{ijh}}{1 - p} a_{ijh} z_{jh}, \quad
        a_{i \cdot h} = \mathrm{softmax}_{j \in N(i)}\, \mathrm{lrelu}(s_{jh} + t_{ih})

    One head at a time keeps the work inside the cache and every temporary ``M`` numbers long: a
    fresh tensor of ``M H`` costs more on the CPU than the arithmetic on it. The softmax is divided
    out per node, after the sum, and in the backward pass
    :math:`\sum_j a_{ij} \partial_{a_{ij}}` is :math:`y_i \cdot \partial_{y_i}`.

    Args:
        to_source: ``s``.
        to_target: ``t``.
        z: Features of the sources.
        pattern: Neighbours ``j`` of each row ``i``. A row without any is 0.
        negative_slope: Of the leaky ReLU.
        dropout: Probability ``p`` that an attention weight is left out, ``delta = 0``.

    Shape:
        - to_source, to_target ``[V, H]``, z ``[V, H, D]``
        - output ``[V, H, D]``

    Example:
        >>> i, j = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
        >>> pattern, _ = Pattern.from_pairs(i, j, (2, 2))
        >>> z = torch.tensor([[[1.0]], [[3.0]]])
        >>> attend(torch.zeros(2, 1), torch.zeros(2, 1), z, pattern).flatten()
        tensor([2., 3.])
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    kept = None
    if dropout > 0:
        kept = to_source.new_empty(pattern.col.numel(), to_source.size(1), dtype=dtype)
        kept = kept.bernoulli_(1 - dropout).t().contiguous()
    out = _Attend.apply(
        to_source.to(dtype), to_target.to(dtype), z.to(dtype), pattern, negative_slope, kept
    )
    return (out / (1 - dropout)).to(z.dtype)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        to_source: Tensor,
        to_target: Tensor,
        z: Tensor,
        pattern: Pattern,
        negative_slope: float,
        kept: Tensor | None,
    ) -> Tensor:
        out, attention = torch.empty_like(z), []
        for head in range(z.size(1)):
            score = _score(to_source[:, head], to_target[:, head], pattern)
            F.leaky_relu_(score, negative_slope)
            top = _reduce(score, "max", pattern)
            weight = score.sub_(top.index_select(0, pattern.row)).exp_()
            share = _reduce(weight, "sum", pattern).reciprocal_()
            weight.mul_(share.index_select(0, pattern.row))
            out[:, head] = pattern.multiply(_times(weight, kept, head), z[:, head])
            attention.append(weight)
        ctx.pattern, ctx.negative_slope, ctx.kept = pattern, negative_slope, kept
        ctx.save_for_backward(to_source, to_target, z, out, *attention)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_source, to_target, z, out, *attention = ctx.saved_tensors
        pattern, kept = ctx.pattern, ctx.kept
        transpose, order = pattern.transpose
        mean = (grad * out).sum(-1)  # [V, H]
        grad_source, grad_target = torch.empty_like(to_source), torch.empty_like(to_target)
        grad_z = torch.empty_like(z)
        for head, weight in enumerate(attention):
            used = _times(weight, kept, head)
            grad_z[:, head] = transpose.multiply(used.index_select(0, order), grad[:, head])
            slope = entry_products(pattern, grad[:, head], z[:, head])
            if kept is not None:
                slope.mul_(kept[head])
            slope.sub_(mean[:, head].index_select(0, pattern.row)).mul_(weight)
            falling = _score(to_source[:, head], to_target[:, head], pattern) <= 0
            slope = torch.where(falling, ctx.negative_slope * slope, slope)
            grad_target[:, head] = _reduce(slope, "sum", pattern)
            grad_source[:, head] = _reduce(slope.index_select(0, order), "sum", transpose)
        return grad_source, grad_target, grad_z, None, None, None


def _score(to_source: Tensor, to_target: Tensor, pattern: Pattern) -> Tensor:
    """``s[j] + t[i]`` per entry, ``[M]``."""
    score = to_source.contiguous().index_select(0, pattern.col)
    return score.add_(to_target.contiguous().index_select(0, pattern.row))


def _times(weight: Tensor, kept: Tensor | None, head: int) -> Tensor:
    return weight if kept is None else weight * kept[head]


def _reduce(entries: Tensor, how: str, pattern: Pattern) -> Tensor:
    """``[M]`` to ``[V]``: sum or maximum per row."""
    return torch.segment_reduce(entries, how, offsets=pattern.crow, unsafe=True)
