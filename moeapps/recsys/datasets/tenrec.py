"""Tenrec: videos of two platforms, from the published CSV files."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.datasets.tables import Tables, random_parts, split_columns
from moeapps.recsys.schema import Categorical, FeatureSchema, Sequence, Task

CATEGORICAL = ("user_id", "item_id", "video_category", "gender", "age")
LABELS = {"click": "watch", "like": "interaction", "share": "interaction", "follow": "interaction"}
_HEADER = (
    "user_id", "item_id", "click", "follow", "like", "share", "video_category", "watching_times",
    "gender", "age",
)  # fmt: skip
HISTORY = tuple(f"hist_{i}" for i in range(1, 11))


def _card(name: str, title: str, file: str, notes: str = "") -> DatasetCard:
    return DatasetCard(
        name=name,
        title=title,
        domain="recsys",
        task="4 binary tasks in 2 groups",
        metric="auroc",
        sizes={"features": 6 if name == "tenrec-ctr-1m" else 5},
        classes=2,
        splits="random 8:1:1, seeded",
        licence="for research, after registration [check]",
        source="Tenrec: A Large-scale Multipurpose Benchmark Dataset for Recommender Systems",
        url="https://tenrec0.github.io/",
        citation="Yuan et al., Tenrec: A Large-scale Multipurpose Benchmark Dataset for "
        "Recommender Systems, NeurIPS 2022",
        files=(DataFile(f"tenrec/{file}"),),
        notes=notes + "The number of times a video was watched is an outcome, not an input.",
    )


CARDS = {
    card.name: card
    for card in (
        _card("tenrec-qk-video", "Tenrec QK-video", "QK-video.csv"),
        _card("tenrec-qb-video", "Tenrec QB-video", "QB-video.csv"),
        _card(
            "tenrec-ctr-1m", "Tenrec CTR, 1 M users", "ctr_data_1M.csv",
            "The benchmark's file: the first million users of QK-video, with ten earlier clicks. ",
        ),
    )
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Tables:
    """Shown videos: clicked, liked, shared, author followed.

    Args:
        card: Which file. ``tenrec-ctr-1m`` adds the sequence ``history`` of ten earlier items,
            which shares the table of ``item_id``; 0 is padding.
        root: Data home; the files are ``<root>/tenrec/QK-video.csv`` and so on.
        download: Has no effect: the files are behind a registration.
        seed: Of the random split.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    from moeapps.recsys.files import CsvFormat, read_columns

    (path,) = locate(card, root=root, download=download).values()
    has_history = card.name == "tenrec-ctr-1m"
    names = [*CATEGORICAL, *LABELS, *(HISTORY if has_history else ())]
    columns = read_columns(path, names, csv=CsvFormat(types=dict.fromkeys(names, "int")))
    features: list[Categorical | Sequence] = [Categorical(name, 1, 32) for name in CATEGORICAL]
    if has_history:
        padded = np.stack([columns.pop(name) for name in HISTORY], axis=1)
        is_item = padded != 0
        counts = is_item.sum(1)
        columns["history"] = (padded[is_item], np.cumsum(counts) - counts)
        features.append(Sequence("history", 1, 32, shared_with="item_id"))
    part = random_parts(len(columns["click"]), (0.1, 0.1), seed)
    tasks = tuple(Task(name, group=group) for name, group in LABELS.items())
    return Tables(
        FeatureSchema(features, group_key="user_id"), tasks, *split_columns(columns, part),
        "random 8:1:1, seeded",
    )  # fmt: skip


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` made-up rows."""
    rng = np.random.default_rng(seed)
    header = [*_HEADER, *(HISTORY if card.name == "tenrec-ctr-1m" else ())]
    high = {"user_id": 50, "item_id": 90, "video_category": 2, "gender": 3, "age": 8}
    table = []
    for name in header:
        if name in LABELS:
            column = rng.permutation(np.resize([0, 0, 1], rows))
        else:
            column = rng.integers(0, high.get(name, 20), rows)
        table.append(column.astype(str))
    lines = [",".join(header), *(",".join(row) for row in zip(*table, strict=True))]
    (root / card.files[0].path).write_text("\n".join(lines) + "\n", encoding="ascii")
