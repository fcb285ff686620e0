"""The smooth worst task."""

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import LossBalancing


class STCH(LossBalancing):
    r"""Smooth Tchebycheff scalarisation of the relative losses: mostly the worst task counts.

    .. math:: L = T \mu \log \sum_t \exp\big( \log(L_t / n_t) / \mu \big)

    with :math:`n_t` the mean loss of the first steps, which weigh all tasks alike.

    Args:
        num_tasks: ``T``.
        mu: Smoothness :math:`\mu`; towards 0 only the worst task counts.
        warmup: Steps over which :math:`n_t` is measured.

    Raises:
        ArgumentError: A value is not positive.

    Notes:
        The paper's code measures :math:`n_t` over epochs; here over steps, for training in one
        pass.

    References:
        Lin et al., *Smooth Tchebycheff Scalarization for Multi-Objective Optimization*, ICML 2024.

    Example:
        >>> stch = STCH(2, mu=1.0, warmup=1)
        >>> stch.weigh(torch.tensor([1.0, 2.0]))
        tensor([1., 1.])
        >>> stch.weigh(torch.tensor([1.0, 2.0]))  # equal relative losses: weights 1 / loss
        tensor([1.0000, 0.5000])
    """

    step: Tensor
    start: Tensor

    def __init__(self, num_tasks: int, *, mu: float = 1.0, warmup: int = 100) -> None:
        super().__init__(num_tasks)
        if mu <= 0 or warmup < 1:
            raise ArgumentError(f"mu={mu}, warmup={warmup}. Expected mu > 0 and 1 or more steps.")
        self.mu = mu
        self.warmup = warmup
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("start", torch.zeros(num_tasks))

    def weigh(self, losses: Tensor) -> Tensor:
        """The gradient of the scalarisation with respect to the losses."""
        self.step += 1
        if int(self.step) <= self.warmup:
            self.start += losses / self.warmup
            return torch.ones_like(losses)
        losses = losses.clamp_min(torch.finfo(losses.dtype).tiny)
        worst = torch.softmax((losses / self.start).log() / self.mu, 0)
        return self.num_tasks * worst / losses
