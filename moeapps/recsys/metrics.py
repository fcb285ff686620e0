r"""How well a log was predicted: one vector of labels and one of predictions in, one number out.

Rows whose label is NaN are missing and do not count. A number that is not defined, such as the AUC
of labels that are all alike, is NaN and never a made-up 0.5.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, UnknownNameError

Array = NDArray[Any]
CLIP = 1e-7
_WEIGHTS = ("impressions", "positives", "uniform")


class GroupedAUC(NamedTuple):
    """A grouped AUC and how much of the log it speaks for.

    Args:
        value: The weighted mean; NaN if no group counts.
        groups: Number of groups that have both labels.
        share: Their share of all rows.
    """

    value: float
    groups: int
    share: float


def auc(labels: Any, scores: Any) -> float:
    r"""Area under the ROC curve, ties counted half.

    .. math:: \mathrm{AUC} = \frac{\sum_{i:\, y_i = 1} \mathrm{rank}_i - P (P + 1) / 2}{P N}

    with average ranks, :math:`P` positives and :math:`N` negatives.

    Args:
        labels: 0 and 1; NaN is missing.
        scores: Any increasing function of the probability; NaN among them gives NaN.

    Example:
        >>> auc([0, 1, 1, 0], [0.1, 0.4, 0.4, 0.4])
        0.75
    """
    y, s = _pair(labels, scores, binary=True)
    return gauc(y, s, np.zeros(len(y), dtype=np.int64)).value


def gauc(
    labels: Any,
    scores: Any,
    groups: Any,
    *,
    weight: Literal["impressions", "positives", "uniform"] = "impressions",
) -> GroupedAUC:
    r"""Mean of the groups' own AUCs over the groups that have both labels.

    .. math:: \mathrm{GAUC} = \frac{\sum_u w_u\, \mathrm{AUC}_u}{\sum_u w_u}

    Args:
        labels: 0 and 1; NaN is missing.
        scores: Any increasing function of the probability; NaN among them gives NaN.
        groups: Whole number per row, mostly the user.
        weight: What :math:`w_u` is: rows, positive rows, or 1.

    Returns:
        The mean, the number of groups it is over, and their share of the rows.

    Raises:
        UnknownNameError: There is no such weight.

    Example:
        >>> gauc([0, 1, 1, 1], [0.2, 0.3, 0.9, 0.8], groups=[7, 7, 8, 8])
        GroupedAUC(value=1.0, groups=1, share=0.5)
    """
    if weight not in _WEIGHTS:
        raise UnknownNameError("weight of groups", weight, _WEIGHTS)
    y, s, g = _pair(labels, scores, groups, binary=True)
    if np.isnan(s).any():
        return GroupedAUC(float("nan"), 0, 0.0)
    # One sort by group, then score. Places within a group are ranks; tied rows share their mean.
    order = np.lexsort((s, g)) if len(g) and g.min() != g.max() else np.argsort(s, kind="stable")
    y, s, g = y[order] > 0, s[order], g[order]
    new_group = _changes(g)
    start, tie = np.flatnonzero(new_group), np.flatnonzero(new_group | _changes(s))
    rows, tied = np.diff(start, append=len(y)), np.diff(tie, append=len(y))
    rank = np.repeat(tie + (tied + 1) / 2, tied) - np.repeat(start, rows)
    positives = np.add.reduceat(y.astype(np.int64), start) if len(start) else np.zeros(0, int)
    ranks = np.add.reduceat(np.where(y, rank, 0.0), start) if len(start) else np.zeros(0)
    pairs = positives * (rows - positives)
    counts = pairs > 0
    if not counts.any():
        return GroupedAUC(float("nan"), 0, 0.0)
    rows, positives = rows[counts], positives[counts]
    each = (ranks[counts] - positives * (positives + 1) / 2) / pairs[counts]
    weights = {"impressions": rows, "positives": positives, "uniform": np.ones(len(rows))}[weight]
    return GroupedAUC(float(weights @ each / weights.sum()), len(rows), float(rows.sum() / len(y)))


def log_loss(labels: Any, predictions: Any, *, logits: bool = False) -> float:
    r"""Mean binary cross-entropy in nats; NaN without rows.

    Args:
        labels: 0 and 1; NaN is missing.
        predictions: Probabilities, clipped to :math:`[10^{-7}, 1 - 10^{-7}]`, or logits, which
            need no clipping.
        logits: Whether the predictions are logits.

    Example:
        >>> round(log_loss([1, 0], [0.5, 0.5]), 4), round(log_loss([1], [0.0], logits=True), 4)
        (0.6931, 0.6931)
    """
    y, p = _pair(labels, predictions, binary=True)
    if not len(y):
        return float("nan")
    if logits:
        return float(np.mean(np.logaddexp(0.0, np.where(y > 0, -p, p))))
    p = np.clip(p, CLIP, 1 - CLIP)
    return float(-np.mean(np.log(np.where(y > 0, p, 1 - p))))


def normalized_entropy(labels: Any, predictions: Any, *, logits: bool = False) -> float:
    r"""Log loss over that of always predicting the share of positives; below 1 is of use.

    .. math:: \mathrm{NE} = \frac{\mathrm{log\ loss}}
        {-\bar y \ln \bar y - (1 - \bar y) \ln (1 - \bar y)}

    Args:
        labels: 0 and 1; NaN is missing. All alike give NaN.
        predictions: As of :func:`log_loss`.
        logits: Whether the predictions are logits.

    References:
        He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014.

    Example:
        >>> normalized_entropy([1, 0, 0, 0], [0.25] * 4)
        1.0
    """
    y, p = _pair(labels, predictions, binary=True)
    rate = float(y.mean()) if len(y) else 0.0
    if not 0 < rate < 1:
        return float("nan")
    base = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    return float(log_loss(y, p, logits=logits) / base)


def calibration(labels: Any, probabilities: Any) -> float:
    r"""Predicted over observed positives, :math:`\sum p / \sum y`; NaN without positives.

    Example:
        >>> calibration([1, 0, 0, 1], [0.5, 0.25, 0.25, 0.5])
        0.75
    """
    y, p = _pair(labels, probabilities, binary=True)
    return float(p.sum() / y.sum()) if y.sum() > 0 else float("nan")


def calibration_bins(labels: Any, probabilities: Any, *, bins: int = 20) -> Array:
    """Mean prediction and share of positives in bins of equally many rows, sorted by prediction.

    Args:
        labels: 0 and 1; NaN is missing.
        probabilities: Predictions.
        bins: Number of bins.

    Shape:
        - ``[bins, 2]``; NaN where there are fewer rows than bins

    Example:
        >>> calibration_bins([0, 0, 1, 1], [0.1, 0.1, 0.8, 0.8], bins=2).tolist()
        [[0.1, 0.0], [0.8, 1.0]]
    """
    y, p = _pair(labels, probabilities)
    found = np.full((bins, 2), np.nan)
    edges = _bin_edges(len(y), bins)
    if len(edges):
        order = np.argsort(p, kind="stable")
        sums = np.add.reduceat(np.stack([p, y], 1)[order], edges)
        found[: len(edges)] = sums / np.diff(edges, append=len(y))[:, None]
    return found


def ece(labels: Any, probabilities: Any, *, bins: int = 20) -> float:
    r"""Expected calibration error over bins of equally many rows, sorted by prediction.

    .. math:: \sum_b \frac{n_b}{n}\, |\bar p_b - \bar y_b|

    Example:
        >>> round(ece([0, 0, 1, 1], [0.1, 0.1, 0.8, 0.8], bins=2), 4)
        0.15
    """
    y, p = _pair(labels, probabilities, binary=True)
    edges = _bin_edges(len(y), bins)
    if not len(edges):
        return float("nan")
    order = np.argsort(p, kind="stable")
    return float(np.abs(np.add.reduceat((p - y)[order], edges)).sum() / len(y))


def _bin_edges(rows: int, bins: int) -> Array:
    """First row of each bin; no more bins than rows."""
    if bins < 1:
        raise ArgumentError(f"bins={bins} is no number of bins. Choose 1 or more.")
    used = min(bins, rows)
    return np.arange(used) * rows // max(used, 1)


def mse(labels: Any, predictions: Any) -> float:
    """Mean squared error of a regression; NaN labels are missing.

    Example:
        >>> mse([1.0, float("nan"), 3.0], [1.0, 9.0, 1.0])
        2.0
    """
    y, p = _pair(labels, predictions)
    return float(np.mean((p - y) ** 2)) if len(y) else float("nan")


def mae(labels: Any, predictions: Any) -> float:
    """Mean absolute error; NaN labels are missing.

    Example:
        >>> mae([1.0, 3.0], [1.0, 1.0])
        1.0
    """
    y, p = _pair(labels, predictions)
    return float(np.mean(np.abs(p - y))) if len(y) else float("nan")


class Gain(NamedTuple):
    """A model's AUC against a baseline's: what was won of the way from chance, and plainly."""

    relative: float
    difference: float


def auc_gain(value: float, baseline: float) -> Gain:
    r"""Relative gain :math:`(a - 0.5) / (a_0 - 0.5) - 1` and difference :math:`a - a_0`.

    Example:
        >>> gain = auc_gain(0.75, 0.7)
        >>> round(gain.relative, 4), round(gain.difference, 4)
        (0.25, 0.05)
    """
    relative = (value - 0.5) / (baseline - 0.5) - 1 if baseline != 0.5 else float("nan")
    return Gain(relative, value - baseline)


def multitask_gain(aucs: dict[str, float], single: dict[str, float]) -> dict[str, float]:
    r"""AUC per task minus that of a model for the task alone, and their mean as ``"mean"``.

    Args:
        aucs: Of the model for all tasks.
        single: Of one model per task, for the same tasks.

    Raises:
        ArgumentError: The tasks differ.

    Example:
        >>> multitask_gain({"click": 0.75, "like": 0.5}, {"click": 0.5, "like": 0.5})
        {'click': 0.25, 'like': 0.0, 'mean': 0.125}
    """
    if aucs.keys() != single.keys() or not aucs:
        raise ArgumentError(
            f"The tasks are {list(aucs)} and alone {list(single)}. Expected the same, one or more."
        )
    gains = {task: aucs[task] - single[task] for task in aucs}
    return gains | {"mean": sum(gains.values()) / len(gains)}


def _changes(values: Array) -> NDArray[np.bool_]:
    """Where a value differs from the one before; true in the first row."""
    changed = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def _pair(labels: Any, *columns: Any, binary: bool = False) -> tuple[Array, ...]:
    """Vectors of one length, floats in float64, without the rows whose label is missing."""
    y, *others = (_vector(values) for values in (labels, *columns))
    y = y.astype(np.float64, copy=False)
    for other in others:
        if len(other) != len(y):
            raise ArgumentError(
                f"labels have {len(y)} rows and another column {len(other)}. Expected one value "
                "per row in each."
            )
    known = ~np.isnan(y)
    if not known.all():
        y, *others = (values[known] for values in (y, *others))
    if binary and len(y) and not ((y == 0) | (y == 1)).all():
        wrong = y[(y != 0) & (y != 1)][0]
        raise ArgumentError(
            f"A label is {wrong:g}, expected 0, 1 or NaN. Use mse or mae for other labels."
        )
    return (y, *others)


def _vector(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.ndim != 1:
        raise ArgumentError(f"Expected one value per row, got an array {array.shape}.")
    return array.astype(np.float64) if array.dtype.kind in "bf" else array
