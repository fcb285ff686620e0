"""Gradient surgery by pairwise projection."""

import torch
from torch import Tensor

from moeapps.training.balancing.base import GradientBalancing


class PCGrad(GradientBalancing):
    r"""Projecting conflicting gradients: each task gives up what hurts another one.

    For each task :math:`t`, for the other tasks :math:`j` in random order,

    .. math:: \tilde g_t \leftarrow
        \tilde g_t - \frac{\min(\tilde g_t^\top g_j, 0)}{\|g_j\|^2}\, g_j

    from :math:`\tilde g_t = g_t`; the step is :math:`\sum_t \tilde g_t`.

    Args:
        num_tasks: ``T``.
        seed: Of the random orders.

    Notes:
        none. The projections are done on the inner products, which is the same.

    References:
        Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020.
        https://arxiv.org/abs/2001.06782

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> PCGrad(2).weigh(gradients @ gradients.T, torch.ones(2))
        tensor([2.0000, 1.5000])
    """

    step: Tensor

    def __init__(self, num_tasks: int, *, seed: int = 0) -> None:
        super().__init__(num_tasks)
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """How often each gradient is in the sum after all projections."""
        # Drawn from the step's number: a resumed run draws what the interrupted one would have.
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * int(self.step))
        self.step += 1
        inner = gram.cpu()
        parts = torch.eye(self.num_tasks, dtype=gram.dtype)  # each new gradient, in the old ones
        for t in range(self.num_tasks):
            for j in torch.randperm(self.num_tasks, generator=generator).tolist():
                conflict = parts[t] @ inner[j]
                if j != t and conflict < 0:
                    parts[t, j] -= conflict / inner[j, j]
        return parts.sum(0).to(gram.device)
