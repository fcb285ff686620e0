"""Logs with several labels per row, by name: public ones from their files, made ones from a seed.

``list_datasets`` and ``card`` read no file and need neither torch nor pyarrow::

    tables = load("census-income")        # tables.schema, .tasks, .train, .val, .test
    make_fixture("ali-ccp", "some/folder")  # a small made-up copy in the published format
"""

import fnmatch
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.data.card import DatasetCard
from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    MissingExtraError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from moeapps.recsys.datasets.tables import Tables

__all__ = ["DATASETS", "card", "list_datasets", "load", "make_fixture"]

_HERE = "moeapps.recsys.datasets"

# Name -> module with ``CARDS``, ``read`` and, where there are files, ``make_fixture``.
DATASETS: dict[str, str] = {
    "census-income": f"{_HERE}.census_income",
    "census-income-sample": f"{_HERE}.census_income",
    "adult": f"{_HERE}.adult",
    "ali-ccp": f"{_HERE}.ali_ccp",
    "aliexpress-nl": f"{_HERE}.aliexpress",
    "aliexpress-es": f"{_HERE}.aliexpress",
    "aliexpress-fr": f"{_HERE}.aliexpress",
    "aliexpress-us": f"{_HERE}.aliexpress",
    "kuairand-pure": f"{_HERE}.kuairand",
    "kuairand-1k": f"{_HERE}.kuairand",
    "kuairand-27k": f"{_HERE}.kuairand",
    "kuairec": f"{_HERE}.kuairec",
    "tenrec-qk-video": f"{_HERE}.tenrec",
    "tenrec-qb-video": f"{_HERE}.tenrec",
    "tenrec-ctr-1m": f"{_HERE}.tenrec",
    "tiktok": f"{_HERE}.tiktok",
    "movielens-1m": f"{_HERE}.movielens",
    "movielens-100k": f"{_HERE}.movielens",
    "short-video": f"{_HERE}.short_video",
    "two-task-regression": f"{_HERE}.two_task_regression",
}


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, sorted.

    Example:
        >>> list_datasets("kuai*")
        ['kuairand-1k', 'kuairand-27k', 'kuairand-pure', 'kuairec']
    """
    return sorted(name for name in DATASETS if fnmatch.fnmatch(name, pattern))


def card(name: str) -> DatasetCard:
    """What is known about a set: sizes, splits, licence, files, source.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> card("census-income").sizes["rows"]
        299285
    """
    name = _canonical(name)
    cards: dict[str, DatasetCard] = importlib.import_module(DATASETS[name]).CARDS
    return cards[name]


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
    module = importlib.import_module(DATASETS[known.name])
    read: Callable[..., Tables] = module.read
    parameters = inspect.signature(read).parameters
    if unknown := sorted(set(args) - set(parameters)):
        takes = [name for name in parameters if name not in ("card", "root", "split", "download")]
        raise ArgumentError(
            f"{known.name} does not take {', '.join(unknown)}. "
            f"It takes {', '.join(takes) or 'no further arguments'}."
        )
    splits: tuple[str, ...] = getattr(module, "SPLITS", ())
    if split is not None and split not in splits:
        raise ArgumentError(
            f"{known.name} has no split {split!r}. "
            + (f"Choose {' or '.join(splits)}." if splits else "It has one: leave split out.")
        )
    if splits:
        args["split"] = split or splits[0]
    if not known.synthetic:
        args |= {"root": root, "download": download}
    try:
        return read(known, **args)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "pyarrow":
            raise MissingExtraError("recsys", "pyarrow") from error
        raise
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
    known = card(name)
    module = importlib.import_module(DATASETS[known.name])
    if not known.files:
        raise ArgumentError(f"{known.name} has no files: it is made from a seed. Load it by name.")
    if rows < 40:
        raise ArgumentError(f"rows={rows} is too small for three splits. Choose 40 or more.")
    for file in known.files:
        (Path(root) / file.path).parent.mkdir(parents=True, exist_ok=True)
    module.make_fixture(known, Path(root), rows, seed)
    return (Path(root) / known.files[0].path).parent


def _canonical(name: str) -> str:
    canonical = str(name).lower().replace("_", "-")
    if canonical not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS, hint="See: moeapps data list")
    return canonical
