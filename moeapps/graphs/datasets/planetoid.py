"""Cora, CiteSeer and PubMed from their Planetoid files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.data.unpickle import load_arrays
from moeapps.errors import ArgumentError
from moeapps.graphs.datasets.assemble import Masks, assemble
from moeapps.graphs.datasets.splits import SEEDED_48_32_20, random_masks, split_number

if TYPE_CHECKING:
    from torch_geometric.data import Data

_URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
_SPLITS_URL = "https://raw.githubusercontent.com/graphdml-uiuc-jlu/geom-gcn/master/splits"

# Computed from the files of kimiyoung/planetoid at commit af6abf4.
_SUMS: dict[str, dict[str, tuple[int, str]]] = {
    "cora": {
        "x": (22119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
        "tx": (148025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
        "allx": (257305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
        "y": (4054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
        "ty": (28135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
        "ally": (47959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
        "graph": (59847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
        "test.index": (5000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
    },
    "citeseer": {
        "x": (31087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"),
        "tx": (260321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"),
        "allx": (595021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"),
        "y": (3014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"),
        "ty": (24135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"),
        "ally": (55623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"),
        "graph": (61987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"),
        "test.index": (5000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"),
    },
    "pubmed": {},
}
_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def _card(title: str, nodes: int, edges: int, features: int, classes: int) -> DatasetCard:
    name = title.lower()
    files = []
    for part in _PARTS:
        size, digest = _SUMS[name].get(part, (None, None))
        file = f"ind.{name}.{part}"
        files.append(DataFile(f"{title}/raw/{file}", digest, size, (f"{_URL}/{file}",)))
    for number in range(10):
        file = f"{name}_split_0.6_0.2_{number}.npz"
        urls = (f"{_SPLITS_URL}/{file}",)
        files.append(DataFile(f"{title}/geom-gcn/raw/{file}", urls=urls, optional=True))
    return DatasetCard(
        name=name,
        title=title,
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": nodes, "edges": edges, "features": features},
        classes=classes,
        splits='"public" (20 per class / 500 / 1000), or 0..9: the ten 48/32/20 splits of Geom-GCN '
        "when their files are there, else seeded ones of the same shares",
        licence="MIT (repository)",
        source="Planetoid data, kimiyoung/planetoid on GitHub",
        url="https://github.com/kimiyoung/planetoid",
        citation="Yang, Cohen, Salakhutdinov, Revisiting Semi-Supervised Learning with Graph "
        "Embeddings, ICML 2016",
        files=tuple(files),
    )


CARDS = {
    card.name: card
    for card in (
        _card("Cora", 2_708, 10_556, 1_433, 7),
        _card("CiteSeer", 3_327, 9_104, 3_703, 6),
        _card("PubMed", 19_717, 88_648, 500, 3),
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
    """A citation graph: documents, word features, citations, topics.

    ======== ====== ============== ======== ======= ====================
    Set      Nodes  Directed edges Features Classes Public split
    ======== ====== ============== ======== ======= ====================
    Cora      2,708         10,556    1,433       7 140 / 500 / 1,000
    CiteSeer  3,327          9,104    3,703       6 120 / 500 / 1,000
    PubMed   19,717         88,648      500       3  60 / 500 / 1,000
    ======== ====== ============== ======== ======= ====================

    The files are Python pickles. They are read by :mod:`moeapps.data.unpickle`, which admits
    arrays only; PyG's own reader would run whatever they contain and write beside them.

    Args:
        card: Which of the three.
        root: Data home; the files are in ``<root>/<title>/raw``.
        split: ``"public"`` (default), or 0..9 for a 48/32/20 split.
        download: Fetch missing files.
        undirected: Add reverse edges (the files hold both directions already).

    Notes:
        Fifteen documents of CiteSeer have neither words nor a topic. PyG gives them topic 0; here
        they are unlabelled (-1) and in no mask.

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    public = split is None or split == "public"
    if not public:
        try:
            number = split_number(split, count=10)
        except ArgumentError as error:
            raise ArgumentError(
                f"split={split!r} does not exist. Choose 'public' or 0..9."
            ) from error
    files = locate(card, root=root, download=download)
    parts = {part: _read_part(files[f"ind.{card.name}.{part}"]) for part in _PARTS}
    with reading(files[f"ind.{card.name}.allx"].parent):
        x, y, edges, masks = _join(parts)
    source = "public split of the Planetoid files"
    if not public:
        path = files.get(f"{card.name}_split_0.6_0.2_{number}.npz")
        if path is None:
            masks, source = random_masks(y, number, train=0.48, val=0.32), SEEDED_48_32_20
        else:
            with reading(path), np.load(path, allow_pickle=False) as stored:
                masks = tuple(stored[f"{m}_mask"].astype(bool) for m in ("train", "val", "test"))
            source = f"Geom-GCN 48/32/20 split {number}"
    return assemble(
        card, x=x, y=y, edges=edges, masks=masks, split_source=source,
        undirected=undirected, self_loops=False, exact=("nodes", "features"),
    )  # fmt: skip


def _read_part(path: Path) -> Any:
    with reading(path):
        if path.name.endswith("test.index"):
            return np.loadtxt(path, dtype=np.int64, ndmin=1)
        return load_arrays(path)


def _join(parts: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, Masks]:
    """Put the test rows at the places that ``test.index`` names; gaps stay empty."""
    allx, tx, ally, ty = (parts[name] for name in ("allx", "tx", "ally", "ty"))
    test, known = parts["test.index"], len(ally)
    nodes = max(allx.shape[0], int(test.max()) + 1)
    x = np.zeros((nodes, allx.shape[1]), dtype=np.float32)
    x[: allx.shape[0]] = allx.toarray()
    x[test] = tx.toarray()
    one_hot = np.zeros((nodes, ally.shape[1]), dtype=np.int64)
    one_hot[:known] = ally
    one_hot[test] = ty
    y = np.where(one_hot.any(1), one_hot.argmax(1), -1)

    graph = parts["graph"]
    sources = np.repeat(list(graph), [len(targets) for targets in graph.values()])
    targets = np.concatenate([np.asarray(t, dtype=np.int64) for t in graph.values()])

    labelled = parts["y"].shape[0]
    train, val, held = (np.zeros(nodes, dtype=bool) for _ in range(3))
    train[:labelled] = True
    val[labelled : labelled + 500] = True
    held[test] = True
    return x, y, np.stack([sources, targets]), (train, val & ~held, held)
