"""TAME and a single network on MNIST, in tasks that nobody announces.

    MOEAPPS_DATA=... python examples/streams_tame_mnist.py --kind permuted --tasks 3 --rows 10000

Reads MNIST/raw/*-ubyte in the data home; half a minute on a CPU as it stands. The paper has 20
permuted tasks, or "split": 5 tasks of two digits; 60,000 rows and 10 epochs. No score knows a task.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from moeapps.data import data_home
from moeapps.streams import TAME


def lenet(num_features: int, num_classes: int) -> nn.Module:
    """The paper's small LeNet for 32 x 32 images."""
    lower = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    upper = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*lower, nn.MaxPool2d(2), nn.Flatten(), *upper, nn.Linear(84, num_classes))


def task(kind: str, number: int, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 32, 32]`` and labels of one task."""
    raw = data_home() / "MNIST" / "raw"
    x = np.fromfile(raw / f"{part}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)[:rows] / 255
    y = np.fromfile(raw / f"{part}-labels-idx1-ubyte", np.uint8)[8:][:rows].astype(int)
    if kind == "permuted":
        x = x[:, np.random.default_rng(number).permutation(784)]
    else:
        x, y = x[y // 2 == number], y[y // 2 == number] % 2
    image = torch.tensor(x, dtype=torch.float32).view(-1, 1, 28, 28)
    return nn.functional.pad(image, (2, 2, 2, 2)), torch.tensor(y)


def main(kind: str = "permuted", tasks: int = 2, epochs: int = 3, rows: int = 6000) -> dict:
    """Mean accuracy over the tasks after the last one, for several experts and for one."""
    length = epochs * rows // (128 if kind == "permuted" else 640)  # mini-batches of a task
    options = {"window": min(100, length // 3), "optimizer_fn": torch.optim.Adam, "lr": 2e-3}
    results: dict[str, float] = {}
    for name, limit in (("TAME", None), ("one network", 1)):
        model, rng = TAME(lenet, max_experts=limit, seed=0, **options), np.random.default_rng(0)
        for number in range(tasks):
            x, y = task(kind, number, "train", rows)
            order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)])
            for batch in torch.from_numpy(order).split(128):
                model.learn_batch(x[batch], y[batch])
        model.consolidate(expert_sparsity=0, selector_sparsity=0, epochs=5)  # only the selector
        tests = (task(kind, number, "t10k", 10_000) for number in range(tasks))
        right = [round(float((model.predict(x) == y.numpy()).mean()), 4) for x, y in tests]
        results[name] = float(np.mean(right))
        print(f"{name}: {results[name]:.4f} with {model.statistics()['living']} experts, {right}")
    return results


if __name__ == "__main__":
    auto_cli(main)
