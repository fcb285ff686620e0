"""Slow and obvious: each expert on its own rows, found by boolean masks. The tests' oracle."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def routed(
    x: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    functions: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    r"""Sum of every row's chosen experts, :math:`y_n = \sum_k w_{nk} f_{i_{nk}}(x_n)`.

    Args:
        x: Rows ``[N, ...]``.
        indices_NK: Expert ids ``[N, K]``, -1 for nobody.
        weights_NK: Combine weights ``[N, K]``.
        functions: One callable per expert, ``[n, ...] -> [n, ...]``.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> routed(x, torch.tensor([[0], [-1]]), torch.ones(2, 1), [lambda r: 10 * r])
        tensor([[10.],
                [ 0.]])
    """
    y = None
    for e, function in enumerate(functions):
        chosen = indices_NK == e
        rows = chosen.any(1).nonzero().squeeze(1)
        out = function(x[rows])
        weight = torch.where(chosen, weights_NK, 0).sum(1)[rows].to(out.dtype)
        out = out * weight.view(-1, *([1] * (out.dim() - 1)))
        if y is None:
            y = out.new_zeros(x.shape[0], *out.shape[1:])
        y = y.index_add(0, rows, out)
    assert y is not None
    return y
