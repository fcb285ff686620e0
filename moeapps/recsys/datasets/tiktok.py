"""Short-video understanding challenge of ICME 2019, track 1 (TikTok), from its published file."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.datasets.tables import Tables, random_parts, split_columns
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

COLUMNS = (
    "uid", "user_city", "item_id", "author_id", "item_city", "channel", "finish", "like",
    "music_id", "device_id", "create_time", "video_duration",
)  # fmt: skip
CATEGORICAL = (
    "uid", "user_city", "item_id", "author_id", "item_city", "channel", "music_id", "device_id",
)  # fmt: skip

CARDS = {
    "tiktok": DatasetCard(
        name="tiktok",
        title="TikTok (ICME 2019 track 1)",
        domain="recsys",
        task="2 binary tasks in 2 groups",
        metric="auroc",
        sizes={"rows": 275_800_000, "features": 10},
        classes=2,
        splits="random: 10 % test, 10 % of the rest validation, seed 42",
        licence="none stated",
        source="ICME 2019 Short Video Understanding and Recommendation Challenge, Biendata",
        url="https://www.biendata.xyz/competition/icmechallenge2019/",
        citation="ByteDance, Short Video Understanding Challenge, ICME 2019",
        files=(DataFile("tiktok/final_track1_train.txt"),),
        notes="About 276 million rows: the reader holds them in memory. The number of rows is "
        "rounded.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 42,
) -> Tables:
    """Shown videos: watched to the end, and liked.

    Ids that occur less than ten times in the training split are unknown.

    Args:
        card: The card of the set.
        root: Data home; the file is ``<root>/tiktok/final_track1_train.txt``.
        download: Has no effect: the file is behind a registration.
        seed: Of the random split.

    Raises:
        DataNotFoundError: Naming the missing file and its official page.
        DataIntegrityError: The file is empty, truncated or not the published one.
    """
    from moeapps.recsys.files import CsvFormat, read_columns

    (path,) = locate(card, root=root, download=download).values()
    types = {n: "float" if n in ("create_time", "video_duration") else "int" for n in COLUMNS}
    written = CsvFormat(names=COLUMNS, delimiter="\t", types=types, quoted=False)
    columns = read_columns(path, csv=written)
    part = random_parts(len(columns["like"]), (0.09, 0.1), seed)
    features = [
        *(Categorical(name, 1, 16) for name in CATEGORICAL),
        Dense("video_duration", transform="log1p"),
        Dense("create_time", transform="minmax"),
    ]
    return Tables(
        FeatureSchema(features, group_key="uid"),  # type: ignore[arg-type]
        (Task("finish", group="watch"), Task("like", group="interaction")),
        *split_columns(columns, part),
        split_source=f"random 81:9:10, seed {seed}",
        min_count=10,
    )


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` made-up rows, tab separated, without a header."""
    rng = np.random.default_rng(seed)
    table = []
    for name in COLUMNS:
        if name in ("finish", "like"):
            column = rng.permutation(np.resize([0, 0, 1], rows))
        elif name == "create_time":
            column = rng.integers(53_000_000_000, 53_100_000_000, rows)
        else:
            column = rng.integers(-1, 20, rows)  # -1: not known
        table.append(column.astype(str))
    lines = "\n".join("\t".join(row) for row in zip(*table, strict=True))
    (root / card.files[0].path).write_text(lines + "\n", encoding="ascii")
