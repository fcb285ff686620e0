"""Example inputs with which a node classifier's network is exported as a torch program."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from moeapps.graphs.models.mowst import reads_graph


def export_inputs(module: Any) -> tuple[Callable[[int], tuple[Tensor, ...]], Any]:
    """Graphs of different sizes, and which dimensions may vary: nodes and edges.

    Args:
        module: A Lightning module of :mod:`moeapps.graphs.modules` whose network is built.

    Returns:
        A function from a whole number to the network's inputs, and the dynamic shapes.
    """
    width = int(module.hparams["in_channels"])
    with_edges = reads_graph(module.model)

    def graph(number: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(number)
        nodes, edges = 12 + 7 * number, 40 + 11 * number
        x = torch.randn(nodes, width, generator=generator)
        edge_index = torch.randint(nodes, (2, edges), generator=generator)
        return (x, edge_index) if with_edges else (x,)

    shapes = ({0: Dim("nodes", min=2)}, {1: Dim("edges", min=2)})
    return graph, shapes[: 1 + with_edges]
