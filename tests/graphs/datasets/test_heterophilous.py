import numpy as np
import pytest

from moeapps.errors import ArgumentError, DataIntegrityError
from moeapps.graphs.datasets import card, list_datasets, load
from moeapps.graphs.datasets.heterophilous import CARDS, read

NODES = 12


def make_fixture(root, name="roman_empire", **changes):
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = np.stack([rng.permutation(np.arange(NODES) % 3) for _ in range(10)])
    arrays = {
        "node_features": rng.standard_normal((NODES, 4)).astype(np.float32),
        "node_labels": np.arange(NODES) % 3,
        "edges": np.array([(0, 1), (1, 2), (3, 3), (4, 5), (5, 4)]),
        "train_masks": parts == 0,
        "val_masks": parts == 1,
        "test_masks": parts == 2,
    } | changes
    np.savez_compressed(raw / f"{name}.npz", **arrays)
    return arrays


@pytest.fixture
def small(tiny):
    return tiny(card("roman-empire"), nodes=NODES, edges=5, features=4, classes=3)


def test_graph_and_split_come_from_the_file(tmp_path, small, check_data):
    arrays = make_fixture(tmp_path)
    data = read(small, root=tmp_path, split=7)
    check_data(data, NODES, 4)
    assert data.edge_index.shape[1] == 7  # three pairs both ways, one self loop
    assert data.train_mask.tolist() == arrays["train_masks"][7].tolist()
    assert "7" in data.split_source


def test_directions_are_kept_on_request(tmp_path, small):
    make_fixture(tmp_path)
    data = read(small, root=tmp_path, undirected=False)
    assert data.edge_index.shape[1] == 5
    assert "directions kept" in data.edge_source


def test_bad_files_are_refused(tmp_path, small, check_errors):
    make_fixture(tmp_path)
    check_errors(read, small, tmp_path, cut={"roman_empire.npz": 0.5})


@pytest.mark.parametrize("split", [10, -1, "public", None])
def test_only_ten_splits_exist(tmp_path, small, split):
    make_fixture(tmp_path)
    if split is None:
        assert "split 0" in read(small, root=tmp_path, split=split).split_source
    else:
        with pytest.raises(ArgumentError, match=r"Choose 0\.\.9"):
            read(small, root=tmp_path, split=split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": np.array([(0, 1)])}, "has 1 edges, expected 5"),
        ({"edges": np.array([(0, 99)] * 5)}, "edge_index runs from 0 to 99"),
        ({"node_labels": np.arange(NODES)}, "Labels run from 0 to 11, expected 0..2"),
        ({"node_features": np.full((NODES, 4), np.nan)}, "NaN or infinite"),
        ({"train_masks": np.zeros((10, NODES), bool)}, "train_mask is empty"),
        ({"test_masks": np.ones((10, NODES), bool)}, "shares nodes"),
        ({"val_masks": np.ones((10, 3), bool)}, "val_mask is torch.bool"),
        ({"node_features": np.array([{}] * NODES)}, "cannot be read"),
    ],
)
def test_malformed_content_is_refused(tmp_path, small, change, message):
    make_fixture(tmp_path, **change)
    with pytest.raises(DataIntegrityError, match=message):
        read(small, root=tmp_path)


def test_every_set_has_its_own_file_and_address():
    paths = [c.files[0].path for c in CARDS.values()]
    assert len(set(paths)) == len(CARDS) == 11
    assert (
        card("Chameleon_Filtered").files[0].path == "chameleon_filtered/raw/chameleon_filtered.npz"
    )
    assert all(c.downloadable for c in CARDS.values())
    assert set(CARDS) <= set(list_datasets())


def test_published_checksums_are_enforced(tmp_path):
    make_fixture(tmp_path, "minesweeper")
    with pytest.raises(DataIntegrityError, match="expected 135045"):
        load("minesweeper", root=tmp_path)
