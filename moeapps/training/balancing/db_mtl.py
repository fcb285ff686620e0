"""Log losses, and gradients of equal size."""

from torch import Tensor

from moeapps.training.balancing.base import GradientBalancing

_TINY = 1e-12


class DBMTL(GradientBalancing):
    r"""Dual balancing: log losses bring the tasks to one scale, equal norms balance their pull.

    .. math:: d = \max_s \|\tilde g_s\| \sum_t \frac{\tilde g_t}{\|\tilde g_t\|}, \qquad
        \tilde g_t = \nabla \log L_t = g_t / L_t

    Args:
        num_tasks: ``T``.

    Notes:
        Without the paper's moving average of the gradients (its :math:`\beta = 0`), which would
        hold ``T`` copies of the shared parameters.

    References:
        Lin et al., *Dual-Balancing for Multi-Task Learning*, 2023. https://arxiv.org/abs/2308.12029

    Example:
        >>> import torch
        >>> DBMTL(2).weigh(torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 1.0]))
        tensor([2., 1.])
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Weights that give all log losses' gradients the largest norm."""
        losses = losses.to(gram.dtype).clamp_min(_TINY)
        norms = gram.diagonal().sqrt()
        return (norms / losses).max() / norms.clamp_min(_TINY)

    def own_weights(self, losses: Tensor) -> Tensor:
        """Task towers follow the log losses too."""
        return 1 / losses.clamp_min(_TINY)
