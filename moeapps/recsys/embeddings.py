"""From a packed batch to the flat input of a network: fused tables, bags, sequences, dense."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, CheckpointError, UnknownNameError
from moeapps.kernels.select import is_traced
from moeapps.recsys.batch import Batch, check_ids, lengths
from moeapps.recsys.schema import Categorical, Embedded, FeatureSchema, Sequence

INITS = ("normal", "xavier_uniform")
STD = 0.05  # of "normal"


class EmbeddingStore(nn.Module, ABC):
    """Where embeddings live. A sharded store replaces `FusedTables` behind this interface.

    Args:
        schema: Its embedded features.
        copies: Tables per feature; a model with tables per task has several.

    Attributes:
        tables: Holds the parameters of the tables and nothing else.
        whole: Whether every row of them is in this process.
    """

    tables: nn.Module
    whole = True

    def __init__(self, schema: FeatureSchema, copies: int = 1) -> None:
        super().__init__()
        self.schema, self.copies = schema, copies

    @abstractmethod
    def forward(self, batch: Batch) -> list[Tensor]:
        """Blocks ``[B, n, copies * dim]`` of ``n`` neighbouring features; in order they are all."""

    def require_whole(self, purpose: str) -> None:
        """Refuse what needs all rows while other processes hold some of them."""
        if not self.whole:
            raise ArgumentError(
                f"{purpose} needs whole embedding tables, and every process holds a part of them. "
                "Call gather_embeddings(model) in all processes first."
            )

    @abstractmethod
    def resize(self, name: str, vocab_size: int) -> None:
        """Give the table of a feature another number of rows; rows that stay keep their values."""

    @abstractmethod
    def weight(self, name: str) -> Tensor:
        """The rows of a feature's table, a view ``[vocab_size, copies * dim]``."""


@dataclass(frozen=True)
class _Lookup:
    """Features of one width that one operation looks up together."""

    how: str  # "row", or a pooling
    dim: int
    features: tuple[Embedded, ...]
    columns: tuple[int, ...]  # of cat; for rows only


class FusedTables(EmbeddingStore):
    r"""All tables of one width in one, so that a lookup is one operation.

    Feature :math:`f` owns the rows :math:`o_f, \dots, o_f + V_f - 1`; its id :math:`i` reads row
    :math:`o_f + i`.

    Args:
        schema: The features.
        copies: Tables per feature, side by side in one row of ``copies * dim`` numbers.
        init: ``"normal"`` (standard deviation 0.05), ``"xavier_uniform"`` (per feature), or a
            number: the standard deviation.
        sparse_grad: Gradients are sparse tensors over the rows of the batch.

    Shape:
        - a batch of ``B`` rows -> blocks ``[B, n, copies * dim]``

    Raises:
        ArgumentError: A sparse gradient is asked of ``max`` pooling, which has none.

    Notes:
        Row 0 of every table, the unknown id, starts at zero. Target attention weighs each id by a
        small network of query, id, difference and product, not normalised, as in DIN.

    References:
        Zhou et al., *Deep Interest Network for Click-Through Rate Prediction*, KDD 2018 (target
        attention).

    Example:
        >>> schema = FeatureSchema([Categorical("user", 9, 4), Categorical("item", 7, 4)])
        >>> store = FusedTables(schema)
        >>> {name: tuple(table.shape) for name, table in store.tables.items()}
        {'4': (16, 4)}
        >>> store({"cat": torch.tensor([[1, 2]])})[0].shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        schema: FeatureSchema,
        copies: int = 1,
        *,
        init: str | float = "normal",
        sparse_grad: bool = False,
    ) -> None:
        super().__init__(schema, copies)
        if isinstance(init, str) and init not in INITS:
            raise UnknownNameError("embedding init", init, INITS)
        self.init, self.sparse_grad = init, sparse_grad
        for bag in schema.bags:
            if sparse_grad and bag.pooling == "max":
                raise ArgumentError(
                    f"Feature {bag.name!r} has pooling='max', which has no sparse gradient. Use "
                    "'sum' or 'mean', or sparse_grad=False."
                )
        rows: dict[int, int] = {}
        for feature in schema.embedded:
            if feature.shared_with is None:
                rows[feature.dim] = rows.get(feature.dim, 0) + feature.vocab_size
        self.tables: nn.ParameterDict = nn.ParameterDict(
            {str(dim): nn.Parameter(torch.empty(n, copies * dim)) for dim, n in rows.items()}
        )
        self.attention = nn.ModuleDict(
            {bag.name: TargetAttention(copies * bag.dim) for bag in schema.bags if _asks(bag)}
        )
        self._arrange()
        self.reset_parameters()

    def _arrange(self) -> None:
        """Where each table starts, and which features are looked up together."""
        self._starts: dict[str, int] = {}
        rows: dict[int, int] = {}
        for feature in self.schema.embedded:
            if feature.shared_with is None:
                self._starts[feature.name] = rows.get(feature.dim, 0)
                rows[feature.dim] = self._starts[feature.name] + feature.vocab_size
        for feature in self.schema.embedded:
            if feature.shared_with is not None:
                self._starts[feature.name] = self._starts[feature.shared_with]
        self._lookups = _lookups(self.schema)
        self._blocks = _blocks(self.schema, self._lookups)
        for number, lookup in enumerate(self._lookups):
            starts = torch.tensor([self._starts[f.name] for f in lookup.features])
            self.register_buffer(f"starts_{number}", starts, persistent=False)
            some = lookup.how == "row" and len(lookup.columns) < len(self.schema.categorical)
            columns = torch.tensor(lookup.columns) if some else None
            self.register_buffer(f"columns_{number}", columns, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every table anew."""
        for feature in self.schema.embedded:
            if feature.shared_with is None:
                self._draw(self.weight(feature.name))
                self.weight(feature.name)[0].zero_()

    def _draw(self, rows: Tensor) -> None:
        if self.init == "xavier_uniform":
            dim = rows.shape[1] // self.copies
            bound = math.sqrt(6 / (rows.shape[0] + dim))
            nn.init.uniform_(rows, -bound, bound)
        else:
            nn.init.normal_(rows, std=STD if self.init == "normal" else float(self.init))

    def weight(self, name: str) -> Tensor:
        """The rows of a feature's table, a view ``[vocab_size, copies * dim]``."""
        feature = self._feature(name)
        table: Tensor = self.tables[str(feature.dim)]
        return table.narrow(0, self._starts[name], feature.vocab_size)

    @torch.no_grad()
    def resize(self, name: str, vocab_size: int) -> None:
        """Give the table of a feature another number of rows; rows that stay keep their values."""
        self.require_whole("A new vocabulary size")
        feature = self._feature(name)
        old = {f.name: self.weight(f.name).clone() for f in self.schema.embedded}
        self.schema = self.schema.resized(name, vocab_size)
        owners = [f for f in self.schema.embedded if not f.shared_with and f.dim == feature.dim]
        table = self.tables[str(feature.dim)]
        rows = sum(f.vocab_size for f in owners)
        fresh = nn.Parameter(table.new_empty(rows, table.shape[1]), table.requires_grad)
        self.tables[str(feature.dim)] = fresh
        self._arrange()
        self.to(fresh.device)
        for owner in owners:
            kept, rows_now = old[owner.name], self.weight(owner.name)
            if len(rows_now) > len(kept):
                self._draw(rows_now[len(kept) :])
            rows_now[: len(kept)].copy_(kept[: len(rows_now)])

    def _feature(self, name: str) -> Embedded:
        feature = self.schema[name]
        if not isinstance(feature, Embedded):
            raise ArgumentError(f"Feature {name!r} is dense and has no table.")
        return feature

    def forward(self, batch: Batch) -> list[Tensor]:
        """Blocks ``[B, n, copies * dim]`` of neighbouring features."""
        found = [self._look_up(number, batch) for number in range(len(self._lookups))]
        return [
            found[number]
            if stop - start == found[number].shape[1]
            else found[number][:, start:stop]
            for number, start, stop in self._blocks
        ]

    def _look_up(self, number: int, batch: Batch) -> Tensor:
        lookup = self._lookups[number]
        table, starts = self.tables[str(lookup.dim)], getattr(self, f"starts_{number}")
        if lookup.how == "row":
            cat, columns = batch["cat"], getattr(self, f"columns_{number}")
            if columns is not None:
                cat = cat.index_select(1, columns)
            return self._rows(cat + starts, table)
        if lookup.how in ("sum", "mean", "max"):
            return self._pool(lookup, batch, table)
        (feature,) = lookup.features
        assert isinstance(feature, Sequence)
        bag = batch[f"bag/{feature.name}"]
        rows = bag["values"] + starts
        if lookup.how == "last":
            pooled = self._last(rows, bag, table)
        else:
            pooled = self._attend(feature, rows, bag["offsets"], batch, table)
        return pooled.unsqueeze(1)

    def _rows(self, ids: Tensor, table: Tensor) -> Tensor:
        if not self.whole:
            from moeapps.recsys.sharding import look_up

            return look_up(ids, table)
        return F.embedding(ids, table, sparse=self.sparse_grad)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        names = {f"{prefix}tables.{key}": key for key in self.tables}
        saved = {name: state_dict[name] for name in names if name in state_dict}
        in_parts = [name for name, table in saved.items() if hasattr(table, "device_mesh")]
        if self.whole and in_parts:
            raise CheckpointError(
                f"{in_parts[0]} was saved in parts, one per process, and this model has whole "
                "tables. Save after gather_embeddings(model), or load into a model that is sharded "
                "in the same way."
            )
        if not self.whole and not in_parts:
            from moeapps.recsys.sharding import part_of

            for name, table in saved.items():
                state_dict[name] = part_of(table, self.tables[names[name]])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _pool(self, lookup: _Lookup, batch: Batch, table: Tensor) -> Tensor:
        """Several bags as one list of bags: one reduction for all of them."""
        bags = [batch[f"bag/{feature.name}"] for feature in lookup.features]
        rows = [
            bag["values"] + self._starts[feature.name]
            for bag, feature in zip(bags, lookup.features, strict=True)
        ]
        offsets, passed = [], 0
        for bag in bags:
            offsets.append(bag["offsets"] + passed)
            passed = passed + bag["values"].shape[0]
        pooled = F.embedding_bag(
            torch.cat(rows), table, torch.cat(offsets), mode=lookup.how, sparse=self.sparse_grad
        )
        return pooled.unflatten(0, (len(bags), -1)).transpose(0, 1)

    def _last(self, rows: Tensor, bag: Mapping[str, Tensor], table: Tensor) -> Tensor:
        count = lengths(bag)
        newest = F.pad(rows, (0, 1))[(bag["offsets"] + count - 1).clamp_min(0)]
        found = self._rows(newest, table)
        return torch.where((count > 0).unsqueeze(1), found, 0)

    def _attend(
        self, feature: Sequence, rows: Tensor, offsets: Tensor, batch: Batch, table: Tensor
    ) -> Tensor:
        assert feature.query is not None
        column = [f.name for f in self.schema.categorical].index(feature.query)
        ids = batch["cat"][:, column] + self._starts[feature.query]
        query = self._rows(ids, table)
        asked = self._rows(rows, table)
        starts = offsets.new_zeros(rows.shape[0] + 1).scatter_add(
            0, offsets, torch.ones_like(offsets)
        )
        asker = starts[:-1].cumsum(0) - 1  # whose row each id is in
        weights = self.attention[feature.name](query.index_select(0, asker), asked)
        return F.embedding_bag(
            rows, table, offsets, mode="sum", per_sample_weights=weights, sparse=self.sparse_grad
        )


class TargetAttention(nn.Module):
    r"""How much each id of a sequence matters for the item in question.

    .. math:: a(q, e) = w^\top \mathrm{ReLU}(W [q ; e ; q - e ; q \odot e] + b) + c

    Args:
        dim: Width of query and id.
        hidden: Width of the hidden layer.

    Shape:
        - query and id ``[n, dim] -> [n]``

    Example:
        >>> TargetAttention(4)(torch.ones(3, 4), torch.ones(3, 4)).shape
        torch.Size([3])
    """

    def __init__(self, dim: int, hidden: int = 36) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4 * dim, hidden), nn.Linear(hidden, 1)

    def forward(self, query: Tensor, ids: Tensor) -> Tensor:
        """The weight of each id."""
        pair = torch.cat([query, ids, query - ids, query * ids], 1)
        return self.out(self.hidden(pair).relu()).squeeze(1)


class Checked(dict[str, Any]):
    """A packed batch whose ids are known to be in their vocabularies."""


class Inputs(nn.Module):
    """The input of a network: embedded features in order, then dense ones.

    Args:
        schema: The features.
        store: Where the embeddings live.
        check: Whether ids are compared with the vocabularies: None on CPU only, where looking is
            cheap; never while a graph is captured.

    Shape:
        - a packed batch of ``B`` rows -> ``[B, d]``, ``d = schema.flat_width``; for a store with
          several copies ``[B, copies, d]``, dense features the same in each

    Raises:
        IdRangeError: An id is negative or beyond its vocabulary.

    Example:
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> Inputs(schema, FusedTables(schema))({"cat": torch.tensor([[1], [2]])}).shape
        torch.Size([2, 4])
    """

    largest: Tensor

    def __init__(
        self, schema: FeatureSchema, store: EmbeddingStore, *, check: bool | None = None
    ) -> None:
        super().__init__()
        self.store, self.check = store, check
        self._know(schema)
        self.project = nn.ModuleDict(
            {f.name: nn.Linear(f.width, f.project) for f in schema.dense if f.project is not None}
        )

    def _know(self, schema: FeatureSchema) -> None:
        self.schema = schema
        largest = torch.tensor([f.vocab_size - 1 for f in schema.categorical])
        self.register_buffer("largest", largest, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """The flat input."""
        self.check_ids(batch)
        copies = self.store.copies
        blocks = self.store(batch) if self.schema.embedded else []
        if copies == 1:
            parts = [block.flatten(1) for block in blocks]
            return torch.cat([*parts, *self._dense(batch)], 1)
        parts = [block.unflatten(2, (copies, -1)).transpose(1, 2).flatten(2) for block in blocks]
        dense = [part.unsqueeze(1).expand(-1, copies, -1) for part in self._dense(batch)]
        return torch.cat([*parts, *dense], 2)

    def fields(self, batch: Batch) -> Tensor:
        """One vector per feature, ``[B, F, k]``, when all have the same width.

        Raises:
            ArgumentError: The widths differ.
        """
        self.check_ids(batch)
        width = self.schema.field_width
        dense = [part.reshape(-1, 1, width) for part in self._dense(batch)]
        blocks = self.store(batch) if self.schema.embedded else []
        return torch.cat([*blocks, *dense], 1)

    def resize(self, name: str, vocab_size: int) -> None:
        """Give the table of a feature another number of rows."""
        self.store.resize(name, vocab_size)
        device = self.largest.device
        self._know(self.store.schema)
        self.largest = self.largest.to(device)

    def _dense(self, batch: Batch) -> Iterator[Tensor]:
        if not self.schema.dense:
            return
        dense = batch["dense"]
        if not self.project:
            yield dense
            return
        parts = dense.split([f.width for f in self.schema.dense], 1)
        for feature, part in zip(self.schema.dense, parts, strict=True):
            yield self.project[feature.name](part) if feature.name in self.project else part

    def check_ids(self, batch: Batch) -> None:
        """Refuse ids that are in no vocabulary, as :class:`Inputs` says."""
        if is_traced() or self.check is False or isinstance(batch, Checked):
            return
        ids: list[tuple[Tensor, Tensor | int]] = []
        if self.schema.categorical:
            ids.append((batch["cat"], self.largest))
        for bag in self.schema.bags:
            ids.append((batch[f"bag/{bag.name}"]["values"], bag.vocab_size - 1))
        if not ids or not (self.check or ids[0][0].is_cpu):
            return
        for found, largest in ids:
            # One sign tells both: an id below 0, or beyond the largest.
            if found.numel() and ((largest - found) | found).min().item() < 0:
                check_ids(batch, self.schema)  # says which


def _asks(feature: Embedded) -> bool:
    return isinstance(feature, Sequence) and feature.pooling == "target_attention"


def _lookups(schema: FeatureSchema) -> list[_Lookup]:
    """Features that one operation looks up: rows of one width, or bags of one width and pooling."""
    groups: dict[tuple[str, int, str], list[Embedded]] = {}
    for feature in schema.embedded:
        how = "row" if isinstance(feature, Categorical) else feature.pooling
        alone = feature.name if how in ("last", "target_attention") else ""
        groups.setdefault((how, feature.dim, alone), []).append(feature)
    columns = {feature.name: column for column, feature in enumerate(schema.categorical)}
    return [
        _Lookup(how, dim, tuple(members), tuple(columns.get(f.name, -1) for f in members))
        for (how, dim, _), members in groups.items()
    ]


def _blocks(schema: FeatureSchema, lookups: list[_Lookup]) -> list[tuple[int, int, int]]:
    """Schema order as slices ``start:stop`` of the lookups' results."""
    place = {
        feature.name: (number, position)
        for number, lookup in enumerate(lookups)
        for position, feature in enumerate(lookup.features)
    }
    blocks: list[tuple[int, int, int]] = []
    for feature in schema.embedded:
        number, position = place[feature.name]
        if blocks and blocks[-1][0] == number and blocks[-1][2] == position:
            blocks[-1] = (number, blocks[-1][1], position + 1)
        else:
            blocks.append((number, position, position + 1))
    return blocks
