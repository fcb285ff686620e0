import pytest
import torch
from torch_geometric.data import Data

from moeapps.errors import ArgumentError
from moeapps.graphs.datasets.validate import validate_graph


def graph(**changes):
    part = torch.arange(6) % 3
    fields = {
        "x": torch.randn(6, 2, generator=torch.Generator().manual_seed(0)),
        "y": torch.tensor([0, 1, 2, 1, 0, 2]),
        "edge_index": torch.tensor([[0, 1, 1], [1, 0, 1]]),
        "train_mask": part == 0,
        "val_mask": part == 1,
        "test_mask": part == 2,
    } | changes
    return Data(**{k: v for k, v in fields.items() if v is not None})


def test_good_graph_gives_its_classes():
    assert validate_graph(graph()) == 3
    assert validate_graph(graph(), num_classes=7) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"edge_index": torch.empty(2, 0, dtype=torch.long)},
        {"x": torch.zeros(6, 1, dtype=torch.float16)},
        {"x": torch.eye(6).to_sparse_csr()},
        {
            "y": torch.tensor([0, 1, -1, 1, 0, -1]),
            "test_mask": torch.tensor([0, 0, 0, 0, 1, 0]).bool(),
            "val_mask": torch.tensor([0, 1, 0, 0, 0, 0]).bool(),
        },
    ],
    ids=["no edges", "half precision", "sparse features", "unlabelled nodes"],
)
def test_unusual_graphs_pass(change):
    validate_graph(graph(**change))


NAN = torch.zeros(6, 2)
NAN[4, 1] = float("nan")
BAD_SPARSE = torch.sparse_csr_tensor([0, 1, 1, 1, 1, 1, 1], [0], [float("inf")], size=(6, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "no tensor 'x'"),
        ({"y": None}, "no tensor 'y'"),
        ({"val_mask": None}, "no tensor 'val_mask'"),
        ({"x": torch.zeros(6)}, r"x is torch.float32 \[6\]"),
        ({"x": torch.zeros(6, 0)}, r"expected floating point \[V, d\]"),
        ({"x": torch.zeros(6, 2, dtype=torch.long)}, "x is torch.int64"),
        ({"x": NAN}, "1 values that are NaN or infinite, the first in node 4"),
        ({"x": BAD_SPARSE}, "1 values that are NaN or infinite"),
        ({"y": torch.zeros(6, 1, dtype=torch.long)}, r"y is torch.int64 \[6, 1\]"),
        ({"y": torch.zeros(6)}, "y is torch.float32"),
        ({"y": torch.full((6,), -2)}, "Labels run from -2"),
        ({"y": torch.zeros(6, dtype=torch.long)}, "name 1 class, expected at least 2"),
        ({"edge_index": torch.tensor([[0], [6]])}, "runs from 0 to 6, expected 0..5"),
        ({"edge_index": torch.tensor([[0], [-1]])}, "runs from -1"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.long)}, r"expected int64 \[2, M\]"),
        ({"edge_index": torch.zeros(2, 3)}, "edge_index is torch.float32"),
        ({"train_mask": torch.zeros(6).bool()}, "train_mask is empty"),
        ({"test_mask": torch.ones(6).bool()}, "test_mask shares nodes"),
        ({"val_mask": torch.zeros(6, 10).bool()}, r"val_mask is torch.bool \[6, 10\].*column"),
        ({"val_mask": torch.zeros(6)}, "val_mask is torch.float32"),
        ({"y": torch.tensor([-1, 1, 2, 1, 0, 2])}, "train_mask holds unlabelled nodes"),
    ],
)
def test_what_cannot_train_is_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        validate_graph(graph(**change))


def test_labels_beyond_the_given_classes_are_refused():
    with pytest.raises(ArgumentError, match=r"0 to 2, expected 0\.\.1"):
        validate_graph(graph(), num_classes=2)
