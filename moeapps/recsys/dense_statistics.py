"""What a dense column's transform needs to know of the training split, and the transform."""

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError
from moeapps.recsys.schema import Dense

Array = NDArray[Any]

QUANTILES = 1_001
_SAMPLE = 1_000_000  # rows from which quantiles are taken


class DenseStatistics:
    """Mean, spread, range and quantiles of a dense feature, over blocks of rows.

    Args:
        feature: Its transform says what is needed.
    """

    def __init__(self, feature: Dense) -> None:
        self.feature = feature
        self.has_gaps = False
        self.rows = np.zeros(feature.width)
        self.mean = np.zeros(feature.width)
        self.squares = np.zeros(feature.width)  # of deviations from the mean
        self.low = np.full(feature.width, np.inf)
        self.high = np.full(feature.width, -np.inf)
        self.sample: list[Array] = []
        self.stride = 1
        self.seen = 0

    def update(self, values: Array) -> None:
        """Take in ``[B, width]`` numbers; NaN is missing."""
        gaps = np.isnan(values)
        self.has_gaps |= bool(gaps.any())
        rows = (~gaps).sum(0)
        mean = np.where(gaps, 0, values).sum(0) / np.maximum(rows, 1)
        squares = (np.where(gaps, 0, values - mean) ** 2).sum(0)
        # Chan, Golub and LeVeque: two sets joined without cancellation.
        total = np.maximum(rows + self.rows, 1)
        step = mean - self.mean
        self.squares += squares + step**2 * self.rows * rows / total
        self.mean += step * rows / total
        self.rows += rows
        self.low = np.minimum(self.low, np.where(gaps, np.inf, values).min(0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(gaps, -np.inf, values).max(0, initial=-np.inf))
        if self.feature.transform == "quantile":
            self._keep(values)

    def finish(self) -> list[list[float]]:
        """Statistics of each column.

        Raises:
            ArgumentError: A transform needs a number and there is none.
        """
        if self.feature.transform in ("none", "log1p"):
            return [[] for _ in range(self.feature.width)]
        if not self.rows.all():
            raise ArgumentError(
                f"Column {self.feature.name!r} has no number in the training split. Expected at "
                f"least one to fit transform={self.feature.transform!r}: leave the feature out."
            )
        if self.feature.transform == "quantile":
            return [self._quantiles(column) for column in np.concatenate(self.sample).T]
        if self.feature.transform == "standard":
            centre, spread = self.mean, np.sqrt(self.squares / self.rows)
        else:
            centre, spread = self.low, self.high - self.low
        return [[float(c), float(s) or 1.0] for c, s in zip(centre, spread, strict=True)]

    def _keep(self, values: Array) -> None:
        """Every ``stride``-th row; the stride doubles whenever the sample grows too long."""
        self.sample.append(values[-self.seen % self.stride :: self.stride])
        self.seen += len(values)
        while sum(map(len, self.sample)) > _SAMPLE:
            self.sample = [np.concatenate(self.sample)[::2]]
            self.stride *= 2

    @staticmethod
    def _quantiles(column: Array) -> list[float]:
        known = column[~np.isnan(column)]
        return [float(v) for v in np.quantile(known, np.linspace(0, 1, QUANTILES))]


def dense_values(feature: Dense, column: Any) -> Array:
    """A raw column as float64 ``[B, width]``, None and NaN as NaN.

    Raises:
        ArgumentError: It is no column of numbers of this width, or infinite somewhere.
    """
    if isinstance(column, tuple):  # a list per row, as from a Parquet file
        numbers, offsets = column
        wrong = np.diff(offsets, append=len(numbers)) != feature.width
        if wrong.any():
            raise ArgumentError(
                f"Column {feature.name!r} has another number of values in row "
                f"{int(wrong.argmax())}. Expected {feature.width} in each row."
            )
        column = np.reshape(numbers, (len(offsets), feature.width))
    values = np.asarray(column)
    if values.dtype.kind == "O" and all(
        v is None or isinstance(v, (int, float, np.number)) for v in values.flat
    ):
        values = np.array([np.nan if v is None else v for v in values.flat]).reshape(values.shape)
    if values.dtype.kind not in "biuf":
        raise ArgumentError(
            f"Column {feature.name!r} holds {_kind(values)}. Expected numbers for a dense feature: "
            "declare a column of texts as Categorical."
        )
    values = values.astype(np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != feature.width:
        raise ArgumentError(
            f"Column {feature.name!r} has shape {list(values.shape)}. Expected "
            f"[B, {feature.width}]."
        )
    infinite = np.isinf(values).any(1)
    if infinite.any():
        raise ArgumentError(
            f"Column {feature.name!r} is infinite in row {int(infinite.argmax())}. Expected finite "
            "numbers, or NaN where one is missing."
        )
    return values


def scale(transform: str, x: Array, statistics: Many[float]) -> Array:
    """The transform of one column; NaN stays NaN, except that a quantile is always a number."""
    if transform == "log1p":
        return np.sign(x) * np.log1p(np.abs(x))
    if transform in ("standard", "minmax"):
        return (x - statistics[0]) / statistics[1]
    if transform == "quantile":
        return np.searchsorted(statistics, x, side="right") / len(statistics)
    return x


def _kind(values: Array) -> str:
    text = next((v for v in values.flat if isinstance(v, str)), None)
    return f"the text {str(text)!r}" if text is not None else f"{values.dtype} values"
