"""What the tables of users and lists of tags of KuaiRand and KuaiRec have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.recsys.schema import Categorical, Dense

_FLAGS = (
    "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author",
)  # fmt: skip
_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_ONEHOT = tuple(f"onehot_feat{i}" for i in range(18))

USER_TYPES = {
    "user_id": "int",
    **dict.fromkeys(_FLAGS, "text"),
    **{
        f"{name}{suffix}": kind
        for name in _COUNTS
        for suffix, kind in (("", "float"), ("_range", "text"))
    },
    **dict.fromkeys(_ONEHOT, "float"),
}
"""The 31 columns of ``user_features*.csv``; one-hot features are codes with gaps, so float."""


def user_features(dim: int) -> list[Categorical | Dense]:
    """All columns of a user but the id: ranges and codes as categories, counts also as numbers."""
    ranges = [f"{name}_range" for name in _COUNTS]
    return [
        *(Categorical(name, 1, dim) for name in (*_FLAGS, *ranges, *_ONEHOT)),
        *(Dense(name, transform="log1p") for name in _COUNTS),
    ]


def code_lists(texts: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts such as ``12,65`` or ``[12, 65]`` as values and offsets.

    Example:
        >>> values, offsets = code_lists(np.array(["[8]", "", "12,65"], dtype=object))
        >>> values.tolist(), offsets.tolist()
        ([8, 12, 65], [0, 1, 1])
    """
    lists = [[int(float(v)) for v in t.strip("[] ").split(",") if v.strip()] for t in texts]
    counts = np.array([len(one) for one in lists], dtype=np.int64)
    values = np.array([v for one in lists for v in one], dtype=np.int64)
    return values, np.cumsum(counts) - counts


def made_users(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """A made-up table of users, with gaps."""
    texts = {
        "user_active_degree": ["full_active", "high_active", "UNKNOWN"],
        "is_lowactive_period": ["0", "1"],
        "is_live_streamer": ["0", "1", "-124"],
        "is_video_author": ["0", "1"],
    }
    table: dict[str, Any] = {}
    for name in USER_TYPES:
        if name == "user_id":
            table[name] = np.arange(count)
        elif name in texts:
            table[name] = rng.permutation(np.resize(texts[name], count))
        elif name.endswith("_range"):
            table[name] = rng.permutation(np.resize(["(0,10]", "(10,50]", "500+"], count))
        elif name in _ONEHOT:
            table[name] = rng.permutation(np.resize(["0.0", "1.0", "7.0", ""], count))
        else:
            table[name] = rng.integers(0, 900, count)
    return table


def write_csv(path: Path, table: Mapping[str, Any]) -> None:
    """Write columns with a header, texts that hold a comma in quotes."""

    def text(value: Any) -> str:
        return f'"{value}"' if "," in str(value) else str(value)

    rows = zip(*table.values(), strict=True)
    lines = [",".join(table), *(",".join(map(text, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
