"""Your own stream: a CSV file with a header, in the order in which things happened."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.data.integrity import reading
from moeapps.errors import ArgumentError, DataNotFoundError, UnknownNameError
from moeapps.lazy import needs_extra
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import coded, from_arrays, read_csv
from moeapps.streams.datasets.stream import Stream

if TYPE_CHECKING:
    import pandas as pd

MAX_VALUES = 1_000  # of a nominal column; a leaf of a tree counts each of them per class


def load_csv(path: str | Path, target: str, *, limit: int | None = None) -> Stream:
    """Read a CSV file as a stream.

    Columns of numbers are numeric, all others (text, true/false) nominal; an empty cell is a
    missing value. Classes are the values of the target in order of appearance.

    Args:
        path: The file; ``.gz``, ``.zip`` and so on are unpacked on the way.
        target: Name of the column with the label.
        limit: Read the first rows only.

    Raises:
        DataNotFoundError: There is no such file.
        DataIntegrityError: It is no CSV file.
        UnknownNameError: No column has that name.
        ArgumentError: A label is missing, there is no row or no feature, or a column of text has
            more than a thousand values.
        MissingExtraError: pandas is not installed.
    """
    if limit is not None and limit < 0:
        raise ArgumentError(f"limit={limit} is negative. Choose the number of instances wanted.")
    path = Path(path)
    if not path.is_file():
        raise DataNotFoundError(
            f"{path} does not exist. Expected a CSV file with a header: check the path, or take a "
            "name from: moeapps data list"
        )
    with needs_extra("streams"):
        import pandas as pd
    with reading(path):
        frame = read_csv(path, nrows=limit)
    if target not in frame.columns:
        raise UnknownNameError(f"column in {path.name}", target, map(str, frame.columns))
    labels = frame.pop(target)
    if not len(frame) or not len(frame.columns) or labels.isna().any():
        raise ArgumentError(
            f"{path.name} has {len(frame)} rows, {len(frame.columns)} features and "
            f"{int(labels.isna().sum())} rows without a label. Expected at least one row and one "
            "feature, and a label in every row: leave such rows out of the file."
        )
    y, classes = pd.factorize(labels)
    columns, values = [], {}
    for j, name in enumerate(frame.columns):
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            columns.append(column.to_numpy(float))
        else:
            values[j] = _known(column, path)
            columns.append(coded(column, values[j]))
    return from_arrays(
        _card(path, frame, len(classes)), np.stack(columns, axis=1), y,
        feature_names=[str(name) for name in frame.columns], class_names=classes.tolist(),
        values=values,
    )  # fmt: skip


def _known(column: "pd.Series", path: Path) -> list[str]:
    known = column.dropna().astype(str).unique().tolist()
    if len(known) > MAX_VALUES:
        raise ArgumentError(
            f"The column {column.name!r} of {path.name} has {len(known)} different texts, expected "
            f"at most {MAX_VALUES}. Turn it into a number (a date into a day), or leave it out."
        )
    return known


def _card(path: Path, frame: "pd.DataFrame", classes: int) -> DatasetCard:
    return stream_card(
        name=path.name.partition(".")[0],
        title=path.name,
        instances=len(frame),
        features=len(frame.columns),
        classes=classes,
        licence="yours",
        source=str(path),
        url=path.absolute().as_uri(),
        citation="-",
    )
