"""What every reader gives: raw columns in three splits, a draft of the schema, and the tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import DataIntegrityError
from moeapps.recsys.columns import Columns, take_columns
from moeapps.recsys.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Tables:
    """A log in three splits.

    Columns are raw: texts, whole numbers, numbers, and pairs of values and offsets where a row has
    several values. An :class:`~moeapps.recsys.encoders.Encoder` fitted on ``train`` turns them
    into ids. Columns that neither the schema nor a task names may be there too.

    Args:
        schema: A draft: each vocabulary size is 1 until an encoder has seen the training split.
        tasks: What is predicted.
        train: Training columns by name.
        val: Validation columns.
        test: Test columns.
        split_source: How the rows came into their splits.
        min_count: How often a value has to occur in ``train`` to get an id.
    """

    schema: FeatureSchema
    tasks: tuple[Task, ...]
    train: Columns
    val: Columns
    test: Columns
    split_source: str
    min_count: int | Mapping[str, int] = field(default=1)

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: count_rows(getattr(self, name)) for name in ("train", "val", "test")}


def count_rows(columns: Mapping[str, Any]) -> int:
    """Rows of columns."""
    first = next(iter(columns.values()))
    return len(first[1] if isinstance(first, tuple) else first)


def stratified_halves(labels: NDArray[Any], seed: int) -> NDArray[np.bool_]:
    """A mask of half of the rows, with half of the rows of each label."""
    chosen = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for value in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == value))
        chosen[rows[: len(rows) // 2]] = True
    return chosen


def split_columns(columns: Columns, part: NDArray[Any]) -> tuple[Columns, Columns, Columns]:
    """Training, validation and test rows, where ``part`` is 0, 1 and 2, in their order.

    Raises:
        DataIntegrityError: A split would be empty.
    """
    rows = [np.flatnonzero(part == i) for i in range(3)]
    if not all(map(len, rows)):
        raise DataIntegrityError(
            f"{len(part)} rows give splits of {', '.join(str(len(r)) for r in rows)} rows. "
            "Expected rows in each of training, validation and test: the files are cut short, "
            "fetch them again."
        )
    train, val, test = (take_columns(columns, r) for r in rows)
    return train, val, test


def random_parts(count: int, shares: tuple[float, float], seed: int) -> NDArray[np.int8]:
    """0, 1 or 2 per row at random; ``shares`` are those of validation and test."""
    part = np.zeros(count, np.int8)
    order = np.random.default_rng(seed).permutation(count)
    test = round(shares[1] * count)
    part[order[:test]] = 2
    part[order[test : test + round(shares[0] * count)]] = 1
    return part
