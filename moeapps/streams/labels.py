"""Classes of a stream: any hashable labels, numbered in order of first appearance."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np

from moeapps.errors import ArgumentError


class Labels:
    """Label <-> class index; the caller's own objects are kept.

    Example:
        >>> labels = Labels()
        >>> labels.add("up"), labels.add("down"), labels.add("up")
        (0, 1, 0)
        >>> list(labels)
        ['up', 'down']
    """

    def __init__(self, labels: Iterable[Hashable] = ()) -> None:
        self.index: dict[Hashable, int] = {}
        for label in labels:
            self.add(label)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.index)

    def find(self, label: Hashable) -> int | None:
        """Index of a known label."""
        try:
            return self.index.get(label)
        except TypeError as error:
            raise _unhashable(label) from error

    def add(self, label: Hashable) -> int:
        """Index of a label, which is new or known."""
        try:
            return self.index.setdefault(label, len(self.index))
        except TypeError as error:
            raise _unhashable(label) from error

    def codes(self, y: Any) -> tuple[np.ndarray, list[tuple[int, Hashable]]]:
        """Indices of many labels, and at which rows new ones come up; those are not added yet.

        Args:
            y: ``[N]`` array, Series or sequence of labels.

        Returns:
            ``[N]`` indices, and (row, label) of each new label in order of appearance.
        """
        values, place = _distinct(y)
        new = [(row, label) for row, label in values if label not in self.index]
        number = self.index | {label: len(self.index) + i for i, (_, label) in enumerate(new)}
        return np.array([number[label] for _, label in values], np.int64)[place], new

    def array(self) -> np.ndarray:
        """The labels as an array; of objects if they are of several types."""
        return as_array(list(self.index))


def as_array(labels: list[Any]) -> np.ndarray:
    """Labels as an array that holds exactly these labels, of objects if it must be."""
    first = labels[0] if labels else None
    plain = isinstance(first, str | bool | int | float | np.generic)
    if plain and all(type(label) is type(first) for label in labels):
        array = np.array(labels)
        if array.dtype != object:  # as for ints of more than 64 bits
            return array
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def _distinct(y: Any) -> tuple[list[tuple[int, Any]], np.ndarray]:
    """First row and value of each distinct label in order of appearance; place of each row's."""
    array = y if isinstance(y, np.ndarray) else getattr(y, "to_numpy", lambda: y)()
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuU":
        import pandas as pd

        place, values = pd.factorize(array)
        first = np.full(len(values), len(array))
        np.minimum.at(first, place, np.arange(len(array)))
        return list(zip(first.tolist(), np.asarray(values).tolist(), strict=True)), place
    first_row: dict[Hashable, tuple[int, int]] = {}
    place = np.empty(len(array), np.int64)
    for row, label in enumerate(array.tolist() if isinstance(array, np.ndarray) else array):
        try:
            place[row] = first_row.setdefault(label, (len(first_row), row))[0]
        except TypeError as error:
            raise _unhashable(label) from error
    return [(row, label) for label, (_, row) in first_row.items()], place


def _unhashable(label: Any) -> ArgumentError:
    return ArgumentError(
        f"The label {label!r} is not hashable. Expected a string, number, bool, tuple or the "
        "like; turn a list into a tuple."
    )
