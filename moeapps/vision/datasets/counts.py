r"""How many images each class of a long-tailed set has.

The recipe is that of the LDAM paper, used by nearly everyone: from the head to the tail, in the
order of the labels,

.. math:: n_j = \lfloor n_{\max}\, \rho^{\,j/(C-1)} \rfloor, \qquad \rho = 1/\mathrm{imbalance}.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, UnknownNameError

Counts = NDArray[np.int64]
_MOST = 1_000_000_000  # images of one class, so also their ratio
_TOO_MANY = 2**62  # for an int64


def exponential_counts(largest: float, imbalance: float, classes: int) -> Counts:
    r"""Images per class, falling by a constant factor: :math:`\lfloor n\rho^{j/(C-1)}\rfloor`.

    Args:
        largest: Images of the first class.
        imbalance: First over last class, before rounding down.
        classes: Number of classes.

    Example:
        >>> exponential_counts(5000, 100, 10).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    largest, ratio = _checked_largest(largest), 1 / _checked_imbalance(imbalance)
    last = max(classes - 1, 1)
    # Python's power on purpose: the recipe is rounded down, so the last bit may count.
    return np.array([int(largest * ratio ** (j / last)) for j in range(classes)], np.int64)


def step_counts(largest: float, imbalance: float, classes: int) -> Counts:
    """Images per class in two steps: the first half of the classes large, the others small.

    Args:
        largest: Images of a large class.
        imbalance: Large over small, before rounding down.
        classes: Number of classes.

    Example:
        >>> step_counts(500, 100, 4).tolist()
        [500, 500, 5, 5]
    """
    small = int(_checked_largest(largest) * (1 / _checked_imbalance(imbalance)))
    half = classes // 2
    return np.array([int(largest)] * half + [small] * (classes - half), np.int64)


def tlc_counts(largest: float, classes: int) -> Counts:
    r"""Images per class as TLC was trained.

    .. math:: n_j = \min(n, \lfloor n\,e^{-j/\delta} + 0.5\rfloor + 1), \quad \delta = 0.219714\,C

    The results of that method are on this profile: they are not comparable with those on
    :func:`exponential_counts`.

    Args:
        largest: Images there are of a class.
        classes: Number of classes.

    Example:
        >>> tlc_counts(500, 100)[[0, -1]].tolist(), int(tlc_counts(500, 100).sum())
        ([500, 7], 11222)
    """
    largest, decay = _checked_largest(largest), 0.219714 * classes
    counts = [int(largest * math.exp(-j / decay) + 0.5) + 1 for j in range(classes)]
    return np.minimum(np.array(counts, np.int64), int(largest))


def profile(kind: str, imbalance: float | None, largest: int | None, available: Counts) -> Counts:
    """Counts from head to tail, of a kind; ``available`` is in the same order.

    Without ``largest`` it is the largest profile that fits below what is available.
    """
    classes = len(available)
    if largest is not None and largest < 1:
        raise ArgumentError(f"largest={largest} leaves the head without an image. Pass 1 or more.")
    if kind == "tlc":
        if imbalance is not None:
            raise ArgumentError(
                f"kind='tlc' fixes the imbalance, but imbalance={imbalance} is given. Pass None."
            )
        return tlc_counts(int(available.min()) if largest is None else largest, classes)
    if kind not in (kinds := {"exponential": exponential_counts, "step": step_counts}):
        raise UnknownNameError("kind of long tail", kind, [*kinds, "tlc"])
    if imbalance is None:
        raise ArgumentError(f"imbalance=None says nothing for kind={kind!r}. Pass 1 or more.")
    if largest is not None:
        return kinds[kind](largest, imbalance, classes)
    return _fullest(kinds[kind], imbalance, available)


def _fullest(
    counts: Callable[[float, float, int], Counts], imbalance: float, available: Counts
) -> Counts:
    """The largest profile that fits below what is available, by bisection."""
    classes = len(available)
    low, high = 0, int(available.max() * _checked_imbalance(imbalance)) + 1
    while low < high - 1:
        middle = (low + high) // 2
        fits = bool((counts(middle, imbalance, classes) <= available).all())
        low, high = (middle, high) if fits else (low, middle)
    return counts(low, imbalance, classes)


def _checked_largest(largest: float) -> float:
    if not 0 <= largest < _TOO_MANY:
        raise ArgumentError(
            f"largest={largest} is no number of images. Pass how many the head class has."
        )
    return largest


def _checked_imbalance(imbalance: float) -> float:
    if not 1 <= imbalance <= _MOST:
        raise ArgumentError(
            f"imbalance={imbalance} is below 1 or above {_MOST:,}. Pass the ratio of the largest "
            "to the smallest class, and reverse=True for the other direction."
        )
    return imbalance
