"""The published files themselves: counts of the data sets' own pages, splits of their files."""

import pytest
import torch

from moeapps.graphs.datasets import card, load

pytestmark = pytest.mark.data

# nodes, directed edges after tidying, features, classes, split sizes
EXPECTED = {
    "cora": (2708, 10556, 1433, 7, (140, 500, 1000)),
    "citeseer": (3327, 9104, 3703, 6, (120, 500, 1000)),
    "minesweeper": (10000, 78804, 7, 2, (5000, 2500, 2500)),
    "tolokers": (11758, 1038000, 10, 2, (5879, 2939, 2940)),
    "actor": (7600, 53318, 932, 5, (3648, 2432, 1520)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts(real_set, name, check_data):
    real_data = real_set(card(name))
    folder = (real_data / card(name).files[0].path).parent
    before = sorted(real_data.joinpath(folder.parts[-2]).rglob("*"))
    nodes, edges, features, classes, sizes = EXPECTED[name]
    data = load(name, root=real_data)
    check_data(data, nodes, features)
    assert data.num_edges == edges
    assert int(data.y.max()) + 1 == classes
    masks = (data.train_mask, data.val_mask, data.test_mask)
    assert tuple(int(mask.sum()) for mask in masks) == sizes
    assert sorted(real_data.joinpath(folder.parts[-2]).rglob("*")) == before


@pytest.mark.parametrize("name", ["Cora", "CiteSeer"])
def test_planetoid_agrees_with_pyg(real_set, name):
    from torch_geometric.io import read_planetoid_data

    real_data = real_set(card(name))
    raw = real_data / name / "raw"
    theirs, ours = read_planetoid_data(str(raw), name), load(name, root=real_data)
    assert torch.equal(ours.x, theirs.x)
    labelled = ours.y >= 0
    assert torch.equal(ours.y[labelled], theirs.y[labelled])
    assert int((~labelled).sum()) == (15 if name == "CiteSeer" else 0)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(ours[mask], theirs[mask])
    assert set(map(tuple, ours.edge_index.t().tolist())) == set(
        map(tuple, theirs.edge_index.t().tolist())
    )


def test_ten_splits_differ(real_set):
    real_data = real_set(card("minesweeper"))
    masks = torch.stack([load("minesweeper", root=real_data, split=s).test_mask for s in range(10)])
    assert len(masks.unique(dim=0)) == 10
