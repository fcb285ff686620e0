import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeapps.errors import ArgumentError, CheckpointError, UnknownNameError
from moeapps.recsys.batch import pack
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Sequence, Task


def fitted(column, feature=None, **arguments):
    feature = feature or Categorical("c", 1, 4)
    return Encoder.fit({feature.name: column}, FeatureSchema([feature]), **arguments)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1))
@settings(max_examples=50, deadline=None)
def test_ids_count_the_values_in_order_and_leave_out_zero(values):
    ids = fitted(np.array(values)).transform({"c": np.array(values)})["c"]
    known = {value: i for i, value in enumerate(sorted(set(values)), 1)}
    assert ids.tolist() == [known[value] for value in values]
    assert ids.dtype == np.int64


@pytest.mark.parametrize("spread", [1, 5, 2**57])
@given(st.lists(st.integers(-30, 30), min_size=1), st.lists(st.integers(-60, 60)))
@settings(max_examples=30, deadline=None)
def test_new_numbers_are_unknown_however_far_apart_they_lie(spread, old, new):
    encoder = fitted(np.array(old) * spread)
    known = {value * spread: i for i, value in enumerate(sorted(set(old)), 1)}
    new = np.array(new, dtype=np.int64) * spread
    ids = encoder.transform({"c": new})["c"]
    assert ids.tolist() == [known.get(value, 0) for value in new.tolist()]


@given(st.lists(st.text(max_size=3), min_size=1))
@settings(max_examples=50, deadline=None)
def test_empty_text_is_missing_and_other_texts_get_ids(values):
    column = np.array(values, dtype=object)
    ids = fitted(column).transform({"c": column})["c"]
    known = {value: i for i, value in enumerate(sorted(set(values) - {""}), 1)}
    assert ids.tolist() == [known.get(value, 0) for value in values]


def test_large_ids_do_not_pass_through_floats():
    column = np.array([2**53 + 1, 2**53, 2**62 + 3])
    assert fitted(column).transform({"c": column})["c"].tolist() == [2, 1, 3]


def test_rare_and_new_values_are_unknown():
    encoder = fitted(np.array([7, 7, 8, 9, 9]), min_count=2)
    assert encoder.schema["c"].vocab_size == 3
    assert encoder.transform({"c": [7, 8, 9, 10]})["c"].tolist() == [1, 0, 2, 0]


def test_min_count_by_feature():
    columns = {"a": np.array([1, 1, 2]), "b": np.array([1, 1, 2])}
    schema = FeatureSchema([Categorical("a", 1, 4), Categorical("b", 1, 4)])
    encoder = Encoder.fit(columns, schema, min_count={"a": 2})
    assert [f.vocab_size for f in encoder.schema.categorical] == [2, 3]


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_missing_values_are_unknown_in_every_form(missing):
    column = np.array(["b", missing, "a"], dtype=object)
    assert fitted(column).transform({"c": column})["c"].tolist() == [2, 0, 1]


def test_numbers_with_gaps_stay_whole():
    encoder = fitted(np.array([5.0, np.nan, 3.0]))
    assert encoder.transform({"c": np.array([3.0, np.nan])})["c"].tolist() == [1, 0]
    assert encoder.transform({"c": [5, None]})["c"].tolist() == [2, 0]
    assert encoder.vocabularies == {"c": [3, 5]}


def test_shared_table_has_one_vocabulary():
    schema = FeatureSchema(
        [Categorical("item", 1, 4), Sequence("history", 1, 4, shared_with="item")]
    )
    history = (np.array([30, 10, 40]), np.array([0, 2]))
    encoder = Encoder.fit({"item": np.array([10, 20]), "history": history}, schema)
    assert {f.vocab_size for f in encoder.schema.embedded} == {5}
    encoded = encoder.transform({"item": np.array([10, 20]), "history": history})
    assert encoded["item"].tolist() == [1, 2]
    values, offsets = encoded["history"]
    assert (values.tolist(), offsets.tolist()) == ([3, 1, 4], [0, 2])


@pytest.mark.parametrize(
    "bag",
    [
        [["a", "b"], [], ["c", "a"]],
        (np.array(["a", "b", "c", "a"], dtype=object), np.array([0, 2, 2])),
        {"values": np.array(["a", "b", "c", "a"]), "offsets": np.array([0, 2, 2])},
        np.array([["a", "b"], ["", ""], ["c", "a"]]),
    ],
    ids=["lists", "pair", "mapping", "padded"],
)
def test_bags_come_in_four_forms(bag):
    schema = FeatureSchema([MultiHot("tags", 1, 4)])
    encoder = Encoder.fit({"tags": bag}, schema)
    packed = pack(encoder.transform({"tags": bag}), encoder.schema)["bag/tags"]
    assert packed["values"].tolist() == [1, 2, 3, 1]
    assert packed["offsets"].tolist() == [0, 2, 2]


def scaled(transform, train, new):
    encoder = fitted(np.asarray(train, float), Dense("c", transform=transform))
    return encoder.transform({"c": np.asarray(new, float)})["c"]


def test_transforms_by_their_formulas():
    train = np.random.default_rng(0).gamma(2, 3, 5000)
    assert np.allclose(scaled("none", train, [1, -2]), [1, -2])
    assert np.allclose(scaled("log1p", train, [0, 3, -3]), [0, np.log(4), -np.log(4)])
    expected = (train - train.mean()) / train.std()
    assert np.allclose(scaled("standard", train, train), expected, atol=1e-5)
    assert scaled("minmax", train, [train.min(), train.max()]).tolist() == [0, 1]
    quantiles = scaled("quantile", train, np.quantile(train, [0.1, 0.5, 0.9]))
    assert np.allclose(quantiles, [0.1, 0.5, 0.9], atol=2e-3)


@pytest.mark.parametrize("transform", ["standard", "minmax", "quantile"])
def test_constant_column_stays_finite(transform):
    assert np.isfinite(scaled(transform, [3, 3, 3], [3, 4])).all()


def test_missing_numbers_become_zero_after_the_transform_and_can_be_marked():
    column = np.array([1.0, np.nan, 3.0])
    encoder = fitted(column, Dense("c", transform="standard"), missing_indicator=True)
    encoded = encoder.transform({"c": column})
    assert encoded["c"].tolist() == [-1, 0, 1]
    assert encoded["c/missing"].tolist() == [0, 1, 0]
    assert [f.name for f in encoder.schema.dense] == ["c", "c/missing"]


def test_no_indicator_without_gaps():
    encoder = fitted(np.array([1.0, 2.0]), Dense("c"), missing_indicator=True)
    assert [f.name for f in encoder.schema.dense] == ["c"]


@pytest.mark.parametrize("transform", ["standard", "minmax", "quantile"])
def test_blocks_give_what_the_whole_gives(transform):
    rng = np.random.default_rng(0)
    columns = {
        "n": rng.integers(0, 50, 1000),
        "t": rng.permutation(np.resize(["a", "b", "c", "rare"], 1000)).astype(object),
        "d": 1e6 + rng.normal(size=(1000, 2)),
    }
    features = [Categorical("n", 1, 4), Categorical("t", 1, 4), Dense("d", 2, transform)]
    whole = Encoder.fit(columns, FeatureSchema(features), min_count=5)
    cuts = [slice(0, 10), slice(10, 700), slice(700, 1000)]
    blocks = ({name: c[cut] for name, c in columns.items()} for cut in cuts)
    parts = Encoder.fit(blocks, FeatureSchema(features), min_count=5)
    assert parts.vocabularies == whole.vocabularies
    assert np.allclose(parts.statistics["d"], whole.statistics["d"], rtol=1e-9)


def test_statistics_come_from_the_training_rows_only():
    encoder = fitted(np.array([0.0, 10.0]), Dense("c", transform="minmax"))
    assert encoder.transform({"c": [20.0]})["c"].tolist() == [2]


def test_state_survives_json():
    columns = {"user": np.array(["a", "b"]), "age": [1.0, np.nan], "x": np.array([3, 4])}
    schema = FeatureSchema(
        [Categorical("user", 1, 4), Categorical("x", 1, 2), Dense("age", transform="quantile")],
        group_key="user",
    )
    encoder = Encoder.fit(columns, schema, missing_indicator=True)
    again = Encoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again.to_dict() == encoder.to_dict()
    for name, column in encoder.transform(columns).items():
        assert np.array_equal(again.transform(columns)[name], column, equal_nan=name == "age")


def test_damaged_state_is_refused():
    state = fitted(np.array([1, 2])).to_dict()
    for broken in (
        {**state, "vocabularies": {"c": [2, 1]}},
        {**state, "vocabularies": {"c": [1, "a"]}},
        {k: v for k, v in state.items() if k != "schema"},
    ):
        with pytest.raises(CheckpointError, match="another checkpoint"):
            Encoder.from_dict(broken)


def test_unknown_users_stay_apart_in_their_groups():
    schema = FeatureSchema([Categorical("user", 1, 4)], group_key="user")
    encoder = Encoder.fit({"user": np.array(["a", "b"])}, schema)
    new = {"user": np.array(["c", "d", "c"]), "click": [0, 1, 0]}
    batch = pack(encoder.transform(new), encoder.schema, [Task("click")])
    assert batch["cat"].tolist() == [[0], [0], [0]]
    group = batch["group"].tolist()
    assert group[0] == group[2] != group[1]


def test_groups_of_texts_do_not_depend_on_other_rows():
    schema = FeatureSchema([Dense("x")], group_key="user")
    encoder = Encoder.fit({"x": [1.0]}, schema)
    one = encoder.transform({"x": [1.0], "user": np.array(["b"])})["user"]
    two = encoder.transform({"x": [1.0, 2.0], "user": np.array(["a", "b"])})["user"]
    assert one[0] == two[1] != two[0]
    assert one[0] > 0


@pytest.mark.parametrize(
    ("fit", "new"),
    [([1, 2], ["a"]), (["a", "b"], [1]), (["a"], [1.0])],
    ids=["text for number", "number for text", "float for text"],
)
def test_column_of_another_type_is_named(fit, new):
    with pytest.raises(ArgumentError, match="Column 'c' holds numbers in one part"):
        fitted(fit).transform({"c": new})


def test_blocks_of_different_types_are_refused():
    schema = FeatureSchema([Categorical("c", 1, 4)])
    with pytest.raises(ArgumentError, match="'c' holds numbers in one part"):
        Encoder.fit([{"c": np.array([1])}, {"c": np.array(["x"])}], schema)


@pytest.mark.parametrize(
    ("column", "feature", "message"),
    [
        ([1.5, 2.0], Categorical("c", 1, 4), r"'c' holds 1.5 in row 0"),
        (["a", 3, "b"], Categorical("c", 1, 4), r"'c' holds 'a' in row 0 among"),
        ([2.0**60, 1.0], Categorical("c", 1, 4), "in row 0"),
        (["x", "y"], Dense("c"), "'c' holds the text 'x'"),
        ([1.0, np.inf], Dense("c"), "'c' is infinite in row 1"),
        ([[1.0, 2.0]], Dense("c"), r"'c' has shape \[1, 2\]"),
        ([np.nan, np.nan], Dense("c", transform="standard"), "'c' has no number"),
        (np.zeros((1, 2, 3)), Categorical("c", 1, 4), "has shape"),
    ],
)
def test_bad_column_is_named(column, feature, message):
    with pytest.raises(ArgumentError, match=message):
        fitted(column, feature)


def test_missing_column_is_named_with_close_matches():
    with pytest.raises(UnknownNameError, match=r"column 'age'. Did you mean 'agee'"):
        Encoder.fit({"agee": [1.0]}, FeatureSchema([Dense("age")]))
    with pytest.raises(UnknownNameError, match="'c'"):
        fitted([1, 2]).transform({"d": [1]})


def test_other_columns_pass_unchanged():
    label = np.array([0.0, np.nan])
    assert fitted([1, 2]).transform({"c": [1, 2], "label": label})["label"] is label


def test_long_columns_keep_a_sample_of_their_quantiles(monkeypatch):
    from moeapps.recsys import dense_statistics

    monkeypatch.setattr(dense_statistics, "_SAMPLE", 1000)
    values = np.linspace(0, 1, 20_000)
    blocks = [{"c": part} for part in np.array_split(values, 7)]
    encoder = Encoder.fit(blocks, FeatureSchema([Dense("c", transform="quantile")]))
    knots = encoder.statistics["c"][0]
    assert np.allclose(knots, np.linspace(0, 1, 1001), atol=0.002)
