"""Statistics of one leaf: naive Bayes scores, votes, and learning one instance."""

import math

import numpy as np

from moeapps.streams.compiling import inlined, kernel
from moeapps.streams.forest_state import (
    BASES,
    BELLS,
    CLASS_ROOM,
    COLUMNS,
    COUNTS,
    LOGS,
    MOMENTS,
    NUM_CLASSES,
    NUM_NOMINAL,
    NUM_NUMERIC,
    NUMERIC_ROOM,
    PER_COLUMN,
    SEEN,
    VALUE_ROOM,
    VALUES,
    WEIGHTS,
)

# A feature that a class always had at one value tells against any other value, but one such
# surprise must not hide the rest of the evidence, nor make the sum infinite.
SURPRISE = 1e9
# Below this variance a feature counts as constant; 1 / (2 variance) of a constant one.
LEAST_VARIANCE = 1e-200
CONSTANT = 1e300
# Differences this small are rounding, not evidence: the first of such classes wins everywhere.
TIE = 1e-9

_LOGS = np.log(np.maximum(np.arange(4096.0), 1.0))  # logarithms of whole numbers from 1


@kernel
def score(leaf: np.ndarray, layout: np.ndarray, x: np.ndarray, scores: np.ndarray) -> None:
    """Naive Bayes: ln n_c + sum_j ln p(x_j | c), up to a constant, for every class."""
    num_classes, room = layout[NUM_CLASSES], layout[CLASS_ROOM]
    num_numeric = layout[NUM_NUMERIC]
    at = layout[BASES]
    for c in range(num_classes):
        scores[c] = leaf[at + c]
    at = layout[BELLS]
    for j in range(num_numeric):
        value = x[j]
        if value == value:
            for c in range(num_classes):
                gap = value - leaf[at + c]
                far = gap * gap * leaf[at + room + c]
                scores[c] -= far if far < SURPRISE else SURPRISE
        else:
            for c in range(num_classes):
                scores[c] -= _log_height(leaf[at + room + c])
        at += 2 * room
    for k in range(layout[NUM_NOMINAL]):
        value = x[num_numeric + k]
        column = COLUMNS + PER_COLUMN * k
        values = layout[column + VALUES]
        if value == value:
            if 0 <= value < values:
                at = layout[column + LOGS] + int(value) * room
                for c in range(num_classes):
                    scores[c] += leaf[at + c]
        elif values > 0:
            at, width = layout[column + WEIGHTS], layout[column + VALUE_ROOM] + 1
            for c in range(num_classes):
                scores[c] += math.log(leaf[at + c * width] + values)


@kernel
def _log_height(inverse: float) -> float:
    """Logarithm of the top of the Gaussian with 1 / (2 variance) = ``inverse``."""
    return 0.5 * math.log(inverse / math.pi) if 0.0 < inverse < CONSTANT else 0.0


@inlined
def likeliest(scores: np.ndarray, num_classes: int) -> int:
    """The first of the classes with the highest score."""
    best = -math.inf
    for c in range(num_classes):
        best = max(best, scores[c])
    for c in range(num_classes):
        if scores[c] >= best - TIE:
            return c
    return 0


@inlined
def majority(leaf: np.ndarray, start: int, num_classes: int) -> int:
    """The first of the classes with most weight; ``start`` is the place of class 0."""
    best = 0.0
    for c in range(num_classes):
        best = max(best, leaf[start + c])
    for c in range(num_classes):
        if leaf[start + c] >= best * (1.0 - TIE):
            return c
    return 0


@kernel
def update(leaf: np.ndarray, layout: np.ndarray, x: np.ndarray, y: int, w: float) -> None:
    """Add an instance of class ``y`` and weight ``w`` to the statistics."""
    room = layout[CLASS_ROOM]
    num_numeric = layout[NUM_NUMERIC]
    leaf[SEEN] += w
    leaf[COUNTS + y] += w
    # The bases need sums of logarithms: multiply, and take few logarithms.
    total, product = 0.0, 1.0
    bell = layout[BELLS] + y
    at = layout[MOMENTS] + 4 * layout[NUMERIC_ROOM] * y
    for j in range(num_numeric):
        value = x[j]
        inverse = leaf[bell + room]
        if value == value:
            weight = leaf[at] + w
            if leaf[at] == 0.0:
                leaf[at + 2] = leaf[at + 3] = value
            elif value < leaf[at + 2]:
                leaf[at + 2] = value
            elif value > leaf[at + 3]:
                leaf[at + 3] = value
            leaf[at] = weight
            gap = value - leaf[bell]
            # In this order the mean of one value is that value, to the last bit.
            mean = leaf[bell] + gap * (w / weight)
            leaf[bell] = mean
            leaf[at + 1] += w * gap * (value - mean)
            variance = leaf[at + 1] / (weight - 1.0) if weight > 1.0 else 0.0
            inverse = 0.5 / variance if variance > LEAST_VARIANCE else CONSTANT
            leaf[bell + room] = inverse
        if 0.0 < inverse < CONSTANT:
            product *= inverse * (1.0 / math.pi)
            if not 1e-100 < product < 1e100:
                total += math.log(product)
                product = 1.0
        bell += 2 * room
        at += 4
    total = 0.5 * (total + math.log(product))
    product = 1.0
    for k in range(layout[NUM_NOMINAL]):
        value = x[num_numeric + k]
        column = COLUMNS + PER_COLUMN * k
        values = layout[column + VALUES]
        at = layout[column + WEIGHTS] + y * (layout[column + VALUE_ROOM] + 1)
        if 0.0 <= value < values:
            v = int(value)
            leaf[at] += w
            leaf[at + 1 + v] += w
            leaf[layout[column + LOGS] + v * room + y] = _log(leaf[at + 1 + v] + 1.0)
        if values > 0:
            product *= leaf[at] + values
            if product > 1e100:
                total -= math.log(product)
                product = 1.0
    leaf[layout[BASES] + y] = total + math.log(leaf[COUNTS + y] / product)


@inlined
def _log(number: float) -> float:
    whole = int(number) if number < len(_LOGS) else 0
    return _LOGS[whole] if whole == number else math.log(number)
