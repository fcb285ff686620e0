"""Normalisation of stacked experts: one operation for all of them."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels.select import is_traced


class StackedNorm(nn.Module):
    r"""Normalisation of every expert by itself.

    .. math:: \hat h = \gamma \frac{h - \mu}{\sqrt{s^2 + \epsilon}} + \beta

    ``"batch"``: statistics of each unit over the batch, one normalisation over ``E * D`` channels,
    identical to one ``nn.BatchNorm1d`` per expert. ``"layer"``: statistics of each row and expert.

    Args:
        kind: ``"batch"`` or ``"layer"``.
        num_experts: ``E``.
        width: ``D``.
        sync: Batch statistics over the rows of all processes, so that distributed training equals
            training on one process.

    Shape:
        - ``[B, E * D] -> [B, E * D]``

    Raises:
        ArgumentError: A batch of one row in training, whose variance is zero.

    Example:
        >>> StackedNorm("batch", 3, 4)(torch.randn(8, 12)).shape
        torch.Size([8, 12])
    """

    running_mean: Tensor
    running_var: Tensor
    momentum = 0.1
    eps = 1e-5

    def __init__(self, kind: str, num_experts: int, width: int, *, sync: bool = False) -> None:
        super().__init__()
        if kind not in ("batch", "layer"):
            raise UnknownNameError("normalisation", kind, ("batch", "layer"))
        self.kind, self.sync = kind, sync
        self.weight = nn.Parameter(torch.ones(num_experts, width))
        self.bias = nn.Parameter(torch.zeros(num_experts, width))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(num_experts, width))
            self.register_buffer("running_var", torch.ones(num_experts, width))

    def forward(self, h: Tensor) -> Tensor:
        """All experts at once."""
        if self.kind == "layer":
            return self._layer(h.unflatten(1, self.weight.shape), self.weight, self.bias).flatten(1)
        state = (self.running_mean, self.running_var, self.weight, self.bias)
        return self._batch(h, *(tensor.flatten() for tensor in state))

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        """One callable per expert, ``[B, D] -> [B, D]``."""
        if self.kind == "layer":
            affine = zip(self.weight.unbind(0), self.bias.unbind(0), strict=True)
            return [partial(self._layer, weight=w, bias=b) for w, b in affine]
        state = (self.running_mean, self.running_var, self.weight, self.bias)
        parts = zip(*(tensor.unbind(0) for tensor in state), strict=True)
        return [
            partial(self._batch, mean=mean, var=var, weight=w, bias=b) for mean, var, w, b in parts
        ]

    def to_modules(self) -> list[nn.Module]:
        """Separate normalisations with copies of the state, one per expert."""
        kind = nn.BatchNorm1d if self.kind == "batch" else nn.LayerNorm
        modules: list[nn.Module] = []
        for e in range(self.weight.shape[0]):
            module = kind(self.weight.shape[1], eps=self.eps).to(self.weight)
            state = {name: tensor[e] for name, tensor in self.state_dict().items()}
            module.load_state_dict(state, strict=False)  # the count of batches is not kept
            modules.append(module)
        return modules

    @torch.no_grad()
    def load_modules(self, modules: Sequence[nn.Module]) -> None:
        """Copy one separate normalisation into each expert."""
        for e, module in enumerate(modules):
            for name, tensor in self.state_dict().items():
                tensor[e].copy_(getattr(module, name))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The affine map that batch normalisation is in evaluation mode, ``[E, D]`` each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def _batch(self, h: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.training and self.sync and _in_processes():
            return self._synchronized(h, mean, var, weight, bias)
        if self.training and not is_traced() and h.shape[0] == 1:
            raise ArgumentError(
                "Batch normalisation got a batch of one row in training, whose variance is zero. "
                "Expected two rows or more: use drop_last=True in the loader, or norm='layer'."
            )
        return F.batch_norm(h, mean, var, weight, bias, self.training, self.momentum, self.eps)

    def _synchronized(
        self, h: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        count = h.new_full(h.shape[1:], len(h))
        total, rows = all_reduce(torch.stack([h.sum(0), count])).unbind(0)
        batch_mean = total / rows
        h = h - batch_mean
        batch_var = all_reduce(h.square().sum(0)) / rows
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum)
            var.lerp_(batch_var * rows / (rows - 1).clamp_min(1), self.momentum)
        return torch.addcmul(bias, h, (batch_var + self.eps).rsqrt() * weight)

    def _layer(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addcmul(bias, F.layer_norm(h, h.shape[-1:], eps=self.eps), weight)


def _in_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
