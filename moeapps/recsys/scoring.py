"""What a validation says of every task: rows are collected batch by batch, judged together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from moeapps.recsys import metrics
from moeapps.recsys.batch import Batch
from moeapps.recsys.schema import Task

Array = NDArray[Any]


class Collector:
    """Logits and labels of a validation, on the CPU."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Take in one batch."""
        labels = batch["labels"]
        if "mask" in batch:
            labels = torch.where(batch["mask"], labels, torch.nan)
        found = {"logits": logits.float(), "labels": labels}
        found.update({name: batch[name] for name in ("group", "weight") if name in batch})
        for name, tensor in found.items():
            self._parts.setdefault(name, []).append(tensor.detach().cpu())

    def finish(self) -> dict[str, Tensor]:
        """All rows of all processes, and an empty collector; labels are NaN where masked."""
        rows = {name: torch.cat(parts) for name, parts in self._parts.items()}
        self._parts = {}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, rows)
            rows = {name: torch.cat([part[name] for part in everyone]) for name in everyone[0]}
        return rows


def task_metrics(
    tasks: Sequence[Task],
    logits: Array,
    predictions: Array,
    labels: Array,
    group: Array | None = None,
    *,
    calibration: bool = False,
) -> dict[str, float]:
    """Numbers of every task as ``<metric>/<task>``, and the means over the binary tasks.

    Binary tasks have ``auc``, ``gauc`` (with groups) and ``logloss``; regressions ``mse`` and
    ``mae``; ordinal tasks ``mae`` of the expected level. Means leave out undefined values.

    Args:
        tasks: In the order of the columns.
        logits: ``[N, T]``.
        predictions: Probabilities, values and expected levels ``[N, T]``.
        labels: ``[N, T]``; NaN does not count.
        group: Whose impression each row is, ``[N]``.
        calibration: Also give ``ne``, ``calibration`` and ``ece`` of binary tasks.

    Example:
        >>> z = np.array([[1.0], [-1.0]])
        >>> found = task_metrics([Task("click")], z, 1 / (1 + np.exp(-z)), np.array([[1.0], [0.0]]))
        >>> found["auc/click"], round(found["logloss/click"], 4), found["auc_mean"]
        (1.0, 0.3133, 1.0)
    """
    found: dict[str, float] = {}
    for t, task in enumerate(tasks):
        y, z, p = labels[:, t], logits[:, t], predictions[:, t]
        values: dict[str, float] = {}
        if task.type != "binary":
            values = {"mae": metrics.mae(y, p)}
            if task.type == "regression":
                values["mse"] = metrics.mse(y, p)
        else:
            values = {"auc": metrics.auc(y, z), "logloss": metrics.log_loss(y, z, logits=True)}
            if group is not None:
                values["gauc"] = metrics.gauc(y, z, group).value
            if calibration:
                values["ne"] = metrics.normalized_entropy(y, z, logits=True)
                values["calibration"] = metrics.calibration(y, p)
                values["ece"] = metrics.ece(y, p)
        found.update({f"{name}/{task.name}": value for name, value in values.items()})
    for name in ("auc", "gauc"):
        each = [value for key, value in found.items() if key.startswith(f"{name}/")]
        if each:
            known = [value for value in each if np.isfinite(value)]
            found[f"{name}_mean"] = float(np.mean(known)) if known else float("nan")
    return found
