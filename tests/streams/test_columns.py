import pickle
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from moeapps.errors import ArgumentError
from moeapps.streams.columns import LARGEST, Columns

nan = float("nan")


def learned(*dicts, nominal=None):
    columns = Columns(nominal)
    for x in dicts:
        columns.learn(x)
    return columns


def row(columns, x):
    return columns.encode(x).tolist()


def test_numbers_come_first_and_new_keys_of_one_dict_are_sorted():
    columns = learned({"b": 1, "word": "x", "a": 2.5}, {"0": 1.0})
    assert list(columns.numeric) == ["a", "b", "0"]
    assert row(columns, {"0": 7, "word": "x", "b": 1, "a": 2}) == [2, 1, 7, 0]


def test_numbers_in_names_count():
    names = [f"x{i}" for i in range(12)]
    assert list(learned(dict.fromkeys(reversed(names), 1.0)).numeric) == names


def test_keys_of_several_types_have_an_order():
    x = {2: 1.0, "a": 2.0, (1, 2): 3.0, None: 4.0, 10: 5.0}
    keys = list(x)
    orders = set()
    for seed in range(5):
        random.Random(seed).shuffle(keys)
        orders.add(tuple(learned({key: x[key] for key in keys}).numeric))
    assert len(orders) == 1


def test_key_order_does_not_matter():
    columns = learned({"a": 1, "b": 2, "c": "x"})
    assert row(columns, {"c": "x", "b": 2, "a": 1}) == row(columns, {"a": 1, "b": 2, "c": "x"})


@pytest.mark.parametrize("missing", [None, nan, np.float32("nan"), np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("nominal", [None, ["a"]])
def test_missing_values_are_nan_and_never_learned(missing, nominal):
    columns = learned({"a": missing, "b": missing}, nominal=nominal)
    assert len(columns) == 0
    columns.learn({"a": 1, "b": "x"})
    for x in ({"a": missing, "b": missing}, {}, {"b": missing}):
        assert np.isnan(columns.encode(x)).all()
        assert not columns.learn(x)


@pytest.mark.parametrize(
    "one",
    [True, np.bool_(True), "True", b"x", (1, 2), 1 + 2j, np.str_("x"), frozenset()],
    ids=repr,
)
def test_other_values_are_names(one):
    columns = learned({"a": one})
    assert (columns.num_numeric, columns.num_values) == (0, [1])
    assert row(columns, {"a": one}) == [0]


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float32(2), np.int8(2), np.uint64(2), Decimal(2), Fraction(2), np.half(2)]
)
def test_every_kind_of_number_is_a_number(number):
    columns = learned({"a": number})
    assert (columns.num_numeric, columns.num_values) == (1, [])
    assert row(columns, {"a": number}) == [2.0]


def test_a_key_with_both_kinds_of_values_owns_two_columns():
    columns = learned({"a": 1.5}, {"a": "high"}, {"a": True})
    assert row(columns, {"a": 3}) == pytest.approx([3, nan], nan_ok=True)
    assert row(columns, {"a": "high"}) == pytest.approx([nan, 0], nan_ok=True)
    # 1 and True are equal as keys of a dict, and still a number and a name.
    assert row(columns, {"a": 1}) == pytest.approx([1, nan], nan_ok=True)
    assert row(columns, {"a": True}) == pytest.approx([nan, 1], nan_ok=True)


def test_number_under_a_key_of_names_is_not_mixed_up_with_an_equal_name():
    columns = learned({"a": True, "b": 1.0})
    for number in (1, 1.0, Decimal(1), Fraction(1)):
        assert np.isnan(columns.encode({"a": number, "b": 1.0})[1])
        assert columns.has_new({"a": number, "b": 1.0})


def test_declared_attributes_are_names_whatever_their_type():
    columns = learned({"a": 3}, {"a": 5.0}, {"a": "x"}, nominal=["a"])
    assert columns.num_values == [3]
    assert [row(columns, {"a": v}) for v in (3, 3.0, np.int64(5), "x", 4)] == [
        [0],
        [0],
        [1],
        [2],
        [-1],
    ]


@pytest.mark.parametrize("huge", [1e300, float("inf"), 10**400, np.float64("inf"), 1e101])
def test_huge_numbers_are_bounded(huge):
    columns = learned({"a": 1.0, "b": 1.0})
    assert row(columns, {"a": huge, "b": -huge}) == [LARGEST, -LARGEST]
    assert row(columns, {"a": 1.0, "b": -huge}) == [1.0, -LARGEST]


def test_encoding_learns_nothing():
    columns = learned({"a": 1, "b": "x"})
    before = pickle.dumps(columns)
    columns.encode({"a": 1, "b": "y", "c": 3, "d": "z"})
    columns.encode({"a": 1, "b": "x"})
    assert pickle.dumps(columns) == before
    assert row(columns, {"a": 1, "b": "y", "c": 3}) == [1, -1]


@pytest.mark.parametrize("value", [[1, 2], {}, np.zeros(2), {1}], ids=repr)
def test_unhashable_values_are_refused_by_name(value):
    with pytest.raises(ArgumentError, match="'weekday'"):
        Columns().learn({"weekday": value})


def test_usual_and_unusual_ways_agree():
    rng = random.Random(0)
    pool = [1, 2.5, -1e300, None, nan, True, False, "a", "b", Decimal(4), np.int32(7), np.bool_(1)]
    columns, slow = Columns(["n"]), Columns(["n"])
    for _ in range(600):
        x = {key: rng.choice(pool) for key in "abn" if rng.random() < 0.9}
        quick = columns.encode_usual(x)
        if quick is not None:
            assert not columns.has_new(x)
        columns.learn(x)
        slow.learn(x)
        slow._plan = None
        expected = [nan] * len(slow)
        for key, value in x.items():
            kind, value = slow._kind(key, value)
            if kind == "number":
                expected[slow.numeric[key]] = value
            elif kind == "name":
                k = slow.nominal[key]
                expected[slow.num_numeric + k] = slow.codes[k][value]
        assert row(columns, x) == pytest.approx(expected, nan_ok=True)
