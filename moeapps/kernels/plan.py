"""The plan every sparse strategy shares: sort the assignments by expert, compute, put back."""

from typing import NamedTuple

import torch
from torch import Tensor

from moeapps.kernels.autograd import gather_rows


class Plan(NamedTuple):
    """Order of the ``R = N * K`` assignments after a stable sort by expert.

    Assignments to nobody (index -1) come last. ``R`` counts them too, so shapes do not depend on
    the data.
    """

    order: Tensor  # [R] sorted position -> flat assignment n * K + k
    offsets: Tensor  # [E] int32, end of each expert's rows
    per_row: int  # K

    def experts(self) -> Tensor:
        """Expert id of every sorted row ``[R]``; ``E`` for nobody."""
        position = torch.arange(self.order.shape[0], device=self.order.device, dtype=torch.int32)
        return torch.searchsorted(self.offsets, position, right=True)

    def inverse(self) -> Tensor:
        """Sorted position of every flat assignment ``[R]``."""
        position = torch.arange(self.order.shape[0], device=self.order.device)
        return torch.empty_like(self.order).scatter(0, self.order, position)


def make_plan(indices_NK: Tensor, num_experts: int) -> Plan:
    """Sort the assignments of ``indices [N, K]`` by expert, without reading anything on the host.

    Example:
        >>> plan = make_plan(torch.tensor([[1, 0], [-1, 1]]), num_experts=2)
        >>> plan.order.tolist(), plan.offsets.tolist()
        ([1, 0, 3, 2], [1, 3])
    """
    key = torch.where(indices_NK < 0, num_experts, indices_NK).flatten()
    # One-byte keys sort five times faster than int64 at 32k rows.
    short = key.to(torch.uint8) if num_experts < 255 else key
    order = torch.argsort(short, stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=key.device)
    counts = counts.scatter_add(0, key, torch.ones_like(key))
    offsets = counts[:num_experts].cumsum(0).to(torch.int32)
    return Plan(order, offsets, indices_NK.shape[1])


def gather(x: Tensor, plan: Plan) -> Tensor:
    """Rows of ``x [N, ...]`` in the plan's order, ``[R, ...]``."""
    rows = plan.order if plan.per_row == 1 else plan.order // plan.per_row
    if x.is_cuda:
        return gather_rows(x, rows, plan.inverse(), plan.per_row)
    return x.index_select(0, rows)


def combine_rows(y_RO: Tensor, plan: Plan, weights_NK: Tensor) -> Tensor:
    r"""Put sorted outputs back and sum each row's choices: :math:`y_n = \sum_k w_{nk} y_{nk}`.

    Args:
        y_RO: Outputs in the plan's order ``[R, ...]``; rows of nobody must be zero.
        plan: The plan the rows were gathered with.
        weights_NK: Combine weights ``[N, K]``, cast to the dtype of the outputs here.

    Returns:
        ``[N, ...]``
    """
    N, K = weights_NK.shape
    inverse = plan.inverse()
    # A permutation: each row is written once, so the built-in backward is deterministic anywhere.
    y = y_RO.index_select(0, inverse)
    weights = weights_NK.to(y.dtype)
    item = y.shape[1:]
    if K == 1:
        weights = weights.view(N, *([1] * len(item)))
        return y * weights if torch.is_grad_enabled() else y.mul_(weights)  # y is fresh
    flat = y.view(N, K, item.numel())
    return torch.bmm(weights.unsqueeze(1), flat).view(N, *item)
