"""Feature schemas and tasks: plain data that checks itself."""

import json

import pytest

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.schema import (
    Categorical,
    Dense,
    FeatureSchema,
    GroupKey,
    MultiHot,
    Sequence,
    Task,
    as_schema,
    as_tasks,
    task_groups,
)

FEATURES = [
    Dense("age", transform="log1p"),
    Categorical("item", 50, 8),
    Sequence("history", 50, 8, pooling="target_attention", query="item", shared_with="item"),
    MultiHot("tags", 20, 4, max_len=3, pooling="max"),
    Dense("vector", width=3, project=5),
]


def test_survives_json():
    schema = FeatureSchema(FEATURES, group_key="user")
    assert as_schema(json.loads(json.dumps(schema.to_dict()))) == schema
    task = Task("stars", type="ordinal", levels=5, weight=0.5, group="rating")
    assert as_tasks(json.loads(json.dumps([task.to_dict()]))) == (task,)


def test_widths_and_places_in_the_flat_input():
    schema = FeatureSchema(FEATURES)
    assert schema.flat_width == 8 + 8 + 4 + 1 + 5
    assert schema.dense_width == 4
    places = [schema.flat_slice(f.name) for f in (*schema.embedded, *schema.dense)]
    assert [(p.start, p.stop) for p in places] == [(0, 8), (8, 16), (16, 20), (20, 21), (21, 26)]


def test_features_by_kind():
    schema = FeatureSchema(FEATURES)
    assert [f.name for f in schema.categorical] == ["item"]
    assert [f.name for f in schema.bags] == ["history", "tags"]
    assert [f.name for f in schema.dense] == ["age", "vector"]


def test_the_group_key_may_be_an_object():
    assert FeatureSchema(FEATURES, GroupKey("user")).group_key == "user"


def test_resizing_changes_all_features_of_a_table():
    schema = FeatureSchema(FEATURES).resized("history", 70)
    assert [schema[name].vocab_size for name in ("item", "history", "tags")] == [70, 70, 20]
    with pytest.raises(ArgumentError, match="dense"):
        schema.resized("age", 5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([Dense("a"), Dense("a")], "occurs twice"),
        ([Dense("cat")], "key of the packed batch"),
        ([Dense("bag/x")], "key of the packed batch"),
        ([GroupKey("user")], "no feature"),
        ([Categorical("a", 5, 4), Categorical("b", 6, 4, shared_with="a")], "6 rows of 4"),
        ([Categorical("a", 5, 4, shared_with="a")], "none of its own"),
        ([Dense("a"), Categorical("b", 6, 4, shared_with="a")], "none of its own"),
        (
            [
                Categorical("a", 5, 4),
                Categorical("b", 5, 4, shared_with="a"),
                Categorical("c", 5, 4, shared_with="b"),
            ],
            "none of its own",
        ),
        (
            [Categorical("a", 5, 3), Sequence("s", 5, 4, pooling="target_attention", query="a")],
            "dim=4",
        ),
    ],
)
def test_contradictions_are_refused(features, message):
    with pytest.raises(ArgumentError, match=message):
        FeatureSchema(features)


def test_unknown_names_are_offered_the_closest():
    with pytest.raises(UnknownNameError, match="'item'"):
        FeatureSchema(FEATURES)["itme"]
    with pytest.raises(UnknownNameError, match="'item'"):
        FeatureSchema([Categorical("item", 5, 4), Categorical("b", 5, 4, shared_with="itm")])
    with pytest.raises(UnknownNameError, match="log1p"):
        Dense("a", transform="log1")
    with pytest.raises(UnknownNameError, match="categorical"):
        FeatureSchema.from_dict({"features": [{"kind": "categoric", "name": "a"}]})
    with pytest.raises(UnknownNameError, match="vocab_size"):
        FeatureSchema.from_dict({"features": [{"kind": "categorical", "vocabsize": 3}]})
    with pytest.raises(ArgumentError, match="lacks vocab_size, dim"):
        FeatureSchema.from_dict({"features": [{"kind": "categorical", "name": "a"}]})
    with pytest.raises(UnknownNameError, match="binary"):
        Task("a", type="binry")


@pytest.mark.parametrize("arguments", [{"vocab_size": 0}, {"dim": 0}, {"vocab_size": 2.5}])
def test_sizes_are_whole_numbers(arguments):
    with pytest.raises(ArgumentError, match="whole number"):
        Categorical("a", **{"vocab_size": 5, "dim": 4, **arguments})


def test_only_target_attention_has_a_query():
    with pytest.raises(ArgumentError, match="query"):
        Sequence("s", 5, 4, pooling="target_attention")
    with pytest.raises(ArgumentError, match="query"):
        Sequence("s", 5, 4, pooling="mean", query="a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "ordinal"}, "levels"),
        ({"levels": 3}, "levels"),
        ({"type": "ordinal", "levels": 1}, "2 or more"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"base_rate": 1.0}, "base_rate"),
    ],
)
def test_tasks_check_themselves(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Task("a", **arguments)


def test_task_names_are_unique_and_not_shared():
    for names in ([], ["a", "a"], ["shared"]):
        with pytest.raises(ArgumentError, match="different names"):
            as_tasks(names)


def test_groups_come_in_order_of_first_use():
    tasks = [Task("a", group="y"), Task("b"), Task("c", group="x"), Task("d", group="y")]
    assert task_groups(tasks) == ["y", "x"]


def test_the_label_column_is_the_name_unless_said_otherwise():
    assert [Task("a").column, Task("a", label="b").column] == ["a", "b"]
