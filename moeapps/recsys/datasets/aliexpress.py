"""AliExpress search logs of four countries, from the published pairs of user and item files."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.errors import DataIntegrityError
from moeapps.recsys.columns import Columns, match_rows, take_columns
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

USER = tuple(f"user_{i}" for i in range(1, 34))
ITEM = tuple(f"item_{i}" for i in range(1, 50))
_CATEGORICAL = (
    *(f"user_{i}" for i in (*range(2, 9), 32, 33)),
    *(f"item_{i}" for i in (19, 34, 35, 36, 40, 41, 42)),
)
_NUMERICAL = tuple(n for n in (*USER[1:], *ITEM[1:48]) if n not in _CATEGORICAL)
NAMES = {name: f"categorical_{i}" for i, name in enumerate(_CATEGORICAL, 1)} | {
    name: f"numerical_{i}" for i, name in enumerate(_NUMERICAL, 1)
}


def _card(country: str) -> DatasetCard:
    files = [f"{country}_{side}_{part}.csv" for part in ("train", "test") for side in _SIDES]
    return DatasetCard(
        name=f"aliexpress-{country.lower()}",
        title=f"AliExpress {country}",
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"features": 79},
        classes=2,
        splits="training and test files as published, by time; validation: 10 % of the training "
        "searches, seeded",
        licence="CC BY-NC-SA 4.0 [check]",
        source="AliExpress Searching System Dataset, Tianchi (Alibaba Cloud)",
        url="https://tianchi.aliyun.com/dataset/74690",
        citation="Li et al., Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting "
        "Task Relationships in the Label Space, CIKM 2020",
        files=tuple(DataFile(f"aliexpress/{name}") for name in files),
        notes="Unpack the country's archive. Published results early-stop on the test file; here "
        "a validation split is taken from the training file.",
    )


_SIDES = ("user", "item")
CARDS = {card.name: card for card in map(_card, ("NL", "ES", "FR", "US"))}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Tables:
    """Shown products: clicked, and bought. The tasks are ``ctr`` and ``ctcvr``, on all rows.

    The item file has a row per shown product, the user file one per search; they are joined on
    their first column, the search, and rows without a partner are dropped. Features are 16
    categories and 63 numbers, scaled as published.

    Args:
        card: Which country.
        root: Data home; the files are ``<root>/aliexpress/NL_user_train.csv`` and so on.
        download: Has no effect: the files are behind a registration.
        seed: Which searches are for validation.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    files = locate(card, root=root, download=download)
    paths = [files[file.name] for file in card.files]
    known, test = _joined(*paths[:2]), _joined(*paths[2:])
    searches, search = np.unique(known["search_id"], return_inverse=True)
    is_val = np.random.default_rng(seed).permutation(len(searches)) < len(searches) // 10
    val = is_val[search]
    features = [
        *(Categorical(NAMES[name], 1, 16) for name in _CATEGORICAL),
        *(Dense(NAMES[name]) for name in _NUMERICAL),
    ]
    return Tables(
        FeatureSchema(features),  # type: ignore[arg-type]
        (Task("ctr", group="click"), Task("ctcvr", group="conversion")),
        take_columns(known, ~val), take_columns(known, val), test,
        "published training and test files; 10 % of the training searches for validation, seeded",
    )  # fmt: skip


def _joined(user_path: Path, item_path: Path) -> Columns:
    from moeapps.recsys.files import CsvFormat, read_columns

    sides = []
    for path, names in ((user_path, USER), (item_path, ITEM)):
        types = {n: "float" if n in _NUMERICAL else "text" for n in names} | {ITEM[-1]: "int"}
        sides.append(read_columns(path, csv=CsvFormat(names=names, types=types)))
    user, item = sides
    key = np.unique(user["user_1"])
    if len(key) < len(user["user_1"]):
        raise DataIntegrityError(
            f"{user_path} names a search twice in column 1. Expected one row per search: fetch "
            "the file again."
        )
    rows = match_rows(item["item_1"], user["user_1"])
    label = item["item_49"]
    if not np.isin(label, (0, 1, 2)).all():
        row = int((~np.isin(label, (0, 1, 2))).argmax())
        raise DataIntegrityError(
            f"{item_path}, line {row + 1}, column 49: {label[row]}. Expected 0, 1 (click) or 2 "
            "(conversion): fetch the file again."
        )
    both = take_columns(user, rows[rows >= 0]) | take_columns(item, rows >= 0)
    joined = {new: both[old] for old, new in NAMES.items()}
    joined["search_id"] = both["item_1"]
    joined["ctr"] = (both["item_49"] >= 1).astype(np.float32)
    joined["ctcvr"] = (both["item_49"] == 2).astype(np.float32)
    return joined


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` shown products of a fourth as many searches; a few have no partner."""
    rng = np.random.default_rng(seed)
    for file in card.files:
        part = 2 if file.name.endswith("test.csv") else 1
        searches, shown = rows // 4 // part, rows // part
        is_user = "_user_" in file.name
        count, names = (searches, USER) if is_user else (shown, ITEM)
        key = np.arange(searches) if is_user else rng.integers(0, searches + 2, shown)
        table = [(part * 10**6 + key).astype(str)]
        for name in names[1:]:
            if name == ITEM[-1]:
                column = rng.permutation(np.resize([0, 0, 0, 1, 1, 2], count))
            elif name in _CATEGORICAL:
                column = rng.integers(0, 9, count)
            else:
                column = rng.normal(size=count).round(4)
            table.append(column.astype(str))
        lines = "\n".join(",".join(row) for row in zip(*table, strict=True))
        (root / file.path).write_text(lines + "\n", encoding="ascii")
