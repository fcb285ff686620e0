"""Features of a stream: dicts or arrays in, rows of numbers out.

A row holds the numeric columns first, in order of first appearance, then one code per nominal
column. NaN is a missing value; -1 is a nominal value that was never learned.
"""

import numbers
import re
from collections.abc import Hashable, Iterable, Mapping
from decimal import Decimal
from math import hypot, inf, isnan, nan
from operator import itemgetter
from typing import Any

import numpy as np

from moeapps.errors import ArgumentError

# Squares of numbers up to this size, and sums of many of them, stay finite.
LARGEST = 1e100
_NUMBERS = frozenset(
    [float, int, *(np.dtype(code).type for code in "efdbhilqBHILQ"), np.int64, np.uint64]
)
_NAMES = frozenset([str, bool, np.str_, np.bool_])


class Columns:
    r"""Which key of a feature dict goes to which column of a row.

    Numbers go to a numeric column; strings, bools and other hashable values to a nominal one, as
    do all values of the keys in ``nominal_attributes``. A key that brings both kinds of values
    owns a column of each kind, so nothing is lost. ``None``, NaN and absent keys are missing
    values. Numbers beyond :math:`\pm 10^{100}` count as :math:`\pm 10^{100}`.

    Args:
        nominal_attributes: Keys whose numbers are names of values.

    Example:
        >>> columns = Columns()
        >>> columns.learn({"hour": 7, "day": "Mon"})
        True
        >>> columns.learn({"hour": 8, "day": "Tue"})
        True
        >>> columns.encode({"day": "Tue", "hour": 9.5, "unknown": 1})
        array([9.5, 1. ])
        >>> columns.encode({"day": "Sun"})
        array([nan, -1.])
    """

    def __init__(self, nominal_attributes: Iterable[Hashable] | None = None) -> None:
        self.declared = frozenset(nominal_attributes or ())
        self.numeric: dict[Hashable, int] = {}
        self.nominal: dict[Hashable, int] = {}
        self.codes: list[dict[Hashable, int]] = []
        self._plan: _Plan | None = None  # made from the rest, and made anew when that grows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}

    @property
    def num_numeric(self) -> int:
        """Number of numeric columns."""
        return len(self.numeric)

    @property
    def num_values(self) -> list[int]:
        """Number of known values of each nominal column."""
        return [len(codes) for codes in self.codes]

    def __len__(self) -> int:
        return len(self.numeric) + len(self.nominal)

    def encode_usual(self, x: Mapping[Hashable, Any]) -> np.ndarray | None:
        """The row of a dict that has just the known keys with the usual values, quickly.

        None if the dict may have anything new or missing; then `learn` it and `encode` it.
        """
        if self._plan is None:
            self._plan = _Plan(self)
        return self._plan.encode(x)

    def encode(self, x: Mapping[Hashable, Any]) -> np.ndarray:
        """The row of a feature dict; nothing is learned from it."""
        row = self.encode_usual(x)
        if row is not None:
            return row
        row = np.full(len(self), nan)
        width = len(self.numeric)
        for key, value in x.items():
            kind, value = self._kind(key, value)
            if kind == "number" and key in self.numeric:
                row[self.numeric[key]] = value
            elif kind == "name" and key in self.nominal:
                k = self.nominal[key]
                row[width + k] = self.codes[k].get(value, -1)
        return row

    def _kind(self, key: Hashable, value: Any) -> tuple[str, Any]:
        """Whether a value is a number, a name or missing; and a number as a float in range."""
        if value is None:
            return "missing", value
        if (
            isinstance(value, numbers.Real | Decimal)
            and not isinstance(value, bool)
            and key not in self.declared
        ):
            try:
                number = float(value)
            except OverflowError:  # a whole number or fraction beyond floats
                number = inf if value > 0 else -inf  # type: ignore[operator]
            if isnan(number):
                return "missing", value
            return "number", min(max(number, -LARGEST), LARGEST)
        try:
            if value != value:
                return "missing", value
            hash(value)
        except TypeError as error:
            if type(value).__name__ == "NAType":  # pandas.NA answers no question
                return "missing", value
            raise _unusable(key, value) from error
        except ValueError as error:  # an array: many answers
            raise _unusable(key, value) from error
        return "name", value

    def has_new(self, x: Mapping[Hashable, Any]) -> bool:
        """Whether the dict has a key or a value that `learn` would add."""
        return any(self._new(x))

    def learn(self, x: Mapping[Hashable, Any]) -> bool:
        """Add the keys and values that are new; True if there were any.

        New keys are added in sorted order, so the order within a dict does not matter.
        """
        numeric, nominal = self._new(x)
        for key in _in_order(numeric):
            self.numeric[key] = len(self.numeric)
        for key in _in_order(nominal):
            if key not in self.nominal:
                self.nominal[key] = len(self.nominal)
                self.codes.append({})
            codes = self.codes[self.nominal[key]]
            codes[nominal[key]] = len(codes)
        if numeric or nominal:
            self._plan = None
        return bool(numeric or nominal)

    def _new(self, x: Mapping[Hashable, Any]) -> tuple[list[Hashable], dict[Hashable, Any]]:
        """Keys of new numeric columns; keys and values of what is new in nominal ones."""
        numeric, nominal = [], {}
        for key, value in x.items():
            kind, value = self._kind(key, value)
            if kind == "number" and key not in self.numeric:
                numeric.append(key)
            elif kind == "name" and (
                key not in self.nominal or value not in self.codes[self.nominal[key]]
            ):
                nominal[key] = value
        return numeric, nominal


class _Plan:
    """The quick way for the usual dict: the known keys, each with the kind of value it has."""

    def __init__(self, columns: Columns) -> None:
        self.width = len(columns)
        self.usable = self.width > 0 and columns.numeric.keys().isdisjoint(columns.nominal)
        self.numbers = _getter(columns.numeric)
        self.names = _getter(columns.nominal)
        # A number under the key of names belongs to another column, unless the key was declared.
        free = [key for key in columns.nominal if key not in columns.declared]
        self.free_names = _getter(free)
        self.codes = columns.codes

    def encode(self, x: Mapping[Hashable, Any]) -> np.ndarray | None:
        """The row, or None if the dict is not of the usual kind."""
        if not self.usable or len(x) != self.width:
            return None
        try:
            values = self.numbers(x)
            # Not more than LARGEST together, so each is not, and none is NaN.
            if not (_NUMBERS.issuperset(map(type, values)) and hypot(*values) <= LARGEST):
                return None
            if self.codes:
                if not _NAMES.issuperset(map(type, self.free_names(x))):
                    return None
                values = (*values, *map(dict.__getitem__, self.codes, self.names(x)))
        except (KeyError, TypeError, OverflowError):
            return None
        return np.array(values, np.float64)


def _getter(keys: Iterable[Hashable]) -> Any:
    """Function from a dict to the tuple of its values under the keys."""
    keys = tuple(keys)
    if not keys:
        return lambda x: ()
    if len(keys) == 1:
        return lambda x: (x[keys[0]],)
    return itemgetter(*keys)


def _in_order(keys: Iterable[Hashable]) -> list[Any]:
    """Sorted, names by the numbers in them too: x2 comes before x10."""
    keys = list(keys)
    try:
        return sorted(keys, key=_natural) if all(isinstance(k, str) for k in keys) else sorted(keys)
    except TypeError:  # of several types
        return sorted(keys, key=lambda key: (type(key).__name__, repr(key)))


def _natural(name: str) -> tuple[list[Any], str]:
    parts: list[Any] = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _unusable(key: Hashable, value: Any) -> ArgumentError:
    return ArgumentError(
        f"Feature {key!r} has the value {value!r} of type {type(value).__name__}. Expected a "
        "number, string, bool, None or another hashable value; split a list into several features."
    )
