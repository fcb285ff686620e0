"""One wrapper that makes any set long-tailed, and shifts the classes of a test set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError
from moeapps.vision.datasets.counts import profile
from moeapps.vision.datasets.images import ImageSet, Splits, numbered_classes, rows_of_classes
from moeapps.vision.datasets.labels import checked_labels, labels_of

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def long_tail_rows(
    labels: NDArray[Any],
    classes: int,
    imbalance: float | None = 100,
    seed: int = 0,
    kind: str = "exponential",
    reverse: bool = False,
    *,
    largest: int | None = None,
    order: Sequence[int] | NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Rows of a long-tailed part of a set; see :func:`long_tail`."""
    labels = np.asarray(labels)
    if not len(labels):
        raise ArgumentError("The set is empty. Pass one with images of every class.")
    available = np.bincount(labels, minlength=classes)
    ranked = np.arange(classes) if order is None else np.asarray(order)
    if ranked.dtype.kind not in "iu" or not np.array_equal(np.sort(ranked), np.arange(classes)):
        raise ArgumentError(
            f"order={order} is no order of the classes. Name each of the {classes} classes once, "
            "by its number."
        )
    ranked = ranked[::-1] if reverse else ranked
    counts = np.empty(classes, np.int64)
    counts[ranked] = profile(kind, imbalance, largest, available[ranked])
    if len(short := np.flatnonzero(counts > available)):
        raise ArgumentError(
            f"Class {short[0]} has {available[short[0]]} images, fewer than the "
            f"{counts[short[0]]} asked for. Choose a smaller largest, or leave it out."
        )
    if len(empty := np.flatnonzero(counts == 0)):
        raise ArgumentError(
            f"Class {empty[0]} is left without an image (imbalance={imbalance}, the head has "
            f"{counts.max()}). Choose a smaller imbalance."
        )
    draws = np.random.RandomState(seed)  # the published recipe's generator
    rows = []
    for members, count in zip(rows_of_classes(labels, classes), counts, strict=True):
        draws.shuffle(members)
        rows.append(members[:count])
    return np.concatenate(rows)


class LongTailSubset:
    """A long-tailed part of a map-style dataset: the same items, fewer of them.

    Args:
        dataset: Anything with ``[]``.
        rows: Which items, in order.
        labels: Label of each of those items.
        classes: Number of classes.
    """

    def __init__(
        self, dataset: Any, rows: NDArray[np.int64], labels: NDArray[np.int64], classes: int
    ) -> None:
        self.dataset = dataset
        self.rows = rows
        self.labels = labels
        self.class_counts = np.bincount(labels, minlength=classes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.rows[index])]


@overload
def long_tail(
    dataset: ImageSet,
    imbalance: float | None = ...,
    seed: int = ...,
    kind: str = ...,
    reverse: bool = ...,
    *,
    largest: int | None = ...,
    order: Sequence[int] | NDArray[Any] | None = ...,
) -> ImageSet: ...


@overload
def long_tail(
    dataset: "Dataset",
    imbalance: float | None = ...,
    seed: int = ...,
    kind: str = ...,
    reverse: bool = ...,
    *,
    largest: int | None = ...,
    order: Sequence[int] | NDArray[Any] | None = ...,
    labels: Sequence[int] | NDArray[Any] | None = ...,
) -> LongTailSubset: ...


def long_tail(
    dataset: Any,
    imbalance: float | None = 100,
    seed: int = 0,
    kind: str = "exponential",
    reverse: bool = False,
    *,
    largest: int | None = None,
    order: Sequence[int] | NDArray[Any] | None = None,
    labels: Sequence[int] | NDArray[Any] | None = None,
) -> Any:
    """A long-tailed part of any set.

    Class by class in ascending order, the rows of the class are shuffled (by NumPy's legacy
    generator, one for all classes) and the first :math:`n_j` are kept. With seed 0 on the official
    files of CIFAR these are the images that everybody uses.

    Args:
        dataset: An :class:`~moeapps.vision.datasets.images.ImageSet`, or a map-style dataset whose
            items are pairs of an image and a label, such as those of torchvision. Where its
            attributes do not tell the labels, each item is opened once.
        imbalance: First over last class; None for the kind ``"tlc"``, which fixes it.
        seed: Of the choice of images.
        kind: ``"exponential"``, ``"step"`` or ``"tlc"``.
        reverse: Let the counts grow along the labels, not fall.
        largest: Images of the first class; by default the most that the set can fill.
        order: The classes from head to tail; by default in the order of their labels.
        labels: One per item, for a dataset that does not have them or by other classes.

    Returns:
        An ``ImageSet`` for an ``ImageSet`` without ``labels``, else a :class:`LongTailSubset`;
        images of a class lie together, classes ascending.

    Raises:
        ArgumentError: A class has too few images, would get none, or there are no labels.
        UnknownNameError: For another kind.

    References:
        Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*,
        NeurIPS 2019.

    Example:
        >>> even = ImageSet(np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4, tuple("abcd"))
        >>> long_tail(even, imbalance=8).class_counts.tolist()
        [10, 5, 2, 1]
        >>> long_tail(even, imbalance=8, reverse=True).class_counts.tolist()
        [1, 2, 5, 10]
    """
    chosen = {"kind": kind, "reverse": reverse, "largest": largest, "order": order}
    if isinstance(dataset, ImageSet) and labels is None:
        rows = long_tail_rows(dataset.labels, dataset.num_classes, imbalance, seed, **chosen)  # type: ignore[arg-type]
        return dataset.take(rows)
    own = labels is None and getattr(dataset, "target_transform", None) is None
    known = labels_of(dataset) if labels is None else checked_labels(dataset, labels)
    names = numbered_classes(known)
    classes = max(len(names), len(getattr(dataset, "classes", ()) if own else ()))
    rows = long_tail_rows(known, classes, imbalance, seed, **chosen)  # type: ignore[arg-type]
    return LongTailSubset(dataset, rows, known[rows], classes)


def shifted_test(
    test: ImageSet,
    shift: str,
    *,
    largest: int | None = None,
    order: Sequence[int] | NDArray[Any] | None = None,
    seed: int = 0,
) -> ImageSet:
    """A test set with a class distribution other than uniform, as SADE is tested.

    Args:
        test: A balanced test set.
        shift: ``"uniform"``, or ``"forward-50"`` (long-tailed like the training set, imbalance 50)
            or ``"backward-50"`` (the other way round), with any ratio.
        largest: Images of the largest class; by default the most that the set can fill.
        order: The classes from the head to the tail of the training set.
        seed: Of the choice of images.

    Raises:
        ArgumentError: For another shift.

    References:
        Zhang et al., *Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed
        Recognition*, NeurIPS 2022.
    """
    if shift == "uniform":
        return test
    direction, _, ratio = str(shift).partition("-")
    if direction not in ("forward", "backward") or not ratio.isdecimal() or float(ratio) < 1:
        raise ArgumentError(
            f"test={shift!r} is no shift. Choose 'uniform', 'forward-50' or 'backward-50' "
            "with any ratio."
        )
    return long_tail(
        test, float(ratio), seed, reverse=direction == "backward", largest=largest, order=order
    )


def long_tailed_splits(
    train: ImageSet,
    val: ImageSet | None,
    test: ImageSet,
    split_source: str,
    *,
    imbalance: float | None,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    shift: str = "uniform",
) -> Splits:
    """What readers give: the training images long-tailed, the test images shifted alike.

    ``imbalance=None`` leaves the training images as they are, except for the kind ``"tlc"``.
    """
    if imbalance is not None or kind == "tlc":
        train = long_tail(train, imbalance, seed, kind, reverse, largest=largest)
    head_to_tail = np.argsort(-train.class_counts, kind="stable")
    return Splits(
        train, val, shifted_test(test, shift, order=head_to_tail, seed=seed), split_source
    )
