"""Weights under which all tasks' gradients have a norm that fits their training speed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import Balancing, mean_over_processes, task_norms


class GradNorm(Balancing):
    r"""Learn the weights so that slow tasks get large gradients.

    .. math:: w = T\, \mathrm{softmax}(c), \qquad
        \min_c \sum_t \big| \|\nabla_\theta\, w_t L_t\| - \mathrm{stop}(\bar G\, r_t^\alpha) \big|,
        \qquad r_t = \frac{L_t / L_t^0}{\mathrm{mean}_s\, L_s / L_s^0}

    with :math:`\bar G` the mean norm over the tasks and :math:`L^0` the losses of the first step.
    The network follows :math:`\sum_t w_t L_t`.

    Args:
        num_tasks: ``T``.
        alpha: Strength :math:`\alpha` of the pull towards equal training speed.

    Raises:
        ArgumentError: ``alpha`` is negative.

    Notes:
        :math:`\theta` are the tensors passed as ``shared``: the last layer that tasks share is
        enough. The softmax replaces the paper's renormalisation of the weights after each step.

    References:
        Chen et al., *GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
        Networks*, ICML 2018. https://arxiv.org/abs/1711.02257

    Example:
        >>> w = nn.Parameter(torch.ones(1))
        >>> balancing = GradNorm(2)
        >>> balancing.backward(torch.stack([3 * w.sum(), w.sum()]), [w])
        tensor([1., 1.])
        >>> balancing.logits.grad  # the first task's gradient is too large: its weight must fall
        tensor([ 2., -2.])
    """

    needs_gradients = True
    start: Tensor

    def __init__(self, num_tasks: int, *, alpha: float = 1.5) -> None:
        super().__init__(num_tasks)
        if alpha < 0:
            raise ArgumentError(f"alpha={alpha} is negative. Expected 0 or more.")
        self.alpha = alpha
        self.logits = nn.Parameter(torch.zeros(num_tasks))
        self.register_buffer("start", torch.full((num_tasks,), float("nan")))

    def backward(
        self,
        losses: Tensor,
        shared: Sequence[Tensor] = (),
        *,
        representation: Tensor | None = None,
    ) -> Tensor:
        """Gradients of the weighted sum, and of the weights' own objective."""
        self.check(losses)
        norms = task_norms(losses, shared, representation)
        values = mean_over_processes(losses.detach())
        if not bool(self.start.isfinite().all()):
            self.start = values.clone()
        weights = self.num_tasks * torch.softmax(self.logits, 0)
        speed = values / self.start.clamp_min(torch.finfo(values.dtype).tiny)
        target = (weights * norms).mean() * (speed / speed.mean()) ** self.alpha
        (weights * norms - target.detach()).abs().sum().backward()
        used = weights.detach()
        (used.to(losses.dtype) @ losses).backward()
        return used
