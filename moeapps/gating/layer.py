"""MoE: gate, experts and combination in one layer."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating.combine import (
    Combiner,
    combine,
    dempster,
    identity,
    identity_routing,
    mean,
    mean_routing,
    select,
    select_routing,
)
from moeapps.gating.protocol import Experts
from moeapps.gating.record import report_routing
from moeapps.gating.routing import Routing

COMBINERS: dict[str, Combiner] = {
    "weighted": combine,
    "mean": mean,
    "select": select,
    "identity": identity,
    "dempster": dempster,
}

# These are weighted sums with other weights, so only the chosen experts have to run.
_REWEIGHTED = {
    mean: mean_routing,
    select: select_routing,
    identity: identity_routing,
}


class MoE(nn.Module):
    r"""Mixture of experts: a gate, its experts, and optionally a shared expert.

    .. math:: y = \sum_e w_e(x)\, f_e(x)\ \big(+\, s(x)\big)

    Args:
        gate: From ``x`` to a `Routing`; usually a `Gate`.
        experts: Experts under one routing, such as `StackedMLP` or `ModuleExperts`.
        combine: ``"weighted"``, ``"mean"``, ``"select"``, ``"identity"``, ``"dempster"``, or any
            callable (a module too) of all experts' outputs ``[*L, E, *O]`` and the routing.
        shared: A module that serves every row; its output is added.

    Shape:
        - ``x [*L, D] -> [*L, O]``; with several gates per row ``[*L, T, O]``
        - with ``return_routing=True`` a pair of the output and the routing

    Notes:
        A combiner of your own and ``"dempster"`` need the outputs of all experts; the others run
        only the experts the gate chose. Padding rows give 0.

    Example:
        >>> from moeapps.gating import Gate, StackedMLP
        >>> moe = MoE(Gate.topk(16, 8, 2), StackedMLP(8, 16, 32, 16))
        >>> moe(torch.randn(4, 10, 16)).shape
        torch.Size([4, 10, 16])
        >>> y, routing = moe(torch.randn(3, 16), return_routing=True)
        >>> routing.indices.shape
        torch.Size([3, 2])
    """

    combine: Combiner

    def __init__(
        self,
        gate: nn.Module,
        experts: Experts,
        combine: str | Combiner = "weighted",
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.experts, self.shared = gate, experts, shared
        self.combine = _combiner(combine)

    def forward(
        self,
        x: Any,
        *args: Any,
        cond: Tensor | None = None,
        valid: Tensor | None = None,
        state: Tensor | None = None,
        generator: Generator | None = None,
        return_routing: bool = False,
    ) -> Any:
        """Mix the experts for every row of ``x``.

        Args:
            x: Rows ``[*L, D]``, images, or whatever gate and experts take.
            *args: Passed on to every expert (dense layout).
            cond: Condition for the gate's score.
            valid: bool ``[*L]``, False for padding rows.
            state: Recurrent state for the gate's score.
            generator: Source of the gate's noise.
            return_routing: Also return the `Routing`.
        """
        options = {"cond": cond, "valid": valid, "state": state, "generator": generator}
        given = {name: option for name, option in options.items() if option is not None}
        if valid is not None:
            # Whatever padding holds, NaN too, must not reach a gradient.
            x = _without_padding(x, valid)
        routing = self.gate(x, **given)
        y = self._mix(x, routing, *args)
        if self.shared is not None:
            shared = self.shared(x, *args)
            several = y.dim() == shared.dim() + 1  # gates per row
            y = y + (shared.unsqueeze(routing.weights.dim() - 2) if several else shared)
        if valid is not None:
            y = _without_padding(y, valid)
        report_routing(self, routing)
        return (y, routing) if return_routing else y

    def _mix(self, x: Any, routing: Routing, *args: Any) -> Tensor:
        if self.combine is combine:
            return self.experts(x, routing, *args)
        if self.combine in _REWEIGHTED:
            return self.experts(x, _REWEIGHTED[self.combine](routing), *args)
        return self.combine(self.experts.all(x, *args), routing)


def _combiner(name: str | Combiner) -> Combiner:
    if callable(name):
        return name
    if name not in COMBINERS:
        raise UnknownNameError("combiner", name, COMBINERS)
    return COMBINERS[name]


def _without_padding(x: Tensor, valid: Tensor) -> Tensor:
    if x.shape[: valid.dim()] != valid.shape:
        raise ArgumentError(
            f"valid {list(valid.shape)} does not fit rows {list(x.shape)}; expected one flag per "
            "row. Leave valid out if nothing is padding."
        )
    return torch.where(valid.view(*valid.shape, *([1] * (x.dim() - valid.dim()))), x, 0)
