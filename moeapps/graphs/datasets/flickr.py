"""Flickr images linked by common properties, from GraphSAINT's files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.splits import index_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_DRIVE = "https://drive.usercontent.google.com/download?id={}&confirm=t"
_FILES = {
    "adj_full.npz": "1crmsTbd1-2sEXsGwa2IKnIB7Zd3TmUsy",
    "feats.npy": "1join-XdvX3anJU_MLVtick7MgeAQiWIZ",
    "class_map.json": "1uxIkbtg5drHTsKt-PAsZZ4_yJmgFmle9",
    "role.json": "1htXCtuktuCW8TR8KiKfrFDAxUgekQoV7",
}

CARDS = {
    "flickr": DatasetCard(
        name="flickr",
        title="Flickr",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": 89_250, "edges": 899_756, "features": 500},
        classes=7,
        splits="one fixed 50/25/25 split",
        licence="none stated",
        source="GraphSAINT on GitHub (links to its data folder)",
        url="https://github.com/GraphSAINT/GraphSAINT",
        citation="Zeng et al., GraphSAINT, ICLR 2020",
        files=tuple(
            DataFile(f"flickr/raw/{name}", urls=(_DRIVE.format(key),))
            for name, key in _FILES.items()
        ),
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
    """Flickr: images, bags of words of their descriptions, topics.

    ====== ============== ======== ======= ==================
    Nodes  Directed edges Features Classes Split
    ====== ============== ======== ======= ==================
    89,250        899,756      500       7 50/25/25, in files
    ====== ============== ======== ======= ==================

    Args:
        card: The card of the set.
        root: Data home; the files are in ``<root>/flickr/raw``.
        split: Only 0.
        download: Fetch missing files.
        undirected: Add reverse edges (the file holds both directions already).

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated.
        ArgumentError: For a split other than 0.
    """
    split_number(split, count=1)
    files = locate(card, root=root, download=download)
    with reading(files["feats.npy"]):
        x = np.load(files["feats.npy"], allow_pickle=False)
    with reading(files["adj_full.npz"]), np.load(files["adj_full.npz"], allow_pickle=False) as csr:
        indices, degrees = csr["indices"], np.diff(csr["indptr"])
        edges = np.stack([np.repeat(np.arange(len(degrees)), degrees), indices])
    y = np.full(len(x), -1, dtype=np.int64)
    with reading(files["class_map.json"]):
        classes = json.loads(files["class_map.json"].read_text())
        y[np.array([int(node) for node in classes])] = list(classes.values())
    with reading(files["role.json"]):
        role = json.loads(files["role.json"].read_text())
        parts = {"train": role["tr"], "val": role["va"], "test": role["te"]}
        masks = index_masks(parts, len(x))
    return assemble(
        card, x=x, y=y, edges=edges, masks=masks, undirected=undirected,
        split_source="the fixed split of role.json",
    )  # fmt: skip
