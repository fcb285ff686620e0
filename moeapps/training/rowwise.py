"""Row-wise Adagrad for embedding tables, and several optimisers as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from moeapps.errors import ArgumentError


class RowwiseAdagrad(Optimizer):
    r"""Adagrad with one accumulator per row, which touches only the rows that have a gradient.

    .. math:: a_i \leftarrow a_i + \mathrm{mean}_k\, g_{ik}^2, \qquad
        w_i \leftarrow w_i - \eta\, \frac{g_i}{\sqrt{a_i} + \epsilon}

    Args:
        params: Tables ``[V, k]``; their gradients may be sparse or dense, with equal results.
        lr: :math:`\eta`.
        eps: :math:`\epsilon`.

    Raises:
        ArgumentError: A tensor has no rows, or ``lr`` or ``eps`` is negative.

    Notes:
        none

    References:
        Duchi et al., *Adaptive Subgradient Methods*, JMLR 2011; one accumulator per row as in
        recommender practice (Mudigere et al., *Software-Hardware Co-design for Fast and Scalable
        Training of Deep Learning Recommendation Models*, ISCA 2022).

    Example:
        >>> table = torch.nn.Embedding(1000, 4, sparse=True)
        >>> optimizer = RowwiseAdagrad(table.parameters(), lr=0.1)
        >>> before = table.weight.detach().clone()
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
        >>> (table.weight != before).any(1).nonzero().flatten()
        tensor([3, 7])
    """

    def __init__(self, params: Any, lr: float = 0.01, *, eps: float = 1e-8) -> None:
        if lr < 0 or eps < 0:
            raise ArgumentError(f"lr={lr}, eps={eps}. Expected 0 or more for both.")
        super().__init__(params, {"lr": lr, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tables."""
        super().add_param_group(param_group)
        for table in self.param_groups[-1]["params"]:
            if table.ndim != 2:
                raise ArgumentError(
                    f"RowwiseAdagrad got a tensor {list(table.shape)}. Expected tables [V, k]; "
                    "give other parameters to another optimiser."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group["lr"], group["eps"])
        return loss

    def _update(self, table: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
        state = self.state[table]
        if not state:
            state["accumulator"] = table.new_zeros(table.shape[0])
        accumulator = state["accumulator"]
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            total = accumulator[rows] + values.square().mean(1)
            accumulator[rows] = total
            table.index_add_(0, rows, values / (total.sqrt() + eps).unsqueeze(1), alpha=-lr)
        else:
            accumulator += gradient.square().mean(1)
            table.addcdiv_(gradient, (accumulator.sqrt() + eps).unsqueeze(1), value=-lr)


class JointOptimizer(Optimizer):
    """Several optimisers that step together, so that a trainer sees one.

    Args:
        parts: Optimisers of different parameters.

    Notes:
        Groups and states are those of the parts, so schedules and checkpoints work as usual.

    Example:
        >>> dense, table = torch.nn.Linear(4, 1), torch.nn.Embedding(9, 4, sparse=True)
        >>> joint = JointOptimizer(
        ...     [torch.optim.Adam(dense.parameters()), RowwiseAdagrad(table.parameters())]
        ... )
        >>> dense(table(torch.tensor([1, 2]))).sum().backward()
        >>> joint.step()
        >>> len(joint.param_groups)
        2
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts look at the groups and states that are kept here."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._share()
