"""Balance without a loss: a bias that steers the choice of experts and not their weights."""

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating.routing import Routing


class BalanceBias(nn.Module):
    r"""A bias per expert that grows while the expert is under-used.

    Once per optimiser step, from the assignments :math:`n_e` seen since the last one,

    .. math::
        \delta_e = u\,\mathrm{sign}(\bar n - n_e), \qquad
        b_e \leftarrow b_e + \delta_e - \bar\delta

    The gate adds :math:`b` to its scores when it chooses and leaves it out of the weights.

    Args:
        num_experts: ``E``.
        rate: ``u``. For softmax scores over many experts scale it by ``1 / E``.

    Raises:
        ArgumentError: For a rate that is not positive.

    Notes:
        Departures from the paper: the mean step is taken off, so that the biases keep mean 0.
        Counts only in training, and not while activation checkpointing recomputes a forward pass.

    References:
        Wang et al., *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*, 2024.

    Example:
        >>> balance = BalanceBias(2)
        >>> balance.seen += torch.tensor([3, 1])
        >>> step(balance)
        >>> balance.bias
        tensor([-0.0010,  0.0010])
    """

    bias: Tensor
    seen: Tensor

    def __init__(self, num_experts: int, rate: float = 1e-3) -> None:
        super().__init__()
        if not rate > 0:
            raise ArgumentError(f"rate={rate} would never balance. Choose a positive rate.")
        self.rate = rate
        self.register_buffer("bias", torch.zeros(num_experts))
        seen = torch.zeros(num_experts, dtype=torch.int64)
        self.register_buffer("seen", seen, persistent=False)

    def observe(self, routing: Routing) -> None:
        """Count the assignments of a training forward pass; otherwise do nothing."""
        if self.training and not recomputing():
            self.seen += routing.counts()

    @torch.no_grad()
    def update(self, seen: Tensor) -> None:
        """Move the bias by assignments ``[E]`` and start counting anew."""
        under_used = seen.sum() - seen.numel() * seen  # mean - seen, exact in integers
        delta = self.rate * under_used.sign().to(self.bias.dtype)
        self.bias += delta - delta.mean()
        self.seen.zero_()


def step(model: nn.Module) -> None:
    """Update every :class:`BalanceBias` of a model that is in training mode.

    Call it once per optimiser step, before the step. Under ``torch.distributed`` the assignments of
    all ranks count, so every rank must call it.

    Args:
        model: Any module.

    Example:
        >>> step(nn.Sequential(BalanceBias(4)))
    """
    biases = [m for m in model.modules() if isinstance(m, BalanceBias) and m.training]
    if not biases:
        return
    seen = torch.cat([balance.seen for balance in biases])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(seen)
    parts = seen.split([balance.seen.numel() for balance in biases])
    for balance, part in zip(biases, parts, strict=True):
        balance.update(part)


def recomputing() -> bool:
    """Whether a backward pass is running, so that a forward pass now is a recomputation.

    Tracing has no backward pass and cannot follow the question, so there the answer is no.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
