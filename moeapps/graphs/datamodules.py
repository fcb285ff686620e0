"""Node classification data for Lightning: one graph, whole or in sampled neighbourhoods."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import lightning
import torch
import torch_geometric.utils as pyg_utils
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.graphs import datasets
from moeapps.graphs.csr import compress
from moeapps.graphs.datasets.validate import validate_graph
from moeapps.graphs.node_graph import take_rows
from moeapps.graphs.sampling import CSRNeighborSampler

_ROW_NORMALIZED = ("cora", "citeseer", "pubmed")  # the field divides their features by the row sum
_LOADERS = ("full", "neighbor")
_FEATURES = ("auto", "none", "row", "standard")
_SEED_FLOOR = 0.05


class NodeData(lightning.LightningDataModule):
    r"""One graph with its splits, checked once and handed out whole or in neighbour batches.

    Validation, test and prediction always see the whole graph, never sampled neighbours.

    Args:
        dataset: Name from :func:`moeapps.graphs.datasets.list_datasets`.
        root: Data home; see :func:`moeapps.data.data_home`.
        split: Which split of the set; None takes its usual one.
        loader: ``"full"`` trains on the whole graph, ``"neighbor"`` on sampled neighbourhoods.
        num_neighbors: Fan-out per hop of the strong expert, nearest hop first; -1 keeps all.
        batch_size: Training seeds per neighbour batch.
        features: ``"row"`` divides each row by its sum, ``"standard"`` gives every column mean 0
            and variance 1 over all nodes, ``"none"`` leaves them, ``"auto"`` is ``"row"`` for Cora,
            CiteSeer and PubMed and ``"none"`` elsewhere.
        sparse: Hand out the features as ``torch.sparse_csr`` (whole graph only).
        to_undirected: Add the reverse of every edge.
        seed: Order of training seeds and sampled neighbours.
        num_workers: Processes that sample.
        download: Fetch missing files where the set has an address for them.
        dataset_args: Further arguments of the set's reader.

    Attributes:
        data: After ``setup``: PyG ``Data`` with ``x [V, d]``, ``y [V]``, ``edge_index [2, M]`` and
            ``train_mask``, ``val_mask``, ``test_mask`` ``[V]``.
        num_features: ``d``.
        num_classes: Number of classes.
        metric: ``"accuracy"`` or ``"auroc"``, as the set's benchmark has it.
        sample_neighbors: With ``loader="neighbor"``: False makes the training loader hand out the
            seeds' own rows without edges, which is all a weak turn needs.
        confidence: With ``loader="neighbor"``: when ``[V]`` confidences are set here, training
            seeds are drawn with probability in proportion to :math:`1 - c_v + 0.05` and the batch
            carries the inverse as ``seed_weight`` (mean 1 over draws), so weighted means stay
            unbiased.

    Raises:
        UnknownNameError: For an unknown set, loader or feature option.
        ArgumentError: When the graph cannot be trained on; see
            :func:`moeapps.graphs.datasets.validate.validate_graph`.
        ConfigError: When options exclude each other.

    Example:
        >>> module = NodeData("mixed-csbm", dataset_args={"size": "tiny"})
        >>> module.setup()
        >>> module.num_features, module.num_classes, module.metric
        (32, 5, 'accuracy')
        >>> next(iter(module.train_dataloader())) is module.data
        True
    """

    data: Data
    num_features: int
    num_classes: int
    metric: str

    def __init__(
        self,
        dataset: str,
        *,
        root: str | Path | None = None,
        split: int | str | None = None,
        loader: Literal["full", "neighbor"] = "full",
        num_neighbors: list[int] | None = None,
        batch_size: int = 1024,
        features: Literal["auto", "none", "row", "standard"] = "auto",
        sparse: bool = False,
        to_undirected: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        download: bool = False,
        dataset_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for kind, name, known in (("loader", loader, _LOADERS), ("features", features, _FEATURES)):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is too small, expected at least 1.")
        if sparse and loader == "neighbor":
            raise ConfigError(
                "sparse=True goes with loader='full' only: sampled batches gather dense rows. "
                "Drop one of the two."
            )
        self.save_hyperparameters()
        self.dataset = dataset
        self.root = root
        self.split = split
        self.loader = loader
        self.num_neighbors = num_neighbors or [10, 10]
        self.batch_size = batch_size
        self.features = features
        self.sparse = sparse
        self.to_undirected = to_undirected
        self.seed = seed
        self.num_workers = num_workers
        self.download = download
        self.dataset_args = dataset_args or {}
        self.sample_neighbors = True
        self.confidence: Tensor | None = None
        self._sampler: CSRNeighborSampler | None = None
        self._moved: Data | None = None

    @classmethod
    def from_data(
        cls,
        data: Data,
        *,
        split: int = 0,
        metric: Literal["accuracy", "auroc"] = "accuracy",
        **arguments: Any,
    ) -> Self:
        """A module around a graph of your own.

        Args:
            data: With ``x [V, d]``, ``y [V]`` or ``[V, 1]`` (-1 = unlabelled), ``edge_index``
                ``[2, M]`` and masks ``[V]`` or ``[V, splits]``. It is not changed.
            split: Which column of masks ``[V, splits]``.
            metric: What validation reports.
            **arguments: As of the class, without those that name a set.

        Example:
            >>> own = datasets.load("mixed-csbm", size="tiny")
            >>> NodeData.from_data(own, features="standard").num_classes
            5
        """
        module = cls("own", split=split, **arguments)
        data = copy.copy(data)
        for name in ("train_mask", "val_mask", "test_mask"):
            if data.get(name) is not None and data[name].dim() == 2:
                data[name] = _column(data[name], split, name)
        if data.get("y") is not None and data.y.dim() == 2 and data.y.size(1) == 1:
            data.y = data.y.squeeze(1)
        module._take(data, metric, None)
        return module

    def prepare_data(self) -> None:
        """Download missing files, if allowed; runs in one process only."""
        if self.download and not self._is_ready:
            self._load()

    def setup(self, stage: str | None = None) -> None:
        """Read, check and transform the graph, once."""
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and self.loader == "full":
            raise ConfigError(
                f"loader='full' holds the whole graph on each of {trainer.world_size} devices, "
                "expected one. Use loader='neighbor' or --trainer.devices 1."
            )
        if not self._is_ready:
            data = self._load()
            self._take(data, datasets.card(self.dataset).metric, data.num_classes)

    @property
    def _is_ready(self) -> bool:
        return hasattr(self, "data")

    def _load(self) -> Data:
        return datasets.load(
            self.dataset,
            root=self.root,
            split=self.split,
            download=self.download,
            **self.dataset_args,
        )

    def _take(self, data: Data, metric: str, num_classes: int | None) -> None:
        self.num_classes = validate_graph(data, num_classes=num_classes)
        self.metric = metric
        if self.to_undirected:
            data.edge_index = pyg_utils.to_undirected(data.edge_index, num_nodes=data.num_nodes)
        if data.x.dtype.itemsize < 4:  # stored in half precision; weights are not
            data.x = data.x.float()
        data.x = scale_features(data.x, self._scaling)
        if self.sparse:
            data.x = compress(data.x)
        self.num_features = data.x.size(1)
        self.data = data

    @property
    def _scaling(self) -> str:
        if self.features != "auto":
            return self.features
        return "row" if self.dataset.lower() in _ROW_NORMALIZED else "none"

    def transfer_batch_to_device(
        self, batch: Data, device: torch.device, dataloader_idx: int
    ) -> Data:
        """Move neighbour batches each time, the whole graph once."""
        if batch is not self.data:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._moved is None or self._moved.x.device != device:
            self._moved = super().transfer_batch_to_device(copy.copy(batch), device, dataloader_idx)
        return self._moved

    # ------------------------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader:
        """The whole graph, or batches of training seeds with or without neighbours."""
        if self.loader == "full":
            return self._whole()
        rows = self.data.train_mask.nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self._epoch)
        if self.sample_neighbors:
            return self.neighbor_loader(rows, generator=generator)
        return self.row_loader(rows, generator=generator)

    def val_dataloader(self) -> DataLoader:
        """The whole graph."""
        return self._whole()

    def test_dataloader(self) -> DataLoader:
        """The whole graph."""
        return self._whole()

    def predict_dataloader(self) -> DataLoader:
        """The whole graph."""
        return self._whole()

    def neighbor_loader(
        self, rows: Tensor, *, generator: torch.Generator | None = None
    ) -> DataLoader:
        """Batches of shuffled seeds with their sampled neighbourhoods, seeds in the first rows.

        Args:
            rows: Seed nodes.
            generator: Order of the seeds; None keeps their order and draws nothing by confidence.
        """
        if self._sampler is None:
            self._sampler = CSRNeighborSampler(self.data, self.num_neighbors, seed=self.seed)
        order: _Order | None = None
        transform = None
        if generator is not None and self.confidence is not None:
            chance = 1 - self.confidence.detach().cpu()[rows].double() + _SEED_FLOOR
            drawn = torch.multinomial(chance, len(rows), replacement=True, generator=generator)
            order = _Order(drawn, generator.initial_seed(), self._sampler)
            weight = torch.zeros(self.data.num_nodes, dtype=torch.float64)
            weight[rows] = chance.sum() / (len(rows) * chance)
            transform = _SeedWeight(weight.float())
        elif generator is not None:
            shuffled = torch.randperm(len(rows), generator=generator)
            order = _Order(shuffled, generator.initial_seed(), self._sampler)
        return NodeLoader(
            self.data,
            node_sampler=self._sampler,
            input_nodes=rows,
            transform=transform,
            sampler=order,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            generator=generator,
        )

    def row_loader(self, rows: Tensor, *, generator: torch.Generator | None = None) -> DataLoader:
        """Batches of the seeds' own features and labels, no edges.

        Args:
            rows: Seed nodes.
            generator: Order of the seeds; None keeps their order.
        """
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        return DataLoader(
            rows.tolist(),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            collate_fn=self._own_rows,
        )

    def _own_rows(self, rows: list[int]) -> Data:
        index = torch.tensor(rows)
        return Data(
            x=take_rows(self.data.x, index),
            y=self.data.y[index],
            n_id=index,
            batch_size=index.numel(),
        )

    def _whole(self) -> DataLoader:
        return DataLoader([self.data], batch_size=1, collate_fn=_first)  # type: ignore[arg-type]

    @property
    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch


class _Order(Sampler[int]):
    """One order of the seeds; every iteration repeats it, and the neighbours drawn with it.

    A trainer starts the iteration of a loader once or twice, depending on whether it resumes.
    """

    def __init__(self, order: Tensor, seed: int, sampler: CSRNeighborSampler) -> None:
        self.order = order
        self.seed = seed
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.seed)
        return iter(self.order.tolist())


class _SeedWeight:
    """Adds ``seed_weight`` ``[batch_size]`` to a sampled batch."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, batch: Data) -> Data:
        batch.seed_weight = self.weight[batch.n_id[: batch.batch_size]]
        return batch


def _first(items: list[Data]) -> Data:
    return items[0]


def _column(mask: Tensor, split: int, name: str) -> Tensor:
    if not 0 <= split < mask.size(1):
        raise ArgumentError(
            f"split={split} is not a column of {name} {list(mask.shape)}. "
            f"Choose 0..{mask.size(1) - 1}."
        )
    return mask[:, split]


def scale_features(x: Tensor, how: str) -> Tensor:
    """Features scaled by row (``"row"``), by column (``"standard"``) or not at all (``"none"``).

    Rows that sum to zero and columns that do not vary are left as they are.

    Example:
        >>> scale_features(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), "row")
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]])
    """
    if how == "row":
        total = x.sum(1, keepdim=True)
        return x / torch.where(total == 0, 1.0, total)
    if how == "standard":
        spread = x.std(0, correction=0)
        return (x - x.mean(0)) / torch.where(spread == 0, 1.0, spread)
    return x
