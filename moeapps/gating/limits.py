"""Limiting how many rows an expert serves."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.routing import Routing

Policy = Literal["position", "prob"]


class Limited:
    """A token-layout selection followed by a limit; what :func:`capacity` makes of a selection."""

    layout = "token"

    def __init__(self, select: Any, **limits: Any) -> None:
        self.select: Callable[..., Routing] = select
        self.limits = limits
        self.reads_bias: bool = getattr(select, "reads_bias", False)
        self.ranks: bool = getattr(select, "ranks", False)

    def __call__(self, logits: Tensor, **options: Any) -> Routing:
        """Select, then drop what does not fit."""
        return capacity(self.select(logits, **options), **self.limits)

    def __repr__(self) -> str:
        limits = ", ".join(f"{name}={value!r}" for name, value in self.limits.items())
        return f"capacity({self.select!r}, {limits})"


def capacity(
    routing: Any,
    factor: float | None = None,
    *,
    size: int | None = None,
    policy: Policy = "position",
) -> Any:
    r"""Drop the assignments that find their expert full.

    .. math:: C = \lceil \mathrm{factor} \cdot N K / E \rceil

    All first choices get places before all second choices. Among equal choices the earlier row goes
    first, or the row whose largest probability is larger.

    Args:
        routing: A token-layout :class:`Routing`; or a selection, which then returns limited
            routings (``capacity(topk(2), 1.25)``).
        factor: Capacity in multiples of an even load, read to six decimals.
        size: ``C`` itself, instead of a factor.
        policy: ``"position"``, or ``"prob"`` (batch-prioritised).

    Returns:
        The routing with index -1 and weight 0 where an assignment was dropped, or the selection.

    Raises:
        ArgumentError: Unless exactly one limit is given, or for another layout.

    Notes:
        ``N`` counts every row, padding too, but padding takes no place. The weights that stay are
        not rescaled. ``extra["choices"]`` keeps what the rows asked for.

    References:
        Lepikhin et al., *GShard*, ICLR 2021 (position).
        Riquelme et al., *Scaling Vision with Sparse Mixture of Experts*, NeurIPS 2021 (prob).

    Example:
        >>> from moeapps.gating.selections import topk
        >>> routing = topk(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), 1)
        >>> capacity(routing, size=1).indices.flatten()
        tensor([ 0, -1,  1])
        >>> capacity(routing, size=1, policy="prob").indices.flatten()
        tensor([-1,  0,  1])
    """
    if (factor is None) == (size is None):
        raise ArgumentError(
            f"capacity got factor={factor} and size={size}. Give exactly one: "
            "capacity(routing, 1.25) or capacity(routing, size=64)."
        )
    limit = factor if factor is not None else size
    if limit is None or limit <= 0 or policy not in ("position", "prob"):
        raise ArgumentError(
            f"capacity got limit {limit} and policy {policy!r}. Choose a positive limit and "
            "'position' or 'prob'."
        )
    if not isinstance(routing, Routing):
        return Limited(routing, factor=factor, size=size, policy=policy)
    if routing.layout != "token" or routing.indices is None:
        raise ArgumentError(
            f"capacity got layout {routing.layout!r}; only in the token layout can an expert "
            "overflow. Use it with topk, topp, hard or random."
        )
    num_rows, top_k = math.prod(routing.rows), routing.indices.shape[-1]
    if size is None:
        assert factor is not None
        size = ceil_ratio(num_rows * top_k, factor, routing.num_experts)
    keep = _fits(routing, num_rows, size, policy == "prob").view_as(routing.indices)
    return dataclasses.replace(
        routing,
        weights=torch.where(keep, routing.weights, 0),
        indices=torch.where(keep, routing.indices, -1),
        extra={"choices": routing.indices, **routing.extra},
    )


def ceil_ratio(count: int, factor: float, parts: int) -> int:
    """``ceil(count * factor / parts)`` in integers, which export can follow."""
    million = 1_000_000
    return -(-count * round(factor * million) // (parts * million))


@torch.no_grad()
def _fits(routing: Routing, num_rows: int, size: int, by_prob: bool) -> Tensor:
    """Which assignments ``[N, K]`` find a place."""
    assert routing.indices is not None
    indices = routing.indices.reshape(num_rows, routing.indices.shape[-1])
    if not by_prob:
        return (_queue_places(indices, routing.num_experts) < size) & (indices >= 0)
    if routing.probs is None:
        raise ArgumentError(
            "capacity with policy='prob' ranks rows by routing.probs, which is missing. "
            "Use policy='position'."
        )
    urgency = routing.probs.amax(-1).reshape(num_rows).nan_to_num(nan=-math.inf)
    order = urgency.argsort(descending=True, stable=True)
    places = _queue_places(indices.index_select(0, order), routing.num_experts)
    places = torch.empty_like(places).index_copy(0, order, places)
    return (places < size) & (indices >= 0)


def _queue_places(indices: Tensor, num_experts: int) -> Tensor:
    """Place of each assignment ``[N, K]`` in the queue of its expert, first choices first."""
    queue = indices.T.reshape(indices.numel())
    queue = torch.where(queue < 0, num_experts, queue)
    keys = queue.to(torch.uint8) if num_experts < 255 else queue  # five times faster to sort
    order = keys.sort(stable=True).indices
    counts = queue.new_zeros(num_experts + 1).scatter_add(0, queue, torch.ones_like(queue))
    starts = counts.cumsum(0) - counts
    place = torch.arange(queue.numel(), device=queue.device)
    place = place - starts.index_select(0, queue.index_select(0, order))
    place = torch.empty_like(place).scatter(0, order, place)
    return place.view(indices.shape[1], indices.shape[0]).T
