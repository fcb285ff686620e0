"""What an uncertainty score is worth: for errors, rare classes and foreign images.

Any score will do that grows with doubt: one minus the largest probability, or for evidential
experts :func:`moeapps.vision.longtail.evidence.log_uncertainty`. Only its ranks matter, so give
logarithms of what would underflow.
"""

import math

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError


def auroc(score: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative; NaN if one of them is missing.

    Args:
        score: Larger for positives, ``[N]``; infinite values rank last or first.
        positive: bool ``[N]``.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]).bool())
        0.75
    """
    from sklearn.metrics import roc_auc_score

    values, labels = _checked(score, positive)
    return float(roc_auc_score(labels, values)) if 0 < labels.sum() < len(labels) else math.nan


def fpr_at_recall(score: Tensor, positive: Tensor, recall: float = 0.95) -> float:
    """Share of the negatives above the threshold that ``recall`` of the positives pass.

    Linear between the points of the ROC curve.

    Args:
        score: Larger for positives, ``[N]``.
        positive: bool ``[N]``.
        recall: 0.95 for "FPR95".

    Example:
        >>> score = torch.tensor([0.9, 0.8, 0.7, 0.1])
        >>> fpr_at_recall(score, torch.tensor([1, 0, 1, 0]).bool())
        0.5
    """
    from sklearn.metrics import roc_curve

    values, labels = _checked(score, positive)
    if not 0 < labels.sum() < len(labels):
        return math.nan
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    after = int(np.searchsorted(true, recall))  # the first point that passes
    share = (recall - true[after - 1]) / (true[after] - true[after - 1])
    return float(false[after - 1] + share * (false[after] - false[after - 1]))


def failure_prediction(uncertainty: Tensor, correct: Tensor) -> dict[str, float]:
    """How well low uncertainty tells right answers from wrong ones: ``auroc`` and ``fpr95``.

    Args:
        uncertainty: ``[N]``.
        correct: Which answers are right, bool ``[N]``.

    Notes:
        As in the literature the positives are the right answers, scored by confidence.

    Example:
        >>> failure_prediction(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([1, 1, 0]).bool())
        {'auroc': 1.0, 'fpr95': 0.0}
    """
    confidence = -uncertainty
    return {"auroc": auroc(confidence, correct), "fpr95": fpr_at_recall(confidence, correct)}


def tail_detection(uncertainty: Tensor, target: Tensor, tail: Tensor) -> dict[str, float]:
    """AUROC of finding images of rare classes, by confidence and by uncertainty, and ``fpr95``.

    The literature scores rare classes by *confidence*, so that values below a half mean that they
    are less certain; ``by_uncertainty`` is one minus that. ``fpr95`` is by uncertainty.

    Args:
        uncertainty: ``[N]``.
        target: Classes ``[N]``.
        tail: Which classes are rare, bool ``[C]``.

    Example:
        >>> rare = torch.tensor([False, True])
        >>> tail_detection(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), rare)
        {'by_confidence': 0.0, 'by_uncertainty': 1.0, 'fpr95': 0.0}
    """
    positive = torch.as_tensor(tail)[target]
    return {
        "by_confidence": auroc(-uncertainty, positive),
        "by_uncertainty": auroc(uncertainty, positive),
        "fpr95": fpr_at_recall(uncertainty, positive),
    }


def foreign_detection(known: Tensor, foreign: Tensor) -> dict[str, float]:
    """How well uncertainty tells images of other classes from known ones: ``auroc``, ``fpr95``.

    Args:
        known: Uncertainty of images of the known classes, ``[N]``.
        foreign: Of other images, ``[M]``, on the same scale.

    Notes:
        One released program divides each set's uncertainties by the set's own maximum before it
        compares them, which moves the result; here nothing is divided.

    Example:
        >>> foreign_detection(torch.tensor([0.1, 0.2]), torch.tensor([0.15, 0.3]))["auroc"]
        0.75
    """
    score = torch.cat([known, foreign])
    positive = torch.arange(len(score)) >= len(known)
    return {"auroc": auroc(score, positive), "fpr95": fpr_at_recall(score, positive)}


def _checked(score: Tensor, positive: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the scores (which may be infinite) and labels, for scikit-learn."""
    values = score.detach().double().cpu().numpy()
    labels = positive.detach().cpu().numpy().astype(bool)
    if values.shape != labels.shape or values.ndim != 1:
        raise ArgumentError(
            f"scores are {list(values.shape)} and labels {list(labels.shape)}; expected one of "
            "each per image, [N]."
        )
    if np.isnan(values).any():
        raise ArgumentError(
            f"{int(np.isnan(values).sum())} scores are NaN and have no rank. Leave out the images "
            "that no expert could answer."
        )
    return np.unique(values, return_inverse=True)[1].astype(float), labels
