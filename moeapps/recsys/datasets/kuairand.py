"""KuaiRand (27K, 1K, Pure): Kuaishou logs with twelve kinds of feedback, from the published CSV."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.columns import Columns, match_rows, take_known
from moeapps.recsys.datasets.kuaishou import (
    USER_TYPES,
    code_lists,
    made_users,
    user_features,
    write_csv,
)
from moeapps.recsys.datasets.tables import Tables, split_columns
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task

LABELS = {
    "is_click": "watch", "long_view": "watch", "is_like": "interaction",
    "is_follow": "interaction", "is_comment": "interaction", "is_forward": "interaction",
    "is_profile_enter": "interaction",
}  # fmt: skip
_LOG = (
    "user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow",
    "is_comment", "is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms",
    "profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand", "tab",
)  # fmt: skip
_VIDEO = {
    "video_id": "int", "author_id": "int", "video_type": "text", "upload_dt": "text",
    "upload_type": "text", "visible_status": "text", "video_duration": "float",
    "server_width": "float", "server_height": "float", "music_id": "int", "music_type": "text",
    "tag": "text",
}  # fmt: skip
_VIDEO_CATEGORICAL = ("author_id", "video_type", "upload_type", "music_id", "music_type")
_VIDEO_DENSE = ("video_duration", "server_width", "server_height")


def _card(size: str, sizes: Mapping[str, int], parts: int) -> DatasetCard:
    def files(stem: str, count: int) -> list[str]:
        return [f"{stem}_{size}{f'_part{i}' if count > 1 else ''}.csv" for i in range(1, count + 1)]

    names = [
        *files("log_standard_4_08_to_4_21", parts),
        *files("log_standard_4_22_to_5_08", parts),
        *files("user_features", 1),
        *files("video_features_basic", 1),
    ]
    optional = [
        *files("log_random_4_22_to_5_08", 1),
        *files("video_features_statistic", 3 if parts > 1 else 1),
    ]
    title = size.capitalize() if size == "pure" else size.upper()
    folder = f"kuairand/KuaiRand-{title}/data"
    return DatasetCard(
        name=f"kuairand-{size}",
        title=f"KuaiRand-{title}",
        domain="recsys",
        task="7 binary tasks in 2 groups",
        metric="auroc",
        sizes=sizes,
        classes=2,
        splits="by date: last day test, day before validation, earlier days training",
        licence="CC BY-SA 4.0",
        source="KuaiRand: An Unbiased Sequential Recommendation Dataset",
        url="https://kuairand.com/",
        citation="Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with "
        "Randomly Exposed Videos, CIKM 2022",
        files=(
            *(DataFile(f"{folder}/{name}") for name in names),
            *(DataFile(f"{folder}/{name}", optional=True) for name in optional),
        ),
        notes="Counts of rows and videos are rounded. The statistics of videos are counted over "
        "the whole period, test days included: leave them out (statistics=false) to be strict.",
    )


CARDS = {
    card.name: card
    for card in (
        _card("pure", {"rows": 1_440_000, "users": 27_285, "videos": 7_600}, 1),
        _card("1k", {"rows": 11_700_000, "users": 1_000, "videos": 4_400_000}, 1),
        _card("27k", {"rows": 322_000_000, "users": 27_285}, 2),
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    random_log: bool = False,
    hate: bool = False,
    statistics: bool = True,
) -> Tables:
    r"""Impressions of a month of Kuaishou: watched, liked, followed and so on.

    ============== =========== ================ ===========
    Task           Group       Task             Group
    ============== =========== ================ ===========
    is_click       watch       is_like          interaction
    long_view      watch       is_follow        interaction
    \                          is_comment       interaction
    \                          is_forward       interaction
    \                          is_profile_enter interaction
    ============== =========== ================ ===========

    Args:
        card: Which of the three sizes.
        root: Data home; the files are in ``<root>/kuairand/KuaiRand-Pure/data`` and so on.
        download: Has no effect: there is no direct address of the files.
        random_log: Add the impressions of videos that were drawn at random.
        hate: Add the task ``is_hate``.
        statistics: Use the counts per video, where their file is there.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    from moeapps.recsys.files import CsvFormat, read_columns

    files = locate(card, root=root, download=download)

    def table(stem: str, types: Mapping[str, str], *, all_columns: bool = False) -> Columns:
        paths = [path for name, path in files.items() if name.startswith(stem)]
        return read_columns(paths, None if all_columns else list(types), csv=CsvFormat(types=types))

    labels = [*LABELS, *(["is_hate"] if hate else [])]
    wanted = ["user_id", "video_id", "date", "hourmin", "tab", "is_rand", *labels]
    log = table("log_" if random_log else "log_standard", dict.fromkeys(wanted, "int"))
    log["hour"] = log.pop("hourmin") // 100
    users = table("user_features", USER_TYPES)
    videos = table("video_features_basic", _VIDEO)
    videos["tag"] = code_lists(videos["tag"])
    log |= _of(users, "user_id", log)
    log |= _of(videos, "video_id", log)
    counts: list[str] = []
    if statistics and any(name.startswith("video_features_stat") for name in files):
        counted = table("video_features_stat", {"video_id": "int"}, all_columns=True)
        counts = [name for name in counted if name != "video_id"]
        log |= _of(counted, "video_id", log)
    days = np.unique(log["date"])
    part = np.zeros(len(log["date"]), np.int8)
    part[log["date"] == days[-1]] = 2
    part[log["date"] == days[max(len(days) - 2, 0)]] = 1
    features: list[Any] = [
        *(Categorical(name, 1, 16) for name in ("user_id", "video_id", "tab", "hour")),
        *user_features(16),
        *(Categorical(name, 1, 16) for name in _VIDEO_CATEGORICAL),
        MultiHot("tag", 1, 16, pooling="mean"),
        *(Dense(name, transform="log1p") for name in _VIDEO_DENSE),
        *(Dense(name, transform="log1p") for name in counts),
    ]
    groups = {**LABELS, "is_hate": "interaction"}
    return Tables(
        FeatureSchema(features, group_key="user_id"),
        tuple(Task(name, group=groups[name]) for name in labels),
        *split_columns(log, part),
        split_source=f"by date: test {days[-1]}, validation {days[max(len(days) - 2, 0)]}",
    )


def _of(table: Columns, key: str, log: Columns) -> Columns:
    """The rows of a table of users or videos that the log names."""
    rows = match_rows(log[key], table[key])
    return take_known({name: c for name, c in table.items() if name != key}, rows)


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` impressions per standard log of 30 users and 60 videos, a few unknown."""
    rng = np.random.default_rng(seed)
    for file in card.files:
        path = root / file.path
        if file.name.startswith("log_"):
            first = 408 if "4_08" in file.name else 422
            write_csv(path, _made_log(rng, rows, first, "random" in file.name))
        elif file.name.startswith("user_features"):
            write_csv(path, made_users(rng, 30))
        elif file.name.startswith("video_features_basic"):
            write_csv(path, _made_videos(rng))
        else:
            write_csv(path, _made_statistics(rng, file.name, card))


def _made_log(rng: np.random.Generator, rows: int, first: int, is_random: bool) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in _LOG:
        if name == "user_id":
            column = rng.integers(0, 30, rows)
        elif name == "video_id":
            column = rng.integers(0, 63, rows)  # the last three are in no table
        elif name == "date":
            column = 20_220_000 + first + rng.permutation(np.resize(np.arange(8), rows))
        elif name == "hourmin":
            column = rng.integers(0, 24, rows) * 100
        elif name == "is_rand":
            column = np.full(rows, int(is_random))
        elif name.startswith("is_") or name == "long_view":
            column = rng.permutation(np.resize([0, 0, 1], rows))
        else:
            column = rng.integers(0, 15 if name == "tab" else 10**6, rows)
        table[name] = column
    return table


def _made_videos(rng: np.random.Generator) -> dict[str, Any]:
    texts = {
        "video_type": ["NORMAL", "AD"],
        "upload_dt": ["2022-04-01", "2022-03-30"],
        "upload_type": ["LongImport", "ShortCamera"],
        "visible_status": ["1.0"],
        "music_type": ["9.0", "4.0", ""],
        "tag": ["12,65", "8", "", "1,12,28"],
    }
    table: dict[str, Any] = {}
    for name in _VIDEO:
        if name == "video_id":
            table[name] = np.arange(60)
        elif name in texts:
            table[name] = rng.permutation(np.resize(texts[name], 60))
        else:
            table[name] = rng.integers(1, 50, 60)
    return table


def _made_statistics(rng: np.random.Generator, file: str, card: DatasetCard) -> dict[str, Any]:
    videos = np.arange(60)
    parts = [f.name for f in card.files if f.name.startswith("video_features_stat")]
    videos = videos[videos % len(parts) == parts.index(file)]
    counts = ("counts", "show_cnt", "show_user_num", "play_cnt", "like_cnt", "share_cnt")
    means = {name: rng.gamma(2, 50, len(videos)).round(3) for name in counts}
    return {"video_id": videos, **means}
