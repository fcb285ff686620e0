"""Pruning with retraining, for the experts and the selector of TAME."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def prune_and_retrain(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    num_rows: int,
    *,
    sparsity: float,
    epochs: int,
    lr: float,
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    """Set the smallest weights to 0, over all layers together, and retrain the others.

    Args:
        module: Changed in place; its parameters are new objects afterwards.
        loss: Mean loss of the rows with these numbers, with the module as it is.
        num_rows: Rows to retrain on.
        sparsity: Share of weights that become 0; biases stay.
        epochs: Of retraining.
        lr: Learning rate of SGD, momentum 0.9, weight decay 1e-4.
        batch_size: Rows per step.
        rng: Order of the rows.

    Example:
        >>> net = nn.Linear(10, 1)
        >>> x, rng = torch.randn(64, 10), np.random.default_rng(0)
        >>> loss = lambda rows: (net(x[rows]) - x[rows, :1]).square().mean()
        >>> prune_and_retrain(
        ...     net, loss, 64, sparsity=0.5, epochs=20, lr=0.1, batch_size=32, rng=rng
        ... )
        >>> int((net.weight == 0).sum())
        5
    """
    weights = [
        (part, "weight")
        for part in module.modules()
        if isinstance(weight := getattr(part, "weight", None), nn.Parameter) and weight.ndim > 1
    ]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=sparsity)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    module.train()
    for _ in range(epochs):
        for rows in torch.from_numpy(rng.permutation(num_rows)).split(batch_size):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
    for part, name in weights:
        prune.remove(part, name)
