"""Rows of a log as a few packed tensors.

================  ====================  ========================================================
key               tensor                holds
================  ====================  ========================================================
``cat``           ``[B, F]`` int64      ids of the categorical features
``dense``         ``[B, Fd]`` float32   dense features, each ``width`` columns
``bag/<name>``    dict                  ``values`` int64: all ids of a bag or sequence, row after
                                        row; ``offsets [B]`` int64: where each row starts
``labels``        ``[B, T]`` float32    NaN where missing
``mask``          ``[B, T]`` bool       False on rows outside a task's sample space; optional
``group``         ``[B]`` int64         whose impression it is, for grouped metrics; optional
``weight``        ``[B]`` float32       sample weights; optional
================  ====================  ========================================================

Ids stay int64 from end to end: float32 cannot hold a whole number above :math:`2^{24}`.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError, IdRangeError, UnknownNameError
from moeapps.recsys.schema import Bag, FeatureSchema, Sequence, Task

Batch = dict[str, Any]


def pack(
    columns: Mapping[str, Any],
    schema: FeatureSchema,
    tasks: Many[Task] = (),
    *,
    weight: str | None = None,
) -> Batch:
    """Pack columns into a batch, once for a whole data set.

    Args:
        columns: Arrays or tensors by name, encoded already. A bag or sequence is a list of id
            lists, a pair of values and offsets, or a padded array ``[B, L]`` whose zeros are
            padding.
        schema: Which columns are read.
        tasks: Whose labels and sample masks are read; none for prediction.
        weight: Column of sample weights.

    Raises:
        UnknownNameError: A column is missing.
        ArgumentError: A column has another length or type, or a dense one is not finite.
        IdRangeError: An id is negative or not in the vocabulary.

    Example:
        >>> from moeapps.recsys.schema import Categorical, Dense, MultiHot
        >>> features = [Categorical("user", 9, 4), MultiHot("tags", 9, 4), Dense("age")]
        >>> columns = {"user": [1, 2], "tags": [[3, 4], []], "age": [0.5, 0.1], "click": [0, 1]}
        >>> batch = pack(columns, FeatureSchema(features), [Task("click")])
        >>> batch["cat"].tolist(), batch["bag/tags"]["offsets"].tolist(), batch["labels"].tolist()
        ([[1], [2]], [0, 2], [[0.0], [1.0]])
    """
    read = _Columns(columns)
    batch: Batch = {}
    if schema.categorical:
        batch["cat"] = torch.stack([read.ids(f.name) for f in schema.categorical], 1)
    if schema.dense:
        batch["dense"] = torch.cat([read.numbers(f.name, f.width) for f in schema.dense], 1)
    for bag in schema.bags:
        batch[f"bag/{bag.name}"] = read.bag(bag)
    if tasks:
        batch["labels"] = torch.cat([read.numbers(t.column, 1, True) for t in tasks], 1)
        if any(task.sample_mask for task in tasks):
            batch["mask"] = torch.stack([read.mask(task.sample_mask) for task in tasks], 1)
        if schema.group_key is not None:
            batch["group"] = read.ids(schema.group_key)
    if weight is not None:
        batch["weight"] = read.numbers(weight, 1).squeeze(1)
    check_ids(batch, schema)
    return batch


def is_packed(batch: Mapping[str, Any], schema: FeatureSchema) -> bool:
    """Whether ``batch`` is packed already, and not a dict of single columns."""
    packed = "cat" if schema.categorical else "dense" if schema.dense else ""
    return packed in batch or any(f"bag/{bag.name}" in batch for bag in schema.bags)


def num_rows(batch: Batch) -> int:
    """``B``."""
    for key in ("cat", "dense", "labels"):
        if key in batch:
            return int(batch[key].shape[0])
    for key, value in batch.items():
        if key.startswith("bag/"):
            return int(value["offsets"].shape[0])
    raise ArgumentError(f"The batch holds {sorted(batch)}, none of which has rows of features.")


def take(batch: Batch, index: Tensor | slice) -> Batch:
    """Some rows of a packed batch, as a batch.

    Args:
        batch: Packed.
        index: int64 ``[R]``, bool ``[B]`` or a slice.

    Example:
        >>> batch = {"bag/t": {"values": torch.tensor([7, 8, 9]), "offsets": torch.tensor([0, 2])}}
        >>> take(batch, torch.tensor([1, 0]))["bag/t"]["values"].tolist()
        [9, 7, 8]
    """
    if isinstance(index, slice):
        index = torch.arange(num_rows(batch))[index]
    elif index.dtype == torch.bool:
        index = index.nonzero().squeeze(1)
    rows = index

    def chosen(value: Any) -> Any:
        return value.index_select(0, rows) if isinstance(value, Tensor) else _take_bag(value, rows)

    return {key: chosen(value) for key, value in batch.items()}


def to(batch: Batch, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
    """The batch on another device."""
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def pin_memory(batch: Batch) -> Batch:
    """The batch in pinned memory, from where it moves to a GPU without waiting."""
    return _map(batch, Tensor.pin_memory)


def lengths(bag: Mapping[str, Tensor]) -> Tensor:
    """Number of ids of each row, ``[B]``."""
    offsets, values = bag["offsets"], bag["values"]
    end = offsets.new_full((1,), values.shape[0])
    return torch.cat([offsets, end])[1:] - offsets


def check_ids(batch: Batch, schema: FeatureSchema) -> None:
    """Refuse ids outside their vocabulary, naming column, row and id.

    Raises:
        IdRangeError: An id is negative or not below ``vocab_size``.
    """
    if "cat" in batch and schema.categorical and batch["cat"].shape[0]:
        smallest, largest = torch.aminmax(batch["cat"], dim=0)
        bounds = zip(schema.categorical, smallest.tolist(), largest.tolist(), strict=True)
        for column, (feature, low, high) in enumerate(bounds):
            if low < 0 or high >= feature.vocab_size:
                ids = batch["cat"][:, column]
                _refuse(feature.name, feature.vocab_size, ids)
    for bag in schema.bags:
        values, offsets = batch[f"bag/{bag.name}"]["values"], batch[f"bag/{bag.name}"]["offsets"]
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= bag.vocab_size):
            _refuse(bag.name, bag.vocab_size, values, offsets)


def _refuse(name: str, vocab_size: int, ids: Tensor, starts: Tensor | None = None) -> None:
    wrong = ((ids < 0) | (ids >= vocab_size)).nonzero()
    place = int(wrong[0])
    row = place if starts is None else int((starts <= place).sum()) - 1
    raise IdRangeError(
        f"Column {name!r} holds id {int(ids[place])} in row {row} ({len(wrong)} such "
        f"value(s)). Expected 0 (unknown) to {vocab_size - 1}. Encode the column with the encoder "
        "fitted on the training split, or grow the table with resize_vocab."
    )


class _Columns:
    """Reads single columns with errors that name them."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = columns
        self.rows: int | None = None
        self.first = ""

    def ids(self, name: str) -> Tensor:
        ids = self._integers(name, self._get(name))
        if ids.ndim != 1:
            raise ArgumentError(f"Column {name!r} has shape {list(ids.shape)}. Expected [B].")
        self._count(name, ids.shape[0])
        return ids

    def numbers(self, name: str, width: int, missing_allowed: bool = False) -> Tensor:
        numbers = _tensor(name, self._get(name))
        if numbers.is_complex():
            raise ArgumentError(f"Column {name!r} is {numbers.dtype}. Expected real numbers.")
        numbers = numbers.to(torch.float32)
        if numbers.ndim == 1:
            numbers = numbers.unsqueeze(1)
        if numbers.ndim != 2 or numbers.shape[1] != width:
            raise ArgumentError(
                f"Column {name!r} has shape {list(numbers.shape)}. Expected [B, {width}]."
            )
        self._count(name, numbers.shape[0])
        bad = numbers.isinf() if missing_allowed else ~numbers.isfinite()
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0])
            kind = "not finite" if not missing_allowed else "infinite"
            raise ArgumentError(
                f"Column {name!r} is {kind} in row {row}. Expected finite numbers"
                f"{' or NaN for a missing label' if missing_allowed else ''}; the encoder replaces "
                "missing features by 0."
            )
        return numbers

    def mask(self, name: str | None) -> Tensor:
        if name is None:
            assert self.rows is not None
            return torch.ones(self.rows, dtype=torch.bool)
        values = self.numbers(name, 1, True).squeeze(1)
        return (values != 0) & ~values.isnan()

    def bag(self, feature: Bag) -> dict[str, Tensor]:
        column = self._get(feature.name)
        if isinstance(column, Mapping):
            column = (column["values"], column["offsets"])
        if isinstance(column, tuple) and len(column) == 2:
            bag = self._ragged(feature.name, *column)
        elif getattr(column, "ndim", 1) == 2:
            bag = self._padded(feature.name, column)
        else:
            bag = self._lists(feature.name, column)
        self._count(feature.name, bag["offsets"].shape[0])
        return bag if feature.max_len is None else _shorten(bag, feature)

    def _ragged(self, name: str, values: Any, offsets: Any) -> dict[str, Tensor]:
        ids, starts = self._integers(name, values), self._integers(name, offsets)
        ordered = bool((starts.diff() >= 0).all()) and bool((starts <= ids.shape[0]).all())
        if ids.ndim != 1 or starts.ndim != 1 or not ordered or bool(starts[:1].any()):
            raise ArgumentError(
                f"Column {name!r} has offsets that do not cut its {list(ids.shape)} values into "
                "rows. Expected the start of each row: from 0, never falling."
            )
        return {"values": ids, "offsets": starts}

    def _padded(self, name: str, column: Any) -> dict[str, Tensor]:
        ids = self._integers(name, column)
        kept = ids != 0
        count = kept.sum(1)
        return {"values": ids[kept], "offsets": count.cumsum(0) - count}

    def _lists(self, name: str, column: Any) -> dict[str, Tensor]:
        rows = [np.asarray(row).reshape(-1) for row in column]
        count = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        joined = np.concatenate([row for row in rows if len(row)] or [np.zeros(0, np.int64)])
        return {"values": self._integers(name, joined), "offsets": count.cumsum(0) - count}

    def _get(self, name: str) -> Any:
        if name not in self.columns:
            raise UnknownNameError("column", name, self.columns, "The schema or a task names it.")
        return self.columns[name]

    def _integers(self, name: str, column: Any) -> Tensor:
        ids = _tensor(name, column)
        if ids.is_floating_point() or ids.is_complex():
            raise ArgumentError(
                f"Column {name!r} is {ids.dtype}. Expected whole numbers: floating point changes "
                "large ids. Encode the column first."
            )
        return ids.to(torch.int64)

    def _count(self, name: str, rows: int) -> None:
        if self.rows is None:
            self.rows, self.first = rows, name
        elif rows != self.rows:
            raise ArgumentError(
                f"Column {name!r} has {rows} rows, {self.first!r} has {self.rows}. Columns of one "
                "batch have the same length."
            )


def _tensor(name: str, column: Any) -> Tensor:
    if isinstance(column, Tensor):
        return column
    array = np.asarray(column)
    if array.dtype.kind not in "biuf":
        raise ArgumentError(
            f"Column {name!r} holds {array.dtype} values. Expected numbers; encode it first."
        )
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))


def _shorten(bag: dict[str, Tensor], feature: Bag) -> dict[str, Tensor]:
    """At most ``max_len`` ids per row: the newest of a sequence, the first of a bag."""
    assert feature.max_len is not None
    count = lengths(bag)
    row = torch.repeat_interleave(torch.arange(count.shape[0]), count)
    place = torch.arange(bag["values"].shape[0]) - bag["offsets"][row]
    newest = isinstance(feature, Sequence)
    kept = place >= (count - feature.max_len)[row] if newest else place < feature.max_len
    count = count.clamp_max(feature.max_len)
    return {"values": bag["values"][kept], "offsets": count.cumsum(0) - count}


def _take_bag(bag: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    count = lengths(bag)[rows]
    offsets = count.cumsum(0) - count
    row = torch.repeat_interleave(torch.arange(rows.shape[0], device=rows.device), count)
    place = (
        torch.arange(row.shape[0], device=rows.device) - offsets[row] + bag["offsets"][rows][row]
    )
    return {"values": bag["values"][place], "offsets": offsets}


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return {
        key: change(value) if isinstance(value, Tensor) else _map(value, change)
        for key, value in batch.items()
    }
