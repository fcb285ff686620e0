"""The experts TAME switches between: torch modules on mini-batches, or trees on single rows."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, CheckpointError

TREE_SMOOTHING = 0.02  # a tree that is sure and wrong has a finite loss

Factory = Callable[[int, int], nn.Module]


class Batch(NamedTuple):
    """One mini-batch; trees read ``rows``, modules ``x``."""

    x: Tensor  # [B, ...]
    y: Tensor  # [B]
    w: Tensor  # [B]
    rows: NDArray[np.float64] | None = None  # [B, d], NaN where missing


class ExpertPool(Protocol):
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

    def widen(self, width: int | None, num_classes: int) -> None:
        """More features or classes."""

    def state(self) -> dict[str, NDArray[Any]]: ...
    def restore(
        self,
        arrays: dict[str, NDArray[Any]],
        count: int,
        shape: tuple[int, ...],
        num_classes: int,
    ) -> None: ...


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

    def __len__(self) -> int:
        return len(self.modules)

    def add(self, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        """One more module."""
        with seeded(seed):
            module = self.factory(math.prod(shape), num_classes).to(self.device)
        self.modules.append(module)
        self.optimizers.append(self.optimizer_fn(module.parameters(), lr=self.lr))

    def loss(self, expert: int, batch: Batch) -> float:
        """Mean loss in evaluation mode."""
        module = self.modules[expert].eval()
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
        module = self.modules[expert].eval()
        with torch.no_grad():
            outputs = self._outputs(module, batch.x).double().cpu()
        return torch.nan_to_num(outputs).softmax(1)

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        logits = module(x.to(self.device))
        return logits.sigmoid() if self.squash else logits

    def widen(self, width: int | None, num_classes: int) -> None:
        """Grow the first and the last linear layer."""
        for module, optimizer in zip(self.modules, self.optimizers, strict=True):
            widen(module, optimizer, num_features=width, num_outputs=num_classes)

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights and what the optimisers remember."""
        arrays: dict[str, NDArray[Any]] = {}
        for i, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            for name, tensor in module.state_dict().items():
                arrays[f"{i}/weights/{name}"] = tensor.cpu().numpy().copy()
            for index, memory in optimizer.state_dict()["state"].items():
                for name, value in memory.items():
                    if value is not None:
                        arrays[f"{i}/memory/{index}/{name}"] = np.array(
                            torch.as_tensor(value).cpu()
                        )
        return arrays

    def restore(
        self,
        arrays: dict[str, NDArray[Any]],
        count: int,
        shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        """Continue from :meth:`state`."""
        self.modules, self.optimizers = [], []
        for i in range(count):
            self.add(shape, num_classes, seed=0)
            mine = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{i}/")}
            weights = {
                k.removeprefix("weights/"): torch.from_numpy(v.copy())
                for k, v in mine.items()
                if k.startswith("weights/")
            }
            try:
                self.modules[i].load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(
                    f"The saved experts do not fit the module that was built: {error}. Load with "
                    "the same module factory as they were saved with."
                ) from error
            memory: dict[int, dict[str, Tensor]] = {}
            for key, value in mine.items():
                if key.startswith("memory/"):
                    _, index, name = key.split("/")
                    memory.setdefault(int(index), {})[name] = torch.from_numpy(value.copy())
            optimizer = self.optimizers[i]
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
    parameter: nn.Parameter,
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
    r"""river classifiers that learn row by row; the loss is the log loss, smoothed.

    .. math:: L = -\ln\big((1 - \alpha)\, p_y + \alpha / C\big), \qquad \alpha = 0.02

    Args:
        prototype: Cloned for every expert, with seeds ``seed``, ``seed + 1``, ... if it has one.
        num_numeric: Columns before the nominal ones; set again when columns are added.

    Notes:
        Nominal codes are handed on as text, which trees take as nominal.

    Example:
        >>> from river import naive_bayes
        >>> experts = TreeExperts(naive_bayes.GaussianNB(), num_numeric=1)
        >>> experts.add((1,), num_classes=2, seed=0)
        >>> rows = np.zeros((1, 1))
        >>> batch = Batch(torch.zeros(1, 1), torch.tensor([1]), torch.ones(1), rows)
        >>> round(experts.loss(0, batch), 3)
        0.693
    """

    def __init__(self, prototype: Any, *, num_numeric: int = 0) -> None:
        self.prototype = prototype
        self.num_numeric = num_numeric
        self.num_classes = 0
        self.trees: list[Any] = []
        self._takes_weight = "w" in inspect.signature(prototype.learn_one).parameters

    def __len__(self) -> int:
        return len(self.trees)

    def add(self, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        """One more clone."""
        has_seed = "seed" in self.prototype._get_params()
        self.trees.append(self.prototype.clone({"seed": seed} if has_seed else None))
        self.num_classes = num_classes

    def loss(self, expert: int, batch: Batch) -> float:
        """Mean smoothed log loss."""
        p = self.predict(expert, batch).gather(1, batch.y[:, None]).squeeze(1)
        losses = -((1 - TREE_SMOOTHING) * p + TREE_SMOOTHING / self.num_classes).log()
        return float((batch.w * losses).sum() / batch.w.sum())

    def learn(self, expert: int, batch: Batch, seed: int) -> None:
        """Row after row."""
        assert batch.rows is not None
        for row, y, w in zip(batch.rows, batch.y.tolist(), batch.w.tolist(), strict=True):
            if self._takes_weight:
                self.trees[expert].learn_one(self._features(row), y, w=w)
            elif w == 1:
                self.trees[expert].learn_one(self._features(row), y)
            else:
                raise ArgumentError(
                    f"{type(self.prototype).__name__}.learn_one takes no weight, but one row has "
                    f"weight {w}. Leave sample_weight out or use HoeffdingTree."
                )

    def predict(self, expert: int, batch: Batch) -> Tensor:
        """Class probabilities; uniform while the tree knows no class."""
        assert batch.rows is not None
        proba = torch.zeros(len(batch.rows), self.num_classes, dtype=torch.float64)
        for i, row in enumerate(batch.rows):
            for label, p in self.trees[expert].predict_proba_one(self._features(row)).items():
                proba[i, label] = p
        total = proba.sum(1, keepdim=True)
        return torch.where(total > 0, proba / total, 1 / self.num_classes)

    def _features(self, row: NDArray[np.float64]) -> dict[str, float | str]:
        known = [(j, value) for j, value in enumerate(row.tolist()) if not math.isnan(value)]
        numeric = self.num_numeric
        return {
            f"x{j}" if j < numeric else f"v{j - numeric}": value if j < numeric else f"{value:g}"
            for j, value in known
        }

    def widen(self, width: int | None, num_classes: int) -> None:
        """Trees grow by themselves."""
        self.num_classes = num_classes

    def state(self) -> dict[str, NDArray[Any]]:
        """States of native trees.

        Raises:
            ArgumentError: For other classifiers, which only pickle can save.
        """
        raise ArgumentError(
            f"{type(self.prototype).__name__} experts can only be saved by pickle. Use "
            "pickle.dump(model, file), or HoeffdingTree experts."
        )

    def restore(
        self,
        arrays: dict[str, NDArray[Any]],
        count: int,
        shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        """Continue from :meth:`state`."""
