"""Turns arrays from a file into one checked PyG ``Data``. Imports torch inside functions only."""

from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError, DataIntegrityError

if TYPE_CHECKING:
    from torch_geometric.data import Data

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]  # train, val, test, each [V] bool


def assemble(
    card: DatasetCard,
    *,
    x: np.ndarray,
    y: np.ndarray,
    edges: np.ndarray,
    masks: Masks,
    split_source: str,
    undirected: bool,
    self_loops: bool = True,
    exact: tuple[str, ...] = ("nodes", "edges", "features"),
    **extra: Any,
) -> "Data":
    """Build, check and tidy a graph.

    Args:
        card: Whose content it is; named in errors.
        x: Features ``[V, d]``.
        y: Labels ``[V]``, negative = unlabelled.
        edges: ``[2, M]``, source row first.
        masks: Train, validation and test; unlabelled nodes are taken out of each.
        split_source: Where the masks come from, one sentence.
        undirected: Add the reverse of every edge.
        self_loops: Keep edges from a node to itself.
        exact: Which of the card's sizes the arrays must have; a truncated text file shows there.
        **extra: Further fields of the result.

    Raises:
        DataIntegrityError: When a size is wrong or :func:`validate_graph` objects.
    """
    import torch
    from torch_geometric.data import Data
    from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

    from moeapps.graphs.datasets.validate import validate_graph

    found = {"nodes": x.shape[0], "edges": edges.shape[1], "features": x.shape[1]}
    for what in exact:
        if found[what] != card.sizes.get(what, found[what]):
            raise DataIntegrityError(
                f"{card.title} has {found[what]} {what}, expected {card.sizes[what]}. A file is "
                f"truncated or not the published one: fetch them again from {card.url}."
            )
    y = np.asarray(y, dtype=np.int64).reshape(-1)
    y = np.where(y < 0, -1, y)
    data = Data(
        x=torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)),
        y=torch.from_numpy(y),
        edge_index=torch.from_numpy(np.ascontiguousarray(edges, dtype=np.int64)),
    )
    for name, mask in zip(("train_mask", "val_mask", "test_mask"), masks, strict=True):
        mask = np.asarray(mask, dtype=bool)
        data[name] = torch.from_numpy(mask & (y >= 0) if mask.shape == y.shape else mask)
    try:
        validate_graph(data, num_classes=card.classes)
    except ArgumentError as error:
        raise DataIntegrityError(f"The content of {card.title} is malformed. {error}") from error

    edge_index, before = data.edge_index, data.edge_index.shape[1]
    said = [f"{before} edges in the source"]
    if not self_loops:
        edge_index, _ = remove_self_loops(edge_index)
        said.append(f"{before - edge_index.shape[1]} self loops removed")
    if undirected:
        edge_index = to_undirected(edge_index, num_nodes=data.num_nodes)
        said.append("reverse of every edge added")
    else:
        edge_index = coalesce(edge_index, num_nodes=data.num_nodes)
        said.append("directions kept")
    said.append(f"duplicates merged, {edge_index.shape[1]} directed edges left")
    data.edge_index = edge_index.contiguous()
    data.edge_source = "; ".join(said)
    data.split_source = split_source
    data.num_classes = card.classes
    for name, value in extra.items():
        data[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    return data
