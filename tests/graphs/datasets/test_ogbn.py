import gzip

import pytest

from moeapps.errors import DataIntegrityError
from moeapps.graphs.datasets import card
from moeapps.graphs.datasets.ogbn import read

FILES = {
    "raw/num-node-list": "6\n",
    "raw/num-edge-list": "4\n",
    "raw/edge": "0,1\n1,2\n2,1\n5,5\n",
    "raw/node-feat": "".join(f"{i},0.5,-1e-1\n" for i in range(6)),
    "raw/node-label": "0\n1\n2\n0\nnan\n2\n",
    "split/time/train": "0\n1\n",
    "split/time/valid": "2\n4\n",
    "split/time/test": "3\n5\n",
}


def make_fixture(root, **changes):
    for name, text in (FILES | changes).items():
        path = root / "ogbn_arxiv" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def small(tiny):
    return tiny(card("ogbn-arxiv"), nodes=6, edges=4, features=3, classes=3)


def test_graph_comes_from_the_files(tmp_path, small, check_data):
    make_fixture(tmp_path)
    data = read(small, root=tmp_path)
    check_data(data, 6, 3)
    assert data.y.tolist() == [0, 1, 2, 0, -1, 2]
    assert data.x[3].tolist() == pytest.approx([3, 0.5, -0.1])
    assert data.edge_index.shape[1] == 5
    assert data.is_undirected()
    assert data.val_mask.nonzero().flatten().tolist() == [2]  # node 4 has no label
    assert "time" in data.split_source


def test_citations_stay_directed_on_request(tmp_path, small):
    make_fixture(tmp_path)
    data = read(small, root=tmp_path, undirected=False)
    assert data.edge_index.t().tolist() == [[0, 1], [1, 2], [2, 1], [5, 5]]


def test_bad_files_are_refused(tmp_path, small, check_errors):
    make_fixture(tmp_path)
    cut = {f"{name.rpartition('/')[2]}.csv.gz": 0.7 for name in FILES}
    check_errors(read, small, tmp_path, cut=cut)


@pytest.mark.parametrize("name", ["raw/edge", "raw/node-feat", "raw/node-label"])
def test_fewer_rows_than_announced_are_refused(tmp_path, small, name):
    rows = FILES[name].splitlines(keepends=True)
    make_fixture(tmp_path, **{name: "".join(rows[:-1])})
    with pytest.raises(DataIntegrityError, match=f"{len(rows) - 1} rows, expected {len(rows)}"):
        read(small, root=tmp_path)


def test_text_in_a_table_is_refused(tmp_path, small):
    make_fixture(tmp_path, **{"raw/node-label": "0\n1\n2\n0\nfive\n2\n"})
    with pytest.raises(DataIntegrityError, match="node-label"):
        read(small, root=tmp_path)


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products"])
def test_archive_holds_every_file(name):
    entry = card(name)
    (archive,) = entry.archives
    assert set(archive.members.values()) == {file.path for file in entry.files}
    assert entry.downloadable
