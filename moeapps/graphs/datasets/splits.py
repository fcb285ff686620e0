"""Splits: seeded ones, columns of published ones, and the argument that picks one."""

import re
from collections.abc import Mapping

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.graphs.datasets.assemble import Masks

SEEDED_50_25_25 = "seeded 50/25/25 split of the labelled nodes (no published split was read)"
SEEDED_48_32_20 = "seeded 48/32/20 split of the labelled nodes (no published split was read)"


def split_number(split: int | str | None, *, count: int, default: int = 0) -> int:
    """The split as a number below ``count``; None is the default.

    Raises:
        ArgumentError: For anything else.
    """
    if split is None:
        return default
    if isinstance(split, str) and re.fullmatch(r"\d+", split):
        split = int(split)
    if isinstance(split, bool) or not isinstance(split, int) or not 0 <= split < count:
        raise ArgumentError(f"split={split!r} does not exist. Choose 0..{count - 1}.")
    return split


def random_masks(y: np.ndarray, number: int, *, train: float, val: float) -> Masks:
    """Seeded masks over the labelled nodes; what train and validation leave is test.

    Args:
        y: Labels ``[V]``, negative = unlabelled.
        number: Seed; the same number gives the same masks.
        train: Share of training nodes.
        val: Share of validation nodes.
    """
    nodes = np.random.default_rng(number).permutation(np.flatnonzero(np.asarray(y) >= 0))
    first, second = round(train * len(nodes)), round((train + val) * len(nodes))
    return index_masks(
        {"train": nodes[:first], "val": nodes[first:second], "test": nodes[second:]}, len(y)
    )


def index_masks(parts: Mapping[str, np.ndarray], num_nodes: int) -> Masks:
    """Masks from lists of node numbers under ``train``, ``val`` (or ``valid``) and ``test``.

    Raises:
        ValueError: When a number is no node.
    """
    masks = []
    for name in ("train", "val" if "val" in parts else "valid", "test"):
        index = np.asarray(parts[name], dtype=np.int64).reshape(-1)
        if index.size and (index.min() < 0 or index.max() >= num_nodes):
            raise ValueError(f"{name} split names node {index.max()} of {num_nodes}")
        mask = np.zeros(num_nodes, dtype=bool)
        mask[index] = True
        masks.append(mask)
    return masks[0], masks[1], masks[2]
