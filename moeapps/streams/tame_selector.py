"""TAME's memory of who learned what, and the selector trained on it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps import gating
from moeapps.streams.tame_experts import seeded, widen


class Reservoir:
    """A uniform sample of the rows one expert has learned.

    Every row gets a random priority; the ``size`` highest stay.

    Args:
        size: Most rows kept.

    Notes:
        A row that comes again, in a second epoch, is a new row: a stream has no row numbers.

    References:
        Vitter, *Random Sampling with a Reservoir*, 1985.

    Example:
        >>> reservoir = Reservoir(2)
        >>> reservoir.add(torch.eye(3), torch.arange(3), np.array([0.1, 0.9, 0.5]))
        >>> sorted(reservoir.y.tolist())
        [1, 2]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.x = torch.zeros(0)
        self.y = torch.zeros(0, dtype=torch.long)
        self.priority = np.zeros(0)

    def __len__(self) -> int:
        return len(self.y)

    def add(self, x: Tensor, y: Tensor, priority: NDArray[np.float64]) -> None:
        """Offer rows ``[B, ...]`` with their labels and priorities."""
        room = self.size - len(self)
        if room > 0:
            self.x = torch.cat([self.x, x[:room]]) if len(self) else x[:room].clone()
            self.y = torch.cat([self.y, y[:room]])
            self.priority = np.concatenate([self.priority, priority[:room]])
            x, y, priority = x[room:], y[room:], priority[room:]
        everyone = np.concatenate([self.priority, priority])
        lost = np.argsort(everyone, kind="stable")[: len(priority)]  # as many as came
        freed = lost[lost < len(self)]
        taken = np.setdiff1d(np.arange(len(priority)), lost[lost >= len(self)] - len(self))
        self.x[freed], self.y[freed] = x[taken], y[taken]
        self.priority[freed] = priority[taken]

    def shrink(self, size: int) -> None:
        """Keep only the ``size`` highest priorities, now and later."""
        self.size = size
        keep = np.sort(np.argsort(-self.priority, kind="stable")[:size])
        self.x, self.y, self.priority = self.x[keep], self.y[keep], self.priority[keep]

    def widen(self, width: int) -> None:
        """New features are 0 in old rows."""
        if len(self):
            self.x = F.pad(self.x, (0, width - self.x.shape[1]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Rows, labels and priorities."""
        return {"x": self.x.numpy().copy(), "y": self.y.numpy().copy(), "priority": self.priority}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from :meth:`state`."""
        self.x = torch.from_numpy(state["x"].copy())
        self.y = torch.from_numpy(state["y"].copy())
        self.priority = state["priority"].copy()


class Selector:
    r"""Learns which expert learned a row: :math:`e(x) = \arg\max_e\, z_e(x)`.

    Inputs are centred and scaled by the mean and standard deviation of what it was trained on.

    Args:
        factory: ``factory(num_features, num_experts)`` builds the scores; by default an MLP with
            one hidden layer of 256.
        lr: Learning rate of Adam.
        batch_size: Rows per step.

    Example:
        >>> selector = Selector()
        >>> x = torch.cat([torch.zeros(64, 2), torch.ones(64, 2)])
        >>> expert = torch.arange(2).repeat_interleave(64)
        >>> selector.train(x, expert, num_experts=2, epochs=20, rng=np.random.default_rng(0))
        >>> selector(x[[0, -1]]).tolist()
        [0, 1]
    """

    def __init__(
        self,
        factory: Callable[[int, int], nn.Module] | None = None,
        *,
        lr: float = 1e-3,
        batch_size: int = 128,
    ) -> None:
        self.factory = factory or selector_scores
        self.lr = lr
        self.batch_size = batch_size
        self.gate: gating.Gate | None = None
        self.num_experts = 0
        self.shape: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Expert of each row, ``[B]``."""
        assert self.gate is not None
        self.gate.eval()
        with torch.no_grad():
            indices = self.gate(self._scaled(x)).indices
        return indices[:, 0].clamp_min(0)  # -1 where a score is no number

    def train(
        self, x: Tensor, expert: Tensor, *, num_experts: int, epochs: int, rng: np.random.Generator
    ) -> None:
        """Cross-entropy on rows ``[N, ...]`` and who learned them ``[N]``."""
        self.build(tuple(x.shape[1:]), num_experts, seed=int(rng.integers(2**62)))
        self.mean = x.mean(0)
        self.sd = x.std(0, correction=0)
        self.sd[self.sd == 0] = 1
        optimizer = torch.optim.Adam(self.gate.parameters(), lr=self.lr)
        self.fit(x, expert, optimizer, epochs=epochs, rng=rng)

    def build(self, shape: tuple[int, ...], num_experts: int, *, seed: int) -> None:
        """Make the gate, or widen it to more experts and features."""
        if self.gate is None:
            with seeded(seed):
                scores = self.factory(math.prod(shape), num_experts)
            self.gate = gating.Gate(scores, gating.topk(1))
        elif (num_experts, shape) != (self.num_experts, self.shape):
            width = shape[0] if len(shape) == 1 else None
            widen(self.gate.score, None, num_features=width, num_outputs=num_experts)
        self.num_experts, self.shape = num_experts, shape

    def fit(
        self,
        x: Tensor,
        expert: Tensor,
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        rng: np.random.Generator,
    ) -> None:
        """Epochs of shuffled mini-batches."""
        assert self.gate is not None
        x = self._scaled(x)
        self.gate.train()
        with seeded(int(rng.integers(2**62))):
            for _ in range(epochs):
                for rows in torch.from_numpy(rng.permutation(len(x))).split(self.batch_size):
                    loss = F.cross_entropy(self.gate(x[rows]).logits, expert[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    def _scaled(self, x: Tensor) -> Tensor:
        missing = x.shape[1] - self.mean.shape[0] if x.ndim == 2 else 0
        x = x[:, : self.mean.shape[0]] if missing > 0 else x  # features it has not met yet
        return (x - self.mean) / self.sd

    def widen(self, width: int) -> None:
        """New features reach it with its next training."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights and scaling; nothing before the first training."""
        if self.gate is None:
            return {}
        arrays = {f"weights/{k}": v.numpy().copy() for k, v in self.gate.state_dict().items()}
        return {**arrays, "mean": self.mean.numpy().copy(), "sd": self.sd.numpy().copy()}

    def restore(
        self, state: dict[str, NDArray[Any]], shape: tuple[int, ...], num_experts: int
    ) -> None:
        """Continue from :meth:`state`."""
        if not state:
            return
        self.build(shape, num_experts, seed=0)
        weights = {k: torch.from_numpy(v.copy()) for k, v in state.items() if "/" in k}
        assert self.gate is not None
        self.gate.load_state_dict({k.partition("/")[2]: v for k, v in weights.items()})
        self.mean = torch.from_numpy(state["mean"].copy())
        self.sd = torch.from_numpy(state["sd"].copy())


def selector_scores(num_features: int, num_experts: int) -> nn.Module:
    """An MLP with one hidden layer of 256 on flattened inputs."""
    return nn.Sequential(nn.Flatten(), gating.MLP(num_features, num_experts, 256))
