"""From collected predictions to the numbers and arrays of a test."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps import gating
from moeapps.vision.longtail.aggregate import answered
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.early_exit import Doubt, MaxProb, Sequential
from moeapps.vision.longtail.evidence import log_uncertainty
from moeapps.vision.longtail.metrics import (
    GROUPS,
    balanced_accuracy,
    calibration_error,
    called,
    class_groups,
    disagreement,
    group_accuracy,
    mean_off_diagonal,
    pairwise_kl,
    per_class_accuracy,
    reliability,
)
from moeapps.vision.longtail.tlc import TLC
from moeapps.vision.longtail.uncertainty import (
    failure_prediction,
    foreign_detection,
    tail_detection,
)

_SWEEP = 15  # points of the curve of accuracy against experts


class Predictions:
    """Tensors of batches by name, joined at the end.

    Example:
        >>> rows = Predictions()
        >>> for _ in range(2):
        ...     rows.add(target=torch.tensor([1]))
        >>> rows.finish()["target"]
        tensor([1, 1])
    """

    def __init__(self, joined: dict[str, Tensor] | None = None) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._joined = joined or {}

    def add(self, **tensors: Tensor) -> None:
        """A batch."""
        for name, tensor in tensors.items():
            self._parts.setdefault(name, []).append(tensor.detach().cpu())

    def finish(self) -> "Predictions":
        """All batches together; this object is empty again."""
        joined = {name: torch.cat(parts) for name, parts in self._parts.items()}
        self._parts = {}
        return Predictions(joined)

    def __getitem__(self, name: str) -> Tensor:
        return self._joined[name]


def scores(rows: Predictions, model: LongTailModel, *, many: float, few: float) -> dict[str, float]:
    """Accuracies of the output, and its cross-entropy.

    Args:
        rows: ``output [N, C]`` and ``target [N]``.
        model: With its class counts.
        many: See `group_accuracy`.
        few: See `group_accuracy`.
    """
    output, target = rows["output"].float(), rows["target"]
    predicted = called(output)
    groups = group_accuracy(predicted, target, model.counts.cpu(), many=many, few=few)
    return {
        "accuracy": float((predicted == target).float().mean()),
        "balanced_accuracy": balanced_accuracy(predicted, target, model.num_classes),
        **{f"accuracy/{name}": value for name, value in groups.items()},
        "loss": float(F.cross_entropy(output, target)),
    }


def doubt_scores(
    rows: Predictions, model: LongTailModel, foreign: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """What doubt is worth for wrong answers, for the rarest third of the classes, for strangers.

    Args:
        rows: ``output [N, C]``, ``target [N]``, ``logits [N, K, C]``.
        model: Whose `uncertainty` it is.
        foreign: `uncertainty` about images of other classes, by the name of their set.

    Returns:
        ``"failure"``, ``"tail"`` and ``"foreign/<set>"``, each with its scores by name.
    """
    output, target = rows["output"], rows["target"]
    doubt = uncertainty(model, output, rows["logits"])
    known = ~doubt.isnan()
    counts = model.counts.cpu()
    tail = torch.zeros(len(counts), dtype=torch.bool)
    tail[counts.argsort(stable=True)[: len(counts) // 3]] = True
    return {
        "failure": failure_prediction(doubt[known], (called(output) == target)[known]),
        "tail": tail_detection(doubt[known], target[known], tail),
        **{
            f"foreign/{name}": foreign_detection(doubt[known], other[~other.isnan()])
            for name, other in (foreign or {}).items()
        },
    }


def expert_scores(
    rows: Predictions, model: LongTailModel, foreign: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Calibration, what doubt is worth, and how the experts differ.

    Args:
        rows: ``output [N, C]``, ``target [N]``, ``logits [N, K, C]``, ``used [N]``.
        model: Whose uncertainty is evidential if it is `TLC`.
        foreign: See `doubt_scores`.
    """
    output, target, logits = rows["output"], rows["target"], rows["logits"]
    sure = ~output.isnan().any(-1)
    found = {"ece": calibration_error(output[sure].double().softmax(-1), target[sure])}
    for kind, values in doubt_scores(rows, model, foreign).items():
        found |= {f"{kind}/{name}": value for name, value in values.items()}
    if logits.shape[1] > 1:
        for k, (predicted, true) in enumerate(expert_answers(logits, target), 1):
            found[f"accuracy/expert_{k}"] = float((predicted == true).float().mean())
        by_all = logits[answered(logits).all(1)]
        found["experts/disagreement"] = mean_off_diagonal(disagreement(logits))
        found["experts/kl"] = mean_off_diagonal(pairwise_kl(by_all))
        found["experts/used"] = float(rows["used"].float().mean())
    return found


def expert_answers(logits: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The classes that each expert called, and the true ones, of the images it answered.

    Args:
        logits: ``[N, K, C]``.
        target: Classes ``[N]``.
    """
    heard = answered(logits)
    return [
        (one.argmax(-1)[said], target[said])
        for one, said in zip(logits.unbind(1), heard.unbind(1), strict=True)
    ]


def uncertainty(model: LongTailModel, output: Tensor, logits: Tensor) -> Tensor:
    """Doubt about each image, ``[N]``: evidential for `TLC`, else ``-log`` of the largest p.

    NaN where no expert gave finite logits.
    """
    if isinstance(model, TLC):
        doubt = log_uncertainty(logits.double(), model.conflict)
        return torch.where(answered(logits).any(-1), doubt, torch.nan)
    return -F.log_softmax(output.double(), -1).amax(-1)


def engagement_curve(model: LongTailModel, logits: Tensor, target: Tensor) -> Tensor:
    """Accuracy against the mean number of experts, over thresholds of an early exit.

    The rule is doubt for `TLC` and the largest probability for others; the thresholds are quantiles
    of what the first expert says, so that all shares of images come up.

    Returns:
        ``[points, 3]``: threshold, mean experts, accuracy.
    """
    inner = model.aggregate
    inner = copy.deepcopy(inner.inner if isinstance(inner, Sequential) else inner).cpu()
    evidential = isinstance(model, TLC)
    conflict = model.conflict if isinstance(model, TLC) else "released"
    first = logits[:, :1]
    value = (
        log_uncertainty(first.double()).exp() if evidential else first[:, 0].softmax(-1).amax(-1)
    )
    quantiles = torch.linspace(0, 1, _SWEEP, dtype=value.dtype)
    thresholds = torch.quantile(value[value.isfinite()], quantiles).unique()
    points = []
    for threshold in [0.0, *thresholds.tolist(), 1.0 + 1e-6]:
        doubt = Doubt(min(max(threshold, 1e-30), 1 - 1e-9), conflict=conflict)
        rule = doubt if evidential else MaxProb(threshold)
        exits = Sequential(rule, inner)
        with gating.record(exits) as recording, torch.no_grad():
            predicted = called(exits(logits))
        (*_, routing) = (calls[-1] for calls in recording.routings.values() if calls)
        used = (routing.weights > 0).sum(-1).float().mean()
        right = (predicted == target).float().mean()
        points.append([threshold, float(used), float(right)])
    return torch.tensor(sorted(points, key=lambda point: point[1]))


def report_arrays(
    rows: Predictions,
    model: LongTailModel,
    *,
    many: float,
    few: float,
    class_names: Sequence[str] | None = None,
    foreign: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What the figures and tables of a report are made from."""
    output, target, logits = rows["output"], rows["target"], rows["logits"]
    counts, classes = model.counts.cpu(), model.num_classes
    experts = expert_answers(logits, target) if logits.shape[1] > 1 else []
    deciders = [(called(output), target), *experts]
    groups = [group_accuracy(*one, counts, many=many, few=few) for one in deciders]
    of = class_groups(counts, many=many, few=few)
    found: dict[str, Any] = {
        "class_counts": counts.numpy(),
        "class_names": np.array(list(class_names or map(str, range(classes)))),
        "group_names": np.array(GROUPS),
        "group_sizes": np.array([int(of[name].sum()) for name in GROUPS]),
        "group_accuracy": np.array([[one[name] for name in GROUPS] for one in groups]),
        "class_accuracy": torch.stack(
            [per_class_accuracy(*one, classes) for one in deciders]
        ).numpy(),
        "reliability": reliability(output.softmax(-1), target).numpy(),
    }
    doubts = doubt_scores(rows, model, foreign)
    found["doubt_of"] = np.array(list(doubts))
    found["doubt"] = np.array(
        [[one.get("auroc", one.get("by_uncertainty")), one["fpr95"]] for one in doubts.values()]
    )
    if logits.shape[1] > 1:
        used = torch.zeros(classes).index_add(0, target, rows["used"].float())
        found["disagreement"] = disagreement(logits).numpy()
        found["experts_used"] = (used / torch.bincount(target, minlength=classes)).numpy()
        found["engagement"] = engagement_curve(model, logits, target).numpy()
    return found
