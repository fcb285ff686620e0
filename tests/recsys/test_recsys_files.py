import numpy as np
import pytest

from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    DataNotFoundError,
    UnknownNameError,
)
from moeapps.recsys.columns import match_rows, take_columns, take_known
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.loaders import StreamingLoader
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task
from moeapps.recsys.vocabularies import MISSING

pa = pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')

import pyarrow.parquet  # noqa: E402

from moeapps.recsys.files import Blocks, CsvFormat, read_columns  # noqa: E402

ROWS = 1000
TABLE = {
    "id": np.arange(ROWS),
    "city": np.array([["Rome", "Oslo", "Bern"][i % 3] for i in range(ROWS)], dtype=object),
    "x": np.arange(ROWS) / 3,
    "y": np.arange(ROWS) % 2,
}


def write_parquet(path, table=TABLE, row_group_size=130):
    pyarrow.parquet.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def write_csv(path, table=TABLE, header=True):
    lines = [",".join(table)] if header else []
    lines += [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def same(found, table=TABLE):
    return set(found) == set(table) and all(
        np.array_equal(found[name], column) for name, column in table.items()
    )


@pytest.mark.parametrize("write", [write_parquet, write_csv])
def test_columns_come_back(tmp_path, write):
    path = write(tmp_path / ("t.parquet" if write is write_parquet else "t.csv"))
    found = read_columns(path)
    assert same(found)
    assert found["id"].dtype == np.int64
    assert found["id"].flags.writeable
    assert list(read_columns(path, ["x", "id"])) == ["x", "id"]


@pytest.mark.parametrize("block_bytes", [1, 37, 5_000, 1 << 20])
def test_csv_blocks_lose_no_row(tmp_path, block_bytes):
    path = write_csv(tmp_path / "t.csv")
    blocks = Blocks(path, block_bytes=block_bytes)
    assert blocks.num_rows == ROWS
    parts = [blocks.read(i) for i in range(0, len(blocks), max(len(blocks) // 20, 1))]
    assert [len(part["id"]) for part in parts] == [
        blocks.rows[i] for i in range(0, len(blocks), max(len(blocks) // 20, 1))
    ]
    if block_bytes == 5_000:
        assert same(read_columns(path))
        assert np.concatenate([b["id"] for b in blocks]).tolist() == list(range(ROWS))


def test_row_groups_are_blocks_and_folders_stand_for_their_files(tmp_path):
    first = take_columns(TABLE, slice(0, 600))
    write_parquet(tmp_path / "a.parquet", first)
    write_parquet(tmp_path / "b.parquet", take_columns(TABLE, slice(600, None)))
    blocks = Blocks(tmp_path)
    assert blocks.rows == [130, 130, 130, 130, 80, 130, 130, 130, 10]
    assert same(read_columns(tmp_path))


def test_lists_gaps_dates_and_booleans(tmp_path):
    table = pa.table(
        {
            "tags": pa.array([[1, 2], None, [], [3]]),
            "n": pa.array([1, None, 3, 4]),
            "t": pa.array(["a", None, "", "b"]),
            "b": pa.array([True, False, True, True]),
            "when": pa.array([0, 1, 2, 3], pa.timestamp("ms")),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = read_columns(tmp_path / "t.parquet")
    values, offsets = found["tags"]
    assert (values.tolist(), offsets.tolist()) == ([1, 2, 3], [0, 2, 2, 2])
    assert np.array_equal(found["n"], [1, np.nan, 3, 4], equal_nan=True)
    assert found["t"].tolist() == ["a", "", "", "b"]
    assert found["b"].tolist() == [1, 0, 1, 1]
    assert found["when"].tolist() == [0, 1, 2, 3]


def test_column_of_no_use_is_named(tmp_path):
    table = pa.table({"s": pa.array([{"a": 1}])})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ArgumentError, match=r"Column 's' of .* holds struct"):
        read_columns(tmp_path / "t.parquet")


def test_large_ids_with_gaps_are_refused_rather_than_changed(tmp_path):
    table = pa.table({"id": pa.array([2**60 + 1, None])})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataIntegrityError, match=r"column 'id' has gaps"):
        read_columns(tmp_path / "t.parquet")


def test_file_without_header_with_blanks_and_empty_lines_at_the_end(tmp_path):
    (tmp_path / "t.csv").write_text("|note\n1, a b , 2.5\n2, c, 3\r\n\n\n")
    csv = CsvFormat(names=("n", "t", "x"), strip=True, quoted=False, skip=1)
    found = read_columns(tmp_path / "t.csv", csv=csv)
    assert found["t"].tolist() == ["a b", "c"]
    assert found["x"].tolist() == [2.5, 3]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_empty_file_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataIntegrityError, match=f"{name} is empty"):
        read_columns(tmp_path / name)


def test_file_without_rows_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("id,x\n")
    with pytest.raises(DataIntegrityError, match=r"t.csv: no row after the header"):
        read_columns(tmp_path / "t.csv")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_truncated_parquet_is_named(tmp_path, keep):
    path = write_parquet(tmp_path / "t.parquet")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataIntegrityError, match=r"t.parquet cannot be read .* truncated"):
        read_columns(path)


def test_parquet_damaged_in_the_middle_is_named(tmp_path):
    path = write_parquet(tmp_path / "t.parquet")
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\0" * 1996
    path.write_bytes(bytes(content))
    with pytest.raises(DataIntegrityError, match=r"t.parquet cannot be read"):
        read_columns(path)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_missing_column_is_named_with_close_matches(tmp_path, name):
    path = (write_csv if name == "t.csv" else write_parquet)(tmp_path / name)
    with pytest.raises(UnknownNameError, match=r"column 'cyti'. Did you mean 'city'"):
        read_columns(path, ["id", "cyti"])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no.csv does not exist"):
        read_columns(tmp_path / "no.csv")
    with pytest.raises(DataNotFoundError, match="holds no Parquet or CSV"):
        read_columns(tmp_path)


@pytest.mark.parametrize("columns", [None, ["y", "x"]])
def test_value_of_another_type_is_named_with_its_line(tmp_path, columns):
    path = write_csv(tmp_path / "t.csv")
    lines = path.read_text().splitlines()
    lines[700] = "699,Rome,oops,1"
    path.write_text("\n".join(lines) + "\n")
    blocks = Blocks(path, columns, block_bytes=4_000)
    with pytest.raises(DataIntegrityError, match=r"t.csv, line 701, column 'x': .*'oops'"):
        list(blocks)


def test_line_that_is_cut_short_is_named(tmp_path):
    path = write_csv(tmp_path / "t.csv")
    path.write_text(path.read_text()[:-8])
    with pytest.raises(DataIntegrityError, match=r"line 1001: .*Expected 4 columns, got [23]"):
        read_columns(path)


def test_stated_type_wins(tmp_path):
    path = write_csv(tmp_path / "t.csv")
    assert read_columns(path, csv=CsvFormat(types={"id": "text"}))["id"][:2].tolist() == ["0", "1"]
    with pytest.raises(UnknownNameError, match="type of column 'integer'"):
        CsvFormat(types={"id": "integer"})


@pytest.mark.parametrize("write", [write_parquet, write_csv])
def test_streamed_epoch_gives_the_rows_of_the_file(tmp_path, write):
    path = write(tmp_path / ("t.parquet" if write is write_parquet else "t.csv"))
    blocks = Blocks(path, block_bytes=3_000)
    schema = FeatureSchema([Categorical("id", 1, 4), Categorical("city", 1, 4), Dense("x")])
    encoder = Encoder.fit(blocks, schema)
    loader = StreamingLoader(blocks, encoder, [Task("y")], batch_size=64, shuffle=True)
    batches = list(loader)
    ids = np.concatenate([batch["cat"][:, 0] for batch in batches]) - 1
    labels = np.concatenate([batch["labels"][:, 0] for batch in batches])
    assert sorted(ids.tolist()) == list(range(ROWS))
    assert (labels == ids % 2).all()
    assert not (np.diff(ids) > 0).all()


def test_rows_without_a_partner_are_missing():
    table = {
        "n": np.array([5, 6]),
        "t": np.array(["a", "b"], dtype=object),
        "f": np.array([0.5, 1.5]),
        "bag": (np.array([1, 2, 3]), np.array([0, 1])),
    }
    rows = match_rows(np.array([20, 30, 10]), np.array([10, 20]))
    assert rows.tolist() == [1, -1, 0]
    found = take_known(table, rows)
    assert found["n"].tolist() == [6, MISSING, 5]
    assert found["t"].tolist() == ["b", "", "a"]
    assert np.array_equal(found["f"], [1.5, np.nan, 0.5], equal_nan=True)
    assert found["bag"][0].tolist() == [2, 3, 1]
    assert found["bag"][1].tolist() == [0, 2, 2]
    assert match_rows(np.array([1]), np.zeros(0, int)).tolist() == [-1]
