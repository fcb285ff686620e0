"""Experts that are given as objects: modules, online learners, shared ones.

The stacked ones live in `stacked` and `stacked_maps` and are imported here too.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating.protocol import Experts
from moeapps.gating.routing import Routing
from moeapps.gating.stacked import Mlp, StackedLinear, StackedMLP
from moeapps.gating.stacked_maps import StackedConv2d, StackedFiLM
from moeapps.kernels import touch
from moeapps.kernels.select import is_traced

__all__ = [
    "Experts",
    "Mlp",
    "ModuleExperts",
    "OnlineExperts",
    "SharedExperts",
    "StackedConv2d",
    "StackedFiLM",
    "StackedLinear",
    "StackedMLP",
]


class ModuleExperts(Experts):
    """Experts that are any modules, alike or not.

    Args:
        modules: One per expert; all give outputs of one shape.
        item_dims: Trailing axes of one item: 1 for vectors, 3 for images.

    Shape:
        - rows or images ``[*L, *item] -> [*L, *out]``
        - a structured input (a graph, a dict) only with a dense routing; its outputs start with the
          rows

    Notes:
        In the dense layout a module gets vectors as they are, so it may look across rows. Images it
        gets flattened to one leading axis, and so the rows chosen for it in the other layouts.
        In the token layout an expert is called only if it has rows; its parameters then get an
        exact zero gradient, so that distributed training does not wait for them. While a graph is
        captured every expert runs on every row.

    Example:
        >>> experts = ModuleExperts([nn.Linear(4, 2), Mlp(4, 8, 2)])
        >>> routing = Routing(torch.ones(3, 1), 2, torch.tensor([[0], [1], [0]]), layout="token")
        >>> experts(torch.randn(3, 4), routing).shape
        torch.Size([3, 2])
    """

    def __init__(self, modules: Iterable[nn.Module], *, item_dims: int = 1) -> None:
        experts = nn.ModuleList(modules)
        super().__init__(len(experts), item_dims=item_dims)
        self.experts = experts

    def functions(self) -> Sequence[Callable[..., Tensor]]:
        """The modules themselves."""
        return list(self.experts)

    def __getitem__(self, index: int) -> nn.Module:
        return self.experts[index]

    def all(self, x: Any, *args: Any) -> Tensor:
        """Every expert's output for every item, ``[*L, E, *out]``."""
        lead = self._lead(x)
        if self.item_dims == 1 or lead == 1:
            return super().all(x, *args)
        y = super().all(x.flatten(0, lead - 1), *args)  # convolutions take one leading axis
        return y.view(*x.shape[:lead], *y.shape[1:])

    def grouped(self, rows: Tensor, expert_ids: Tensor, offsets: Tensor) -> Tensor:
        """Each expert on its slice of sorted rows; see `Experts.grouped`."""
        return self._touch_idle(super().grouped(rows, expert_ids, offsets), expert_ids)

    def routed(self, x: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Weighted sum of each row's chosen experts."""
        return self._touch_idle(super().routed(x, indices_NK, weights_NK), indices_NK)

    def _touch_idle(self, y: Tensor, chosen: Tensor) -> Tensor:
        if is_traced():  # every expert ran
            return y
        busy = set(chosen.unique().tolist())
        idle = [expert for e, expert in enumerate(self.experts) if e not in busy]
        return touch(y, [p for expert in idle for p in expert.parameters()])


class SharedExperts(nn.Module):
    r"""A module that serves every row beside the routed experts.

    .. math:: y = m(x) \quad\text{or}\quad y = \sigma(v \cdot x)\, m(x)

    Args:
        module: Always on.
        in_features: Width of the rows, for a learned sigmoid weight per row; None for weight 1.

    Example:
        >>> SharedExperts(nn.Linear(4, 2), in_features=4)(torch.randn(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, module: nn.Module, *, in_features: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.weight = None if in_features is None else nn.Linear(in_features, 1, bias=False)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """``[*L, D] -> [*L, O]``."""
        y = self.module(x, *args)
        return y if self.weight is None else torch.sigmoid(self.weight(x)) * y


class OnlineExperts:
    """Experts that learn one row at a time and know nothing of tensors.

    Args:
        experts: Objects with ``predict_proba_one(x) -> dict`` and ``learn_one(x, y)``.

    Notes:
        Routings are for one row, ``[1, ...]`` or ``[...]``, dense or token.

    Example:
        >>> class Always:
        ...     def __init__(self, label):
        ...         self.label = label
        ...     def predict_proba_one(self, x):
        ...         return {self.label: 1.0}
        ...     def learn_one(self, x, y):
        ...         self.label = y
        >>> experts = OnlineExperts([Always("a"), Always("b")])
        >>> routing = Routing(torch.tensor([0.25, 0.75]), num_experts=2)
        >>> experts({"f": 1.0}, routing)
        {'a': 0.25, 'b': 0.75}
        >>> experts.predict_one({"f": 1.0}, routing)
        'b'
    """

    def __init__(self, experts: Iterable[Any]) -> None:
        self.experts = list(experts)
        if not self.experts:
            raise ArgumentError("OnlineExperts got no experts. Give at least one.")

    @property
    def num_experts(self) -> int:
        """How many there are."""
        return len(self.experts)

    def __getitem__(self, index: int) -> Any:
        return self.experts[index]

    def __call__(self, x: dict[str, Any], routing: Routing) -> dict[Hashable, float]:
        """Weighted sum of the chosen experts' class probabilities for one row."""
        total: dict[Hashable, float] = {}
        for e, weight in self._chosen(routing):
            for label, p in self.experts[e].predict_proba_one(x).items():
                total[label] = total.get(label, 0.0) + weight * p
        return total

    def predict_one(self, x: dict[str, Any], routing: Routing) -> Hashable | None:
        """The likeliest class, or None before anybody has seen one."""
        total = self(x, routing)
        return max(total, key=lambda label: total[label]) if total else None

    def learn_one(self, x: dict[str, Any], y: Hashable, routing: Routing) -> None:
        """Teach the chosen experts one labelled row."""
        for e, _ in self._chosen(routing):
            self.experts[e].learn_one(x, y)

    def _chosen(self, routing: Routing) -> list[tuple[int, float]]:
        """Expert and weight of everybody who takes part, best first in the token layout."""
        if routing.layout not in ("dense", "token") or routing.rows.numel() != 1:
            raise ArgumentError(
                f"Got a {routing.layout} routing of {routing.rows.numel()} rows; expected one row, "
                "dense or token. Gate one row at a time."
            )
        if routing.num_experts != self.num_experts:
            raise ArgumentError(
                f"The routing is over {routing.num_experts} experts, but there are "
                f"{self.num_experts}. Build the gate for {self.num_experts} experts."
            )
        weights = routing.weights.flatten().tolist()
        if routing.indices is None:
            return [(e, w) for e, w in enumerate(weights) if w != 0]
        ids = routing.indices.flatten().tolist()
        return [(e, w) for e, w in zip(ids, weights, strict=True) if e >= 0]
