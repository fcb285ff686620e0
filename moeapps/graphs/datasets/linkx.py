"""Facebook-100 and pokec from the MATLAB files of the LINKX benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.data.unpickle import load_object_array
from moeapps.graphs.datasets.assemble import Masks, assemble
from moeapps.graphs.datasets.splits import (
    SEEDED_50_25_25,
    index_masks,
    random_masks,
    split_number,
)

if TYPE_CHECKING:
    from torch_geometric.data import Data

REPOSITORY = "https://github.com/CUAI/Non-Homophily-Large-Scale"
RAW_URL = f"{REPOSITORY}/raw/master/data"
CITATION = "Lim et al., Large Scale Learning on Non-Homophilous Graphs, NeurIPS 2021"


def _facebook(
    title: str,
    nodes: int,
    extra: dict[str, int] | None = None,
    *,
    file: str | None = None,
    fixed: bool = False,
) -> DatasetCard:
    name = title.lower().replace(" ", "")
    files = [DataFile(f"{name}/raw/data.mat", urls=(f"{RAW_URL}/facebook100/{file or title}.mat",))]
    if fixed:
        splits = f"fb100-{title}-splits.npy"
        files.append(
            DataFile(f"{name}/raw/{splits}", urls=(f"{RAW_URL}/splits/{splits}",), optional=True)
        )
    return DatasetCard(
        name=name,
        title=title,
        domain="graphs",
        task="node classification",
        metric="accuracy",
        sizes={"nodes": nodes, **(extra or {})},
        classes=2,
        splits=(
            "five fixed 50/25/25 splits when their file is there, else seeded 50/25/25"
            if fixed
            else "seeded 50/25/25; no splits were published"
        ),
        licence="none stated",
        source="Non-Homophily-Large-Scale, CUAI on GitHub (LINKX)",
        url=REPOSITORY,
        citation=f"Traud et al., Social Structure of Facebook Networks, 2012; {CITATION}",
        files=tuple(files),
        notes="The label is a gender marker; persons without one are unlabelled.",
    )


_POKEC = DatasetCard(
    name="pokec",
    title="pokec",
    domain="graphs",
    task="node classification",
    metric="accuracy",
    sizes={"nodes": 1_632_803, "edges": 30_622_564, "features": 65},
    classes=2,
    splits="five fixed 50/25/25 splits when their file is there, else seeded 50/25/25",
    licence="none stated",
    source="Non-Homophily-Large-Scale, CUAI on GitHub (LINKX; links to a shared folder)",
    url=REPOSITORY,
    citation=f"Leskovec, Krevl, SNAP Datasets, 2014; {CITATION}",
    files=(
        DataFile("pokec/raw/pokec.mat"),
        DataFile("pokec/raw/pokec-splits.npy", optional=True),
    ),
    notes="The label is a gender marker. Friendships are directed in the file; state whether "
    "reverse edges were added when you quote a result.",
)

CARDS = {
    card.name: card
    for card in (
        _facebook("Penn94", 41_554, {"edges": 1_362_229, "features": 4_814}, fixed=True),
        _facebook("Reed98", 962),
        _facebook("Amherst41", 2_235),
        _facebook("Cornell5", 18_660),
        _facebook("Johns Hopkins55", 5_180, file="Johns%20Hopkins55"),
        _POKEC,
    )
}


def read_facebook(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    undirected: bool = True,
) -> "Data":
    """Friendships at one university; the label is a gender marker.

    ============== ====== ================ ======== ======= ========================
    Set            Nodes  Undirected edges Features Classes Split
    ============== ====== ================ ======== ======= ========================
    penn94         41,554        1,362,229    4,814       2 five fixed, 50/25/25
    cornell5       18,660                                 2 seeded 50/25/25
    johnshopkins55  5,180                                 2 seeded 50/25/25
    amherst41       2,235                                 2 seeded 50/25/25
    reed98            962                                 2 seeded 50/25/25
    ============== ====== ================ ======== ======= ========================

    Features are the other columns of ``local_info`` (status, major, second major, house, year,
    school), one-hot by the values that occur, 0 (unknown) being one of them.

    Args:
        card: Which university.
        root: Data home; the files are ``<root>/<name>/raw/data.mat`` and the splits beside it.
        split: 0..4, default 0.
        download: Fetch missing files.
        undirected: Add reverse edges (the file holds both directions already).

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    number = split_number(split, count=5)
    files = locate(card, root=root, download=download)
    path = files["data.mat"]
    content = _load_mat(path)
    with reading(path):
        adjacency = content["A"].tocsr()
        adjacency.check_format(full_check=True)
        adjacency = adjacency.tocoo()
        info = np.asarray(content["local_info"], dtype=np.int64)
        y = info[:, 1] - 1  # 0 = unknown
        columns = [info[:, 0], *info[:, 2:].T]
        x = np.concatenate([_one_hot(column) for column in columns], axis=1)
    name = next((file for file in files if file.endswith("-splits.npy")), None)
    masks, source = _masks(files[name] if name else None, y, number)
    return assemble(
        card, x=x, y=y, edges=np.stack([adjacency.row, adjacency.col]), masks=masks,
        split_source=source, undirected=undirected, exact=("nodes", "features"),
    )  # fmt: skip


def read_pokec(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    undirected: bool = True,
) -> "Data":
    """Friendships of a Slovak social network; the label is a gender marker.

    ========= ============ ======== ======= ====================
    Nodes     Edges (file) Features Classes Split
    ========= ============ ======== ======= ====================
    1,632,803   30,622,564       65       2 five fixed, 50/25/25
    ========= ============ ======== ======= ====================

    The files have to be placed by hand.

    Args:
        card: The card of the set.
        root: Data home; the files are ``<root>/pokec/raw/pokec.mat`` and ``pokec-splits.npy``.
        split: 0..4, default 0.
        download: Has no effect.
        undirected: Add reverse edges, as the LINKX benchmark does.

    Raises:
        DataNotFoundError: Naming missing files.
        DataIntegrityError: When a file is truncated or not the published one.
        ArgumentError: For a split that does not exist.
    """
    number = split_number(split, count=5)
    files = locate(card, root=root, download=download)
    path = files["pokec.mat"]
    content = _load_mat(path)
    with reading(path):
        x, edges = content["node_feat"], content["edge_index"]
        y = np.asarray(content["label"]).reshape(-1).astype(np.int64)
    masks, source = _masks(files.get("pokec-splits.npy"), y, number)
    return assemble(
        card, x=x, y=y, edges=edges, masks=masks, split_source=source, undirected=undirected
    )


def _load_mat(path: Path) -> Any:
    from scipy.io import loadmat

    with reading(path):
        return loadmat(path)


def _masks(path: Path | None, y: np.ndarray, number: int) -> tuple[Masks, str]:
    if path is None:
        return random_masks(y, number, train=0.5, val=0.25), SEEDED_50_25_25
    return read_splits(path, len(y), number), f"fixed split {number} of {path.name}"


def read_splits(path: Path, num_nodes: int, number: int) -> Masks:
    """One of the five splits of a LINKX ``-splits.npy`` file, read without running its pickle."""
    with reading(path):
        parts = load_object_array(path)[number]
        return index_masks(parts, num_nodes)


def _one_hot(column: np.ndarray) -> np.ndarray:
    values, code = np.unique(column, return_inverse=True)
    return np.eye(len(values), dtype=np.float32)[code.reshape(-1)]
