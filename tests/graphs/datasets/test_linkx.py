import os

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix

from moeapps.errors import DataIntegrityError
from moeapps.graphs.datasets import card
from moeapps.graphs.datasets.linkx import read_facebook, read_pokec

# status, gender (0 unknown), major, second major, house, year, school
INFO = np.array(
    [[1, 1, 5, 0, 3, 2004, 9], [1, 2, 5, 0, 0, 2005, 9], [2, 0, 6, 1, 3, 2005, 8],
     [1, 2, 6, 0, 0, 2004, 8], [1, 1, 7, 0, 3, 2006, 9], [1, 2, 5, 0, 0, 2004, 7],
     [2, 1, 6, 0, 3, 2005, 9], [1, 2, 5, 0, 0, 2005, 9]]
)  # fmt: skip
EDGES = np.array([(0, 1), (1, 2), (3, 4), (5, 6), (6, 7)])


def save_splits(path, count=5):
    rng = np.random.default_rng(0)
    splits = []
    for _ in range(count):
        nodes = rng.permutation([0, 1, 3, 4, 5, 6, 7])
        splits.append({"train": nodes[:3], "valid": nodes[3:5], "test": nodes[5:]})
    np.save(path, np.array(splits, dtype=object))
    return splits


def make_facebook(root, name="penn94"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    adjacency = np.zeros((8, 8))
    adjacency[EDGES[:, 0], EDGES[:, 1]] = adjacency[EDGES[:, 1], EDGES[:, 0]] = 1
    savemat(raw / "data.mat", {"A": csc_matrix(adjacency), "local_info": INFO}, do_compression=True)


def make_pokec(root):
    raw = root / "pokec/raw"
    raw.mkdir(parents=True)
    features = np.random.default_rng(0).standard_normal((8, 3))
    label = np.array([[0, 1, -1, 1, 0, 1, 0, 1]])
    savemat(
        raw / "pokec.mat",
        {"edge_index": EDGES.T, "node_feat": features, "label": label},
        do_compression=True,
    )


@pytest.fixture
def penn(tmp_path, tiny):
    make_facebook(tmp_path)
    return tiny(card("penn94"), nodes=8, features=2 + 3 + 2 + 2 + 3 + 3), tmp_path


@pytest.fixture
def pokec(tmp_path, tiny):
    make_pokec(tmp_path)
    return tiny(card("pokec"), nodes=8, edges=5, features=3), tmp_path


def test_facebook_graph_comes_from_the_file(penn, check_data):
    data = read_facebook(penn[0], root=penn[1])
    check_data(data, 8, 15)
    assert data.y.tolist() == [0, 1, -1, 1, 0, 1, 0, 1]
    assert (data.x.sum(1) == 6).all()  # one value in each of six columns
    assert data.edge_index.shape[1] == 10
    assert "seeded" in data.split_source


def test_seeded_splits_are_50_25_25_of_the_labelled(penn):
    first, again, other = (read_facebook(penn[0], root=penn[1], split=s) for s in (0, 0, 1))
    assert torch.equal(first.train_mask, again.train_mask)
    assert not torch.equal(first.train_mask, other.train_mask)
    assert [int(first[m].sum()) for m in ("train_mask", "val_mask", "test_mask")] == [4, 1, 2]


@pytest.mark.parametrize("number", [0, 4])
def test_fixed_splits_are_used_when_present(penn, number):
    splits = save_splits(penn[1] / "penn94/raw/fb100-Penn94-splits.npy")
    data = read_facebook(penn[0], root=penn[1], split=number)
    assert "fixed split" in data.split_source
    for mask, key in (("train_mask", "train"), ("val_mask", "valid"), ("test_mask", "test")):
        assert data[mask].nonzero().flatten().tolist() == sorted(splits[number][key])


def test_truncated_splits_are_refused(penn):
    path = penn[1] / "penn94/raw/fb100-Penn94-splits.npy"
    save_splits(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataIntegrityError, match=r"splits\.npy cannot be read"):
        read_facebook(penn[0], root=penn[1])


def test_code_in_splits_does_not_run(penn):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {penn[1]}/owned",)

    np.save(penn[1] / "penn94/raw/fb100-Penn94-splits.npy", np.array([Evil()], dtype=object))
    with pytest.raises(DataIntegrityError, match="not plain array data"):
        read_facebook(penn[0], root=penn[1])
    assert not (penn[1] / "owned").exists()


def test_bad_files_are_refused(penn, pokec, check_errors):
    check_errors(read_facebook, *penn, cut={"data.mat": 0.5})
    check_errors(read_pokec, *pokec, cut={"pokec.mat": 0.5})


def test_pokec_comes_from_the_file(pokec, check_data):
    data = read_pokec(pokec[0], root=pokec[1])
    check_data(data, 8, 3)
    assert data.edge_index.shape[1] == 10
    directed = read_pokec(pokec[0], root=pokec[1], undirected=False)
    assert directed.edge_index.t().tolist() == EDGES.tolist()
    splits = save_splits(pokec[1] / "pokec/raw/pokec-splits.npy")
    data = read_pokec(pokec[0], root=pokec[1], split=2)
    assert data.test_mask.nonzero().flatten().tolist() == sorted(splits[2]["test"])


def test_pokec_has_to_be_placed_by_hand():
    assert not card("pokec").downloadable
    assert card("penn94").downloadable
    assert card("johnshopkins55").files[0].urls[0].endswith("Johns%20Hopkins55.mat")
