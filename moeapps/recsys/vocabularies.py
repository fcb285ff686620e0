"""Vocabularies: values of a column counted, kept if frequent, and found again as ids.

A column holds whole numbers or texts, never both. Missing values are None, NaN and empty text.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, CheckpointError

Array = NDArray[Any]

MISSING = np.iinfo(np.int64).min
"""A missing whole number."""

_SPARSEST = 4  # numbers are looked up if they fill at least one in so many places
_EXACT = 2**53  # up to here float64 holds every whole number


class ValueCounts:
    """How often each value of a vocabulary occurs, over blocks of rows."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        self.numbers = np.zeros(0, np.int64)
        self.counts = np.zeros(0, np.int64)

    def update(self, name: str, column: Array) -> None:
        """Count the values of a column.

        Raises:
            ArgumentError: Numbers where texts came before, or no values of a vocabulary.
        """
        values = plain_values(name, column)
        if values.dtype == object:
            self.texts.update(values.tolist())
        else:
            seen, counts = np.unique(values, return_counts=True)
            self.numbers, place = np.unique(
                np.concatenate([self.numbers, seen]), return_inverse=True
            )
            joined = np.concatenate([self.counts, counts])
            self.counts = np.bincount(place, joined, len(self.numbers)).astype(np.int64)
        if any(self.texts) and (self.numbers != MISSING).any():
            raise _mixed(name)

    def kept(self, min_count: int) -> list[Any]:
        """Values that occur often enough, in order."""
        if any(self.texts):
            return sorted(v for v, count in self.texts.items() if v and count >= min_count)
        often = (self.counts >= min_count) & (self.numbers != MISSING)
        return [int(v) for v in self.numbers[often]]


class IdTable:
    """Values to ids: 1, 2, ... in the order given, 0 for any other value.

    Args:
        name: Whose vocabulary it is, for messages.
        kept: All whole numbers in rising order, or all texts.

    Raises:
        CheckpointError: They are neither.
    """

    def __init__(self, name: str, kept: Many[Any]) -> None:
        self.texts = {v: i for i, v in enumerate(kept, 1) if isinstance(v, str)}
        self.numbers = np.array([v for v in kept if isinstance(v, int)], dtype=np.int64)
        whole = len(kept) in (len(self.texts), len(self.numbers))
        if not whole or (np.diff(self.numbers) <= 0).any():
            raise CheckpointError(
                f"The vocabulary of {name!r} holds neither rising whole numbers nor different "
                "texts. The state of the encoder is damaged: use another checkpoint."
            )
        first, last = (kept[0], kept[-1]) if len(self.numbers) else (0, -1)
        self.lookup: Array | None = None  # where numbers lie close, ids by number: no search
        if last - first < _SPARSEST * len(self.numbers):
            self.lookup = np.zeros(last - first + 1, np.int64)
            self.lookup[self.numbers - first] = np.arange(1, len(self.numbers) + 1)

    def ids(self, name: str, column: Array) -> Array:
        """Ids of the values of a column.

        Raises:
            ArgumentError: The column has another type than the vocabulary.
        """
        values = plain_values(name, column)
        if values.dtype == object:
            if len(self.numbers) and any(values.tolist()):
                raise _mixed(name)
            get = self.texts.get
            return np.fromiter((get(v, 0) for v in values.tolist()), np.int64, len(values))
        if self.texts and (values != MISSING).any():
            raise _mixed(name)
        if not len(self.numbers):
            return np.zeros(len(values), np.int64)
        if self.lookup is not None:
            first, last = self.numbers[0], self.numbers[-1]
            ids = self.lookup[values.clip(first, last) - first]
            ids[(values < first) | (values > last)] = 0
            return ids
        place = np.searchsorted(self.numbers, values).clip(max=len(self.numbers) - 1)
        return np.where(self.numbers[place] == values, place + 1, 0)


def plain_values(name: str, column: Array) -> Array:
    """A column as int64 (missing: `MISSING`) or as an object array of texts (missing: empty).

    Raises:
        ArgumentError: It holds fractions, mixes numbers and texts, or something else.
    """
    kind = column.dtype.kind
    if kind in "biu":
        return column.astype(np.int64, copy=False)
    if kind == "f":
        return _whole(name, column)
    if kind in "UST":
        return column.astype(str).astype(object)
    values = column.tolist()
    if kind == "O" and set(map(type, values)) <= {str}:
        return column
    filled = ["" if _is_missing(v) else v for v in values]
    if all(isinstance(v, str) for v in filled):
        return np.array(filled, dtype=object)
    row = next((i for i, v in enumerate(filled) if v != "" and not _is_number(v)), None)
    if row is None:
        if all(v == "" or isinstance(v, int) for v in filled):  # never through floats
            return np.array([MISSING if v == "" else v for v in filled], dtype=np.int64)
        return _whole(name, np.array([np.nan if v == "" else v for v in filled], np.float64))
    raise ArgumentError(
        f"Column {name!r} holds {values[row]!r} in row {row} among values of another type. "
        "Expected whole numbers or texts in the whole column."
    )


def group_ids(name: str, column: Any) -> Array:
    """Whole numbers that tell the groups of a column apart; texts become 63-bit digests.

    A digest does not depend on other rows, so batches agree on it.

    Example:
        >>> ids = group_ids("user", np.array(["anna", "ben", "anna"]))
        >>> bool(ids[0] == ids[2]), bool(ids[0] == ids[1])
        (True, False)
    """
    values = plain_values(name, np.asarray(column))
    if values.dtype != object:
        return values
    digests = {text: hashlib.blake2b(text.encode(), digest_size=8) for text in set(values.tolist())}
    whole = {text: int.from_bytes(d.digest(), "big") >> 1 for text, d in digests.items()}
    return np.fromiter(map(whole.__getitem__, values.tolist()), np.int64, len(values))


def _whole(name: str, column: Array) -> Array:
    missing = np.isnan(column)
    values = np.where(missing, 0, column)
    wrong = (values != np.floor(values)) | (np.abs(values) > _EXACT)
    if wrong.any():
        row = int(wrong.argmax())
        raise ArgumentError(
            f"Column {name!r} holds {column[row]} in row {row}. Expected whole numbers or texts: "
            "declare a column of measurements as Dense."
        )
    return np.where(missing, MISSING, values.astype(np.int64))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))


def _mixed(name: str) -> ArgumentError:
    return ArgumentError(
        f"Column {name!r} holds numbers in one part of the data and texts in another. Expected the "
        "type that the encoder was fitted on: convert the column first."
    )
