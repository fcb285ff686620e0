"""From the arrays of a file to a checked `Stream`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import DataIntegrityError
from moeapps.streams.datasets.stream import Rows, Stream

if TYPE_CHECKING:
    import pandas as pd


def recorded(
    card: DatasetCard,
    columns: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    limit: int | None,
    class_names: Sequence[Any],
    values: Mapping[str, Sequence[str]] | None = None,
    drifts: Sequence[int] = (),
) -> Stream:
    """A stream that was read from a file, with the sizes that its card states.

    Args:
        card: Whose content it is; named in errors.
        columns: Name -> values ``[N]``; nominal ones as codes; NaN = missing.
        labels: Class index per instance; -1 = the file has a label that is none of the classes.
        limit: Keep the first instances only.
        class_names: One label per class index.
        values: Nominal columns: name -> its values in the order of their codes.
        drifts: Instances at which the concept is known to change.

    Raises:
        DataIntegrityError: A count differs, or a label or nominal value is not one of the set's.
    """
    values = values or {}
    sizes = {"instances": len(labels), "features": len(columns)}
    for what, found in sizes.items():
        if found != card.sizes[what]:
            raise _not_published(card, f"has {found} {what}, expected {card.sizes[what]}")
    if len(class_names) != card.classes or labels.min(initial=0) < 0:
        raise _not_published(card, f"has labels other than its {card.classes} classes")
    for name, known in values.items():
        codes = columns[name]
        if not (np.isnan(codes) | ((codes >= 0) & (codes < len(known)))).all():
            raise _not_published(card, f"has unknown values in the column {name}")
    X = np.stack([np.asarray(column, float) for column in columns.values()], axis=1)  # noqa: N806
    return from_arrays(
        card, X[:limit], labels[:limit], feature_names=list(columns), class_names=class_names,
        values={list(columns).index(name): known for name, known in values.items()},
        drifts=drifts,
    )  # fmt: skip


def from_arrays(
    card: DatasetCard,
    X: np.ndarray,  # noqa: N803
    y: np.ndarray,
    *,
    feature_names: Sequence[str],
    class_names: Sequence[Any],
    values: Mapping[int, Sequence[str]] | None = None,
    drifts: Sequence[int] = (),
) -> Stream:
    """A stream over arrays in memory."""
    X = np.ascontiguousarray(X, float)  # noqa: N806
    y = np.ascontiguousarray(y, np.int64)

    def rows(start: int, stop: int) -> Rows:
        return X[start:stop], y[start:stop]

    return Stream(
        card, rows, len(y), feature_names=feature_names, class_names=class_names, values=values,
        drifts=[position for position in drifts if position < len(y)],
    )  # fmt: skip


def read_csv(path: Path | str, **how: Any) -> "pd.DataFrame":
    """`pandas.read_csv`, with the nearest number to every decimal under any version of pandas."""
    import pandas as pd

    if int(pd.__version__.partition(".")[0]) < 3:
        how["float_precision"] = "round_trip"  # the default errs in the last digit
    frame: pd.DataFrame = pd.read_csv(path, **how)
    return frame


def coded(column: "pd.Series", known: Sequence[str]) -> np.ndarray:
    """Codes of text values: the index in ``known``; NaN where missing, -1 where unknown."""
    import pandas as pd

    codes = pd.Index(known).get_indexer(column.astype(str)).astype(float)
    codes[column.isna().to_numpy()] = np.nan
    return codes


def _not_published(card: DatasetCard, what: str) -> DataIntegrityError:
    return DataIntegrityError(
        f"{card.title} {what}. A file is truncated or not the published one: fetch it again "
        f"from {card.url}."
    )
