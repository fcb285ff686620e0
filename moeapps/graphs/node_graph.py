"""A graph as training needs it: features, labels, edges and the rows of each split."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moeapps.graphs.datasets.validate import validate_graph


@dataclass(frozen=True)
class NodeGraph:
    """One graph with ``V`` nodes and its splits, all on one device.

    Args:
        x: Features ``[V, d]``, dense or ``torch.sparse_csr``.
        y: Labels ``[V]``, -1 where unknown.
        edge_index: ``[2, M]``, source -> target.
        edge_weight: ``[M]`` or None.
        rows: Node numbers of each split.
    """

    x: Tensor
    y: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    rows: dict[str, Tensor]

    @classmethod
    def from_data(cls, data: Any, *, num_classes: int) -> "NodeGraph":
        """Take a checked PyG ``Data`` apart.

        Raises:
            ArgumentError: What :func:`~moeapps.graphs.datasets.validate.validate_graph` refuses.
        """
        validate_graph(data, num_classes=num_classes)
        rows = {
            split: data[f"{split}_mask"].nonzero().squeeze(1) for split in ("train", "val", "test")
        }
        return cls(data.x, data.y, data.edge_index, data.get("edge_weight"), rows)

    def to(self, device: torch.device) -> "NodeGraph":
        """Put everything on ``device``; a graph that is there already is returned itself."""
        if self.x.device == device:
            return self
        return replace(
            self,
            x=self.x.to(device),
            y=self.y.to(device),
            edge_index=self.edge_index.to(device),
            edge_weight=None if self.edge_weight is None else self.edge_weight.to(device),
            rows={name: rows.to(device) for name, rows in self.rows.items()},
        )

    def halve_validation(self, *, seed: int = 0) -> "NodeGraph":
        """Give a random half of the validation nodes to a new split, ``"gate"``."""
        val = self.rows["val"]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(val), generator=generator).to(val.device)
        half = len(val) // 2
        rows = {**self.rows, "gate": val[order[:half]], "val": val[order[half:]]}
        return replace(self, rows=rows)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]``, also for ``torch.sparse_csr`` features."""
    if x.layout == torch.strided:
        return x.index_select(0, rows)
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x = x.clone()  # loaded in inference mode: such tensors cannot be indexed outside it
    picked = x.to_sparse_coo().index_select(0, rows)
    return picked.coalesce().to_sparse_csr()
