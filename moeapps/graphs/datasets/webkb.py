"""Web pages of three universities, in the layout of Geom-GCN."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.splits import SEEDED_48_32_20, random_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_URL = "https://raw.githubusercontent.com/graphdml-uiuc-jlu/geom-gcn/master"
_NODES, _EDGES = "out1_node_feature_label.txt", "out1_graph_edges.txt"


def _card(title: str, nodes: int, edges: int) -> DatasetCard:
    name = title.lower()
    files = [
        DataFile(f"{name}/raw/{file}", urls=(f"{_URL}/new_data/{name}/{file}",))
        for file in (_NODES, _EDGES)
    ]
    for number in range(10):
        file = f"{name}_split_0.6_0.2_{number}.npz"
        files.append(DataFile(f"{name}/raw/{file}", urls=(f"{_URL}/splits/{file}",), optional=True))
    return DatasetCard(
        name=f"webkb-{name}",
        title=f"WebKB {title}",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": nodes, "edges": edges, "features": 1_703},
        classes=5,
        splits="the ten 48/32/20 splits of Geom-GCN when their files are there, else seeded ones",
        licence="none stated",
        source="geom-gcn, graphdml-uiuc-jlu on GitHub",
        url="https://github.com/graphdml-uiuc-jlu/geom-gcn",
        citation="Pei et al., Geom-GCN: Geometric Graph Convolutional Networks, ICLR 2020",
        files=tuple(files),
        notes="The graph is tiny: differences between methods are within the spread of the splits.",
    )


CARDS = {
    card.name: card
    for card in (
        _card("Texas", 183, 325),
        _card("Wisconsin", 251, 515),
        _card("Cornell", 183, 298),
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    undirected: bool = True,
) -> "Data":
    """Pages, their words, links, and whom they belong to.

    =============== ===== ============== ======== =======
    Set             Nodes Directed edges Features Classes
    =============== ===== ============== ======== =======
    webkb-texas       183            325    1,703       5
    webkb-wisconsin   251            515    1,703       5
    webkb-cornell     183            298    1,703       5
    =============== ===== ============== ======== =======

    ``texas``, ``wisconsin`` and ``cornell`` are the same pages in one npz file.

    Args:
        card: Which university.
        root: Data home; the files are in ``<root>/<name>/raw``.
        split: 0..9, default 0.
        download: Fetch missing files.
        undirected: Add reverse edges (links are directed in the file).

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    number = split_number(split, count=10)
    files = locate(card, root=root, download=download)
    with reading(files[_NODES]):
        rows = [line.split("\t") for line in files[_NODES].read_text().splitlines()[1:]]
        order = np.array([int(node) for node, _, _ in rows])
        if sorted(order) != list(range(len(rows))):
            raise ValueError("the first column does not count the nodes")
        x = np.array([words.split(",") for _, words, _ in rows], dtype=np.float32)
        y = np.array([int(label) for _, _, label in rows])
        x, y = x[np.argsort(order)], y[np.argsort(order)]
    with reading(files[_EDGES]):
        edges = np.loadtxt(files[_EDGES], dtype=np.int64, skiprows=1, ndmin=2)
        edges = np.unique(edges, axis=0)  # the card counts each link once
    name = card.name.removeprefix("webkb-")
    path = files.get(f"{name}_split_0.6_0.2_{number}.npz")
    if path is None:
        masks, source = random_masks(y, number, train=0.48, val=0.32), SEEDED_48_32_20
    else:
        with reading(path), np.load(path, allow_pickle=False) as stored:
            train, val, test = (stored[f"{m}_mask"].astype(bool) for m in ("train", "val", "test"))
        masks, source = (train, val, test), f"Geom-GCN 48/32/20 split {number}"
    return assemble(
        card, x=x, y=y, edges=edges.T, masks=masks, split_source=source, undirected=undirected,
    )  # fmt: skip
