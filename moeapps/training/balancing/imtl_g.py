"""The step that is equally far along every task's gradient."""

import torch
from torch import Tensor

from moeapps.training.balancing.base import GradientBalancing


class IMTLG(GradientBalancing):
    r"""Impartial multi-task learning: equal projections on the unit gradients.

    .. math:: g = \sum_t w_t g_t, \quad \sum_t w_t = 1, \quad
        g^\top u_1 = \dots = g^\top u_T, \qquad u_t = g_t / \|g_t\|

    In closed form :math:`w \propto G^{+} n` with :math:`G_{st} = g_s^\top g_t` and
    :math:`n_t = \|g_t\|`. Weights may be negative.

    Args:
        num_tasks: ``T``.

    Notes:
        none. Tasks without gradient get no weight.

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021.

    Example:
        >>> gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> IMTLG(2).weigh(gradients @ gradients.T, torch.ones(2))
        tensor([0.2500, 0.7500])
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The closed form."""
        inner = gram.detach().cpu().double()
        norms = inner.diagonal().sqrt()
        # On unit gradients, so that tasks with small gradients are not lost to rounding.
        scale = torch.where(norms > 0, norms, 1.0)
        unit = inner / scale.outer(scale)
        direction = torch.linalg.pinv(unit, hermitian=True, rtol=1e-10) @ (norms > 0).double()
        weights = torch.where(norms > 0, direction / scale, 0.0)
        total = weights.sum()
        # Weights that cancel out cannot be scaled to sum to 1: stand still.
        cancels = float(total.abs()) <= 1e-12 * float(weights.abs().sum())
        weights = torch.zeros_like(weights) if cancels else weights / total
        return weights.to(gram.device, gram.dtype)
