"""Auxiliary gradients of the size of the target's."""

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import GradientBalancing


class MetaBalance(GradientBalancing):
    r"""Scale every auxiliary task's gradient to the target task's, in each shared tensor.

    .. math:: w_t = r\, \frac{m_1}{m_t} + (1 - r), \qquad
        m_t \leftarrow \beta\, m_t + (1 - \beta) \|g_t\|

    with the target as task 1, whose weight is 1.

    Args:
        num_tasks: ``T``.
        target: Number of the target task.
        relax: :math:`r`; 0 changes nothing, 1 makes the norms equal.
        beta: :math:`\beta` of the moving norms.

    Raises:
        ArgumentError: There is no such task.

    Notes:
        Moving norms start at the first step's instead of at 0, which leaves their ratios as they
        are.

    References:
        He et al., *MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient
        Magnitudes of Auxiliary Tasks*, WWW 2022.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 16.0])).unsqueeze(0)  # norms 1 and 4
        >>> MetaBalance(2, relax=1.0).weigh(gram, torch.ones(2))
        tensor([[1.0000, 0.2500]])
    """

    per_tensor = True
    norms: Tensor

    def __init__(
        self, num_tasks: int, *, target: int = 0, relax: float = 0.7, beta: float = 0.9
    ) -> None:
        super().__init__(num_tasks)
        if not 0 <= target < num_tasks:
            raise ArgumentError(
                f"target={target} is not one of {num_tasks} tasks. Choose 0..{num_tasks - 1}."
            )
        self.target = target
        self.relax = relax
        self.beta = beta
        self.register_buffer("norms", torch.zeros(0, num_tasks))

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """One row of weights per shared tensor."""
        now = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        if self.norms.shape != now.shape:
            self.norms = now
        self.norms = torch.lerp(now, self.norms.to(now), self.beta)
        goal = self.norms[:, self.target, None]
        # A tensor that the target or the task never reached has nothing to compare.
        scaled = torch.where((self.norms > 0) & (goal > 0), goal / self.norms, 1.0)
        return self.relax * scaled + (1 - self.relax)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        stored = state_dict.get(prefix + "norms")
        if stored is not None:  # the number of shared tensors is known from the first step on
            self.norms = torch.zeros_like(stored)
        super()._load_from_state_dict(state_dict, prefix, *args)
