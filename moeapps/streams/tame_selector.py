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
from moeapps.streams.tame_experts import learner_arrays, restore_learner, seeded, widen
from moeapps.streams.tame_pruning import prune_and_retrain


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
        likely = np.flatnonzero(priority > self.priority.min(initial=1))
        if len(likely) == 0:
            return
        everyone = np.concatenate([self.priority, priority[likely]])
        lost = np.argsort(everyone, kind="stable")[: len(likely)]  # as many as came
        freed = lost[lost < len(self)]
        taken = np.delete(likely, lost[lost >= len(self)] - len(self))
        self.x[freed], self.y[freed] = x[taken], y[taken]
        self.priority[freed] = priority[taken]

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


class SelectorScores(nn.Module):
    """Scores of the experts from inputs that are centred and scaled first.

    Args:
        net: From scaled inputs to scores.
        shape: Of one input.

    Shape:
        - x ``[B, *shape]``; scores ``[B, E]``

    Example:
        >>> SelectorScores(nn.Linear(4, 3), (4,))(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("sd", torch.ones(shape))

    def scale_as(self, x: Tensor) -> None:
        """Take mean and standard deviation of these rows; constant features are only centred."""
        sd, mean = torch.std_mean(x, 0, correction=0)
        self.mean, self.sd = mean, torch.where(sd > 0, sd, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[B, E]``."""
        return self.net((x - self.mean) / self.sd)


def selector_net(num_features: int, num_experts: int) -> nn.Module:
    """An MLP with one hidden layer of 256 on flattened inputs."""
    return nn.Sequential(nn.Flatten(), gating.MLP(num_features, num_experts, 256))


def new_gate(
    shape: tuple[int, ...],
    num_experts: int,
    factory: Callable[[int, int], nn.Module] | None = None,
) -> gating.Gate:
    """A gate that gives every input to one expert.

    Args:
        shape: Of one input.
        num_experts: Experts to choose from.
        factory: ``factory(num_features, num_experts)``; by default :func:`selector_net`.
    """
    net = (factory or selector_net)(math.prod(shape), num_experts)
    return gating.Gate(SelectorScores(net, shape), gating.topk(1))


class Selector:
    r"""Learns which expert learned a row: :math:`e(x) = \arg\max_e\, z_e(x)`.

    Args:
        factory: ``factory(num_features, num_experts)`` builds the scores.
        lr: Learning rate of Adam.
        batch_size: Rows per step.

    Example:
        >>> selector = Selector()
        >>> rows = [torch.zeros(64, 2), torch.ones(64, 2)]
        >>> selector.fit(rows, steps=20, rng=np.random.default_rng(0))
        >>> selector(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist()
        [0, 1]
    """

    def __init__(
        self,
        factory: Callable[[int, int], nn.Module] | None = None,
        *,
        lr: float = 1e-3,
        batch_size: int = 128,
    ) -> None:
        self.factory = factory
        self.lr = lr
        self.batch_size = batch_size
        self.gate: gating.Gate | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.num_experts = 0
        self.shape: tuple[int, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"gate": None, "optimizer": self.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state["optimizer"]
        self.__dict__.update(state | {"optimizer": None})
        self.restore(arrays, self.shape, self.num_experts)

    def __call__(self, x: Tensor) -> Tensor:
        """Expert of each row, ``[B]``."""
        assert self.gate is not None
        if x.ndim == 2:
            x = x[:, : self.shape[0]]  # without the features it has not met yet
        if self.gate.training:
            self.gate.eval()
        with torch.no_grad():
            indices = self.gate(x).indices
        return indices[:, 0].clamp_min(0)  # -1 where no score is a number

    def fit(self, rows: list[Tensor], *, steps: int, rng: np.random.Generator) -> None:
        """Steps on mini-batches in which every expert has the same chance.

        Args:
            rows: Of each expert, ``[N_e, ...]``; at least one has some.
            steps: How many.
            rng: Draws the mini-batches.
        """
        present = [e for e, mine in enumerate(rows) if len(mine)]
        x = torch.cat([rows[e] for e in present])
        self.prepare(tuple(x.shape[1:]), len(rows), seed=int(rng.integers(2**62)))
        assert self.gate is not None
        assert self.optimizer is not None
        self.scores.scale_as(x)
        sizes = np.array([len(rows[e]) for e in present])
        first = np.cumsum(sizes) - sizes
        self.gate.train()
        with seeded(int(rng.integers(2**62))):
            for _ in range(steps):
                who = rng.integers(len(present), size=self.batch_size)
                drawn = first[who] + rng.integers(sizes[who])
                target = torch.tensor(present)[who]
                loss = F.cross_entropy(self.gate(x[drawn]).logits, target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

    def prune(
        self, rows: list[Tensor], sparsity: float, *, epochs: int, rng: np.random.Generator
    ) -> None:
        """Set the smallest weights to 0 and retrain the others on these rows."""
        x = torch.cat([mine for mine in rows if len(mine)])
        target = torch.tensor([e for e, mine in enumerate(rows) for _ in mine])
        gate = self.gate
        assert gate is not None
        with seeded(int(rng.integers(2**62))):
            prune_and_retrain(
                gate, lambda some: F.cross_entropy(gate(x[some]).logits, target[some]), len(x),
                sparsity=sparsity, epochs=epochs, lr=1e-3, batch_size=self.batch_size, rng=rng,
            )  # fmt: skip
        self.optimizer = torch.optim.Adam(gate.parameters(), lr=self.lr)

    @property
    def scores(self) -> SelectorScores:
        """The net behind the gate."""
        assert self.gate is not None
        assert isinstance(self.gate.score, SelectorScores)
        return self.gate.score

    def prepare(self, shape: tuple[int, ...], num_experts: int, *, seed: int = 0) -> None:
        """Make the gate, or widen it to more experts and features."""
        if self.gate is None:
            with seeded(seed):
                self.gate = new_gate(shape, num_experts, self.factory)
            self.optimizer = torch.optim.Adam(self.gate.parameters(), lr=self.lr)
        elif (num_experts, shape) != (self.num_experts, self.shape):
            width = shape[0] if len(shape) == 1 else None
            widen(self.scores.net, self.optimizer, num_features=width, num_outputs=num_experts)
        self.num_experts, self.shape = num_experts, shape

    def replace(self, gate: gating.Gate, shape: tuple[int, ...], num_experts: int) -> None:
        """Take over the weights of another gate; the optimiser starts anew."""
        mine = Selector(self.factory, lr=self.lr, batch_size=self.batch_size)
        mine.restore(
            {f"weights/{k}": v.cpu().numpy() for k, v in gate.state_dict().items()},
            shape,
            num_experts,
        )
        self.__dict__.update(mine.__dict__)

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights, scaling and memory of the optimiser; nothing before the first training."""
        if self.gate is None or self.optimizer is None:
            return {}
        return learner_arrays(self.gate, self.optimizer)

    def restore(
        self, arrays: dict[str, NDArray[Any]], shape: tuple[int, ...], num_experts: int
    ) -> None:
        """Continue from :meth:`state`."""
        if arrays:
            self.prepare(shape, num_experts)
            assert self.gate is not None
            assert self.optimizer is not None
            restore_learner(self.gate, self.optimizer, arrays)
