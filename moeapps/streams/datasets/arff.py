"""Reads dense ARFF files, the format in which MOA's streams are published."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from moeapps.data.integrity import reading
from moeapps.streams.datasets.recorded import read_csv

if TYPE_CHECKING:
    import pandas as pd

_ATTRIBUTE = re.compile(r"""@attribute\s+('[^']*'|"[^"]*"|\S+)\s+(\{.*\}|\S+)""", re.IGNORECASE)
_NUMERIC = ("numeric", "real", "integer")


def read_arff(path: str | Path) -> tuple["pd.DataFrame", dict[str, tuple[str, ...]]]:
    """Columns of an ARFF file, and the declared values of its nominal ones.

    ``?`` is a missing value: NaN. Numeric columns are float64, nominal ones hold text.

    Args:
        path: The file.

    Raises:
        DataIntegrityError: It is no dense ARFF file of numeric and nominal attributes.
    """
    with reading(path):
        values: dict[str, tuple[str, ...]] = {}
        types: dict[str, type] = {}
        skipped = 0
        with Path(path).open(encoding="utf-8") as file:
            for line in file:
                skipped += 1
                text = line.strip()
                if text.lower().startswith("@data"):
                    break
                if not text.lower().startswith("@attribute"):
                    continue
                match = _ATTRIBUTE.match(text)
                if match is None:
                    raise ValueError(f"line {skipped} declares no attribute: {text!r}")
                name, kind = match[1].strip("'\""), match[2]
                if kind.startswith("{"):
                    values[name] = _listed(kind[1:-1])
                    types[name] = str
                elif kind.lower() in _NUMERIC:
                    types[name] = float
                else:
                    raise ValueError(f"the attribute {name} is of type {kind}")
            else:
                raise ValueError("it has no @data")
        frame = read_csv(
            path, skiprows=skipped, header=None, names=list(types), dtype=types, na_values=["?"],
            keep_default_na=False, comment="%", quotechar="'", skipinitialspace=True,
            index_col=False, skip_blank_lines=True,
        )  # fmt: skip
    return frame, values


def _listed(text: str) -> tuple[str, ...]:
    quote = '"' if '"' in text else "'"
    (row,) = csv.reader([text], quotechar=quote, skipinitialspace=True)
    return tuple(value.strip() for value in row)
