"""The two phases of generalised zero-shot learning: tune on held-out classes, then learn all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.experts import Array


@dataclass(frozen=True, eq=False)
class Phase:
    """The classes of a phase, and rows for learning and for tuning.

    Args:
        classes: Ascending labels; columns of this phase are places in it.
        seen: bool, one per class: whether the phase has training images of it.
        train: Rows to learn from.
        val: Rows to tune on, of seen and of held-out classes; empty in the last phase.
    """

    classes: Array
    seen: Array
    train: Array
    val: Array

    @property
    def groups(self) -> tuple[Array, Array]:
        """Columns of the seen and of the unseen classes."""
        return np.flatnonzero(self.seen), np.flatnonzero(~self.seen)

    def places(self, labels: Array) -> Array:
        """Columns of labels."""
        return np.searchsorted(self.classes, labels)


def check_images(features: Array, labels: Array | None = None, width: int | None = None) -> Array:
    """Features as float64 ``[N, D]``.

    Raises:
        ArgumentError: They are no finite matrix, of another width, or do not fit the labels.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features):
        raise ArgumentError(f"features are {list(features.shape)}, expected [N, D] with images.")
    if width is not None and features.shape[1] != width:
        raise ArgumentError(
            f"features have width {features.shape[1]}, those learned from had {width}. Use the "
            "same network for all."
        )
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise ArgumentError(
            f"features of row {bad[0]} are NaN or infinite ({len(bad)} such rows). Leave those "
            "images out, or look for the fault in the network that made them."
        )
    if labels is not None and labels.shape != (len(features),):
        raise ArgumentError(f"{len(features)} rows of features and labels {list(labels.shape)}.")
    return features


def check_attributes(attributes: Array, labels: Array) -> Array:
    """Attributes as float64 ``[C, A]``, of every class that has a label.

    Raises:
        ArgumentError: Naming a class without attributes, or a label out of range.
    """
    attributes = np.asarray(attributes, np.float64)
    if attributes.ndim != 2:
        raise ArgumentError(f"attributes are {list(attributes.shape)}, expected [classes, A].")
    broken = np.flatnonzero(~np.isfinite(attributes).all(1) | ~attributes.any(1))
    if len(broken):
        raise ArgumentError(
            f"class {broken[0]} has no attributes: its row is zero, NaN or infinite. A class is "
            "known by its attributes; describe it or leave it out."
        )
    if labels.min() < 0 or labels.max() >= len(attributes):
        raise ArgumentError(
            f"labels reach from {labels.min()} to {labels.max()}, but there are attributes of "
            f"{len(attributes)} classes. Pass a row of attributes for every class."
        )
    return attributes


def phases(
    labels: Array, num_classes: int, held_out: Sequence[int], seen_share: float, seed: int
) -> tuple[Phase, Phase]:
    """The phase for tuning and the last one.

    In the first, ``held_out`` plays the unseen classes, and a share of the images of every other
    class the test images of seen ones. The truly unseen classes, those without a label, have no
    part in it.

    Raises:
        ArgumentError: There is no held-out or no unseen class, or too little is left to learn.
    """
    present = np.unique(labels)
    held = np.unique(np.asarray(held_out, np.int64))
    if not len(held):
        raise ArgumentError(
            "held_out names no class, so there is nothing to tune the gate on. Hold out some "
            "classes that have images; the test's unseen classes must not be used."
        )
    strange = np.setdiff1d(held, present)
    if len(strange):
        raise ArgumentError(f"held_out names class {strange[0]}, which has no image here.")
    kept = np.setdiff1d(present, held)
    if len(kept) < 2:
        raise ArgumentError(f"held_out leaves {len(kept)} classes to learn from, at least 2.")
    if len(present) == num_classes:
        raise ArgumentError(
            "Every class has images, so none is unseen. Leave out the images of the unseen classes."
        )
    if not 0 < seen_share < 1:
        raise ArgumentError(f"seen_share={seen_share} leaves one side empty. Choose 0 to 1.")
    train, val = _hold_out(labels, kept, seen_share, np.random.default_rng(seed))
    if not len(val):
        raise ArgumentError(
            f"seen_share={seen_share} holds out no image of a seen class. Choose a larger share."
        )
    held_rows = np.flatnonzero(np.isin(labels, held))
    everything = np.arange(num_classes)
    tuning = Phase(present, np.isin(present, kept), train, np.concatenate([val, held_rows]))
    last = Phase(
        everything, np.isin(everything, present), np.arange(len(labels)), np.empty(0, np.int64)
    )
    return tuning, last


def _hold_out(
    labels: Array, classes: Array, share: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Rows of classes in two parts; every class keeps at least one for learning."""
    train, val = [], []
    for label in classes:
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(round(share * len(rows)), len(rows) - 1)
        train.append(rows[count:])
        val.append(rows[:count])
    return np.concatenate(train), np.concatenate(val)
