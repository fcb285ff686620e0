"""Weights and multiply-adds of a network, counted while it runs."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def count_weights(module: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of all convolutions and linear layers in one call, for the whole batch.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
        18
    """
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        places = output.numel()
        if isinstance(layer, nn.Linear):
            total += places * layer.in_features
        else:  # [out, in / groups, *kernel]
            total += places * math.prod(weight.shape[1:])

    counted = (nn.Linear, nn.Conv1d, nn.Conv2d)
    handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, counted)]
    training = module.training
    try:
        module.eval()(*inputs)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return total
