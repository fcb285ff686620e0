"""Seven Twitch networks, one per language, with one feature space: shift between graphs."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.linkx import RAW_URL, REPOSITORY
from moeapps.graphs.datasets.splits import SEEDED_50_25_25, random_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

NUM_FEATURES = 3_170


def _card(country: str, nodes: int, edges: int | None) -> DatasetCard:
    files = []
    for part in ("edges.csv", "features.json", "target.csv"):
        path = f"twitch/{country}/musae_{country}_{part}"
        files.append(DataFile(path, urls=(f"{RAW_URL}/{path}",)))
    return DatasetCard(
        name=f"twitch-{country.lower()}",
        title=f"Twitch {country}",
        domain="graphs",
        task="node classification",
        metric="auroc",
        sizes={"nodes": nodes} | ({"edges": edges} if edges else {}) | {"features": NUM_FEATURES},
        classes=2,
        splits="seeded 50/25/25; to measure shift, train on one country and test on another",
        licence="none stated",
        source="Non-Homophily-Large-Scale, CUAI on GitHub (data/twitch)",
        url=REPOSITORY,
        citation="Rozemberczki, Allen, Sarkar, Multi-Scale Attributed Node Embedding, 2021",
        files=tuple(files),
        notes="The label is whether the streamer uses explicit language.",
    )


CARDS = {
    card.name: card
    for card in (
        _card("DE", 9_498, 153_138),
        _card("ENGB", 7_126, 35_324),
        _card("ES", 4_648, 59_382),
        _card("FR", 6_549, 112_666),
        _card("PTBR", 1_912, 31_299),
        _card("RU", 4_385, 37_304),
        _card("TW", 2_772, None),
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
    """Friendships between streamers of one language; the label is explicit language.

    =========== ===== ============ ======== =======
    Set         Nodes Edges (file) Features Classes
    =========== ===== ============ ======== =======
    twitch-de   9,498      153,138    3,170       2
    twitch-engb 7,126       35,324    3,170       2
    twitch-es   4,648       59,382    3,170       2
    twitch-fr   6,549      112,666    3,170       2
    twitch-ptbr 1,912       31,299    3,170       2
    twitch-ru   4,385       37,304    3,170       2
    twitch-tw   2,772                 3,170       2
    =========== ===== ============ ======== =======

    Features are games played and liked, location and habits, multi-hot in one numbering for all
    countries. The table of FR holds a few nodes twice; the first row counts.

    Args:
        card: Which country.
        root: Data home; the files are in ``<root>/twitch/<COUNTRY>``.
        split: Seed of the 50/25/25 split, default 0.
        download: Fetch missing files.
        undirected: Add reverse edges (friendships are mutual and written once).

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that is no seed.
    """
    number = split_number(split, count=2**31)
    files = locate(card, root=root, download=download)
    edges_path, features_path, target_path = files.values()
    with reading(target_path), target_path.open(newline="") as stream:
        mature: dict[int, bool] = {}
        for row in csv.DictReader(stream):
            mature.setdefault(int(row["new_id"]), {"True": True, "False": False}[row["mature"]])
        nodes = len(mature)
        if sorted(mature) != list(range(nodes)):
            raise ValueError("new_id does not count the nodes")
        y = np.array([mature[node] for node in range(nodes)], dtype=np.int64)
    with reading(features_path):
        x = np.zeros((nodes, NUM_FEATURES), dtype=np.float32)
        for node, present in json.loads(features_path.read_text()).items():
            x[int(node), present] = 1.0
    with reading(edges_path):
        edges = np.loadtxt(edges_path, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    return assemble(
        card, x=x, y=y, edges=edges.T, masks=random_masks(y, number, train=0.5, val=0.25),
        split_source=SEEDED_50_25_25, undirected=undirected, exact=("edges", "features"),
    )  # fmt: skip
