"""Which classes should share a pathway: those that attacks turn into each other."""

import itertools

import torch
from torch import Tensor

from moeapps.errors import ArgumentError


def confusion_groups(confusion: Tensor, num_groups: int, *, seed: int = 0) -> Tensor:
    r"""Groups of equal size between which few attacks lead.

    .. math:: \min_g \sum_{i, j:\; g_i \ne g_j} M_{ij}, \qquad \text{sizes differ by at most 1}

    A router that tells such groups apart has its boundaries where attacks rarely get, because the
    classes that they confuse lie behind the same expert.

    Args:
        confusion: ``[C, C]``: how often an attacked image of class ``i`` is taken for ``j``.
        num_groups: ``N``.
        seed: Of the starts of the search.

    Returns:
        Group of every class, int64 ``[C]``.

    Raises:
        ArgumentError: The matrix is not square, or there are fewer classes than groups.

    Notes:
        Exchanges pairs of classes as long as one helps, from ``label mod N`` and from nine random
        starts; the best result counts.

    Example:
        >>> confusion = torch.tensor([[0, 0, 5, 0], [0, 0, 0, 5], [5, 0, 0, 0], [0, 5, 0, 0]])
        >>> confusion_groups(confusion, 2).tolist()
        [0, 1, 0, 1]
    """
    classes = len(confusion)
    if confusion.shape != (classes, classes) or not 1 <= num_groups <= classes:
        raise ArgumentError(
            f"confusion {list(confusion.shape)} for {num_groups} groups. Expected [C, C] with at "
            "least as many classes as groups."
        )
    both = (confusion + confusion.T).double().cpu()
    both.fill_diagonal_(0)
    generator = torch.Generator().manual_seed(seed)
    even = torch.arange(classes) % num_groups
    starts = [even, *(even[torch.randperm(classes, generator=generator)] for _ in range(9))]
    return min((_exchange(both, start) for start in starts), key=lambda g: crossing(both, g))


def crossing(confusion: Tensor, groups: Tensor) -> float:
    """Sum of the confusion between classes of different groups."""
    return float(confusion[groups.unsqueeze(0) != groups.unsqueeze(1)].sum())


def _exchange(confusion: Tensor, groups: Tensor) -> Tensor:
    """Exchange the pair of classes that helps most until none does."""
    groups = groups.clone()
    while True:
        now, best = crossing(confusion, groups), None
        for i, j in itertools.combinations(range(len(groups)), 2):
            other = groups.clone()
            other[[i, j]] = groups[[j, i]]
            value = crossing(confusion, other)
            if value < now - 1e-12:
                now, best = value, other
        if best is None:
            return groups
        groups = best
