"""What every set of experts can do, whatever it is made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating.combine import combine_choice, combine_slots, mix
from moeapps.gating.routing import Routing
from moeapps.kernels import loop, reference
from moeapps.kernels.select import is_traced, wished


class Experts(nn.Module, ABC):
    """E experts that answer to a routing.

    A subclass says how many there are and gives one callable per expert; everything else has a slow
    default here and is overridden where stacked weights allow something faster.

    Args:
        num_experts: ``E``.
        item_dims: Trailing axes of one item: 1 for vectors, 3 for images.

    Shape:
        - ``forward``: ``x [*L, *item]`` and a routing of ``*L`` rows give ``[*L, *out]``, or
          ``[*L, T, *out]`` for a dense routing with ``T`` gates per row
        - ``all``: ``[*L, E, *out]``
    """

    def __init__(self, num_experts: int, *, item_dims: int = 1) -> None:
        super().__init__()
        if num_experts < 1:
            raise ArgumentError(f"num_experts={num_experts} is not positive. Choose 1 or more.")
        self.num_experts = num_experts
        self.item_dims = item_dims

    @abstractmethod
    def functions(self) -> Sequence[Callable[..., Tensor]]:
        """One callable per expert, ``[R, *item] -> [R, *out]``."""

    def forward(self, x: Any, routing: Routing, *args: Any) -> Tensor:
        """Combined output of the experts the routing names.

        Args:
            x: Items; a structured input (a graph, a dict) only with a dense routing.
            routing: The gate's decision.
            *args: Passed on to every expert; only with a dense routing.
        """
        if routing.num_experts != self.num_experts:
            raise ArgumentError(
                f"The routing is over {routing.num_experts} experts, but there are "
                f"{self.num_experts}. Build the gate for {self.num_experts} experts."
            )
        if routing.layout == "dense":
            return self._dense(x, routing, *args)
        if args or not isinstance(x, Tensor):
            raise ArgumentError(
                f"A routing in layout {routing.layout!r} sends rows of one tensor to experts, but "
                f"got {type(x).__name__} and {len(args)} more arguments. Use a gate with layout "
                "'dense' for structured inputs."
            )
        return {"token": self._token, "expert": self._expert, "slot": self._slot}[routing.layout](
            x, routing
        )

    def all(self, x: Any, *args: Any) -> Tensor:
        """Every expert's output for every item, ``[*L, E, *out]``."""
        return torch.stack([f(x, *args) for f in self.functions()], dim=self._lead(x))

    def grouped(self, rows: Tensor, expert_ids: Tensor, offsets: Tensor) -> Tensor:
        """Each expert on its slice of rows sorted by expert, ``[R, *item] -> [R, *out]``.

        Args:
            rows: Rows sorted by expert.
            expert_ids: Expert of each row ``[R]``.
            offsets: End of each expert's rows, int32 ``[E]``; later rows give zero.
        """
        return loop.sorted_rows(rows, offsets, self.functions())

    def batched(self, x: Tensor) -> Tensor:
        """Expert ``e`` on its own batch ``x[e]``, ``[E, R, *item] -> [E, R, *out]``."""
        return torch.stack([f(rows) for f, rows in zip(self.functions(), x, strict=True)])

    def routed(self, x: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Weighted sum of each row's chosen experts, ``[N, *item] -> [N, *out]``."""
        wish = wished()
        if is_traced() or wish == "dense":
            # A captured graph must not depend on who has rows, so every expert runs on every row.
            picked = Routing(weights_NK, self.num_experts, indices_NK, layout="token")
            return mix(self.all(x), picked.dense(), lead=1)
        run = reference.routed if wish == "reference" else loop.routed
        return run(x, indices_NK, weights_NK, self.functions())

    def _lead(self, x: Any) -> int:
        return x.dim() - self.item_dims if isinstance(x, Tensor) else 1

    def _dense(self, x: Any, routing: Routing, *args: Any) -> Tensor:
        lead = self._lead(x)
        if isinstance(x, Tensor) and routing.weights.dim() not in (lead + 1, lead + 2):
            self._refuse(x, routing)
        return mix(self.all(x, *args), routing.weights, lead=lead)

    def _token(self, x: Tensor, routing: Routing) -> Tensor:
        indices = routing.indices
        assert indices is not None
        rows, lead = indices.shape[:-1], indices.dim() - 1
        if x.shape[:lead] != rows or self._lead(x) != lead:
            self._refuse(x, routing)
        # flatten, not reshape(-1): that is ambiguous without rows; not numel(): that fixes the size
        # in an exported graph.
        last = lead - 1
        y = self.routed(
            x.flatten(0, last), indices.flatten(0, last), routing.weights.flatten(0, last)
        )
        return y.view(*rows, *y.shape[1:])

    def _expert(self, x: Tensor, routing: Routing) -> Tensor:
        indices = routing.indices
        assert indices is not None
        *groups, E, C = indices.shape
        if self._lead(x) != len(groups) + 1 or x.shape[: len(groups)] != indices.shape[:-2]:
            self._refuse(x, routing)
        B, N, item = math.prod(groups), x.shape[len(groups)], x.shape[len(groups) + 1 :]
        ids = indices.reshape(B, E, C).transpose(0, 1)
        source = ids.clamp(min=0) + N * torch.arange(B, device=ids.device).view(B, 1)
        rows = x.reshape(B * N, *item).index_select(0, source.flatten())
        nobody = (ids < 0).flatten().view(-1, *([1] * len(item)))
        rows = torch.where(nobody, 0, rows)
        ys = self.batched(rows.view(E, B * C, *item))
        out = ys.shape[2:]
        ys = ys.reshape(E, B, C, *out).transpose(0, 1).reshape(*groups, E, C, *out)
        return combine_choice(ys, routing)

    def _slot(self, x: Tensor, routing: Routing) -> Tensor:
        dispatch = routing.dispatch
        assert dispatch is not None
        *groups, N, E, S = dispatch.shape
        lead = len(groups) + 1
        if self._lead(x) != lead or x.shape[:lead] != dispatch.shape[:lead]:
            self._refuse(x, routing)
        B, item = math.prod(groups), x.shape[lead:]
        rows = x.reshape(B, N, math.prod(item))
        spread = dispatch.to(x.dtype).reshape(B, N, E * S)
        slots = torch.bmm(spread.transpose(1, 2), rows).view(B, E, S, *item)
        ys = self.batched(slots.transpose(0, 1).reshape(E, B * S, *item))
        out = ys.shape[2:]
        ys = ys.reshape(E, B, S, *out).transpose(0, 1).reshape(*groups, E, S, *out)
        return combine_slots(ys, routing)

    def _refuse(self, x: Tensor, routing: Routing) -> None:
        raise ArgumentError(
            f"Items {list(x.shape)} do not fit a {routing.layout} routing with weights "
            f"{list(routing.weights.shape)}: {type(self).__name__} takes items of "
            f"{self.item_dims} axes after the rows. Gate and experts must see the same rows."
        )
