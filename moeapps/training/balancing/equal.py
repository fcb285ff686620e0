"""All tasks alike."""

import torch
from torch import Tensor

from moeapps.training.balancing.base import LossBalancing


class Equal(LossBalancing):
    r"""The plain sum :math:`\sum_t L_t`.

    Args:
        num_tasks: ``T``.

    Notes:
        none

    Example:
        >>> Equal(2).total(torch.tensor([1.0, 3.0]))[0]
        tensor(4.)
    """

    def weigh(self, losses: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(losses)
