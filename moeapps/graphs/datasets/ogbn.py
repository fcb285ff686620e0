"""ogbn-arxiv and ogbn-products from OGB's raw files, without the ogb package."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.splits import index_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_RAW = ("num-node-list", "num-edge-list", "edge", "node-feat", "node-label")
_SPLIT = ("train", "valid", "test")


def _card(
    stem: str, split: str, nodes: int, edges: int, features: int, classes: int, licence: str
) -> DatasetCard:
    inside = [f"raw/{part}.csv.gz" for part in _RAW]
    inside += [f"split/{split}/{part}.csv.gz" for part in _SPLIT]
    return DatasetCard(
        name=f"ogbn-{stem}",
        title=f"ogbn-{stem}",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": nodes, "edges": edges, "features": features},
        classes=classes,
        splits=f"one fixed split by {split.replace('_', ' ')}",
        licence=licence,
        source="Open Graph Benchmark, node property prediction",
        url="https://ogb.stanford.edu/docs/nodeprop/",
        citation="Hu et al., Open Graph Benchmark, NeurIPS 2020",
        files=tuple(DataFile(f"ogbn_{stem}/{name}") for name in inside),
        archives=(
            DataArchive(
                urls=(f"https://snap.stanford.edu/ogb/data/nodeproppred/{stem}.zip",),
                members={f"{stem}/{name}": f"ogbn_{stem}/{name}" for name in inside},
            ),
        ),
    )


CARDS = {
    card.name: card
    for card in (
        _card("arxiv", "time", 169_343, 1_166_243, 128, 40, "ODC-BY"),
        _card("products", "sales_ranking", 2_449_029, 61_859_140, 100, 47, "Amazon license"),
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
    """A node set of the Open Graph Benchmark.

    ============= ========= ============ ======== ======= ============================
    Set           Nodes     Edges (file) Features Classes Split
    ============= ========= ============ ======== ======= ============================
    ogbn-arxiv      169,343    1,166,243      128      40 90,941 / 29,799 / 48,603
    ogbn-products 2,449,029   61,859,140      100      47 196,615 / 39,323 / 2,213,091
    ============= ========= ============ ======== ======= ============================

    The files are gzipped CSV without a header; products takes minutes and about 4 GB to parse.
    The citations of arxiv are directed in the file; the usual benchmark setting, and the default
    here, adds the reverses. OGB itself does so for products.

    Args:
        card: Which of the two.
        root: Data home; the files are in ``<root>/ogbn_<name>/{raw,split}`` as OGB unpacks them.
        split: Only 0.
        download: Fetch and unpack OGB's archive.
        undirected: Add reverse edges.

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or counts disagree.
        ArgumentError: For a split other than 0.
    """
    split_number(split, count=1)
    files = locate(card, root=root, download=download)
    nodes = int(_table(files["num-node-list.csv.gz"], np.int64, 1).item())
    count = int(_table(files["num-edge-list.csv.gz"], np.int64, 1).item())
    x = _table(files["node-feat.csv.gz"], np.float32, nodes)
    label = _table(files["node-label.csv.gz"], np.float64, nodes)[:, 0]
    edges = _table(files["edge.csv.gz"], np.int64, count)
    parts = {name: _table(files[f"{name}.csv.gz"], np.int64, None)[:, 0] for name in _SPLIT}
    with reading(files["train.csv.gz"].parent):
        masks = index_masks(parts, nodes)
    return assemble(
        card, x=x, y=np.where(np.isnan(label), -1, label), edges=edges.T, masks=masks,
        undirected=undirected, split_source=f"OGB's {card.splits}",
    )  # fmt: skip


def _table(path: Path, dtype: Any, rows: int | None) -> np.ndarray:
    """A CSV file as a matrix, with as many rows as another file says it has."""
    with reading(path):
        table = np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2, comments=None)
        if rows is not None and len(table) != rows:
            raise ValueError(f"{len(table)} rows, expected {rows}")
    return table
