"""Fixed weights that may fade."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import LossBalancing


class Static(LossBalancing):
    r"""Weights that are given, each with its own rate of change per step.

    .. math:: L = \sum_t \omega_t\, \gamma_t^s\, L_t

    Args:
        num_tasks: ``T``.
        weights: :math:`\omega_t`; ones if None.
        decay: :math:`\gamma_t`; ones if None.

    Raises:
        ArgumentError: There is not one value per task, or a weight is negative.

    Notes:
        none

    References:
        Tang et al., *Progressive Layered Extraction (PLE)*, RecSys 2020.

    Example:
        >>> static = Static(2, weights=[1.0, 0.5], decay=[1.0, 0.9])
        >>> losses = torch.tensor([1.0, 1.0])
        >>> static.weigh(losses), static.weigh(losses)
        (tensor([1.0000, 0.5000]), tensor([1.0000, 0.4500]))
    """

    weights: Tensor
    decay: Tensor
    step: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        weights: Sequence[float] | None = None,
        decay: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_tasks)
        for name, given in (("weights", weights), ("decay", decay)):
            values = [1.0] * num_tasks if given is None else [float(value) for value in given]
            if len(values) != num_tasks or min(values) < 0:
                raise ArgumentError(
                    f"{name}={values} do not fit. Expected {num_tasks} values of 0 or more, one "
                    "per task."
                )
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor) -> Tensor:
        """The weights of this step."""
        weights = self.weights * self.decay**self.step
        self.step += 1
        return weights.to(losses.dtype)
