"""Zachary's karate club, which comes with PyG: the smallest real graph, for trying things."""

from pathlib import Path
from typing import TYPE_CHECKING

from moeapps.data.card import DatasetCard
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.splits import SEEDED_50_25_25, random_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

CARDS = {
    "karate": DatasetCard(
        name="karate",
        title="Karate club",
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": 34, "edges": 156, "features": 34},
        classes=4,
        splits="seeded 50/25/25, any number",
        licence="comes with PyTorch Geometric (MIT)",
        source="PyTorch Geometric, KarateClub",
        url="https://pytorch-geometric.readthedocs.io/",
        citation="Zachary, Conflict and Fission in Small Groups, 1977",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
) -> "Data":
    """Members of a club, who meets whom outside it, and the four communities found in it.

    ===== ============== ============= =======
    Nodes Directed edges Features      Classes
    ===== ============== ============= =======
       34            156 34 (one-hot)        4
    ===== ============== ============= =======

    Args:
        card: The card of the set.
        root: Has no effect; there are no files.
        split: Seed of the 50/25/25 split, default 0.
        download: Has no effect.
    """
    from torch_geometric.datasets import KarateClub

    number = split_number(split, count=2**31)
    club = KarateClub()[0]
    y = club.y.numpy()
    return assemble(
        card, x=club.x.numpy(), y=y, edges=club.edge_index.numpy(), undirected=True,
        masks=random_masks(y, number, train=0.5, val=0.25), split_source=SEEDED_50_25_25,
    )  # fmt: skip
