"""The experts TAME switches between: torch modules on mini-batches, or trees on single rows."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.streams.expert_pool import ExpertPool
from moeapps.streams.tame_pruning import prune_and_retrain

TREE_SMOOTHING = 0.02  # a tree that is sure and wrong has a finite loss

Factory = Callable[[int, int], nn.Module]


class Batch(NamedTuple):
    """One mini-batch; trees read ``rows``, modules ``x``."""

    x: Tensor  # [B, ...]
    y: Tensor  # [B]
    w: Tensor  # [B]
    rows: NDArray[np.float64] | None = None  # [B, d], NaN where missing


class Experts(Protocol):
    """What TAME asks of its experts."""

    def __len__(self) -> int: ...

    def add(self, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        """One more, untrained expert."""

    def loss(self, expert: int, batch: Batch) -> float:
        """Mean loss in evaluation mode."""

    def learn(self, expert: int, batch: Batch, seed: int) -> None:
        """One step on the batch."""

    def predict(self, expert: int, batch: Batch) -> Tensor:
        """Class probabilities ``[B, C]``, float64."""

    def widen(self, shape: tuple[int, ...], num_classes: int) -> None:
        """More features or classes."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything the experts learned."""

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from :meth:`state`; as many untrained experts are there already."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator starts at ``seed`` inside and is untouched outside."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


def default_module(num_features: int, num_classes: int) -> nn.Module:
    """An MLP with one hidden layer of 100 units.

    Example:
        >>> default_module(64, 10)(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_features, 100), nn.ReLU(), nn.Linear(100, num_classes)
    )


class TorchExperts:
    """Torch modules, one optimiser each.

    Args:
        factory: ``factory(num_features, num_classes)`` builds a module that gives logits.
        loss_fn: A loss of ``torch.nn.functional`` by name, or a callable with its signature.
        optimizer_fn: ``optimizer_fn(parameters, lr=lr)``; None is SGD as published.
        lr: Learning rate.
        gradient_clip_value: Largest norm of a gradient.
        squash: Pass the outputs through a sigmoid first (published rule).
        device: Where the modules live.

    Example:
        >>> experts = TorchExperts(default_module)
        >>> experts.add((4,), num_classes=2, seed=0)
        >>> batch = Batch(torch.zeros(3, 4), torch.tensor([0, 1, 1]), torch.ones(3))
        >>> experts.learn(0, batch, seed=0)
        >>> experts.predict(0, batch).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        factory: Factory,
        *,
        loss_fn: str | Callable[..., Tensor] = "cross_entropy",
        optimizer_fn: Callable[..., torch.optim.Optimizer] | None = None,
        lr: float = 0.1,
        gradient_clip_value: float | None = None,
        squash: bool = False,
        device: str = "cpu",
    ) -> None:
        self.factory = factory
        self.loss_fn = getattr(F, loss_fn) if isinstance(loss_fn, str) else loss_fn
        self.optimizer_fn = optimizer_fn or published_sgd
        self.lr = lr
        self.gradient_clip_value = gradient_clip_value
        self.squash = squash
        self.device = device
        self.modules: list[nn.Module] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.size: tuple[tuple[int, ...], int] = ((), 0)  # of an input; classes

    def __len__(self) -> int:
        return len(self.modules)

    def __getstate__(self) -> dict[str, Any]:  # arrays: their bytes depend on nothing else
        built = {"modules": len(self), "optimizers": self.state()}
        return self.__dict__ | built

    def __setstate__(self, state: dict[str, Any]) -> None:
        count, arrays = state["modules"], state["optimizers"]
        self.__dict__.update(state | {"modules": [], "optimizers": []})
        for _ in range(count):
            self.add(*self.size, seed=0)
        self.restore(arrays)

    def add(self, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        """One more module."""
        self.size = shape, num_classes
        with seeded(seed):
            module = self.factory(math.prod(shape), num_classes).to(self.device)
        self.modules.append(module)
        self.optimizers.append(self.optimizer_fn(module.parameters(), lr=self.lr))

    def loss(self, expert: int, batch: Batch) -> float:
        """Mean loss in evaluation mode."""
        module = self._evaluating(expert)
        with torch.no_grad():
            return float(self.mean_loss(module, batch))

    def learn(self, expert: int, batch: Batch, seed: int) -> None:
        """One step; left out where it would leave the weights without a number."""
        module, optimizer = self.modules[expert].train(), self.optimizers[expert]
        with seeded(seed):
            loss = self.mean_loss(module, batch)
        optimizer.zero_grad()
        loss.backward()
        limit = math.inf if self.gradient_clip_value is None else self.gradient_clip_value
        if nn.utils.clip_grad_norm_(module.parameters(), limit).isfinite():
            optimizer.step()

    def mean_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Weighted mean of the rows' losses."""
        w = batch.w.to(self.device)
        losses = self.loss_fn(
            self._outputs(module, batch.x), batch.y.to(self.device), reduction="none"
        )
        return (w * losses).sum() / w.sum()

    def predict(self, expert: int, batch: Batch) -> Tensor:
        """Class probabilities; uniform where a diverged module gives no number."""
        module = self._evaluating(expert)
        with torch.no_grad():
            outputs = self._outputs(module, batch.x).double().cpu()
        return torch.nan_to_num(outputs).softmax(1)

    def _evaluating(self, expert: int) -> nn.Module:
        module = self.modules[expert]
        return module.eval() if module.training else module  # walking a module takes time

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        logits = module(x.to(self.device))
        return logits.sigmoid() if self.squash else logits

    def prune(
        self,
        expert: int,
        x: Tensor,
        y: Tensor,
        sparsity: float,
        *,
        epochs: int,
        rng: np.random.Generator,
    ) -> None:
        """Set the smallest weights of an expert to 0 and retrain the others on these rows."""
        module = self.modules[expert]

        def loss(rows: Tensor) -> Tensor:
            return self.mean_loss(module, Batch(x[rows], y[rows], torch.ones(len(rows))))

        with seeded(int(rng.integers(2**62))):
            prune_and_retrain(
                module, loss, len(x),
                sparsity=sparsity, epochs=epochs, lr=0.1, batch_size=128, rng=rng,
            )  # fmt: skip
        self.optimizers[expert] = self.optimizer_fn(module.parameters(), lr=self.lr)

    def widen(self, shape: tuple[int, ...], num_classes: int) -> None:
        """Grow the first and the last linear layer."""
        self.size = shape, num_classes
        width = shape[0] if len(shape) == 1 else None
        for module, optimizer in zip(self.modules, self.optimizers, strict=True):
            widen(module, optimizer, num_features=width, num_outputs=num_classes)

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights and what the optimisers remember."""
        return {
            f"{i}/{name}": array
            for i, pair in enumerate(zip(self.modules, self.optimizers, strict=True))
            for name, array in learner_arrays(*pair).items()
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from :meth:`state`; as many modules are there already."""
        for i, pair in enumerate(zip(self.modules, self.optimizers, strict=True)):
            restore_learner(*pair, below(f"{i}/", arrays))


def below(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under ``prefix``, without it.

    Example:
        >>> below("a/", {"a/x": 1, "b/x": 2})
        {'x': 1}
    """
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def learner_arrays(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, NDArray[Any]]:
    """Weights of a module and the memory of its optimiser."""
    arrays = {f"weights/{k}": v.cpu().numpy().copy() for k, v in module.state_dict().items()}
    for index, memory in optimizer.state_dict()["state"].items():
        for name, value in memory.items():
            if value is not None:
                arrays[f"memory/{index}/{name}"] = torch.as_tensor(value).cpu().numpy().copy()
    return arrays


def restore_learner(
    module: nn.Module, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """The inverse of :func:`learner_arrays`.

    Raises:
        CheckpointError: The arrays are of another module.
    """
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    try:
        module.load_state_dict(below("weights/", tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"The saved weights do not fit the module that was built: {error}. Load with the "
            "module and selector they were saved with."
        ) from error
    memory: dict[int, dict[str, Tensor]] = {}
    for key, value in below("memory/", tensors).items():
        index, name = key.split("/")
        memory.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": memory})


def published_sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 and weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)


def widen(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    num_features: int | None,
    num_outputs: int,
) -> None:
    """Grow the first linear layer to ``num_features`` inputs, the last to ``num_outputs``.

    New weights are 0, so nothing changes for old features, and the optimiser's memory of them too.

    Raises:
        ArgumentError: The module has no linear layer at that end.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
        >>> widen(net, None, num_features=5, num_outputs=6)
        >>> net(torch.zeros(1, 5)).shape
        torch.Size([1, 6])
    """
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ArgumentError(
            f"{type(module).__name__} has no nn.Linear that could grow with new features or "
            "classes. End it with one, or name all classes in the first partial_fit."
        )
    first, last = linear[0], linear[-1]
    if num_features is not None:
        _pad(first.weight, optimizer, columns=num_features - first.in_features)
        first.in_features = num_features
    more = num_outputs - last.out_features
    _pad(last.weight, optimizer, rows=more)
    if last.bias is not None:
        _pad(last.bias, optimizer, rows=more)
    last.out_features = num_outputs


def _pad(
    parameter: Tensor,
    optimizer: torch.optim.Optimizer | None,
    *,
    rows: int = 0,
    columns: int = 0,
) -> None:
    pads = (0, columns, 0, rows) if parameter.ndim == 2 else (0, rows)
    old = parameter.shape
    parameter.data = F.pad(parameter.data, pads)
    parameter.grad = None
    memory = {} if optimizer is None else optimizer.state[parameter]
    for name, value in memory.items():
        if isinstance(value, Tensor) and value.shape == old:
            memory[name] = F.pad(value, pads)


class TreeExperts:
    r"""Trees, or other river classifiers, that learn row by row, with a smoothed log loss.

    .. math:: L = -\ln\big((1 - \alpha)\, p_y + \alpha / C\big), \qquad \alpha = 0.02

    Args:
        make_pool: ``make_pool(num_experts, num_classes)`` makes the pool of classifiers.
    """

    def __init__(self, make_pool: Callable[[int, int], ExpertPool]) -> None:
        self.make_pool = make_pool
        self.pool: ExpertPool | None = None
        self.count = self.num_classes = 0

    def __len__(self) -> int:
        return self.count

    def add(self, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        """One more classifier; the pool has seeds of its own."""
        self.count, self.num_classes = self.count + 1, num_classes
        if self.pool is None:
            self.pool = self.make_pool(self.count, num_classes)
        else:
            self.pool.grow(self.count, num_classes)

    def loss(self, expert: int, batch: Batch) -> float:
        """Mean smoothed log loss."""
        proba, w = self.predict(expert, batch).numpy(), batch.w.numpy()
        p = proba[np.arange(len(proba)), batch.y.numpy()]
        losses = -np.log((1 - TREE_SMOOTHING) * p + TREE_SMOOTHING / self.num_classes)
        return float((w * losses).sum() / w.sum())

    def learn(self, expert: int, batch: Batch, seed: int) -> None:
        """Row after row."""
        assert self.pool is not None
        assert batch.rows is not None
        train = np.zeros((len(batch.rows), self.count), bool)
        train[:, expert] = True
        self.pool.test_then_train(batch.rows, batch.y.numpy(), batch.w.double().numpy(), train)

    def predict(self, expert: int, batch: Batch) -> Tensor:
        """Class probabilities."""
        assert self.pool is not None
        assert batch.rows is not None
        chosen = np.full(len(batch.rows), expert)
        return torch.from_numpy(self.pool.proba(batch.rows, chosen))

    def widen(self, shape: tuple[int, ...], num_classes: int) -> None:
        """More features or classes."""
        self.num_classes = num_classes
        if self.pool is not None:
            self.pool.grow(self.count, num_classes)

    def state(self) -> dict[str, NDArray[Any]]:
        """What the pool learned; river classifiers other than ours refuse."""
        assert self.pool is not None
        return self.pool.state()

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from :meth:`state`."""
        assert self.pool is not None
        self.pool.restore(arrays)
