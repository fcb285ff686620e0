"""Many instances at once, encoded up to the first one that brings something new.

A model must treat a batch exactly as it treats the instances one by one. So the columns may not
know of a key or a value before its row is reached: a batch is handed out in pieces that hold
nothing new, and between two pieces the columns learn one row.
"""

from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.streams.columns import LARGEST, Columns
from moeapps.streams.compiling import kernel


class ArrayBatch:
    """A float array; its columns have keys."""

    def __init__(self, columns: Columns, x: np.ndarray, keys: Sequence[Hashable]) -> None:
        self.columns, self.x, self.keys = columns, x, keys
        self._plan: tuple[np.ndarray, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def known(self, start: int, stop: int) -> np.ndarray:
        """Rows from ``start`` up to ``stop`` or to the first one with something new."""
        rows, done = self._encode(start, stop, learning=True)
        return rows[:done]

    def encode(self, start: int, stop: int) -> np.ndarray:
        """Rows, with the code -1 for values that are new."""
        return self._encode(start, stop, learning=False)[0]

    def learn(self, t: int) -> bool:
        """Add what is new in row ``t`` to the columns."""
        self._plan = None
        return self.columns.learn(dict(zip(self.keys, self.x[t].tolist(), strict=True)))

    def _encode(self, start: int, stop: int, *, learning: bool) -> tuple[np.ndarray, int]:
        if self._plan is None:
            self._plan = self._make_plan()
        rows = np.empty((stop - start, len(self.columns)))
        place, names, bounds, values, codes = self._plan
        done = _encode(self.x[start:stop], place, names, bounds, values, codes, learning, rows)
        return rows, done

    def _make_plan(self) -> tuple[np.ndarray, ...]:
        """Place of each column in a row; known values of the nominal ones, sorted, and codes."""
        columns = self.columns
        width = columns.num_numeric
        place = np.full(len(self.keys), -1)
        names = np.zeros(len(self.keys), bool)
        bounds, values, codes = [0], [], []
        for j, key in enumerate(self.keys):
            pairs: list[tuple[float, int]] = []
            if key in columns.declared:
                names[j] = True
                if key in columns.nominal:
                    k = columns.nominal[key]
                    place[j] = width + k
                    known: Any = columns.codes[k].items()
                    pairs = sorted((float(v), c) for v, c in known if isinstance(v, Real))
            else:
                place[j] = columns.numeric.get(key, -1)
            values += [value for value, _ in pairs]
            codes += [code for _, code in pairs]
            bounds.append(len(values))
        return place, names, np.array(bounds), np.array(values, float), np.array(codes, float)


class RecordBatch:
    """Feature dicts with the same keys."""

    def __init__(
        self,
        columns: Columns,
        records: Sequence[dict[Hashable, Any]],
        keys: Sequence[Hashable],
    ) -> None:
        self.columns, self.records, self.keys = columns, records, keys

    def __len__(self) -> int:
        return len(self.records)

    def known(self, start: int, stop: int) -> np.ndarray:
        """Rows from ``start`` up to ``stop`` or to the first one with something new."""
        rows = []
        for record in self.records[start:stop]:
            row = self.columns.encode_usual(record)
            if row is None:
                if self.columns.has_new(record):
                    break
                row = self.columns.encode(record)
            rows.append(row)
        return np.array(rows).reshape(len(rows), len(self.columns))

    def encode(self, start: int, stop: int) -> np.ndarray:
        """Rows, with the code -1 for values that are new."""
        rows = [self.columns.encode(record) for record in self.records[start:stop]]
        return np.array(rows).reshape(len(rows), len(self.columns))

    def learn(self, t: int) -> bool:
        """Add what is new in row ``t`` to the columns."""
        return self.columns.learn(self.records[t])


def as_batch(
    columns: Columns, x: Any, known_keys: Sequence[Hashable] | None = None
) -> ArrayBatch | RecordBatch:
    """The batch of a DataFrame, whose columns have names, or of an array, whose columns have none.

    The columns of an array have the keys that are known from before, if as many, or 0..d-1.
    """
    if hasattr(x, "iloc") and hasattr(x, "columns"):
        return _frame_batch(columns, x)
    matrix = as_matrix(x)
    width = matrix.shape[1]
    if known_keys is not None and len(known_keys) == width:
        return ArrayBatch(columns, matrix, known_keys)
    return ArrayBatch(columns, matrix, range(width))


def _frame_batch(columns: Columns, x: Any) -> ArrayBatch | RecordBatch:
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

    keys = list(x.columns)
    if len(set(keys)) < len(keys):
        raise ArgumentError(
            "The DataFrame has columns of the same name. Expected one column per feature; "
            "rename or drop the others."
        )
    plain = all(
        is_numeric_dtype(dtype) and not is_bool_dtype(dtype) and not is_complex_dtype(dtype)
        for dtype in x.dtypes
    )
    if plain:
        matrix = x.to_numpy(dtype=np.float64, na_value=np.nan)
        return ArrayBatch(columns, np.ascontiguousarray(matrix), keys)
    return RecordBatch(columns, x.to_dict("records"), keys)


def as_matrix(x: Any) -> np.ndarray:
    """A contiguous float64 matrix, or an error that says what is wrong with ``x``."""
    try:
        array = np.asarray(x)
        if array.dtype.kind in "biufO":
            array = np.ascontiguousarray(array, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"X cannot be read as numbers ({error}). Expected a float array [N, d]; give strings "
            "and mixed types in a DataFrame or as dicts."
        ) from error
    if array.dtype != np.float64:
        raise ArgumentError(
            f"X has dtype {array.dtype}. Expected a float array [N, d]; give strings and mixed "
            "types in a DataFrame or as dicts."
        )
    if array.ndim != 2:
        raise ArgumentError(
            f"X has shape {array.shape}. Expected [N, d], one row per instance; reshape one "
            "instance with X.reshape(1, -1)."
        )
    return array


@kernel
def _encode(
    x: np.ndarray,
    place: np.ndarray,
    names: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    codes: np.ndarray,
    learning: bool,
    rows: np.ndarray,
) -> int:
    """Fill ``rows``; the number of rows before the first that brings something new."""
    rows[:] = np.nan
    for t in range(len(x)):
        for j in range(x.shape[1]):
            value = x[t, j]
            if value != value:
                continue
            if place[j] < 0:
                if learning:
                    return t
            elif not names[j]:
                rows[t, place[j]] = min(max(value, -LARGEST), LARGEST)
            else:
                low, high, guess = bounds[j], bounds[j + 1], int(value)
                # Most often the values are 0, 1, 2, ...
                if 0 <= guess < high - low and values[low + guess] == value:
                    code = codes[low + guess]
                else:
                    code = _find(values, codes, low, high, value)
                if code < 0.0 and learning:
                    return t
                rows[t, place[j]] = code
    return len(x)


@kernel
def _find(values: np.ndarray, codes: np.ndarray, low: int, high: int, value: float) -> float:
    """The code of a value among those from ``low`` to ``high``, which are sorted; -1 if none."""
    end = high
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return codes[low] if low < end and values[low] == value else -1.0
