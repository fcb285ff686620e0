"""One check for every graph that enters training, whether from a file or from a user."""

from typing import TYPE_CHECKING, Any

from moeapps.errors import ArgumentError

if TYPE_CHECKING:
    from torch_geometric.data import Data

MASKS = ("train_mask", "val_mask", "test_mask")


def validate_graph(data: "Data", *, num_classes: int | None = None) -> int:
    """Raise unless a node classifier can be trained on a graph.

    Isolated nodes, graphs without edges, self loops, duplicates and unlabelled nodes
    (``y = -1``) are allowed.

    Args:
        data: With ``x``, ``y``, ``edge_index`` and the three masks.
        num_classes: Upper bound of the labels; None takes the largest label plus one.

    Returns:
        The number of classes.

    Raises:
        ArgumentError: For a missing field; features that are not finite numbers ``[V, d]``;
            labels out of range or of one class only; edges to nodes that do not exist; masks that
            are empty, overlap, or hold unlabelled nodes.

    Example:
        >>> from moeapps.graphs.datasets import load
        >>> validate_graph(load("mixed-csbm", size="tiny"))
        5
    """
    import torch

    for name in ("x", "y", "edge_index", *MASKS):
        if not isinstance(data.get(name), torch.Tensor):
            raise ArgumentError(f"The graph has no tensor {name!r}. Set data.{name}.")
    _check_features(data.x)
    nodes = data.x.shape[0]
    _check_edges(data.edge_index, nodes)

    y = data.y
    if y.dtype != torch.int64 or y.shape != (nodes,):
        raise ArgumentError(
            f"y is {y.dtype} {list(y.shape)}, expected int64 [{nodes}]: one class number per node. "
            "Convert or flatten it."
        )
    low, high = (int(y.min()), int(y.max())) if nodes else (-1, -1)
    classes = high + 1 if num_classes is None else num_classes
    if low < -1 or high >= classes:
        raise ArgumentError(
            f"Labels run from {low} to {high}, expected 0..{classes - 1} (-1 = unlabelled). "
            "Renumber the classes."
        )
    if classes < 2:
        raise ArgumentError(
            f"The labels name {classes} class, expected at least 2. "
            "There is nothing to classify: check y."
        )
    _check_masks(data, y)
    return classes


def _check_features(x: Any) -> None:
    import torch

    if x.dim() != 2 or x.shape[0] == 0 or x.shape[1] == 0 or not x.dtype.is_floating_point:
        raise ArgumentError(
            f"x is {x.dtype} {list(x.shape)}, expected floating point [V, d] with V, d >= 1. "
            "Convert it, or give featureless nodes a constant or one-hot feature."
        )
    finite = torch.isfinite(x.values() if x.layout != torch.strided else x)
    if not bool(finite.all()):
        count = int((~finite).sum())
        where = ""
        if x.layout == torch.strided:
            where = f", the first in node {int((~finite).any(1).nonzero()[0])}"
        raise ArgumentError(
            f"x holds {count} values that are NaN or infinite{where}; expected finite numbers. "
            "Fill or drop them."
        )


def _check_edges(edge_index: Any, nodes: int) -> None:
    import torch

    if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ArgumentError(
            f"edge_index is {edge_index.dtype} {list(edge_index.shape)}, expected int64 [2, M]. "
            "Give sources in row 0 and targets in row 1."
        )
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= nodes:
            raise ArgumentError(
                f"edge_index runs from {low} to {high}, expected 0..{nodes - 1} for {nodes} nodes. "
                "Renumber the nodes."
            )


def _check_masks(data: "Data", y: Any) -> None:
    import torch

    seen = torch.zeros_like(y, dtype=torch.bool)
    for name in MASKS:
        mask = data[name]
        if mask.dtype != torch.bool or mask.shape != y.shape:
            raise ArgumentError(
                f"{name} is {mask.dtype} {list(mask.shape)}, expected bool [{y.shape[0]}]. "
                "Pick one split's column."
            )
        if not bool(mask.any()):
            raise ArgumentError(f"{name} is empty, expected at least one node. Choose a split.")
        if bool((mask & (y < 0)).any()):
            raise ArgumentError(
                f"{name} holds unlabelled nodes (y = -1). Take them out: {name} & (y >= 0)."
            )
        if bool((mask & seen).any()):
            raise ArgumentError(
                f"{name} shares nodes with an earlier mask; expected disjoint masks. "
                "Split again without overlap."
            )
        seen |= mask
