"""Errors of a counter by the true count, as a table and in words."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.training.report import Section, Table
from moeapps.vision.counting.counted import BUCKETS, bucket_of, counts_of

_NAMES = {name: name.replace("501+", "501 and more") for name in BUCKETS}


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """A section if the run counted.

    Args:
        results: Arrays of ``results.npz``.

    Example:
        >>> arrays = {"counting/true": np.array([0.0, 10.0]), "counting/predicted": np.ones(2)}
        >>> for row in sections(arrays)[0].table.rows:
        ...     print(row)
        ('0', '1', '1.00', '1.00', '+1.00')
        ('1-100', '1', '9.00', '9.00', '-9.00')
        ('all', '2', '5.00', '6.40', '-4.00')
    """
    counts = counts_of(results)
    if counts is None or not len(counts[0]):
        return []
    true, predicted = counts
    gaps = predicted - true
    buckets = np.array([bucket_of(count) for count in true])
    parts = {name: gaps[buckets == number] for number, name in enumerate(BUCKETS)} | {"all": gaps}
    table = Table(
        ("true count", "images", "MAE", "RMSE", "mean error"),
        tuple(_row(_NAMES.get(name, name), part) for name, part in parts.items() if len(part)),
    )
    return [Section("Errors by count", text=_reading(true, gaps), table=table)]


def _row(name: str, gaps: NDArray[np.float64]) -> tuple[str, ...]:
    values = (f"{np.abs(gaps).mean():,.2f}", f"{np.sqrt((gaps**2).mean()):,.2f}")
    return (name, f"{len(gaps):,}", *values, f"{gaps.mean():+,.2f}")


def _reading(true: NDArray[np.float64], gaps: NDArray[np.float64]) -> str:
    error, mean = np.abs(gaps).mean(), true.mean()
    text = f"Counts are off by {error:,.2f} on average, of {mean:,.1f} that there are"
    if mean > 0:
        text += f" ({error / mean:.1%})"
    guess = np.abs(true - mean).mean()
    text += f". Saying {mean:,.1f} of every image would be off by {guess:,.2f}"
    if error >= guess:
        text += ", no worse: nothing was learnt that tells images apart"
    return text + "."
