"""Raw columns: numpy arrays by name, or pairs of values and offsets for several values per row."""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
