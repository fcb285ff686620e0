import numpy as np
import pytest

from moeapps.errors import DataIntegrityError
from moeapps.graphs.datasets import card
from moeapps.graphs.datasets.webkb import read


def make_fixture(root, name="texas"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rows = [f"{i}\t{i % 2},{int(i > 4)},1\t{i % 3}" for i in (3, 0, 1, 2, 4, 5, 6, 7, 8, 9)]
    text = "node_id\tfeature\tlabel\n" + "\n".join(rows) + "\n"
    (raw / "out1_node_feature_label.txt").write_text(text)
    (raw / "out1_graph_edges.txt").write_text("node_id\tnode_id\n0\t1\n1\t0\n1\t0\n2\t3\n4\t4\n")


@pytest.fixture
def texas(tmp_path, tiny):
    make_fixture(tmp_path)
    return tiny(card("webkb-texas"), nodes=10, edges=4, features=3, classes=3), tmp_path


def test_graph_is_ordered_by_node_number(texas, check_data):
    data = read(texas[0], root=texas[1])
    check_data(data, 10, 3)
    assert data.y.tolist() == [i % 3 for i in range(10)]
    assert data.x[:, 0].tolist() == [i % 2 for i in range(10)]
    assert data.edge_index.shape[1] == 5
    assert "seeded" in data.split_source
    directed = read(texas[0], root=texas[1], undirected=False)
    assert directed.edge_index.shape[1] == 4


def test_published_splits_are_used_when_present(texas):
    part = np.arange(10) % 3
    np.savez(
        texas[1] / "texas/raw/texas_split_0.6_0.2_9.npz",
        train_mask=part == 0, val_mask=part == 1, test_mask=part == 2,
    )  # fmt: skip
    data = read(texas[0], root=texas[1], split=9)
    assert "Geom-GCN" in data.split_source
    assert data.val_mask.tolist() == (part == 1).tolist()


def test_bad_files_are_refused(texas, check_errors):
    cut = {"out1_node_feature_label.txt": 0.5, "out1_graph_edges.txt": 0.85}
    check_errors(read, *texas, cut=cut)


def test_missing_node_is_refused(texas):
    path = texas[1] / "texas/raw/out1_node_feature_label.txt"
    path.write_text("node_id\tfeature\tlabel\n1\t0,0,0\t0\n")
    with pytest.raises(DataIntegrityError, match="does not count the nodes"):
        read(texas[0], root=texas[1])
