"""What the published schedules have in common, as arguments of ``LongTailClassifier``."""

from typing import Any

SGD: dict[str, Any] = {"momentum": 0.9, "nesterov": True}
"""The optimiser of all of them."""

CIFAR: dict[str, Any] = SGD | {
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "milestones": [160, 180],
    "gamma": 0.1,
    "warmup_epochs": 5,
}
"""Of the small networks on CIFAR-10-LT and CIFAR-100-LT."""
