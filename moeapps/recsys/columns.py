"""Raw columns: numpy arrays by name, or pairs of values and offsets for several values per row."""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.recsys.vocabularies import MISSING

Array = NDArray[Any]
Columns = dict[str, Any]


def concat_columns(parts: Many[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of the same names, one part after the other."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _concat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def take_columns(columns: Mapping[str, Any], rows: Array | slice) -> dict[str, Any]:
    """Some rows of all columns.

    Example:
        >>> tags = (np.array([7, 8, 9]), np.array([0, 2, 2]))
        >>> values, offsets = take_columns({"tags": tags}, np.array([2, 0]))["tags"]
        >>> values.tolist(), offsets.tolist()
        ([9, 7, 8], [0, 1])
    """
    return {name: _take(column, rows) for name, column in columns.items()}


def match_rows(keys: Array, known: Array) -> Array:
    """For each key the row of ``known`` that holds it, -1 where none does.

    Example:
        >>> match_rows(np.array([7, 5, 9]), np.array([5, 7])).tolist()
        [1, 0, -1]
    """
    if not len(known):
        return np.full(len(keys), -1)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, keys, sorter=order).clip(max=len(known) - 1)
    rows = order[place]
    return np.where(known[rows] == keys, rows, -1)


def take_known(columns: Mapping[str, Any], rows: Array) -> Columns:
    """Rows of columns as `take_columns` gives them, with missing values where a row is -1."""
    gaps = rows < 0
    if not gaps.any():
        return take_columns(columns, rows)
    return {name: _take_known(column, rows, gaps) for name, column in columns.items()}


def _take_known(column: Any, rows: Array, gaps: Array) -> Any:
    if isinstance(column, tuple):
        values, offsets = column
        return _take((values, np.append(offsets, len(values))), np.where(gaps, len(offsets), rows))
    if column.dtype == object:
        return np.append(column, "")[rows]  # row -1 is the text appended
    if column.dtype.kind == "f":
        return np.append(column, np.nan)[rows]
    return np.append(column.astype(np.int64), MISSING)[rows]


def _take(column: Any, rows: Array | slice) -> Any:
    if not isinstance(column, tuple):
        return column[rows]
    values, offsets = column
    starts = offsets[rows]
    counts = np.diff(offsets, append=len(values))[rows]
    ends = np.cumsum(counts)
    place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return values[place], ends - counts


def _concat(parts: list[Any]) -> Any:
    if not isinstance(parts[0], tuple):
        return np.concatenate(parts)
    shifts = np.cumsum([0, *(len(values) for values, _ in parts[:-1])])
    offsets = [starts + shift for (_, starts), shift in zip(parts, shifts, strict=True)]
    return np.concatenate([values for values, _ in parts]), np.concatenate(offsets)
