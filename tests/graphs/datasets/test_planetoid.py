import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from moeapps.errors import ArgumentError, DataIntegrityError
from moeapps.graphs.datasets import card, load
from moeapps.graphs.datasets.planetoid import read

# 12 nodes: 8 in allx (2 of them training), tests 8, 9 and 11; node 10 has no words and no topic.
WORDS = np.eye(12, 6, dtype=np.float32) + np.eye(12, 6, k=-6, dtype=np.float32)
TOPIC = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1, 1])
TEST = [11, 8, 9]
EDGES = [(0, 1), (1, 2), (2, 3), (4, 8), (9, 11), (5, 5), (6, 7), (6, 7)]


def make_fixture(root, name="Cora"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    one_hot = np.eye(3, dtype=np.int32)
    graph = defaultdict(list)
    for node in range(12):
        graph[node] = []
    for a, b in EDGES:
        graph[a].append(b)
        graph[b].append(a)
    parts = {
        "x": csr_matrix(WORDS[:2]),
        "allx": csr_matrix(WORDS[:8]),
        "tx": csr_matrix(WORDS[TEST]),
        "y": one_hot[TOPIC[:2]],
        "ally": one_hot[TOPIC[:8]],
        "ty": one_hot[TOPIC[TEST]],
        "graph": graph,
    }
    for part, value in parts.items():
        (raw / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (raw / f"ind.{name.lower()}.test.index").write_text("".join(f"{i}\n" for i in TEST))


@pytest.fixture
def cora(tmp_path, tiny):
    make_fixture(tmp_path)
    return tiny(card("cora"), nodes=12, features=6, classes=3), tmp_path


def test_graph_is_put_together(cora, check_data):
    data = read(cora[0], root=cora[1])
    check_data(data, 12, 6)
    words = WORDS.copy()
    words[10] = 0
    np.testing.assert_array_equal(data.x.numpy(), words)
    assert data.y.tolist() == TOPIC.tolist()
    assert data.edge_index.shape[1] == 12  # six pairs, no self loop, no duplicate
    assert data.is_undirected()


def test_public_split_follows_the_files(cora):
    data = read(cora[0], root=cora[1])
    assert data.train_mask.nonzero().flatten().tolist() == [0, 1]
    assert data.val_mask.nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert sorted(data.test_mask.nonzero().flatten().tolist()) == sorted(TEST)


def test_numbered_split_is_seeded_and_says_so(cora, check_data):
    first, again, other = (read(cora[0], root=cora[1], split=s) for s in (0, "0", 1))
    check_data(first, 12, 6)
    assert "seeded" in first.split_source
    assert torch.equal(first.test_mask, again.test_mask)
    assert not torch.equal(first.test_mask, other.test_mask)
    assert [int(first[m].sum()) for m in ("train_mask", "val_mask", "test_mask")] == [5, 4, 2]


def test_geom_gcn_files_are_used_when_present(cora):
    folder = cora[1] / "Cora/geom-gcn/raw"
    folder.mkdir(parents=True)
    masks = {f"{m}_mask": np.arange(12) % 3 == i for i, m in enumerate(("train", "val", "test"))}
    np.savez(folder / "cora_split_0.6_0.2_4.npz", **{k: v.astype(int) for k, v in masks.items()})
    data = read(cora[0], root=cora[1], split=4)
    assert "Geom-GCN" in data.split_source
    assert data.train_mask.tolist() == masks["train_mask"].tolist()
    assert not data.val_mask[10]  # unlabelled


def test_nothing_is_written_beside_the_files(cora):
    before = sorted(cora[1].rglob("*"))
    read(cora[0], root=cora[1])
    assert sorted(cora[1].rglob("*")) == before


@pytest.mark.parametrize("split", ["full", 10, -1, True, 1.0])
def test_unknown_split_is_refused(cora, split):
    with pytest.raises(ArgumentError, match=r"Choose 'public' or 0\.\.9"):
        read(cora[0], root=cora[1], split=split)


def test_bad_files_are_refused(cora, check_errors):
    names = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    cut = {f"ind.cora.{name}": 0.5 for name in names} | {"ind.cora.test.index": 0.2}
    check_errors(read, *cora, cut=cut)


def test_code_in_a_pickle_does_not_run(cora):
    path = cora[1] / "Cora/raw/ind.cora.graph"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(cora[1] / "owned").encode() + b"'\ntR.")
    with pytest.raises(DataIntegrityError, match=r"ind\.cora\.graph cannot be read"):
        read(cora[0], root=cora[1])
    assert not (cora[1] / "owned").exists()


def test_published_checksums_are_enforced(cora):
    with pytest.raises(DataIntegrityError, match="expected 22119"):
        load("cora", root=cora[1])
