"""Small random inputs for a registered model, by the task it is registered for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeapps.errors import UnknownNameError
from moeapps.registry import ModelEntry

TASKS = ("node classification",)


@dataclass(frozen=True)
class Example:
    """Inputs of one call and what the output should be.

    Args:
        inputs: Arguments of ``forward`` by name; a model gets those it has a parameter for.
        target: Class per row, int64 ``[V]``.
        output_shape: Shape of the prediction.
        dynamic: Per input, the axes whose size changes from call to call, with a name each.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    output_shape: tuple[int, ...]
    dynamic: dict[str, dict[int, str]]


def example_inputs(entry: ModelEntry, *, size: int = 24, seed: int = 0) -> Example:
    """A small learnable input for the task of ``entry``.

    Args:
        entry: A row of the registry; its example arguments give the widths.
        size: Nodes of the graph.
        seed: Of everything random in it.

    Raises:
        UnknownNameError: There is no example for the entry's task yet.

    Example:
        >>> from moeapps.registry import model_info
        >>> example = example_inputs(model_info("gcn"))
        >>> example.inputs["x"].shape, example.output_shape
        (torch.Size([24, 8]), (24, 3))
    """
    if entry.task not in TASKS:
        raise UnknownNameError("task of an example input", entry.task, TASKS)
    return _node_classification(entry.example, size, torch.Generator().manual_seed(seed))


def _node_classification(
    arguments: dict[str, Any], num_nodes: int, generator: torch.Generator
) -> Example:
    """Undirected graph with an isolated node, mostly linking nodes of the same class."""
    num_classes, width = arguments["out_channels"], arguments["in_channels"]
    y = torch.arange(num_nodes) % num_classes
    means = 2 * torch.randn(num_classes, width, generator=generator)
    x = means[y] + 0.5 * torch.randn(num_nodes, width, generator=generator)
    source, target = torch.randint(num_nodes - 1, (2, 8 * num_nodes), generator=generator)
    bridge = torch.rand(source.shape, generator=generator) < 0.1
    keep = (source != target) & ((y[source] == y[target]) | bridge)
    edges = torch.stack([source[keep], target[keep]])
    edge_index = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    return Example(
        {"x": x, "edge_index": edge_index},
        y,
        (num_nodes, num_classes),
        {"x": {0: "nodes"}, "edge_index": {1: "edges"}},
    )
