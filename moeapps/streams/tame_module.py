"""Lightning for streams: train TAME's selector or DriftMoE's router on what a model recorded.

Online, a selector or router sees every row once. On a recorded stream it can be trained by epochs
and chosen on rows it has not seen; then it goes back into the model, which learns on from there.
"""

import copy
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from moeapps import gating
from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.gating.losses import bce_correct
from moeapps.streams import datasets
from moeapps.streams.driftmoe import DriftMoE
from moeapps.streams.router import Layers, standardise_rows
from moeapps.streams.tame import TAME
from moeapps.streams.tame_selector import new_gate
from moeapps.training.base import MoEModule

PERMUTED_DIGITS = "permuted-digits"


class RecordedRows(pl.LightningDataModule):
    """Rows that a model recorded, with a target each: 80 % for training, 10 % each for the rest.

    Args:
        batch_size: Rows of a mini-batch.
        seed: Of the recording, and of the order in training.

    Attributes:
        model: After ``setup``: the model that recorded.
        shape: Of one row.
        num_experts: Experts to choose from.
    """

    model: Any
    shape: tuple[int, ...]
    num_experts: int
    parts: dict[str, TensorDataset]

    def __init__(self, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed

    @abstractmethod
    def record(self) -> tuple[Any, Tensor, Tensor, int]:
        """Model, rows ``[N, ...]`` in the order of the split, targets, number of experts."""

    def setup(self, stage: str | None = None) -> None:
        """Record, once."""
        if hasattr(self, "parts"):
            return
        self.model, x, target, self.num_experts = self.record()
        self.shape = tuple(x.shape[1:])
        ends = [0, int(0.8 * len(x)), int(0.9 * len(x)), len(x)]
        self.parts = {
            name: TensorDataset(x[start:stop], target[start:stop])
            for name, start, stop in zip(("train", "val", "test"), ends, ends[1:], strict=False)
        }

    def _loader(self, part: str, *, shuffle: bool = False) -> DataLoader[Any]:
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        order = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        return DataLoader(
            self.parts[part], self.batch_size, shuffle=shuffle, generator=order if shuffle else None
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test part."""
        return self._loader("test")


class SelectorData(RecordedRows):
    """Rows from the buffers of a TAME, with the expert that learned each.

    Args:
        dataset: ``"permuted-digits"``: tasks are scikit-learn's digits in orders of their pixels.
        file: Instead: a TAME that :meth:`moeapps.streams.TAME.save` wrote.
        num_tasks: Tasks, one after the other.
        epochs: Of each task.
        tame: Arguments of the TAME that learns them.
        batch_size: Rows of a mini-batch.
        seed: Of orders, TAME and split.

    Raises:
        UnknownNameError: For another data set.

    Example:
        >>> data = SelectorData(num_tasks=2, epochs=10, tame={"window": 50})
        >>> data.setup()
        >>> data.shape, data.num_experts
        ((64,), 2)
    """

    def __init__(
        self,
        dataset: str = PERMUTED_DIGITS,
        *,
        file: str | None = None,
        num_tasks: int = 5,
        epochs: int = 15,
        tame: dict[str, Any] | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        if dataset != PERMUTED_DIGITS:
            raise UnknownNameError("dataset", dataset, [PERMUTED_DIGITS])
        self.save_hyperparameters()
        self.dataset = dataset if file is None else "recorded"

    def record(self) -> tuple[TAME, Tensor, Tensor, int]:
        """Let TAME learn the tasks, then take its buffers."""
        file = self.hparams["file"]
        model = self._learned() if file is None else TAME.load(file)
        rows, expert = model.recorded()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return model, rows[order], expert[order], model.statistics()["living"]

    def _learned(self) -> TAME:
        from sklearn.datasets import load_digits

        digits, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(digits / 16).float(), torch.from_numpy(labels)
        rng = np.random.default_rng(self.seed)
        model = TAME(**{"seed": self.seed, **(self.hparams["tame"] or {})})
        for _ in range(self.hparams["num_tasks"]):
            pixels = rng.permutation(x.shape[1])
            for _ in range(self.hparams["epochs"]):
                for rows in torch.from_numpy(rng.permutation(len(x))).split(128):
                    model.learn_batch(x[rows][:, pixels], y[rows])
        return model


class RouterData(RecordedRows):
    """Rows of a stream, standardised, and which experts of a DriftMoE were right before learning.

    The split is in the order of the stream: the newest rows test.

    Args:
        dataset: Name from :func:`moeapps.streams.list_datasets`.
        limit: Instances.
        driftmoe: Arguments of the :class:`moeapps.streams.DriftMoE` that records.
        root: Data home; see :func:`moeapps.data.data_home`.
        batch_size: Rows of a mini-batch.
        seed: Of the stream, if it is generated, DriftMoE and the order in training.

    Example:
        >>> data = RouterData("led_a", limit=1001, driftmoe={"num_experts": 4, "hidden": 16})
        >>> data.setup()
        >>> data.shape, data.num_experts, len(data.parts["train"])
        ((24,), 4, 800)
    """

    def __init__(
        self,
        dataset: str,
        *,
        limit: int | None = None,
        driftmoe: dict[str, Any] | None = None,
        root: str | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.save_hyperparameters()
        self.dataset = dataset

    def record(self) -> tuple[DriftMoE, Tensor, Tensor, int]:
        """Let DriftMoE learn the stream and write down what its experts got right."""
        given = self.hparams
        stream = datasets.load(
            self.dataset, limit=given["limit"], seed=self.seed, root=given["root"]
        )
        nominal = list(stream.nominal) or None
        model = DriftMoE(
            **{"seed": self.seed, "nominal_attributes": nominal, **(given["driftmoe"] or {})}
        )
        x, right = record_experts(model, stream.X, stream.y)
        return model, torch.from_numpy(x), torch.from_numpy(right), right.shape[1]


def record_experts(model: DriftMoE, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Let a new DriftMoE learn a stream; what its router saw and should have said.

    Returns:
        Rows ``[N - 1, D]`` as the router has them at the end (standardised, if it does that), and
        for each expert whether it was right before it learned the row, ``[N - 1, K]``. The first
        row is missing: there is no router before it.
    """
    model.partial_fit(x[:1], y[:1], classes=np.unique(y).tolist())
    router = model._router
    taught: list[NDArray[Any]] = []
    teach = router.teach

    def listen(targets: NDArray[Any]) -> None:
        taught.append(np.array(targets, np.float32))
        teach(targets)

    router.teach = listen  # type: ignore[method-assign]
    try:
        model.partial_fit(x[1:], y[1:])
    finally:
        del router.teach
    batch = model._array_batch(x[1:], learning=False)
    rows = batch.encode(0, len(batch))
    scaled = np.empty(rows.shape, np.float32)
    standardise_rows(router.scaler, router.zscore, False, rows, scaled)
    return scaled, np.concatenate(taught)


class RecordedGate(MoEModule):
    """A gate trained on recorded rows; what its first choice is worth chooses the best epoch.

    Args:
        lr: Learning rate of Adam.
        shape: Of one row; by default the data's.
        num_experts: By default the data's.
        aux_losses: Weight per auxiliary loss of the gate.
    """

    monitor = "val/acc"
    model: gating.Gate

    def __init__(self, *, aux_losses: dict[str, float] | None) -> None:
        super().__init__(aux_losses=aux_losses)

    @abstractmethod
    def build(self) -> gating.Gate:
        """The gate, from the hyper-parameters."""

    @abstractmethod
    def loss(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Mean loss."""

    @abstractmethod
    def right(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Whether each row's first choice is good, ``[B]``."""

    def _build_if_sized(self) -> None:
        if self.hparams["shape"] is not None and self.hparams["num_experts"] is not None:
            self.model = self.build()

    def setup(self, stage: str) -> None:
        """Take sizes from the data, build the gate once."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, RecordedRows):
            raise ConfigError(
                f"{type(self).__name__} got no recorded rows. Pass datamodule=SelectorData(...) or "
                "RouterData(...) to the trainer."
            )
        sizes = {"shape": list(data.shape), "num_experts": data.num_experts}
        for name, found in sizes.items():
            if self.hparams[name] is None:
                self.hparams[name] = found
            elif self.hparams[name] != found:
                raise ArgumentError(
                    f"The gate has {name}={self.hparams[name]} and the data {found}. Use the data "
                    "it was built for, or leave the argument out."
                )
        if not hasattr(self, "model"):
            self.model = self.build()
            self.on_built(data)

    def on_built(self, data: RecordedRows) -> None:
        """Look at the data before training."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss on some rows."""
        x, target = batch
        return self.shared_step(lambda: self.loss(self.model(x), target), batch_size=len(x))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and share of good choices."""
        self._score(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and share of good choices."""
        self._score(batch, "test")

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Chosen expert of each row."""
        routing = self.model(batch[0])
        assert routing.indices is not None
        return {"expert": routing.indices[:, 0]}

    def _score(self, batch: list[Tensor], stage: str) -> None:
        x, target = batch
        routing = self.model(x)
        good = self.right(routing, target).float().mean()
        self._log(f"{stage}/acc", good, len(x))
        self._log(f"{stage}/loss", self.loss(routing, target), len(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class SelectorTraining(RecordedGate):
    r"""TAME's selector by epochs: cross-entropy against the expert that learned each row.

    Args:
        lr: Learning rate of Adam.
        shape: Of one row; by default the data's.
        num_experts: By default the data's.
        aux_losses: Weight per auxiliary loss of the gate.

    Notes:
        none

    References:
        Zhu et al., *TAME: Task Agnostic Continual Learning using Multiple Experts*, 2024.

    Example:
        >>> module = SelectorTraining(shape=[64], num_experts=5)
        >>> module.model(torch.zeros(2, 64)).indices.shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        shape: list[int] | None = None,
        num_experts: int | None = None,
        aux_losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__(aux_losses=aux_losses)
        self.save_hyperparameters()
        self._build_if_sized()

    def build(self) -> gating.Gate:
        """The gate that TAME builds, too."""
        return new_gate(tuple(self.hparams["shape"]), self.hparams["num_experts"])

    def on_built(self, data: RecordedRows) -> None:
        """Scale inputs as the training rows ask for."""
        self.model.score.scale_as(data.parts["train"].tensors[0])  # type: ignore[operator]

    def loss(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Cross-entropy."""
        assert routing.logits is not None
        return F.cross_entropy(routing.logits, target)

    def right(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Whether the expert is the one that learned the row."""
        assert routing.indices is not None
        return routing.indices[:, 0] == target

    def install(self, model: TAME) -> TAME:
        """A copy of ``model`` with this selector.

        Raises:
            ArgumentError: The model has other experts.
        """
        model = copy.deepcopy(model)
        model.set_selector(self.model.cpu())
        return model


class RouterTraining(RecordedGate):
    r"""Warm start of DriftMoE's router: which experts will be right about a row?

    .. math:: L = \frac{1}{NK} \sum_{n,i} \mathrm{BCE}(\sigma(z_{n,i}), m_{n,i})

    Args:
        hidden: Width of the first hidden layer, as of the DriftMoE.
        top_k: Experts that a routing names; the first one counts.
        dropout: After each hidden layer.
        lr: Learning rate of Adam.
        shape: Of one row; by default the data's.
        num_experts: By default the data's.
        aux_losses: Weight per auxiliary loss of the gate.

    Notes:
        Not in the paper. What it is worth depends on the stream: installed after 20,000 rows, the
        accuracy on the next 10,000 moved by -1.4 points (Electricity), -0.7 (RBF_m) and 0.0 (SEA_a)
        against the router that had learned online. Compare before you keep it.

    References:
        Aspis et al., *DriftMoE*, 2025. https://arxiv.org/abs/2507.18464

    Example:
        >>> module = RouterTraining(hidden=16, shape=[24], num_experts=4)
        >>> module.model(torch.zeros(2, 24)).indices.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        hidden: int = 256,
        top_k: int = 3,
        dropout: float = 0.0,
        lr: float = 2e-3,
        shape: list[int] | None = None,
        num_experts: int | None = None,
        aux_losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__(aux_losses=aux_losses)
        self.save_hyperparameters()
        self._build_if_sized()

    def build(self) -> gating.Gate:
        """DriftMoE's network behind a gate."""
        (width,), hidden = self.hparams["shape"], self.hparams["hidden"]
        score = gating.MLP(
            width,
            self.hparams["num_experts"],
            (hidden, hidden // 2),
            dropout=self.hparams["dropout"],
        )
        return gating.Gate(score, gating.topk(self.hparams["top_k"]))

    def loss(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Binary cross-entropy with the experts that were right."""
        assert routing.logits is not None
        return bce_correct(routing.logits, target)

    def right(self, routing: gating.Routing, target: Tensor) -> Tensor:
        """Whether the chosen expert was right."""
        assert routing.indices is not None
        return target.gather(1, routing.indices[:, :1]).squeeze(1)

    def install(self, model: DriftMoE) -> DriftMoE:
        """A copy of ``model`` (the one that recorded, or one with its experts) with this router.

        Raises:
            ArgumentError: The model's router has other sizes, or it has not learned anything.
        """
        model = copy.deepcopy(model)
        linear = [part for part in self.model.score.modules() if isinstance(part, nn.Linear)]
        weights = [a.detach().cpu().numpy() for part in linear for a in (part.weight.T, part.bias)]
        if model._router is None:
            raise ArgumentError(
                "This DriftMoE has no router yet: it has not learned anything. Use the model of "
                "RouterData, or call partial_fit first."
            )
        model._router.set_weights(Layers(*weights))
        return model
