"""What every data set of this domain comes back as."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError

Rows = tuple[np.ndarray, np.ndarray]


class Stream:
    """A classification stream: arrays, chunks of arrays, or (dict, label) pairs as river has them.

    Args:
        card: What is known about it.
        rows: ``rows(start, stop)`` gives features ``[n, d]`` float64 and class indices ``[n]``
            int64 of these instances, the same however they are asked for.
        length: Number of instances.
        feature_names: One per column.
        class_names: One label per class index; dicts come with these.
        values: Nominal columns: index -> its values in the order of their codes 0, 1, ...
        drifts: Instances at which the concept changes, where that is known; the middle of a gradual
            change.
        drift_width: Instances that a change takes.
        seed: Of a generated stream.

    Notes:
        In dicts a nominal value is its name, a string, so that river's trees see that it is no
        number; a missing value (NaN) has no key.

    Example:
        >>> from moeapps import streams
        >>> stream = streams.load("agrawal_a", limit=1000, length=1000)
        >>> stream.X.shape, stream.nominal, stream.drifts
        ((1000, 9), (3, 4, 5), (225, 475, 725))
        >>> x, y = next(iter(stream))
        >>> x["age"], x["elevel"], y
        (60.0, '0', 0)
    """

    def __init__(
        self,
        card: DatasetCard,
        rows: Callable[[int, int], Rows],
        length: int,
        *,
        feature_names: Sequence[str],
        class_names: Sequence[Any],
        values: Mapping[int, Sequence[str]] | None = None,
        drifts: Sequence[int] = (),
        drift_width: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.card = card
        self.feature_names = tuple(feature_names)
        self.class_names = tuple(class_names)
        self.values = {j: tuple(names) for j, names in sorted((values or {}).items())}
        self.drifts = tuple(int(position) for position in drifts)
        self.drift_width = drift_width
        self.seed = seed
        self._rows = rows
        self._length = length

    @property
    def name(self) -> str:
        """Name by which it was loaded."""
        return self.card.name

    @property
    def nominal(self) -> tuple[int, ...]:
        """Indices of the nominal columns."""
        return tuple(self.values)

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int, stop: int) -> Rows:
        """Features and class indices of the instances ``start`` to ``stop - 1``."""
        return self._rows(start, stop)

    @cached_property
    def _all(self) -> Rows:
        return self._rows(0, self._length)

    @property
    def X(self) -> np.ndarray:  # noqa: N802 - the field's name
        """All features ``[N, d]`` float64, nominal ones as codes; made once and kept."""
        return self._all[0]

    @property
    def y(self) -> np.ndarray:
        """All class indices ``[N]`` int64."""
        return self._all[1]

    def chunks(self, size: int = 10_000, *, start: int = 0) -> Iterator[Rows]:
        """Features and class indices of ``size`` instances at a time, in flat memory.

        Args:
            size: Instances per chunk; the stream is the same for every size.
            start: First instance.
        """
        if size < 1 or not 0 <= start <= self._length:
            raise ArgumentError(
                f"size={size}, start={start} is no part of {self._length} instances. Choose a "
                "size of at least 1 and a start within the stream."
            )
        for first in range(start, self._length, size):
            yield self._rows(first, min(first + size, self._length))

    def dicts(self, X: np.ndarray, y: np.ndarray) -> Iterator[tuple[dict[Any, Any], Any]]:  # noqa: N803
        """Rows of a chunk as (dict, label) pairs."""
        for row, label in zip(X.tolist(), y.tolist(), strict=True):
            x = {
                name: self.values[j][int(value)] if j in self.values else value
                for j, (name, value) in enumerate(zip(self.feature_names, row, strict=True))
                if value == value  # NaN is a missing value
            }
            yield x, self.class_names[label]

    def __iter__(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        for X, y in self.chunks(1_000):  # noqa: N806
            yield from self.dicts(X, y)

    def __repr__(self) -> str:
        return (
            f"Stream({self.name}: {self._length} x {len(self.feature_names)}, "
            f"{len(self.class_names)} classes)"
        )
