"""Weights learned as the noise of each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import LossBalancing


class Uncertainty(LossBalancing):
    r"""Homoscedastic uncertainty: each task learns its log variance :math:`c_t`.

    .. math:: \sum_t \frac{L_t}{2 e^{c_t}} + \frac{c_t}{2} \quad \text{(regression)}, \qquad
        \sum_t \frac{L_t}{e^{c_t}} + \frac{c_t}{2} \quad \text{(classification)}

    Args:
        num_tasks: ``T``.
        regression: Per task, whether its loss is a squared error; all classification if None.
        init: Start of :math:`c_t`.

    Raises:
        ArgumentError: ``regression`` has another length.

    Notes:
        none

    References:
        Kendall et al., *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
        and Semantics*, CVPR 2018.

    Example:
        >>> total, weights = Uncertainty(2, regression=[True, False]).total(torch.ones(2))
        >>> weights
        tensor([0.5000, 1.0000])
    """

    factor: Tensor

    def __init__(
        self, num_tasks: int, *, regression: Sequence[bool] | None = None, init: float = 0.0
    ) -> None:
        super().__init__(num_tasks)
        flags = [False] * num_tasks if regression is None else list(regression)
        if len(flags) != num_tasks:
            raise ArgumentError(
                f"regression={flags} does not fit {num_tasks} tasks. Expected one value per task."
            )
        self.log_variance = nn.Parameter(torch.full((num_tasks,), float(init)))
        factor = torch.tensor([0.5 if flag else 1.0 for flag in flags])
        self.register_buffer("factor", factor, persistent=False)

    def weigh(self, losses: Tensor) -> Tensor:
        """The precisions, with gradient to the log variances."""
        return self.factor * torch.exp(-self.log_variance)

    def total(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum and the price of a large variance."""
        total, weights = super().total(losses)
        return total + self.log_variance.sum() / 2, weights.detach()
