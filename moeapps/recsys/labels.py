"""Labels that fit their task, and the share of positives among them."""

import dataclasses
import warnings
from collections.abc import Iterable

import torch

from moeapps.errors import ArgumentError
from moeapps.recsys.batch import Batch
from moeapps.recsys.schema import Task


def check_labels(batch: Batch, tasks: tuple[Task, ...], split: str) -> None:
    """Refuse labels that do not fit their task; NaN is a missing label and fits each.

    Raises:
        ArgumentError: Naming task, column and row.
    """
    for task, labels in zip(tasks, batch["labels"].unbind(1), strict=True):
        if task.type == "regression":
            continue
        levels = task.levels or 2
        fits = labels.isnan() | ((labels >= 0) & (labels < levels) & (labels == labels.floor()))
        if not bool(fits.all()):
            row = int((~fits).nonzero()[0])
            raise ArgumentError(
                f"Task {task.name!r}: column {task.column!r} holds {float(labels[row]):g} in row "
                f"{row} of the {split} split. Expected whole numbers from 0 to {levels - 1}, or "
                f"NaN, for a label of type {task.type!r}."
            )


def with_base_rates(tasks: tuple[Task, ...], batches: Iterable[Batch]) -> tuple[Task, ...]:
    """Binary tasks with the share of positives among their rows.

    A task whose labels are all alike, or all missing, can be trained but not scored by AUC; a
    warning names it.
    """
    positives = torch.zeros(len(tasks), dtype=torch.float64)
    rows = torch.zeros(len(tasks), dtype=torch.float64)
    for batch in batches:
        labels = batch["labels"]
        counts = ~labels.isnan() & batch.get("mask", torch.ones_like(labels, dtype=torch.bool))
        rows += counts.sum(0)
        positives += torch.where(counts, labels, 0).sum(0, dtype=torch.float64)
    rated = []
    for task, p, n in zip(tasks, positives.tolist(), rows.tolist(), strict=True):
        if task.type == "binary" and 0 < p < n:
            task = dataclasses.replace(task, base_rate=p / n)
        elif task.type == "binary":
            what = "positive" if p == 0 else "negative"
            warnings.warn(
                f"Task {task.name!r} has no {what} label among {n:.0f} in the training split: it "
                "can learn nothing, and its AUC is not defined.",
                stacklevel=2,
            )
        rated.append(task)
    return tuple(rated)
