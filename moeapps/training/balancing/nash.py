"""The bargaining solution of the tasks."""

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import GradientBalancing


class NashMTL(GradientBalancing):
    r"""Nash bargaining: the step on which no task can win more, in parts, than another loses.

    .. math:: d = \sum_t w_t g_t, \qquad G w = 1 / w, \quad w > 0, \quad G_{st} = g_s^\top g_t

    Equivalently :math:`w` minimises :math:`\tfrac12 w^\top G w - \sum_t \log w_t`, a convex
    function, here by Newton steps. A step longer than ``max_norm`` is shortened.

    Args:
        num_tasks: ``T``.
        max_norm: Largest length of the step.

    Raises:
        ArgumentError: ``max_norm`` is not positive.

    Notes:
        The paper solves a sequence of convex programs; the minimum is the same.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022.
        https://arxiv.org/abs/2202.01017

    Example:
        >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
        >>> NashMTL(2, max_norm=10).weigh(gradients @ gradients.T, torch.ones(2))
        tensor([0.5000, 2.0000])
    """

    def __init__(self, num_tasks: int, *, max_norm: float = 1.0) -> None:
        super().__init__(num_tasks)
        if max_norm <= 0:
            raise ArgumentError(f"max_norm={max_norm} is not positive.")
        self.max_norm = max_norm

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The solution, shortened."""
        inner = gram.detach().cpu().double()
        norms = inner.diagonal().sqrt()
        active = norms > 1e-12 * norms.max()
        weights = torch.zeros_like(norms)
        if bool(active.any()):
            n = norms[active]
            weights[active] = _bargain(inner[active][:, active] / n.outer(n)) / n
        length = (weights @ inner @ weights).clamp_min(0).sqrt()
        weights = weights * (self.max_norm / length).clamp_max(1.0) if float(length) else weights
        return weights.to(gram.device, gram.dtype)


def _bargain(inner: Tensor) -> Tensor:
    r"""Solve :math:`G w = 1 / w` for unit gradients by damped Newton steps on a convex function."""
    # Opposite gradients make G singular and w unbounded; a trace of the identity bounds it.
    g = inner + 1e-6 * torch.eye(len(inner), dtype=inner.dtype)
    w = 1 / g.diagonal().sqrt()
    for _ in range(100):
        slope = g @ w - 1 / w
        step = torch.linalg.solve(g + torch.diag(w**-2), slope)
        decrement = float((slope @ step).clamp_min(0).sqrt())
        # The function is self-concordant: this damping always descends and keeps w positive.
        w = w - step / (1 + decrement)
        if decrement < 1e-10:
            break
    return w
