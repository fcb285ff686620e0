"""Parquet and CSV files as columns: whole, or block by block when they are larger than memory.

A column comes out as a numpy array: numbers as they are (gaps make them float64, with NaN), texts
as objects (gaps are empty), lists as a pair of values and offsets.
"""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from moeapps.data.integrity import reading
from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    DataNotFoundError,
    UnknownNameError,
)
from moeapps.recsys.columns import concat_columns

Array = NDArray[Any]

BLOCK_BYTES = 16 << 20
"""Length of a block of a CSV file. Parquet files bring their own blocks, the row groups."""

_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.dictionary(pa.int32(), pa.string()),
}


@dataclass(frozen=True)
class CsvFormat:
    r"""How a CSV file is written.

    Args:
        names: Columns of a file without a header; None reads the first line.
        delimiter: One character.
        types: ``"int"``, ``"float"`` or ``"text"`` by column; others as the first block shows.
        encoding: Of the file.
        quoted: Whether ``"`` puts a text that holds the delimiter into quotes.
        strip: Leave out blanks around texts.
        skip: Lines before the table.
    """

    names: tuple[str, ...] | None = None
    delimiter: str = ","
    types: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf8"
    quoted: bool = True
    strip: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        for kind in self.types.values():
            if kind not in _TYPES:
                raise UnknownNameError("type of column", kind, _TYPES)


def read_columns(
    paths: str | Path | Many[str | Path],
    columns: Many[str] | None = None,
    *,
    csv: CsvFormat | None = None,
) -> dict[str, Any]:
    """All rows of one or more Parquet or CSV files.

    Args:
        paths: Files, read in this order; a folder stands for the files in it.
        columns: Which columns; None reads all.
        csv: How CSV files are written; with a header and commas if None.

    Raises:
        DataNotFoundError: A file does not exist.
        UnknownNameError: A file lacks a column.
        DataIntegrityError: A file is empty, truncated, or a value has another type.
    """
    blocks = Blocks(paths, columns, csv=csv)
    return concat_columns(list(blocks))


class Blocks:
    """The rows of Parquet and CSV files in blocks that can be read in any order.

    Args:
        paths: Files, in this order; a folder stands for the files in it.
        columns: Which columns; None reads all.
        csv: How CSV files are written; with a header and commas if None.
        block_bytes: Length of a block of a CSV file, cut after a line.

    Attributes:
        rows: Number of rows of each block.

    Raises:
        DataNotFoundError: A file does not exist.
        UnknownNameError: A file lacks a column.
        DataIntegrityError: A file is empty or truncated.

    Notes:
        A text in a CSV file may not hold a line break.
    """

    def __init__(
        self,
        paths: str | Path | Many[str | Path],
        columns: Many[str] | None = None,
        *,
        csv: CsvFormat | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.files: list[_ParquetFile | _CsvFile] = []
        for path in _expand(paths):
            if path.stat().st_size == 0:
                raise _empty(path)
            if path.suffix.lower() in (".parquet", ".pq"):
                self.files.append(_ParquetFile(path, columns))
            else:
                self.files.append(_CsvFile(path, columns, csv or CsvFormat(), block_bytes))
        self.rows = [count for file in self.files for count in file.rows]
        if not any(self.rows):
            raise DataIntegrityError(
                f"{', '.join(str(file.path) for file in self.files)}: no row after the header. "
                "Expected rows of a table: write or fetch it again."
            )
        self._places = [(f, i) for f in self.files for i in range(len(f.rows))]

    @property
    def num_rows(self) -> int:
        """Rows of all blocks."""
        return sum(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.read(block) for block in range(len(self)))

    def read(self, block: int) -> dict[str, Any]:
        """The columns of a block.

        Raises:
            DataIntegrityError: The file is truncated, or a value has another type.
        """
        file, index = self._places[block]
        return file.read(index)


class _ParquetFile:
    def __init__(self, path: Path, columns: Many[str] | None) -> None:
        self.path = path
        with reading(path), pyarrow.parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            groups = file.metadata.num_row_groups
            self.rows = [file.metadata.row_group(i).num_rows for i in range(groups)]
        self.columns = _chosen(path, columns, known)

    def read(self, index: int) -> dict[str, Any]:
        with reading(self.path), pyarrow.parquet.ParquetFile(self.path) as file:
            table = file.read_row_group(index, columns=self.columns)
        return {name: _to_numpy(self.path, name, table[name]) for name in self.columns}


class _CsvFile:
    def __init__(
        self, path: Path, columns: Many[str] | None, csv: CsvFormat, block_bytes: int
    ) -> None:
        self.path = path
        self.csv = csv
        self.offsets: list[tuple[int, int]] = []
        self.rows: list[int] = []
        self.lines_before = csv.skip + int(csv.names is None)
        self._cut(block_bytes)
        if csv.names is None:
            self.csv = replace(csv, names=self._header())
        self.columns = _chosen(path, columns, self.csv.names or ())
        self.types = {name: _TYPES[kind] for name, kind in csv.types.items()}
        if self.rows:
            first = self._table(0).schema
            self.types |= {name: _lasting(first.field(name).type) for name in self.columns}

    def read(self, index: int) -> dict[str, Any]:
        table = self._table(index)
        return {
            name: _to_numpy(self.path, name, table[name], self.csv.strip) for name in self.columns
        }

    def _cut(self, block_bytes: int) -> None:
        size = self.path.stat().st_size
        with self.path.open("rb") as stream:
            for _ in range(self.lines_before):
                stream.readline()
            while (start := stream.tell()) < size:
                block = stream.read(block_bytes)
                block += b"" if block.endswith(b"\n") else stream.readline()
                if stream.tell() == size:
                    block = block.rstrip(b"\r\n")  # some files end with empty lines
                if block:
                    self.offsets.append((start, len(block)))
                    self.rows.append(block.count(b"\n") + (not block.endswith(b"\n")))

    def _header(self) -> tuple[str, ...]:
        with self.path.open("rb") as stream:
            line = [stream.readline() for _ in range(self.lines_before)][-1]
        with reading(self.path):
            table = pyarrow.csv.read_csv(
                pa.BufferReader(line),
                read_options=pyarrow.csv.ReadOptions(encoding=self.csv.encoding),
                parse_options=_parsing(self.csv),
            )
        return tuple(name.strip() for name in table.column_names)

    def _table(self, index: int) -> pa.Table:
        start, length = self.offsets[index]
        with self.path.open("rb") as stream:
            stream.seek(start)
            block = stream.read(length)
        first_line = self.lines_before + sum(self.rows[:index])
        return _parse(self.path, block, self.csv, self.types, self.columns, first_line)


def read_csv_bytes(path: Path, content: bytes, csv: CsvFormat) -> dict[str, Any]:
    """The columns of a table in memory that came, changed, from a file without a header.

    Raises:
        DataIntegrityError: The table is empty, or a value has another type.
    """
    if not content:
        raise _empty(path)
    types = {name: _TYPES[kind] for name, kind in csv.types.items()}
    table = _parse(path, content, csv, types, list(csv.names or ()), 0)
    return {name: _to_numpy(path, name, table[name], csv.strip) for name in table.column_names}


def _parsing(csv: CsvFormat) -> pyarrow.csv.ParseOptions:
    quote = '"' if csv.quoted else False
    return pyarrow.csv.ParseOptions(
        delimiter=csv.delimiter, quote_char=quote, ignore_empty_lines=False
    )


def _parse(
    path: Path, block: bytes, csv: CsvFormat, types: Mapping[str, pa.DataType],
    columns: list[str], first_line: int, *, use_threads: bool = True,
) -> pa.Table:  # fmt: skip
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(block),
            read_options=pyarrow.csv.ReadOptions(
                column_names=list(csv.names or ()), encoding=csv.encoding,
                use_threads=use_threads, block_size=max(len(block), 1),
            ),
            parse_options=_parsing(csv),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=columns
            ),
        )  # fmt: skip
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if use_threads:  # only a single thread counts rows
            return _parse(path, block, csv, types, columns, first_line, use_threads=False)
        raise _refused(path, list(csv.names or ()), first_line, str(error)) from error


def _refused(path: Path, names: list[str], first_line: int, message: str) -> DataIntegrityError:
    where = ""
    if found := re.search(r"In CSV column #(\d+): ?", message):
        where = f", column {names[int(found[1])]!r}"
        message = message.replace(found[0], "")
    if found := re.search(r"Row #(\d+): ?", message):
        where = f", line {first_line + int(found[1])}{where}"
        message = message.replace(found[0], "")
    return DataIntegrityError(
        f"{path}{where}: {message}. Expected the number of columns and the types of its first "
        "rows, or those stated for it: the file is cut short or another one. Correct or fetch it."
    )


def _empty(path: Path) -> DataIntegrityError:
    return DataIntegrityError(
        f"{path} is empty. Expected rows of a table: write or fetch it again."
    )


def _chosen(path: Path, columns: Many[str] | None, known: Many[str]) -> list[str]:
    for name in columns or ():
        if name not in known:
            raise UnknownNameError("column", name, known, f"The file {path} does not have it.")
    return list(known if columns is None else columns)


def _lasting(kind: pa.DataType) -> pa.DataType:
    """The type of the first block as that of all: texts coded, a column without values as text."""
    texts = pa.types.is_string(kind) or pa.types.is_null(kind)
    return _TYPES["text"] if texts else kind


def _to_numpy(path: Path, name: str, column: pa.ChunkedArray, strip: bool = False) -> Any:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        joined = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
        lengths = joined.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        values = _to_numpy(path, name, pa.chunked_array([joined.flatten()]))
        return values, (np.cumsum(lengths) - lengths).astype(np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column, kind = column.dictionary_encode(), pa.dictionary(pa.int32(), pa.string())
    if pa.types.is_dictionary(kind):
        joined = column.unify_dictionaries().combine_chunks()
        if not len(joined):
            return np.zeros(0, dtype=object)
        texts = joined.dictionary.to_pylist()
        values = np.array([*(t.strip() if strip else t for t in texts), ""], dtype=object)
        place = joined.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        return values[place]  # equal texts are one object
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif pa.types.is_temporal(kind):
        column = column.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ArgumentError(
            f"Column {name!r} of {path} holds {kind} values. Expected numbers, texts, dates or "
            "lists of them: convert it or leave it out."
        )
    if pa.types.is_integer(column.type) and column.null_count:
        return _with_gaps(path, name, column)
    array = column.to_numpy()
    return array if array.flags.writeable else array.copy()  # tensors made of it are written to


def _with_gaps(path: Path, name: str, column: pa.ChunkedArray) -> Array:
    try:
        return column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:  # above 2^53 floats are not whole
        raise DataIntegrityError(
            f"{path}: column {name!r} has gaps and numbers too large for float64. Expected ids "
            "without gaps, or texts: write 0 for a missing id."
        ) from error


def _expand(paths: str | Path | Many[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in (".parquet", ".pq", ".csv"))
        else:
            inside = [path]
        if not inside or not inside[0].exists():
            raise DataNotFoundError(
                f"{path} {'holds no' if path.is_dir() else 'does not exist: no'} Parquet or CSV "
                "file. Check the path."
            )
        found += inside
    return found
