import json

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from moeapps.errors import ArgumentError, DataIntegrityError
from moeapps.graphs.datasets import card
from moeapps.graphs.datasets.flickr import read

ROLE = {"tr": [0, 1, 2], "va": [3], "te": [4, 5]}


def make_fixture(root):
    raw = root / "flickr/raw"
    raw.mkdir(parents=True)
    adjacency = np.zeros((6, 6), dtype=np.float32)
    for a, b in ((0, 1), (1, 2), (3, 4)):
        adjacency[a, b] = adjacency[b, a] = 1
    csr = csr_matrix(adjacency)
    np.savez(
        raw / "adj_full.npz", data=csr.data, indices=csr.indices, indptr=csr.indptr, shape=csr.shape
    )
    np.save(raw / "feats.npy", np.arange(12.0).reshape(6, 2))
    (raw / "class_map.json").write_text(json.dumps({str(i): i % 2 for i in (5, 0, 1, 2, 3, 4)}))
    (raw / "role.json").write_text(json.dumps(ROLE))


@pytest.fixture
def flickr(tmp_path, tiny):
    make_fixture(tmp_path)
    return tiny(card("flickr"), nodes=6, edges=6, features=2, classes=2), tmp_path


def test_graph_comes_from_the_files(flickr, check_data):
    data = read(flickr[0], root=flickr[1])
    check_data(data, 6, 2)
    assert data.y.tolist() == [0, 1, 0, 1, 0, 1]
    edges = set(map(tuple, data.edge_index.t().tolist()))
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)}
    assert data.train_mask.nonzero().flatten().tolist() == ROLE["tr"]
    assert data.test_mask.nonzero().flatten().tolist() == ROLE["te"]


def test_bad_files_are_refused(flickr, check_errors):
    names = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")
    check_errors(read, *flickr, cut=dict.fromkeys(names, 0.5))


def test_role_of_a_node_that_does_not_exist_is_refused(flickr):
    (flickr[1] / "flickr/raw/role.json").write_text(json.dumps(ROLE | {"te": [6]}))
    with pytest.raises(DataIntegrityError, match=r"role\.json cannot be read.*node 6 of 6"):
        read(flickr[0], root=flickr[1])


def test_there_is_one_split(flickr):
    with pytest.raises(ArgumentError, match="split=1"):
        read(flickr[0], root=flickr[1], split=1)
