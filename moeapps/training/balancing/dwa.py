"""Weights from how fast the losses fall."""

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import LossBalancing


class DWA(LossBalancing):
    r"""Dynamic weight average: tasks whose loss falls slowly get more weight.

    .. math:: w_t = T\, \mathrm{softmax}_t\big((\bar L_t^{e-1} / \bar L_t^{e-2}) / \tau\big)

    with :math:`\bar L_t^e` the mean loss of epoch :math:`e`. The first two epochs weigh all tasks
    alike.

    Args:
        num_tasks: ``T``.
        temperature: :math:`\tau`; large values even the weights out.
        period: Steps that stand for an epoch, for training in one pass; None for real epochs.

    Raises:
        ArgumentError: The temperature or the period is not positive.

    Notes:
        ``period`` is ours.

    References:
        Liu et al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019.

    Example:
        >>> dwa = DWA(2, period=1)
        >>> for losses in ([1.0, 1.0], [0.5, 1.0], [0.5, 1.0]):
        ...     weights = dwa.weigh(torch.tensor(losses))
        >>> weights
        tensor([0.8756, 1.1244])
    """

    step: Tensor
    sums: Tensor
    means: Tensor

    def __init__(
        self, num_tasks: int, *, temperature: float = 2.0, period: int | None = None
    ) -> None:
        super().__init__(num_tasks)
        if temperature <= 0 or (period is not None and period < 1):
            raise ArgumentError(
                f"temperature={temperature}, period={period}. Expected a positive temperature and "
                "a period of 1 or more steps."
            )
        self.temperature = temperature
        self.period = period
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(num_tasks))
        # Mean losses of the epoch before the last and of the last one.
        self.register_buffer("means", torch.full((2, num_tasks), float("nan")))

    def weigh(self, losses: Tensor) -> Tensor:
        """The weights of this epoch; the losses join its mean."""
        if self.period is not None and int(self.step) == self.period:
            self.end_epoch()
        self.sums += losses
        self.step += 1
        before, last = self.means
        ratio = last / before
        if not bool(ratio.isfinite().all()):  # fewer than two epochs, or a loss that was 0
            return torch.ones_like(losses)
        return self.num_tasks * torch.softmax(ratio / self.temperature, 0).to(losses.dtype)

    def end_epoch(self) -> None:
        """Start a new mean."""
        if int(self.step):
            self.means = torch.stack([self.means[1], self.sums / self.step])
            self.sums.zero_()
            self.step.zero_()
