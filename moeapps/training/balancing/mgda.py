"""The shortest vector between the tasks' gradients."""

from typing import Literal

import torch
from torch import Tensor

from moeapps.errors import UnknownNameError
from moeapps.training.balancing.base import GradientBalancing
from moeapps.training.balancing.simplex import minimise_on_simplex

_NORMALIZE = ("none", "l2", "loss", "loss+")


class MGDA(GradientBalancing):
    r"""Multiple gradient descent: the convex combination of gradients with the least norm.

    .. math:: \min_w \Big\| \sum_t w_t\, g_t / n_t \Big\|^2 \quad
        \text{subject to}\quad w \ge 0,\ \sum_t w_t = 1

    The step :math:`\sum_t w_t g_t` makes no task worse.

    Args:
        num_tasks: ``T``.
        normalize: :math:`n_t`: 1 (``"none"``), :math:`\|g_t\|` (``"l2"``), :math:`L_t` (``"loss"``)
            or :math:`L_t \|g_t\|` (``"loss+"``).

    Raises:
        UnknownNameError: With the closest names.

    Notes:
        Solved exactly by an active set instead of by Frank-Wolfe steps.

    References:
        Désidéri, *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*,
        Comptes Rendus Mathématique 2012; Sener & Koltun, *Multi-Task Learning as Multi-Objective
        Optimization*, NeurIPS 2018. https://arxiv.org/abs/1810.04650

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> MGDA(2).weigh(gradients @ gradients.T, torch.ones(2))
        tensor([0.8000, 0.2000])
    """

    def __init__(
        self, num_tasks: int, *, normalize: Literal["none", "l2", "loss", "loss+"] = "none"
    ) -> None:
        super().__init__(num_tasks)
        if normalize not in _NORMALIZE:
            raise UnknownNameError("normalization of gradients", normalize, _NORMALIZE)
        self.normalize = normalize

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The convex combination."""
        scale = losses.to(gram.dtype) if "loss" in self.normalize else gram.new_ones(len(gram))
        if self.normalize in ("l2", "loss+"):
            scale = scale * gram.diagonal().sqrt()
        scale = scale.clamp_min(1e-12)
        weights = minimise_on_simplex((gram / scale.outer(scale)).double().cpu().numpy())
        return torch.from_numpy(weights).to(gram)
