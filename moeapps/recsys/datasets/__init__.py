"""Logs with several labels per row, by name: public ones from their files, made ones from a seed.

``list_datasets`` and ``card`` read no file and need neither torch nor pyarrow::

    tables = load("census-income")        # tables.schema, .tasks, .train, .val, .test
    make_fixture("ali-ccp", "some/folder")  # a small made-up copy in the published format
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.data.catalogue import Catalogue
from moeapps.errors import ArgumentError, DataIntegrityError, UnknownNameError

if TYPE_CHECKING:
    from moeapps.recsys.datasets.tables import Tables

__all__ = ["DATASETS", "card", "list_datasets", "load", "make_fixture"]

# The modules also have ``make_fixture``, where there are files, and ``SPLITS``, where several.
DATASETS = Catalogue(
    "moeapps.recsys.datasets",
    {
        "census-income": "census_income:read",
        "census-income-sample": "census_income:read",
        "adult": "adult:read",
        "ali-ccp": "ali_ccp:read",
        "aliexpress-nl": "aliexpress:read",
        "aliexpress-es": "aliexpress:read",
        "aliexpress-fr": "aliexpress:read",
        "aliexpress-us": "aliexpress:read",
        "kuairand-pure": "kuairand:read",
        "kuairand-1k": "kuairand:read",
        "kuairand-27k": "kuairand:read",
        "kuairec": "kuairec:read",
        "tenrec-qk-video": "tenrec:read",
        "tenrec-qb-video": "tenrec:read",
        "tenrec-ctr-1m": "tenrec:read",
        "tiktok": "tiktok:read",
        "movielens-1m": "movielens:read",
        "movielens-100k": "movielens:read",
        "short-video": "short_video:read",
        "two-task-regression": "two_task_regression:read",
    },
)
list_datasets = DATASETS.names
card = DATASETS.card


def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str | None = None,
    download: bool = False,
    **args: Any,
) -> "Tables":
    """Read or make a set.

    Args:
        name: One of :func:`list_datasets`; case and ``_`` for ``-`` do not matter.
        root: Data home; see :func:`moeapps.data.data_home`.
        split: Which way of splitting, where the set has several.
        download: Fetch missing files where the set has an address for them.
        **args: What the set's own reader takes besides, for example ``seed=``.

    Returns:
        Raw columns of the three splits, a draft of the schema, and the tasks.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: For a split or an argument that the set does not have.
        DataNotFoundError: Naming missing files and the title of their official page.
        DataIntegrityError: When a file is empty, truncated or not the published one.
        MissingExtraError: When pyarrow is not installed.

    Example:
        >>> tables = load("short-video", rows=1000, test_rows=500, seed=1)
        >>> len(tables.tasks), len(tables.train["like"]), len(tables.test["like"])
        (9, 1000, 500)
    """
    known = card(name)
    splits: tuple[str, ...] = getattr(DATASETS.module(known.name), "SPLITS", ())
    if split is not None and split not in splits:
        raise ArgumentError(
            f"{known.name} has no split {split!r}. "
            + (f"Choose {' or '.join(splits)}." if splits else "It has one: leave split out.")
        )
    given: dict[str, Any] = {"split": split or splits[0]} if splits else {}
    if not known.synthetic:
        given |= {"root": root, "download": download}
    try:
        return DATASETS.read(known, given, args)
    except (DataIntegrityError, UnknownNameError) as error:
        if not known.files:
            raise
        raise DataIntegrityError(f"{error} Official page: {known.source}, {known.url}") from error


def make_fixture(name: str, root: str | Path, rows: int = 400, seed: int = 0) -> Path:
    """Write a small made-up copy of a set in the exact format of the published files.

    Args:
        name: One of :func:`list_datasets` that has files.
        root: Data home to write below; ``load(name, root=root)`` then reads it.
        rows: Rows of the training file; other files are smaller in proportion.
        seed: Of the values.

    Returns:
        The folder of the files.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: The set has no files, or there are less than 40 rows.
    """
    return DATASETS.make_fixture(name, root, ("rows", rows), seed, least=40)
