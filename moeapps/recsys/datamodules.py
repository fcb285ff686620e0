"""Logs for Lightning: a named set in memory, or your own files, also those larger than memory."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import lightning

from moeapps.data.locate import locate
from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.recsys import datasets
from moeapps.recsys.batch import Batch, pack
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.labels import check_labels, with_base_rates
from moeapps.recsys.loaders import BatchLoader, PackedLoader, StreamingLoader
from moeapps.recsys.schema import Dense, FeatureSchema, Task, as_schema, as_tasks

SPLITS = ("train", "val", "test")


class LogDataModule(lightning.LightningDataModule, abc.ABC):
    """What both data modules have in common: an encoder, tasks, and three splits.

    Checkpoints hold the state of the encoder. A run that loads one encodes with that state, not
    with what its own training split would give.

    Args:
        batch_size: Rows per batch and process.
        embedding_dim: Width of every embedding; None keeps those of the schema.
        min_count: How often a value has to occur in the training split to get an id; None takes
            what the set's protocol says.
        missing_indicator: Add a 0/1 column for each dense feature that has gaps.
        drop_last: Leave out the training rows that do not fill a batch; BatchNorm needs whole ones.
        seed: Order of the training rows.

    Attributes:
        schema: After ``setup``: features with their vocabulary sizes.
        tasks: What is predicted, with the share of positives in the training split.
        num_rows: Rows of each split.
        encoder: From raw columns to ids.
    """

    encoder: Encoder
    tasks: tuple[Task, ...]
    num_rows: dict[str, int]

    def __init__(
        self,
        *,
        batch_size: int,
        embedding_dim: int | None,
        min_count: int | dict[str, int] | None,
        missing_indicator: bool,
        drop_last: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is too small. Choose 1 or more.")
        self.batch_size = batch_size
        self.embedding_dim = embedding_dim
        self.min_count = min_count
        self.missing_indicator = missing_indicator
        self.drop_last = drop_last
        self.seed = seed

    @property
    def schema(self) -> FeatureSchema:
        """Features with their vocabulary sizes."""
        return self.encoder.schema

    @abc.abstractmethod
    def _loader(self, split: str, **arguments: Any) -> BatchLoader: ...

    @abc.abstractmethod
    def _encode(self, encoder: Encoder | None) -> None:
        """Read the splits and encode them, fitting an encoder if none is given."""

    def setup(self, stage: str | None = None) -> None:
        """Read, fit and encode, once."""
        if not hasattr(self, "encoder"):
            self._encode(None)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; another order each epoch."""
        return self._loader("train", shuffle=True, seed=self.seed, drop_last=self.drop_last)

    def val_dataloader(self) -> BatchLoader:
        """Batches in order."""
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """The test split."""
        return self._loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The encoder, in checkpoints."""
        return {"encoder": self.encoder.to_dict()} if hasattr(self, "encoder") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Encode as the run did that wrote the checkpoint."""
        encoder = Encoder.from_dict(state_dict["encoder"])
        if not hasattr(self, "encoder") or encoder.to_dict() != self.encoder.to_dict():
            self._encode(encoder)

    def _fit(
        self, columns: Any, schema: FeatureSchema, min_count: int | Mapping[str, int]
    ) -> Encoder:
        return Encoder.fit(
            columns,
            with_dim(schema, self.embedding_dim),
            min_count=min_count if self.min_count is None else self.min_count,
            missing_indicator=self.missing_indicator,
        )

    @property
    def _place(self) -> dict[str, int]:
        trainer = self.trainer
        size = {"batch_size": self.batch_size}
        if trainer is None:
            return size
        return {**size, "rank": trainer.global_rank, "world_size": trainer.world_size}


class RankingData(LogDataModule):
    """A set by name, encoded once and held in memory.

    Args:
        dataset: Name from :func:`moeapps.recsys.datasets.list_datasets`.
        root: Data home; see :func:`moeapps.data.data_home`.
        split: Which way of splitting, where the set has several.
        tasks: Names of the tasks to keep; None keeps all.
        batch_size: Rows per batch and process.
        embedding_dim: Width of every embedding; None keeps that of the set's schema.
        min_count: How often a value has to occur in the training split to get an id; None takes
            what the set's protocol says.
        missing_indicator: Add a 0/1 column for each dense feature that has gaps.
        drop_last: Leave out the training rows that do not fill a batch; BatchNorm needs whole ones.
        seed: Order of the training rows.
        download: Fetch missing files where the set has an address for them.
        dataset_args: Further arguments of the set's reader.

    Attributes:
        schema: After ``setup``: features with their vocabulary sizes.
        tasks: What is predicted, with the share of positives in the training split.
        num_rows: Rows of each split.
        encoder: From raw columns to ids.

    Raises:
        UnknownNameError: For an unknown set or task.
        ArgumentError: A label does not fit its task, or there is no whole batch.
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is truncated or not the published one.

    Example:
        >>> data = RankingData("census-income-sample", batch_size=1024)
        >>> data.setup()
        >>> data.schema.flat_width, [task.name for task in data.tasks], data.num_rows["train"]
        (135, ['income', 'marital'], 19952)
        >>> tuple(next(iter(data.train_dataloader()))["labels"].shape)
        (1024, 2)
    """

    def __init__(
        self,
        dataset: str,
        *,
        root: str | Path | None = None,
        split: str | None = None,
        tasks: list[str] | None = None,
        batch_size: int = 4096,
        embedding_dim: int | None = None,
        min_count: int | dict[str, int] | None = None,
        missing_indicator: bool = False,
        drop_last: bool = True,
        seed: int = 0,
        download: bool = False,
        dataset_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            embedding_dim=embedding_dim,
            min_count=min_count,
            missing_indicator=missing_indicator,
            drop_last=drop_last,
            seed=seed,
        )
        self.save_hyperparameters()
        self.dataset = dataset
        self.root = root
        self.split = split
        self.task_names = tasks
        self.download = download
        self.dataset_args = dataset_args or {}
        self._own: Tables | None = None
        self._rows: dict[str, Batch] = {}

    @classmethod
    def from_tables(cls, tables: Tables, **arguments: Any) -> Self:
        """A module around a log of your own.

        Args:
            tables: Raw columns in three splits.
            **arguments: As of the class, without those that name a set.
        """
        module = cls("own", **arguments)
        module._own = tables
        return module

    def prepare_data(self) -> None:
        """Download missing files, if allowed; runs in one process only."""
        if self.download and self._own is None:
            locate(datasets.card(self.dataset), root=self.root, download=True)

    def _load(self) -> Tables:
        if self._own is not None:
            return self._own
        return datasets.load(
            self.dataset,
            root=self.root,
            split=self.split,
            download=self.download,
            **self.dataset_args,
        )

    def _encode(self, encoder: Encoder | None) -> None:
        tables = self._load()
        self.num_rows = tables.num_rows
        encoder = encoder or self._fit(tables.train, tables.schema, tables.min_count)
        tasks = _selected(tables.tasks, self.task_names)
        for split in SPLITS:
            encoded = encoder.transform(getattr(tables, split))
            self._rows[split] = pack(encoded, encoder.schema, tasks)
            check_labels(self._rows[split], tasks, split)
        self.tasks = with_base_rates(tasks, [self._rows["train"]])
        self.encoder = encoder

    def _loader(self, split: str, **arguments: Any) -> PackedLoader:
        return PackedLoader(self._rows[split], **self._place, **arguments)


class RankingFiles(LogDataModule):
    """Your own Parquet or CSV files, read block by block: they may be larger than memory.

    The encoder is fitted in one pass over the training files. Each epoch shuffles the blocks and
    the rows of ``buffer_blocks`` blocks at a time; see
    :class:`~moeapps.recsys.loaders.StreamingLoader`.

    Args:
        train: Training files: one, several, or a folder of them.
        val: Validation files.
        test: Test files; None takes the validation files.
        schema: Draft of the features, or its plain form; vocabulary sizes are found in ``train``.
        tasks: What is predicted, or the plain form.
        weight: Column of sample weights.
        csv: How CSV files are written: arguments of :class:`~moeapps.recsys.files.CsvFormat`.
        buffer_blocks: Blocks that are in memory, and shuffled, together.
        batch_size: Rows per batch and process.
        embedding_dim: Width of every embedding; None keeps those of the schema.
        min_count: How often a value has to occur in the training split to get an id; None is 1.
        missing_indicator: Add a 0/1 column for each dense feature that has gaps.
        drop_last: Leave out the training rows that do not fill a batch; BatchNorm needs whole ones.
        seed: Order of the training rows.

    Raises:
        ConfigError: Neither a training nor a validation file is named.
        UnknownNameError: A file lacks a column.
        ArgumentError: A label does not fit its task, or there is no whole batch.
        DataNotFoundError: A file does not exist.
        DataIntegrityError: A file is empty or truncated, or a value has another type.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        test: str | list[str] | None = None,
        *,
        schema: dict[str, Any] | FeatureSchema,
        tasks: list[Any],
        weight: str | None = None,
        csv: dict[str, Any] | None = None,
        buffer_blocks: int = 8,
        batch_size: int = 4096,
        embedding_dim: int | None = None,
        min_count: int | dict[str, int] | None = None,
        missing_indicator: bool = False,
        drop_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            embedding_dim=embedding_dim,
            min_count=min_count,
            missing_indicator=missing_indicator,
            drop_last=drop_last,
            seed=seed,
        )
        if not train or not val:
            raise ConfigError(
                f"train={train!r} and val={val!r}. Expected a file or a folder for each."
            )
        self.paths = {"train": train, "val": val, "test": test or val}
        self.dataset = Path(train if isinstance(train, str) else train[0]).stem
        self.draft = as_schema(schema)
        self.given_tasks = as_tasks(tasks)
        self.weight = weight
        self.csv = csv
        self.buffer_blocks = buffer_blocks
        self._blocks: dict[str, Any] = {}

    def _encode(self, encoder: Encoder | None) -> None:
        from moeapps.recsys.files import Blocks, CsvFormat

        csv = None if self.csv is None else CsvFormat(**self.csv)
        names = self._columns()
        self._blocks = {split: Blocks(paths, names, csv=csv) for split, paths in self.paths.items()}
        self.num_rows = {split: blocks.num_rows for split, blocks in self._blocks.items()}
        encoder = encoder or self._fit(self._blocks["train"], self.draft, 1)
        for split in SPLITS[1:]:
            for _ in self._checked_labels(split):
                pass
        self.tasks = with_base_rates(self.given_tasks, self._checked_labels("train"))
        self.encoder = encoder

    def _checked_labels(self, split: str) -> Iterator[Batch]:
        for block in self._blocks[split]:
            batch = pack(block, FeatureSchema(()), self.given_tasks)
            check_labels(batch, self.given_tasks, split)
            yield batch

    def _columns(self) -> list[str]:
        named = [feature.name for feature in self.draft.features]
        for task in self.given_tasks:
            named += [task.column, *([task.sample_mask] if task.sample_mask else [])]
        named += [name for name in (self.draft.group_key, self.weight) if name is not None]
        return list(dict.fromkeys(named))

    def _loader(self, split: str, **arguments: Any) -> StreamingLoader:
        return StreamingLoader(
            self._blocks[split],
            self.encoder,
            self.tasks,
            weight=self.weight,
            buffer_blocks=self.buffer_blocks,
            **self._place,
            **arguments,
        )


def with_dim(schema: FeatureSchema, dim: int | None) -> FeatureSchema:
    """The schema with one width for all embeddings; None leaves it as it is."""
    if dim is None:
        return schema
    features = [
        f if isinstance(f, Dense) else dataclasses.replace(f, dim=dim) for f in schema.features
    ]
    return FeatureSchema(features, schema.group_key)


def _selected(tasks: tuple[Task, ...], names: list[str] | None) -> tuple[Task, ...]:
    known = {task.name: task for task in tasks}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("task", name, known)
    return tasks if names is None else as_tasks([known[name] for name in names])
