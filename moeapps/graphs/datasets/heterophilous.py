"""Graphs whose neighbours tend to differ, from the npz files of Platonov and others."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.graphs.datasets.assemble import assemble
from moeapps.graphs.datasets.splits import split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_URL = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data"

# Computed from the files of yandex-research/heterophilous-graphs at commit a431395.
_SUMS = {
    "minesweeper": (135045, "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3"),
    "tolokers": (1329769, "dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667"),
    "actor": (252956, "c350eef06b2c2a9bf8218be2b57cac6d4003d0922eb597a039e9123f75817816"),
}
_NEW = "ten 50/25/25 splits in the file"
_OLD = "ten 48/32/20 splits in the file"


def _card(
    title: str,
    nodes: int,
    edges: int | None,
    features: int,
    classes: int,
    metric: str = "accuracy",
    splits: str = _NEW,
    notes: str = "",
) -> DatasetCard:
    name = title.lower()
    stem = name.replace("-", "_")
    size, digest = _SUMS.get(name, (None, None))
    return DatasetCard(
        name=name,
        title=title,
        domain="graphs",
        task="node classification",
        metric=metric,
        sizes={"nodes": nodes} | ({"edges": edges} if edges else {}) | {"features": features},
        classes=classes,
        splits=splits,
        licence="MIT (repository)",
        source="heterophilous-graphs, yandex-research on GitHub",
        url="https://github.com/yandex-research/heterophilous-graphs",
        citation="Platonov et al., A Critical Look at the Evaluation of GNNs under Heterophily, "
        "ICLR 2023" + ("" if splits == _NEW else "; Pei et al., Geom-GCN, ICLR 2020"),
        files=(DataFile(f"{stem}/raw/{stem}.npz", digest, size, (f"{_URL}/{stem}.npz",)),),
        notes=notes,
    )


_FILTERED = "Duplicated nodes of the original set are removed; results are not comparable with it."
CARDS = {
    card.name: card
    for card in (
        _card("Roman-empire", 22_662, 32_927, 300, 18),
        _card("Amazon-ratings", 24_492, 93_050, 300, 5),
        _card("Minesweeper", 10_000, 39_402, 7, 2, "auroc"),
        _card("Tolokers", 11_758, 519_000, 10, 2, "auroc"),
        _card("Questions", 48_921, 153_540, 301, 2, "auroc"),
        _card("Actor", 7_600, 26_659, 932, 5, splits=_OLD),
        _card("Texas", 183, None, 1_703, 5, splits=_OLD),
        _card("Wisconsin", 251, None, 1_703, 5, splits=_OLD),
        _card("Cornell", 183, None, 1_703, 5, splits=_OLD),
        _card("Chameleon-filtered", 890, 8_854, 2_325, 5, splits=_OLD, notes=_FILTERED),
        _card("Squirrel-filtered", 2_223, 46_998, 2_089, 5, splits=_OLD, notes=_FILTERED),
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
    """A graph with ten splits in one npz file.

    ================== ====== ============ ======== ======= ========
    Set                Nodes  Edges (file) Features Classes Metric
    ================== ====== ============ ======== ======= ========
    roman-empire       22,662       32,927      300      18 accuracy
    amazon-ratings     24,492       93,050      300       5 accuracy
    minesweeper        10,000       39,402        7       2 auroc
    tolokers           11,758      519,000       10       2 auroc
    questions          48,921      153,540      301       2 auroc
    actor               7,600       26,659      932       5 accuracy
    texas                 183                 1,703       5 accuracy
    wisconsin             251                 1,703       5 accuracy
    cornell               183                 1,703       5 accuracy
    chameleon-filtered    890        8,854    2,325       5 accuracy
    squirrel-filtered   2,223       46,998    2,089       5 accuracy
    ================== ====== ============ ======== ======= ========

    The files hold each edge once; the authors train on the undirected graph, which has about
    twice as many directed edges (minesweeper 78,804).

    Args:
        card: Which of them.
        root: Data home; the file is ``<root>/<name>/raw/<name>.npz`` with ``_`` for ``-``.
        split: 0..9, default 0.
        download: Fetch a missing file.
        undirected: Add reverse edges.

    Raises:
        DataNotFoundError: Naming the missing file.
        DataIntegrityError: When the file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    (path,) = locate(card, root=root, download=download).values()
    with reading(path), np.load(path, allow_pickle=False) as stored:
        x, y, edges = (stored[name] for name in ("node_features", "node_labels", "edges"))
        columns = [stored[f"{name}_masks"] for name in ("train", "val", "test")]
    number = split_number(split, count=columns[0].shape[0])
    train, val, test = (masks[number].astype(bool) for masks in columns)
    return assemble(
        card, x=x, y=y, edges=edges.T, masks=(train, val, test), undirected=undirected,
        split_source=f"split {number} of the published file",
    )  # fmt: skip
