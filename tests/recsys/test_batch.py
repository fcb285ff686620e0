"""Packing columns, and taking rows of what is packed."""

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, IdRangeError, UnknownNameError
from moeapps.recsys.batch import is_packed, lengths, num_rows, pack, take
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Sequence, Task

SCHEMA = FeatureSchema(
    [
        Categorical("user", 2**26, 2),
        Dense("age"),
        MultiHot("tags", 9, 4, max_len=2),
        Sequence("seen", 9, 4, max_len=2),
        Dense("vector", width=2),
    ],
    group_key="session",
)
TASKS = [Task("click"), Task("buy", label="bought", sample_mask="click")]


def columns():
    return {
        "user": np.array([1, 2**25 + 1, 3]),
        "age": [0.5, 1.5, -2.0],
        "tags": [[1, 2, 3], [], [4]],
        "seen": np.array([[1, 2, 3], [0, 0, 0], [5, 6, 0]]),
        "vector": np.arange(6.0).reshape(3, 2),
        "click": np.array([1, 0, 1], dtype=bool),
        "bought": np.array([np.nan, 0, 1]),
        "session": np.array([7, 7, 8], dtype=np.int32),
        "w": [1.0, 2.0, 0.5],
    }


def test_packs_every_kind_of_column():
    batch = pack(columns(), SCHEMA, TASKS, weight="w")
    assert batch["cat"].tolist() == [[1], [2**25 + 1], [3]]  # float32 would give 2**25
    assert batch["cat"].dtype == torch.int64
    assert batch["dense"].tolist() == [[0.5, 0, 1], [1.5, 2, 3], [-2, 4, 5]]
    assert batch["bag/tags"]["values"].tolist() == [1, 2, 4]  # the first two
    assert batch["bag/tags"]["offsets"].tolist() == [0, 2, 2]
    assert batch["bag/seen"]["values"].tolist() == [2, 3, 5, 6]  # the newest two
    assert lengths(batch["bag/seen"]).tolist() == [2, 0, 2]
    assert batch["labels"][:, 0].tolist() == [1, 0, 1]
    assert batch["labels"][1:, 1].tolist() == [0, 1]
    assert batch["labels"][0, 1].isnan()
    assert batch["mask"].tolist() == [[True, True], [True, False], [True, True]]
    assert batch["group"].tolist() == [7, 7, 8]
    assert batch["weight"].tolist() == [1, 2, 0.5]
    assert num_rows(batch) == 3


def test_packs_features_alone_for_prediction():
    data = {name: columns()[name] for name in ("user", "age", "tags", "seen", "vector")}
    batch = pack(data, SCHEMA)
    assert sorted(batch) == ["bag/seen", "bag/tags", "cat", "dense"]
    assert is_packed(batch, SCHEMA)
    assert not is_packed(data, SCHEMA)


@pytest.mark.parametrize("index", [[2, 0], [0], [], [1, 1, 2]])
def test_taking_rows_equals_packing_them(index):
    whole = pack(columns(), SCHEMA, TASKS, weight="w")
    picked = {
        name: [column[i] for i in index] if isinstance(column, list) else column[index]
        for name, column in columns().items()
    }
    taken = take(whole, torch.tensor(index, dtype=torch.int64))
    if not index:
        assert num_rows(taken) == 0
        assert taken["bag/tags"]["values"].numel() == 0
        return
    expected = pack(picked, SCHEMA, TASKS, weight="w")
    for key, value in expected.items():
        if key.startswith("bag/"):
            assert all(torch.equal(value[part], taken[key][part]) for part in value), key
        else:
            torch.testing.assert_close(value, taken[key], equal_nan=True)


def test_rows_may_be_a_slice_or_a_mask():
    whole = pack(columns(), SCHEMA, TASKS)
    assert take(whole, slice(1, None))["group"].tolist() == [7, 8]
    mask = torch.tensor([True, False, True])
    assert take(whole, mask)["bag/tags"]["values"].tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("name", "column", "error", "message"),
    [
        ("user", [1, 2], ArgumentError, "'age' has 3 rows, 'user' has 2"),
        ("user", [1.0, 2.0, 3.0], ArgumentError, "'user' is torch.float64. Expected whole"),
        ("user", ["a", "b", "c"], ArgumentError, "'user' holds <U1 values"),
        ("user", [1, 2**26, 3], IdRangeError, "'user' holds id 67108864 in row 1"),
        ("user", [1, 2, -3], IdRangeError, "'user' holds id -3 in row 2"),
        ("tags", [[1], [2, 9], [3]], IdRangeError, "'tags' holds id 9 in row 1"),
        ("tags", ([1, 2], [0, 1, 3]), ArgumentError, "'tags' has offsets"),
        ("tags", ([1, 2], [1, 1, 2]), ArgumentError, "'tags' has offsets"),
        ("seen", [[1], [], [], []], ArgumentError, "'seen' has 4 rows"),
        ("age", [1.0, np.nan, 2.0], ArgumentError, "'age' is not finite in row 1"),
        ("vector", np.zeros((3, 3)), ArgumentError, r"'vector' has shape \[3, 3\]"),
        ("bought", [0, 1, np.inf], ArgumentError, "'bought' is infinite in row 2"),
        ("session", [0.5, 1, 2], ArgumentError, "'session' is torch.float64"),
    ],
)
def test_errors_name_the_column(name, column, error, message):
    with pytest.raises(error, match=message):
        pack({**columns(), name: column}, SCHEMA, TASKS)


def test_a_missing_column_is_named():
    data = columns()
    del data["vector"]
    with pytest.raises(UnknownNameError, match="vector"):
        pack(data, SCHEMA, TASKS)


def test_bags_may_be_values_and_offsets():
    data = {**columns(), "tags": {"values": [1, 2, 3], "offsets": [0, 1, 1]}}
    batch = pack(data, SCHEMA, TASKS)
    assert lengths(batch["bag/tags"]).tolist() == [1, 0, 2]


def test_unsigned_and_small_integers_keep_their_value():
    data = {**columns(), "user": np.array([1, 2, 60000], dtype=np.uint16)}
    assert pack(data, SCHEMA, TASKS)["cat"].flatten().tolist() == [1, 2, 60000]
