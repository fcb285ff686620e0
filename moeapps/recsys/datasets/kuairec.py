"""KuaiRec: a log of Kuaishou and a matrix that is almost full, from the published CSV files."""

from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.columns import Columns, match_rows, take_columns, take_known
from moeapps.recsys.datasets.kuaishou import (
    USER_TYPES,
    code_lists,
    made_users,
    user_features,
    write_csv,
)
from moeapps.recsys.datasets.tables import Tables, random_parts
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task

_MATRIX = {
    "user_id": "int", "video_id": "int", "play_duration": "float", "video_duration": "float",
    "watch_ratio": "float",
}  # fmt: skip
_VIDEO = {
    "video_id": "int", "author_id": "int", "video_type": "text", "upload_type": "text",
    "music_id": "int", "video_tag_id": "int",
}  # fmt: skip
TASKS = ("effective_view", "long_view", "complete", "rewatch")

CARDS = {
    "kuairec": DatasetCard(
        name="kuairec",
        title="KuaiRec",
        domain="recsys",
        task="4 binary tasks",
        metric="auroc",
        sizes={"rows": 17_180_000, "users": 7_176, "videos": 10_728},
        classes=2,
        splits="big matrix for training, a tenth of its rows for validation; small matrix for test",
        licence="CC BY-SA 4.0",
        source="KuaiRec: A Fully-observed Dataset for Recommender Systems",
        url="https://kuairec.com/",
        citation="Gao et al., KuaiRec: A Fully-observed Dataset and Insights for Evaluating "
        "Recommender Systems, CIKM 2022",
        files=tuple(
            DataFile(f"kuairec/data/{name}.csv")
            for name in (
                "big_matrix", "small_matrix", "item_categories", "item_daily_features",
                "user_features",
            )
        ),
        notes="The count of rows is rounded. There are no likes: all tasks are derived from how "
        "long a video was watched. The daily counts of videos are not used, since they contain the "
        "labels' own day.",
    )
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Tables:
    """Watched videos: for long enough, long, to the end, twice.

    ============== ================================================
    Task           Positive where
    ============== ================================================
    effective_view watched for 7 s or to the end
    long_view      watched for 18 s or to the end
    complete       ``watch_ratio`` is at least 1
    rewatch        ``watch_ratio`` is at least 2
    ============== ================================================

    The first two tasks are the group ``view``, the others the group ``finish``.

    Args:
        card: The card of the set.
        root: Data home; the files are in ``<root>/kuairec/data``.
        download: Has no effect: there is no direct address of the files.
        seed: Which tenth of the big matrix is for validation.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    from moeapps.recsys.files import CsvFormat, read_columns

    files = locate(card, root=root, download=download)

    def table(name: str, types: dict[str, str]) -> Columns:
        return read_columns(files[f"{name}.csv"], list(types), csv=CsvFormat(types=types))

    users = table("user_features", USER_TYPES)
    tags = table("item_categories", {"video_id": "int", "feat": "text"})
    daily = table("item_daily_features", _VIDEO)
    _, first_day = np.unique(daily["video_id"], return_index=True)
    videos = take_columns(daily, first_day)

    def complete(matrix: Columns) -> Columns:
        """Labels, and what is known of user and video."""
        played, length = matrix.pop("play_duration"), matrix["video_duration"]
        ratio = matrix.pop("watch_ratio")
        labels = {
            "effective_view": (played >= 7_000) | (played >= length),
            "long_view": (played >= 18_000) | (played >= length),
            "complete": ratio >= 1,
            "rewatch": ratio >= 2,
        }
        joined = matrix | {name: label.astype(np.float32) for name, label in labels.items()}
        feat = {"video_id": tags["video_id"], "feat": code_lists(tags["feat"])}
        for side, key in ((users, "user_id"), (videos, "video_id"), (feat, "video_id")):
            rest = {name: column for name, column in side.items() if name != key}
            joined |= take_known(rest, match_rows(matrix[key], side[key]))
        return joined

    big = complete(table("big_matrix", _MATRIX))
    test = complete(table("small_matrix", _MATRIX))
    is_val = random_parts(len(big["complete"]), (0.1, 0.0), seed) == 1
    features: list[Any] = [
        Categorical("user_id", 1, 16),
        *(Categorical(name, 1, 16) for name in _VIDEO),
        *user_features(16),
        MultiHot("feat", 1, 16, pooling="mean"),
        Dense("video_duration", transform="log1p"),
    ]
    return Tables(
        FeatureSchema(features, group_key="user_id"),
        tuple(Task(name, group="view" if name.endswith("view") else "finish") for name in TASKS),
        take_columns(big, ~is_val), take_columns(big, is_val), test,
        "big matrix, a tenth of it for validation, seeded; small matrix for test",
    )  # fmt: skip


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` rows of the big matrix and a third as many of the small one."""
    rng = np.random.default_rng(seed)
    folder = (root / card.files[0].path).parent
    length = rng.integers(3_000, 40_000, 50).astype(float)
    for name, count in (("big_matrix", rows), ("small_matrix", rows // 3)):
        video = rng.integers(0, 50, count)
        played = (length[video] * rng.gamma(2, 0.6, count)).round()
        table = {
            "user_id": rng.integers(0, 30, count),
            "video_id": video,
            "play_duration": played.astype(int),
            "video_duration": length[video].astype(int),
            "time": np.resize(["2020-07-05 00:08:23.438", ""], count),
            "date": np.resize(["20200705.0", ""], count),
            "timestamp": np.resize(["1593878903.438", ""], count),
            "watch_ratio": played / length[video],
        }
        write_csv(folder / f"{name}.csv", table)
    write_csv(folder / "user_features.csv", made_users(rng, 30))
    feat = rng.permutation(np.resize(["[8]", "[27, 9]", "[1, 12, 28]"], 50))
    write_csv(folder / "item_categories.csv", {"video_id": np.arange(50), "feat": feat})
    day = {
        "video_id": np.repeat(np.arange(50), 2),
        "date": np.tile([20200705, 20200706], 50),
        "author_id": np.repeat(rng.integers(0, 20, 50), 2),
        "video_type": np.full(100, "NORMAL"),
        "upload_dt": np.full(100, "2020-07-01"),
        "upload_type": np.repeat(rng.permutation(np.resize(["ShortImport", "LongImport"], 50)), 2),
        "visible_status": np.full(100, "public"),
        "music_id": np.repeat(rng.integers(0, 9, 50), 2),
        "video_tag_id": np.repeat(rng.integers(0, 9, 50), 2),
        "video_tag_name": np.full(100, "dance"),
        "show_cnt": rng.integers(0, 9_000, 100),
    }
    write_csv(folder / "item_daily_features.csv", day)
