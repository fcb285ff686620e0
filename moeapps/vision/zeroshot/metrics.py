"""Measures of generalised zero-shot classification; answers are always among all classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moeapps.errors import ArgumentError

REACH = 0.01
"""How near to zero both ends of a curve must come for its area to mean something."""


def per_class_accuracy(labels: ArrayLike, answers: ArrayLike, classes: ArrayLike) -> float:
    """Mean over ``classes`` of the accuracy within each; classes without images do not count.

    Raises:
        ArgumentError: None of the classes has an image.

    Example:
        >>> per_class_accuracy([0, 0, 0, 1], [0, 0, 2, 2], [0, 1])
        0.3333333333333333
    """
    labels, answers, classes = np.asarray(labels), np.asarray(answers), np.asarray(classes)
    size = 1 + max(int(labels.max(initial=0)), int(classes.max(initial=0)))
    counts = np.bincount(labels, minlength=size)[classes]
    right = np.bincount(labels[labels == answers], minlength=size)[classes]
    if not counts.any():
        raise ArgumentError("None of the classes has an image to test. Check labels and classes.")
    return float(np.mean(right[counts > 0] / counts[counts > 0]))


def harmonic_mean(seen: float, unseen: float) -> float:
    r""":math:`H = 2 a_s a_u / (a_s + a_u)`, and 0 where both are 0.

    Example:
        >>> harmonic_mean(0.6, 0.3), harmonic_mean(0.0, 0.0)
        (0.4, 0.0)
    """
    total = seen + unseen
    return 2 * seen * unseen / total if total > 0 else 0.0


@dataclass(frozen=True)
class Scores:
    """Per-class accuracy on images of seen and of unseen classes.

    Args:
        seen: Of seen classes.
        unseen: Of unseen classes.
    """

    seen: float
    unseen: float

    @property
    def harmonic(self) -> float:
        """Their harmonic mean."""
        return harmonic_mean(self.seen, self.unseen)

    def numbers(self) -> dict[str, float]:
        """All three by name."""
        return {"seen": self.seen, "unseen": self.unseen, "harmonic": self.harmonic}


def score(labels: ArrayLike, answers: ArrayLike, seen: ArrayLike, unseen: ArrayLike) -> Scores:
    """Both accuracies of answers on a test set with images of both kinds.

    Raises:
        ArgumentError: One kind has no image.

    Example:
        >>> score([0, 0, 1], [0, 1, 1], seen=[0], unseen=[1])
        Scores(seen=0.5, unseen=1.0)
    """
    return Scores(
        per_class_accuracy(labels, answers, seen), per_class_accuracy(labels, answers, unseen)
    )


def ausuc(seen: ArrayLike, unseen: ArrayLike, *, reach: float = REACH) -> float:
    r"""Area under the curve of unseen against seen accuracy, by trapezoids.

    The points are sorted by seen accuracy; the curve starts at ``(0, first unseen)`` and ends at
    ``(last seen, 0)``.

    Args:
        seen: Accuracy on seen classes for each value of what is swept.
        unseen: Accuracy on unseen classes.
        reach: Both must have a point at most this large.

    Raises:
        ArgumentError: The points do not fit together, or stop before an axis: the area would
            depend on where the sweep ended.

    References:
        Chao et al., *An Empirical Study and Analysis of Generalized Zero-Shot Learning*, ECCV 2016.

    Example:
        >>> ausuc([0.0, 0.5, 1.0], [0.5, 0.5, 0.0])
        0.375
    """
    x, y = np.asarray(seen, float), np.asarray(unseen, float)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ArgumentError(f"A curve needs two equal vectors, got {x.shape} and {y.shape}.")
    if max(x.min(), y.min()) > reach:
        raise ArgumentError(
            f"The curve ends at seen accuracy {x.min():.3f} and unseen accuracy {y.min():.3f}, "
            f"expected both to come down to {reach}. Sweep a wider range."
        )
    order = np.lexsort((-y, x))
    x = np.concatenate([[0.0], x[order], x[order][-1:]])
    y = np.concatenate([y[order][:1], y[order], [0.0]])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def gate_quality(seen_score: ArrayLike, is_seen: ArrayLike) -> dict[str, float]:
    """How well a score tells images of seen classes from others.

    Args:
        seen_score: High for seen, ``[N]``.
        is_seen: bool ``[N]``.

    Returns:
        ``auroc``, and ``fpr95``: the share of unseen images taken for seen where 95 % of the seen
        ones are (linear between the points of the curve).

    Raises:
        ArgumentError: Only one kind is there, or a score is NaN.

    Example:
        >>> gate_quality([0.9, 0.8, 0.3, 0.1], [True, True, False, False])
        {'auroc': 1.0, 'fpr95': 0.0}
    """
    import torch

    from moeapps.vision.longtail.uncertainty import auroc, fpr_at_recall

    values, truth = np.asarray(seen_score, float), np.asarray(is_seen, bool)
    if truth.all() or not truth.any() or not np.isfinite(values).all():
        raise ArgumentError(
            "The gate's quality needs images of seen and of unseen classes, and finite scores."
        )
    rows = torch.from_numpy(values), torch.from_numpy(truth)
    return {"auroc": auroc(*rows), "fpr95": fpr_at_recall(*rows)}
