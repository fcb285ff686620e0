"""Equal speed of all tasks without a gradient per task."""

import torch
from torch import Tensor

from moeapps.training.balancing.base import LossBalancing, mean_over_processes

_TINY = 1e-8


class FAMO(LossBalancing):
    r"""Fast adaptive multitask optimisation: all log losses should fall at the same rate.

    .. math:: w_t = \frac{z_t / L_t}{\sum_s z_s / L_s}, \quad z = \mathrm{softmax}(\xi), \qquad
        \xi \leftarrow \xi - \beta \big( J^\top \delta + \lambda \xi \big), \quad
        \delta_t = \log L_t - \log L_t'

    :math:`L'` are the losses of the same batch after the step, :math:`J` the Jacobian of the
    softmax; a task whose loss fell less gets more weight.

    Args:
        num_tasks: ``T``.
        lr: :math:`\beta`, of an Adam update.
        decay: :math:`\lambda`.

    Notes:
        The losses after the step cost one more forward pass, which also moves the running
        statistics of batch normalisation once more.

    References:
        Liu et al., *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023.

    Example:
        >>> famo = FAMO(2, lr=0.1)
        >>> famo.weigh(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 0.5000])
        >>> famo.after_step(torch.tensor([0.5, 1.0]))  # the second task did not improve
        >>> famo.weigh(torch.tensor([1.0, 1.0]))[1] > 0.5
        tensor(True)
    """

    needs_losses_after_step = True
    logits: Tensor
    moments: Tensor
    step: Tensor
    before: Tensor

    def __init__(self, num_tasks: int, *, lr: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__(num_tasks)
        self.lr = lr
        self.decay = decay
        self.register_buffer("logits", torch.zeros(num_tasks))
        self.register_buffer("moments", torch.zeros(2, num_tasks))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("before", torch.ones(num_tasks), persistent=False)

    def weigh(self, losses: Tensor) -> Tensor:
        """Weights that sum to 1."""
        self.before = losses.float().clamp_min(_TINY)
        share = torch.softmax(self.logits, 0) / self.before
        return (share / share.sum()).to(losses.dtype)

    @torch.no_grad()
    def after_step(self, losses: Tensor) -> None:
        """Compare with the losses before the step; one Adam step on the logits."""
        after = mean_over_processes(losses).float().clamp_min(_TINY)
        change = self.before.log() - after.log()
        share = torch.softmax(self.logits, 0)
        gradient = share * (change - share @ change) + self.decay * self.logits
        self.step += 1
        rates = torch.tensor([0.9, 0.999], device=gradient.device)
        powers = torch.stack([gradient, gradient.square()])
        self.moments = torch.lerp(powers, self.moments, rates.unsqueeze(1))
        mean, square = self.moments / (1 - rates**self.step).unsqueeze(1)
        self.logits -= self.lr * mean / (square.sqrt() + _TINY)
