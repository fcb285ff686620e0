"""MovieLens-1M from GroupLens' files, and MovieLens-100K from files with typed headers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.columns import Columns, match_rows, take_known
from moeapps.recsys.datasets.tables import Tables, split_columns
from moeapps.recsys.schema import Categorical, FeatureSchema, MultiHot, Task

SPLITS = ("time", "leave-last")

_1M = ("ratings.dat", "users.dat", "movies.dat")
_100K = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
_CITATION = "Harper, Konstan, The MovieLens Datasets, ACM TiiS 2015"
_LICENCE = "GroupLens terms: no redistribution without permission"
_SPLITS = "by time 8:1:1, or each user's last rating for test and the one before for validation"
CARDS = {
    "movielens-1m": DatasetCard(
        name="movielens-1m",
        title="MovieLens-1M",
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"rows": 1_000_209, "users": 6_040},
        classes=2,
        splits=_SPLITS,
        licence=_LICENCE,
        source="MovieLens 1M Dataset, GroupLens",
        url="https://grouplens.org/datasets/movielens/1m/",
        citation=_CITATION,
        files=tuple(DataFile(f"ml-1m/{name}") for name in _1M),
        archives=(
            DataArchive(
                urls=("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
                members={f"ml-1m/{name}": f"ml-1m/{name}" for name in _1M},
            ),
        ),
        notes="Labels are thresholds of one rating, so the tasks are nested.",
    ),
    "movielens-100k": DatasetCard(
        name="movielens-100k",
        title="MovieLens-100K",
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"rows": 100_000, "users": 943, "items": 1_682},
        classes=2,
        splits=_SPLITS,
        licence=_LICENCE,
        source="MovieLens 100K Dataset, GroupLens; in the atomic files of RecBole",
        url="https://grouplens.org/datasets/movielens/100k/",
        citation=_CITATION,
        files=tuple(DataFile(f"ml-100k/{name}") for name in _100K),
        notes="Labels are thresholds of one rating, so the tasks are nested. The recommender "
        "package recbole carries the files in dataset_example/ml-100k.",
    ),
}
_FEATURES = ("user_id", "item_id", "gender", "age", "occupation", "zip_code")


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: str = "time",
    download: bool = False,
    rating: bool = False,
) -> Tables:
    """Ratings of films from 1 to 5: at least 4 (``liked``) and 5 (``loved``).

    ============== ========= ===== ============
    Set            Ratings   Users Films
    ============== ========= ===== ============
    movielens-1m   1,000,209 6,040 ids to 3,952
    movielens-100k   100,000   943 1,682
    ============== ========= ===== ============

    Args:
        card: Which of the two.
        root: Data home; the files are in ``<root>/ml-1m`` and ``<root>/ml-100k``.
        split: ``"time"``: the last tenth of the ratings for test, the tenth before for validation.
            ``"leave-last"``: each user's last rating and the one before.
        download: Fetch GroupLens' archive of MovieLens-1M.
        rating: Add the rating itself as a regression.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    files = locate(card, root=root, download=download)
    if card.name == "movielens-1m":
        ratings, users, items = _read_1m(files)
    else:
        ratings, users, items = _read_100k(files)
    order = np.argsort(ratings["timestamp"], kind="stable")
    columns = {name: column[order] for name, column in ratings.items()}
    time = columns.pop("timestamp")
    for table, key in ((users, "user_id"), (items, "item_id")):
        rest = {name: column for name, column in table.items() if name != key}
        columns |= take_known(rest, match_rows(columns[key], table[key]))
    columns["liked"] = (columns["rating"] >= 4).astype(np.float32)
    columns["loved"] = (columns["rating"] >= 5).astype(np.float32)
    part = _by_time(len(time)) if split == "time" else _last_of_each(columns["user_id"])
    features: list[Any] = [
        *(Categorical(name, 1, 16) for name in _FEATURES),
        MultiHot("genres", 1, 16, pooling="mean"),
    ]
    tasks = (Task("liked", group="liked"), Task("loved", group="loved"))
    return Tables(
        FeatureSchema(features, group_key="user_id"),
        (*tasks, Task("rating", "regression", group="rating")) if rating else tasks,
        *split_columns(columns, part),
        split_source="by time 8:1:1" if split == "time" else "each user's last two ratings",
    )


def _by_time(count: int) -> NDArray[np.int8]:
    part = np.zeros(count, np.int8)
    part[int(0.8 * count) : int(0.9 * count)] = 1
    part[int(0.9 * count) :] = 2
    return part


def _last_of_each(user: NDArray[Any]) -> NDArray[np.int8]:
    """2 for the last row of each user, 1 for the one before; rows are in order of time."""
    order = np.argsort(user, kind="stable")
    grouped = user[order]
    last = np.append(grouped[1:] != grouped[:-1], True)
    before = np.append(last[1:] & (grouped[1:] == grouped[:-1]), False)
    part = np.zeros(len(user), np.int8)
    part[order[last]], part[order[before]] = 2, 1
    return part


def _read_1m(files: dict[str, Path]) -> tuple[Columns, Columns, Columns]:
    ratings = _double_colons(
        files["ratings.dat"],
        {"user_id": "int", "item_id": "int", "rating": "float", "timestamp": "int"},
    )
    users = _double_colons(
        files["users.dat"],
        {"user_id": "int", "gender": "text", "age": "text", "occupation": "text",
         "zip_code": "text"},
    )  # fmt: skip
    films = _double_colons(
        files["movies.dat"], {"item_id": "int", "title": "text", "genres": "text"}
    )
    return ratings, users, {"item_id": films["item_id"], "genres": _words(films["genres"], "|")}


def _double_colons(path: Path, types: dict[str, str]) -> Columns:
    """A file whose delimiter has two characters: read as if it had one that occurs nowhere."""
    from moeapps.recsys.files import CsvFormat, read_csv_bytes

    content = path.read_bytes().replace(b"::", b"\x1f")
    written = CsvFormat(
        names=tuple(types), delimiter="\x1f", types=types, encoding="latin-1", quoted=False
    )
    return read_csv_bytes(path, content, written)


def _read_100k(files: dict[str, Path]) -> tuple[Columns, Columns, Columns]:
    from moeapps.recsys.files import CsvFormat, read_columns

    def table(file: str, types: dict[str, str]) -> Columns:
        written = CsvFormat(delimiter="\t", types=types, quoted=False)
        found = read_columns(files[file], list(types), csv=written)
        return {name.partition(":")[0]: column for name, column in found.items()}

    ratings = table(
        "ml-100k.inter",
        {"user_id:token": "int", "item_id:token": "int", "rating:float": "float",
         "timestamp:float": "float"},
    )  # fmt: skip
    users = table(
        "ml-100k.user",
        {"user_id:token": "int", "age:token": "text", "gender:token": "text",
         "occupation:token": "text", "zip_code:token": "text"},
    )  # fmt: skip
    films = table("ml-100k.item", {"item_id:token": "int", "class:token_seq": "text"})
    return ratings, users, {"item_id": films["item_id"], "genres": _words(films["class"], " ")}


def _words(texts: NDArray[Any], delimiter: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    lists = [[word for word in text.split(delimiter) if word] for text in texts]
    counts = np.array([len(one) for one in lists], dtype=np.int64)
    return np.array([w for one in lists for w in one], dtype=object), np.cumsum(counts) - counts


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` ratings of 30 users and 40 films."""
    rng = np.random.default_rng(seed)
    users, films = np.arange(1, 31), np.arange(1, 41)
    genres = [["Action", "Sci-Fi"], ["Comedy"], ["Drama", "Children's", "Musical"]]
    user = rng.permutation(np.resize(users, rows))
    rating = rng.permutation(np.resize([5, 3, 4, 1, 2], rows))
    time = rng.integers(956_700_000, 1_046_450_000, rows)
    film = rng.integers(1, 41, rows)
    if card.name == "movielens-1m":
        tables = [
            [f"{u}::{i}::{r}::{t}" for u, i, r, t in zip(user, film, rating, time, strict=True)],
            [f"{u}::{'FM'[u % 2]}::{18 + u % 3}::{u % 21}::{10_000 + u}" for u in users],
            [f"{i}::Été: part {i} (1990)::{'|'.join(genres[i % 3])}" for i in films],
        ]
    else:
        rated = zip(user, film, rating, time, strict=True)
        tables = [
            ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
            + [f"{u}\t{i}\t{r}\t{t}" for u, i, r, t in rated],
            ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
            + [f"{u}\t{18 + u % 3}\t{'FM'[u % 2]}\twriter\t{10_000 + u}" for u in users],
            ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
            + [f"{i}\tFilm {i}\t1990\t{' '.join(genres[i % 3])}" for i in films],
        ]
    for file, lines in zip(card.files, tables, strict=True):
        (root / file.path).write_text("\n".join(lines) + "\n", encoding="latin-1")
