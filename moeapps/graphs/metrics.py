"""Node-level numbers: accuracy, its closed form for a mixture, ROC-AUC, local homophily."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from moeapps.errors import ArgumentError


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of nodes whose most likely class is the label.

    Shape:
        - logits ``[V, n]``, labels ``[V]``
        - output scalar

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    return (logits.argmax(-1) == y).float().mean()


def expected_accuracy(weak_logits: Tensor, strong_logits: Tensor, c: Tensor, y: Tensor) -> Tensor:
    r"""Accuracy expected when each node asks the weak expert with probability :math:`c_v`.

    .. math:: \frac1V \sum_v c_v 1[\text{weak right}] + (1 - c_v) 1[\text{strong right}]

    The exact limit of averaging the accuracy over random draws.

    Shape:
        - logits ``[V, n]``, confidence ``[V]``, labels ``[V]``
        - output scalar

    Example:
        >>> weak, strong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
        >>> expected_accuracy(weak, strong, torch.tensor([0.75]), torch.tensor([0]))
        tensor(0.7500)
    """
    return expected_share(weak_logits.argmax(-1) == y, strong_logits.argmax(-1) == y, c)


def expected_share(weak_right: Tensor, strong_right: Tensor, c: Tensor) -> Tensor:
    """:func:`expected_accuracy` from which nodes each expert gets right, bool ``[V]``."""
    return torch.lerp(strong_right.to(c.dtype), weak_right.to(c.dtype), c).mean()


def auroc(logits: Tensor, y: Tensor) -> Tensor:
    """Area under the ROC curve of the second of two classes, exact.

    Shape:
        - logits ``[V, 2]``, labels ``[V]``
        - output scalar

    Raises:
        ArgumentError: With another number of classes.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
        >>> auroc(logits, torch.tensor([0, 1, 0]))
        tensor(1.)
    """
    if logits.size(-1) != 2:
        raise ArgumentError(
            f"auroc compares two classes, got {logits.size(-1)}. Use metric='accuracy'."
        )
    # In float64, or the sigmoid would tie all very certain nodes.
    score = torch.sigmoid((logits[:, 1] - logits[:, 0]).double())
    return binary_auroc(score, y, validate_args=False).float()


METRICS = {"accuracy": accuracy, "auroc": auroc}


def local_homophily(edge_index: Tensor, y: Tensor) -> Tensor:
    """Share of each node's in-neighbours with its own label; NaN without a labelled neighbour.

    Args:
        edge_index: ``[2, M]``, source -> target.
        y: Labels ``[V]``; negative is unlabelled.

    Shape:
        ``[V]``

    Example:
        >>> local_homophily(torch.tensor([[0, 1, 2], [1, 0, 0]]), torch.tensor([1, 1, 0]))
        tensor([0.5000, 1.0000,    nan])
    """
    source, target = edge_index[0], edge_index[1]
    known = (y[source] >= 0) & (y[target] >= 0) & (source != target)
    source, target = source[known], target[known]
    same = torch.bincount(target[y[source] == y[target]], minlength=len(y))
    return same / torch.bincount(target, minlength=len(y))
