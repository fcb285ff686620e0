r"""Numbers of a test-then-train run, all from counts per window of instances.

The two simplest answers are counted beside the model's: the class that was most frequent so far,
and the last label. A model that does not beat them has learnt nothing.
"""

from typing import NamedTuple

import numpy as np

from moeapps.errors import ArgumentError

BEFORE = 5  # windows whose mean is "the accuracy before a change"
TOLERANCE = 0.01


class Counts(NamedTuple):
    """What was right, per window.

    Args:
        total: Instances.
        model: Instances that the model got right.
        majority: Instances that the most frequent class so far gets right.
        last: Instances that the last label gets right.
    """

    total: np.ndarray
    model: np.ndarray
    majority: np.ndarray
    last: np.ndarray

    def summed(self) -> "Counts":
        """The counts of the whole run."""
        return Counts(*(np.asarray(part).sum(axis=-1) for part in self))


def accuracy(counts: Counts) -> np.ndarray:
    """Share of instances that the model got right; NaN where there are none.

    Example:
        >>> accuracy(Counts(*np.array([[10], [8], [5], [6]]))).tolist()
        [0.8]
    """
    return _share(counts.model, counts.total)


def kappa_m(counts: Counts) -> np.ndarray:
    r"""Gain over the majority class: :math:`(p_0 - p_\mathrm{maj}) / (1 - p_\mathrm{maj})`.

    1 is perfect, 0 is as good as always saying the class most frequent so far.

    References:
        Bifet et al., *Efficient online evaluation of big data stream classifiers*, KDD 2015.
        https://doi.org/10.1145/2783258.2783372

    Example:
        >>> kappa_m(Counts(*np.array([[10], [8], [5], [6]]))).tolist()
        [0.6]
    """
    return _gain(counts.model, counts.majority, counts.total)


def kappa_temporal(counts: Counts) -> np.ndarray:
    r"""Gain over repeating the last label: :math:`(p_0 - p_\mathrm{per})/(1 - p_\mathrm{per})`.

    References:
        Zliobaite et al., *Evaluation methods and decision theory for classification of streaming
        data with temporal dependence*, Machine Learning 2015.
        https://doi.org/10.1007/s10994-014-5441-4

    Example:
        >>> kappa_temporal(Counts(*np.array([[10], [8], [5], [6]]))).tolist()
        [0.5]
    """
    return _gain(counts.model, counts.last, counts.total)


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(part) / np.asarray(total)


def _gain(model: np.ndarray, reference: np.ndarray, total: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        # Counts, not shares: (m - r) / (N - r) has no rounding when everything is right.
        gain = (np.asarray(model) - reference) / (np.asarray(total) - reference)
    # A reference that is always right leaves nothing to gain.
    return np.where(np.asarray(total) == reference, np.nan, gain)


class References:
    """The majority class so far and the last label, counted as a stream goes by.

    Args:
        num_classes: Number of classes.

    Notes:
        With equal counts the class of the lower index is the majority. Before the first label
        both are wrong.

    Example:
        >>> references = References(2)
        >>> references.right(np.array([1, 1, 0]), np.array([1, 1, 0]))
        (1, 1)
    """

    def __init__(self, num_classes: int) -> None:
        self.seen = np.zeros(num_classes, np.int64)
        self.last = -1

    def right(self, y: np.ndarray, revealed: np.ndarray) -> tuple[int, int]:
        """How many of ``y`` the two get right.

        Args:
            y: Labels of consecutive instances.
            revealed: The label that becomes known after each of them, -1 = none. Without delay
                this is ``y`` itself.
        """
        if not len(y):
            return 0, 0
        known = revealed >= 0
        # seen[i, c]: labels of class c known before instance i is predicted.
        steps = np.zeros((len(y), len(self.seen)), np.int64)
        steps[np.flatnonzero(known), revealed[known]] = 1
        seen = self.seen + np.cumsum(steps, axis=0) - steps
        majority = np.where(seen.any(axis=1), seen.argmax(axis=1), -1)
        last = np.concatenate([[self.last], revealed[:-1]])
        self.seen = self.seen + steps.sum(axis=0)
        self.last = int(revealed[-1])
        return int((majority == y).sum()), int((last == y).sum())


def recovery_time(
    accuracy: np.ndarray,
    ends: np.ndarray,
    drift: float,
    *,
    width: float = 0.0,
    until: float = np.inf,
) -> float:
    """Instances from a change until the windowed accuracy is back within one point.

    "Back" is measured against the mean accuracy of the five windows before the change; the answer
    is the end of the first whole window after the change that is back, minus the change.

    Args:
        accuracy: Per window.
        ends: Instance after the last of each window.
        drift: Instance of the change (the middle of a gradual one).
        width: Instances that the change takes; windows inside it are not "before".
        until: Instance at which the next change begins.

    Returns:
        NaN if there is no window before, or if it is not back by then.

    Example:
        >>> ends = np.arange(1, 9) * 1000
        >>> recovery_time(np.array([0.8, 0.8, 0.8, 0.5, 0.6, 0.7, 0.795, 0.8]), ends, 3000)
        4000.0
    """
    accuracy, ends = np.asarray(accuracy, float), np.asarray(ends)
    if accuracy.shape != ends.shape:
        raise ArgumentError(
            f"accuracy has {accuracy.shape} windows and ends {ends.shape}. Give one end per window."
        )
    starts = np.concatenate([[0], ends[:-1]])
    before = accuracy[ends <= drift - width][-BEFORE:]
    if not len(before):
        return np.nan
    back = (starts >= drift) & (ends <= until) & (accuracy >= before.mean() - TOLERANCE)
    return float(ends[back.argmax()] - drift) if back.any() else np.nan


def usage_entropy(usage: np.ndarray) -> np.ndarray:
    r"""How evenly experts are used: :math:`-\sum_i p_i \ln p_i / \ln K`; 1 even, 0 one only.

    Args:
        usage: How often each expert was used, experts last.

    Example:
        >>> usage_entropy(np.array([[5, 5], [9, 0]])).tolist()
        [1.0, 0.0]
    """
    usage = np.asarray(usage, float)
    share = _share(usage, usage.sum(axis=-1, keepdims=True))
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.abs(-(share * logs).sum(axis=-1) / np.log(max(usage.shape[-1], 2)))
