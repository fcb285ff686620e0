"""Twitch gamers of 2018 from SNAP's CSV files."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.linkx import CITATION, RAW_URL, read_splits
from moeapps.graphs.datasets.splits import SEEDED_50_25_25, random_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_NODES, _EDGES = "large_twitch_features.csv", "large_twitch_edges.csv"
_SPLITS = "twitch-gamer-splits.npy"
_FOLDER = "twitch_gamer/raw"

CARDS = {
    "twitch-gamer": DatasetCard(
        name="twitch-gamer",
        title="twitch-gamer",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": 168_114, "edges": 6_797_557, "features": 7},
        classes=2,
        splits="five fixed 50/25/25 splits when their file is there, else seeded 50/25/25",
        licence="none stated",
        source="Twitch Gamers, SNAP",
        url="https://snap.stanford.edu/data/twitch_gamers.html",
        citation=f"Rozemberczki, Sarkar, Twitch Gamers, 2021; {CITATION}",
        files=(
            DataFile(f"{_FOLDER}/{_NODES}"),
            DataFile(f"{_FOLDER}/{_EDGES}"),
            DataFile(f"{_FOLDER}/{_SPLITS}", urls=(f"{RAW_URL}/splits/{_SPLITS}",), optional=True),
        ),
        archives=(
            DataArchive(
                urls=("https://snap.stanford.edu/data/twitch_gamers.zip",),
                members={name: f"{_FOLDER}/{name}" for name in (_NODES, _EDGES)},
            ),
        ),
        notes="The label is whether the channel has explicit content. State whether reverse edges "
        "were added when you quote a result.",
    )
}

_FEATURES = (
    "views", "life_time", "created_at", "updated_at", "dead_account", "language", "affiliate",
)  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    undirected: bool = True,
) -> "Data":
    """Mutual follows between streamers; the label is explicit content.

    ======= ============ ======== ======= ====================
    Nodes   Edges (file) Features Classes Split
    ======= ============ ======== ======= ====================
    168,114    6,797,557        7       2 five fixed, 50/25/25
    ======= ============ ======== ======= ====================

    Features are views, life time, dates as the number YYYYMMDD, whether the account is dead,
    language as a number in order of appearance, and affiliate status, all standardised over all
    nodes: the form of the LINKX benchmark.

    Args:
        card: The card of the set.
        root: Data home; the files are in ``<root>/twitch_gamer/raw``.
        split: 0..4, default 0.
        download: Fetch SNAP's archive and the splits.
        undirected: Add reverse edges, as the LINKX benchmark does.

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    number = split_number(split, count=5)
    files = locate(card, root=root, download=download)
    with reading(files[_NODES]), files[_NODES].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
        languages: dict[str, int] = {}
        table = np.empty((len(rows), len(_FEATURES)))
        y = np.full(len(rows), -1, dtype=np.int64)
        for row in rows:
            node = int(row["numeric_id"])
            row["language"] = str(languages.setdefault(row["language"], len(languages)))
            table[node] = [float(row[name].replace("-", "")) for name in _FEATURES]
            y[node] = int(row["mature"])
        if (y < 0).any():
            raise ValueError("numeric_id does not count the nodes")
    with reading(files[_EDGES]):
        edges = np.loadtxt(files[_EDGES], dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    spread = table.std(axis=0)
    x = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if _SPLITS in files:
        masks = read_splits(files[_SPLITS], len(y), number)
        source = f"fixed split {number} of {_SPLITS}"
    else:
        masks, source = random_masks(y, number, train=0.5, val=0.25), SEEDED_50_25_25
    return assemble(
        card, x=x, y=y, edges=edges.T, masks=masks, split_source=source, undirected=undirected
    )
