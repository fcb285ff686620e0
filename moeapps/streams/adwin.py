r"""ADWIN drift detectors, many in one state of three arrays.

A detector keeps a window of the values it saw and drops the old part as soon as the means of some
old part and of the rest differ by more than chance allows.
"""

from typing import NamedTuple

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.streams.compiling import kernel

MAX_BUCKETS = 5  # per row; one more and the two oldest merge into the next row
MIN_PART = 5  # values on either side of a cut
CLOCK = 32  # values between two checks
GRACE = 10  # values before the first check
# Row r holds buckets of 2**r values, so this many rows last for more than 10**10 values.
NUM_ROWS = 32

# Columns of `summary`.
WIDTH, TOTAL, VARIANCE, SEEN, ROWS, DELTA = range(6)


class Detectors(NamedTuple):
    """State of ``n`` detectors.

    Args:
        buckets: ``[n, rows, 6, 2]`` sum and variance (times count) of each bucket, oldest first.
        filled: ``[n, rows]`` buckets in use in each row.
        summary: ``[n, 6]`` width, sum and variance (times width) of the window; values seen since
            the reset; rows in use; delta.
    """

    buckets: np.ndarray
    filled: np.ndarray
    summary: np.ndarray


def new_detectors(n: int, delta: float | np.ndarray) -> Detectors:
    r"""``n`` empty detectors.

    The window of width :math:`W` is cut into an old part of :math:`n_0` values and a recent part
    of :math:`n_1` wherever their means differ by more than

    .. math:: \epsilon = \sqrt{2 m\,\sigma_W^2 D} + \tfrac{2}{3} m D,\quad
        m = \frac{1}{n_0-4} + \frac{1}{n_1-4},\quad D = \ln\frac{2\ln W}{\delta}

    Args:
        n: Number of detectors.
        delta: Chance of a false alarm that one check may have, one for all or one each; smaller is
            slower to react.

    Raises:
        ArgumentError: ``delta`` is not between 0 and 1.

    Notes:
        `update` reports a change only if the mean rose: a model that errs less has not drifted.
        The window is cut either way. Cuts are looked for every 32 values, as in MOA and river.

    References:
        Bifet, Gavalda, *Learning from time-changing data with adaptive windowing*, SDM 2007.
        https://doi.org/10.1137/1.9781611972771.42

    Example:
        >>> detectors = new_detectors(1, delta=0.002)
        >>> errors = [0.0] * 500 + [1.0] * 100
        >>> [t for t, error in enumerate(errors) if update(detectors, 0, error)]
        [511, 543]
        >>> width(detectors, 0), round(mean(detectors, 0), 3)
        (120.0, 0.833)
    """
    deltas = np.broadcast_to(np.asarray(delta, float), n)
    if not ((deltas > 0) & (deltas < 1)).all():
        raise ArgumentError(
            f"delta={delta} is not a probability. Expected a number between 0 and 1, such as "
            "0.002; pass a smaller one for fewer alarms."
        )
    detectors = Detectors(
        np.zeros((n, NUM_ROWS, MAX_BUCKETS + 1, 2)),
        np.zeros((n, NUM_ROWS), np.int64),
        np.zeros((n, 6)),
    )
    detectors.summary[:, DELTA] = deltas
    return detectors


@kernel
def width(detectors: Detectors, i: int) -> float:
    """Number of values in the window of detector ``i``."""
    return detectors.summary[i, WIDTH]


@kernel
def mean(detectors: Detectors, i: int) -> float:
    """Mean of the window of detector ``i``; 0 if it is empty."""
    summary = detectors.summary[i]
    return summary[TOTAL] / summary[WIDTH] if summary[WIDTH] > 0 else 0.0


@kernel
def reset(detectors: Detectors, i: int) -> None:
    """Forget everything detector ``i`` has seen."""
    detectors.filled[i] = 0
    detectors.summary[i, :DELTA] = 0.0


@kernel
def update(detectors: Detectors, i: int, value: float) -> bool:
    """Show detector ``i`` one value; True if its mean has risen beyond chance."""
    summary = detectors.summary[i]
    _insert(detectors, i, value)
    summary[SEEN] += 1
    if summary[SEEN] % CLOCK != 0 or summary[WIDTH] <= GRACE:
        return False
    before = mean(detectors, i)
    shrunk = False
    while _has_cut(detectors, i):
        _drop_oldest(detectors, i)
        shrunk = True
    return shrunk and mean(detectors, i) > before


@kernel
def _insert(detectors: Detectors, i: int, value: float) -> None:
    buckets, filled, summary = detectors.buckets[i], detectors.filled[i], detectors.summary[i]
    old_width = summary[WIDTH]
    if old_width > 0:
        distance = value - summary[TOTAL] / old_width
        summary[VARIANCE] += old_width * distance * distance / (old_width + 1)
    summary[WIDTH] = old_width + 1
    summary[TOTAL] += value
    total, variance, size = value, 0.0, 1.0
    for row in range(NUM_ROWS):
        end = filled[row]
        buckets[row, end, 0] = total
        buckets[row, end, 1] = variance
        filled[row] = end + 1
        if row >= summary[ROWS]:
            summary[ROWS] = row + 1
        if end < MAX_BUCKETS:
            return
        # One too many: the two oldest become one bucket of the next row.
        gap = (buckets[row, 0, 0] - buckets[row, 1, 0]) / size
        total = buckets[row, 0, 0] + buckets[row, 1, 0]
        variance = buckets[row, 0, 1] + buckets[row, 1, 1] + size * gap * gap / 2
        for k in range(2, MAX_BUCKETS + 1):
            buckets[row, k - 2, 0] = buckets[row, k, 0]
            buckets[row, k - 2, 1] = buckets[row, k, 1]
        filled[row] = MAX_BUCKETS - 1
        size *= 2


@kernel
def _has_cut(detectors: Detectors, i: int) -> bool:
    buckets, filled, summary = detectors.buckets[i], detectors.filled[i], detectors.summary[i]
    window = summary[WIDTH]
    if window <= GRACE:
        return False
    confidence = np.log(2 * np.log(window) / summary[DELTA])
    spread = 2 * summary[VARIANCE] / window * confidence
    n0, u0 = 0.0, 0.0
    for row in range(int(summary[ROWS]) - 1, -1, -1):
        size = 2.0**row
        for k in range(filled[row]):
            n0 += size
            u0 += buckets[row, k, 0]
            n1 = window - n0
            if n1 < MIN_PART:
                return False
            if n0 < MIN_PART:
                continue
            m = 1 / (n0 - MIN_PART + 1) + 1 / (n1 - MIN_PART + 1)
            gap = abs(u0 / n0 - (summary[TOTAL] - u0) / n1)
            if gap > np.sqrt(spread * m) + 2 / 3 * m * confidence:
                return True
    return False


@kernel
def _drop_oldest(detectors: Detectors, i: int) -> None:
    buckets, filled, summary = detectors.buckets[i], detectors.filled[i], detectors.summary[i]
    row = int(summary[ROWS]) - 1
    size = 2.0**row
    total, variance = buckets[row, 0, 0], buckets[row, 0, 1]
    rest = summary[WIDTH] - size
    summary[WIDTH] = rest
    summary[TOTAL] -= total
    gap = total / size - summary[TOTAL] / rest
    summary[VARIANCE] -= variance + size * rest * gap * gap / (size + rest)
    for k in range(1, filled[row]):
        buckets[row, k - 1, 0] = buckets[row, k, 0]
        buckets[row, k - 1, 1] = buckets[row, k, 1]
    filled[row] -= 1
    while summary[ROWS] > 0 and filled[int(summary[ROWS]) - 1] == 0:
        summary[ROWS] -= 1
