"""The labels of any map-style dataset, without opening its images where that can be avoided."""

import operator
from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError

# What torchvision and most others call the labels, and the pairs of an image and its label.
_LABELS = ("targets", "labels", "_labels", "y")
_PAIRS = ("samples", "_samples", "_flat_character_images")


def labels_of(dataset: Any) -> NDArray[np.int64]:
    """The labels as the items have them: after ``target_transform``.

    No image is opened where a set keeps its labels as torchvision does, nor for a ``Subset`` of
    such a set. Otherwise every item is asked for once.

    Raises:
        ArgumentError: The items have no labels, or other ones than whole numbers from 0.
    """
    labels = _kept(dataset)
    return checked_labels(dataset, _asked(dataset) if labels is None else labels)


def checked_labels(dataset: Any, labels: Any) -> NDArray[np.int64]:
    """Labels as int64 ``[N]``.

    Raises:
        ArgumentError: They are not one whole number from 0 for each item.
    """
    labels = np.asarray(labels)
    if not _fit(dataset, labels) or (labels.size and labels.min() < 0):
        raise ArgumentError(
            f"{type(dataset).__name__} has labels of shape {labels.shape} and type {labels.dtype}. "
            "Expected one whole number from 0 per item: pass labels= with such ones."
        )
    return labels.astype(np.int64)


def _fit(dataset: Any, labels: NDArray[Any]) -> bool:
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    return whole and (not isinstance(dataset, Sized) or len(labels) == len(dataset))


def _kept(dataset: Any) -> NDArray[Any] | None:
    """Labels from the attributes of a set; None where these do not have those of its items."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # torch's Subset
        whole = _kept(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, np.int64)]
    kinds = getattr(dataset, "target_type", getattr(dataset, "_target_types", None))
    if kinds not in (None, ["category"], ["full"]) or (found := _stored(dataset)) is None:
        return None
    if (change := getattr(dataset, "target_transform", None)) is not None:
        found = [change(label) for label in np.asarray(found).tolist()]
    labels = np.asarray(found)
    return labels if _fit(dataset, labels) else None


def _stored(dataset: Any) -> Any:
    for name in _LABELS:
        if (found := getattr(dataset, name, None)) is not None:
            return found
    for name in _PAIRS:
        if pairs := getattr(dataset, name, None):
            return [pair[1] for pair in pairs]
    if hasattr(dataset, "all_categories"):  # iNaturalist
        return [label for label, _ in dataset.index]
    return None


def _asked(dataset: Any) -> list[int]:
    """Labels from the items themselves, with a bar on a terminal. No global generator moves."""
    from rich.console import Console
    from rich.progress import track

    from moeapps.vision.views import seeded

    name = type(dataset).__name__
    wrong = (
        f"{name} has no targets, labels, y or samples with one whole number from 0 per item, and "
        "its items are no pairs of an image and such a label. Pass labels=."
    )
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ArgumentError(wrong)
    console = Console(stderr=True)
    rows = track(
        range(len(dataset)), f"Labels of {name}",
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    labels = []
    with seeded(0):
        for row in rows:
            item = dataset[row]
            try:
                _, label = item
                labels.append(operator.index(label))
            except (TypeError, ValueError) as error:
                raise ArgumentError(f"{wrong} (Item {row}: {error})") from error
    return labels
