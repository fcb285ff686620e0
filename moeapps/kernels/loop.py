"""Sorted rows, one call per expert on a contiguous slice. The default in eager CPU.

Works for any dtype, width, activation and kind of row (vectors, images), because an expert is just
a callable. Reads the group sizes on the host, so it cannot be traced.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moeapps.kernels.plan import combine_rows, gather, make_plan


def sorted_rows(
    rows: Tensor, offsets_E: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Apply expert ``e`` to ``rows[offsets[e-1]:offsets[e]]``; rows past the last end give zero.

    Experts without rows are not called. If nobody has rows, the first expert is called on none, so
    that the result has its shape, dtype and a graph.

    Example:
        >>> ends = torch.tensor([1, 3], dtype=torch.int32)
        >>> sorted_rows(torch.ones(4, 1), ends, [lambda r: r, lambda r: 2 * r]).flatten().tolist()
        [1.0, 2.0, 2.0, 0.0]
    """
    ends = offsets_E.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    # split, not slices: its backward is one concatenation instead of E zero-filled tensors.
    parts = rows.split([*sizes, rows.shape[0] - ends[-1]])
    outs = [f(part) for f, part, n in zip(functions, parts, sizes, strict=False) if n > 0]
    if not outs:
        outs.append(functions[0](parts[0]))
    if parts[-1].shape[0] > 0:
        outs.append(outs[0].new_zeros(parts[-1].shape[0], *outs[0].shape[1:]))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def routed(
    x: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    functions: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """Same result as `reference.routed`, with each expert called once on its rows together."""
    plan = make_plan(indices_NK, len(functions))
    y = sorted_rows(gather(x, plan), plan.offsets, functions)
    return combine_rows(y, plan, weights_NK)
