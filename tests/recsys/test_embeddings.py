"""Fused tables against one table per field, and every kind of pooling."""

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError, IdRangeError, UnknownNameError
from moeapps.recsys.embeddings import FusedTables, Inputs
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Sequence

SCHEMA = FeatureSchema(
    [
        Categorical("user", 30, 6),
        MultiHot("tags", 12, 6, pooling="mean"),
        Dense("age"),
        Categorical("item", 20, 4),
        MultiHot("topics", 12, 6, pooling="sum"),
        Sequence("seen", 20, 4, pooling="last", shared_with="item"),
        Sequence("history", 20, 4, pooling="target_attention", query="item", shared_with="item"),
        MultiHot("words", 9, 4, pooling="max"),
        Categorical("hour", 25, 6),
        Sequence("likes", 20, 4, pooling="mean", shared_with="item"),
        Dense("vector", width=3, project=2),
        MultiHot("more", 12, 6, pooling="mean", shared_with="tags"),
    ]
)


def bag(rows, vocab, g):
    count = torch.randint(0, 4, (rows,), generator=g)
    values = torch.randint(vocab, (int(count.sum()),), generator=g)
    return {"values": values, "offsets": count.cumsum(0) - count}


def batch_of(rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    batch = {
        "cat": torch.stack(
            [torch.randint(f.vocab_size, (rows,), generator=g) for f in SCHEMA.categorical], 1
        ),
        "dense": torch.randn(rows, 4, generator=g),
    }
    for feature in SCHEMA.bags:
        batch[f"bag/{feature.name}"] = bag(rows, feature.vocab_size, g)
    return batch


def naive(inputs, batch):
    """One table per field and one row at a time."""
    schema, store = inputs.schema, inputs.store
    rows = batch["cat"].shape[0]
    column = {f.name: i for i, f in enumerate(schema.categorical)}
    parts = []
    for feature in schema.embedded:
        table = store.weight(feature.name)
        if feature.name in column:
            parts.append(table[batch["cat"][:, column[feature.name]]])
            continue
        values, offsets = batch[f"bag/{feature.name}"].values()
        ends = [*offsets[1:].tolist(), len(values)]
        pooled = []
        for n in range(rows):
            e = table[values[offsets[n] : ends[n]]]
            if len(e) == 0:
                pooled.append(table.new_zeros(feature.dim))
            elif feature.pooling == "last":
                pooled.append(e[-1])
            elif feature.pooling == "target_attention":
                query = store.weight(feature.query)[batch["cat"][n, column[feature.query]]]
                q = query.expand_as(e)
                net = store.attention[feature.name]
                a = net.out(F.relu(net.hidden(torch.cat([q, e, q - e, q * e], 1))))
                pooled.append((a * e).sum(0))
            elif feature.pooling == "max":
                pooled.append(e.max(0).values)
            else:
                pooled.append(getattr(e, feature.pooling)(0))
        parts.append(torch.stack(pooled))
    parts += [batch["dense"][:, :1], inputs.project["vector"](batch["dense"][:, 1:])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_equals_one_table_per_field(rows):
    torch.manual_seed(0)
    inputs, batch = Inputs(SCHEMA, FusedTables(SCHEMA)), batch_of(rows)
    flat = inputs(batch)
    assert flat.shape == (rows, SCHEMA.flat_width)
    expected = naive(inputs, batch)
    torch.testing.assert_close(flat, expected)
    weights = torch.randn_like(flat)
    parameters = list(inputs.parameters())
    grads = torch.autograd.grad((flat * weights).sum(), parameters)
    others = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    for parameter, grad, other in zip(parameters, grads, others, strict=True):
        other = torch.zeros_like(parameter) if other is None else other
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


def test_tables_of_one_width_are_one_tensor():
    store = FusedTables(SCHEMA)
    shapes = {name: tuple(table.shape) for name, table in store.tables.items()}
    assert shapes == {"6": (30 + 12 + 12 + 25, 6), "4": (20 + 9, 4)}
    assert sorted(store.state_dict()) == [
        "attention.history.hidden.bias",
        "attention.history.hidden.weight",
        "attention.history.out.bias",
        "attention.history.out.weight",
        "tables.4",
        "tables.6",
    ]


def test_all_bags_may_be_empty():
    inputs, batch = Inputs(SCHEMA, FusedTables(SCHEMA)), batch_of(3)
    nothing = {"values": torch.zeros(0, dtype=torch.int64), "offsets": torch.zeros(3).long()}
    for feature in SCHEMA.bags:
        batch[f"bag/{feature.name}"] = nothing
    flat = inputs(batch)
    for feature in SCHEMA.bags:
        assert not flat[:, SCHEMA.flat_slice(feature.name)].any()
    flat.sum().backward()


def test_rows_of_the_unknown_id_start_at_zero():
    store = FusedTables(SCHEMA)
    for feature in SCHEMA.embedded:
        rows = store.weight(feature.name)
        assert not rows[0].any()
        assert rows[1:].any(1).all()


@pytest.mark.parametrize(("init", "std"), [("normal", 0.05), (1e-4, 1e-4)])
def test_inits(init, std):
    schema = FeatureSchema([Categorical("a", 2000, 16)])
    torch.manual_seed(0)
    rows = FusedTables(schema, init=init).weight("a")[1:]
    assert float(rows.detach().std()) == pytest.approx(std, rel=0.05)


def test_xavier_counts_each_fields_own_rows():
    schema = FeatureSchema([Categorical("a", 100, 16), Categorical("b", 5000, 16)])
    store = FusedTables(schema, init="xavier_uniform")
    for name, rows in (("a", 100), ("b", 5000)):
        bound = (6 / (rows + 16)) ** 0.5
        assert 0.9 * bound < float(store.weight(name).detach().abs().max()) <= bound
    with pytest.raises(UnknownNameError, match="xavier_uniform"):
        FusedTables(schema, init="xavier")


def test_resizing_moves_every_table_with_it():
    torch.manual_seed(0)
    inputs = Inputs(SCHEMA, FusedTables(SCHEMA))
    batch = batch_of(20)
    before = inputs(batch)
    inputs.resize("tags", 50)
    assert inputs.schema["more"].vocab_size == 50
    torch.testing.assert_close(inputs(batch), before)
    batch["bag/more"]["values"][0] = 49
    assert inputs(batch).isfinite().all()
    inputs.resize("hour", 5)
    batch["cat"][:, 2] = batch["cat"][:, 2] % 5
    assert inputs(batch).isfinite().all()
    batch["cat"][7, 2] = 5
    with pytest.raises(IdRangeError, match="'hour' holds id 5 in row 7"):
        inputs(batch)


@pytest.mark.parametrize("name", ["tags", "seen", "history"])
def test_ids_out_of_range_are_refused_in_bags_too(name):
    inputs, batch = Inputs(SCHEMA, FusedTables(SCHEMA)), batch_of(20)
    for wrong in (-1, 20):
        batch[f"bag/{name}"]["values"][3] = wrong
        with pytest.raises(IdRangeError, match=f"'{name}' holds id {wrong}"):
            inputs(batch)


def test_an_id_may_not_read_the_next_fields_table():
    """Fused, id 30 of a table of 30 rows would be row 0 of the next one."""
    schema = FeatureSchema([Categorical("a", 30, 4), Categorical("b", 30, 4)])
    with pytest.raises(IdRangeError, match="'a' holds id 30"):
        Inputs(schema, FusedTables(schema))({"cat": torch.tensor([[30, 0]])})


def test_checks_do_not_break_export():
    inputs = Inputs(SCHEMA, FusedTables(SCHEMA))
    batch, other = batch_of(6), batch_of(17, seed=1)
    rows = torch.export.Dim("rows", min=2)
    shapes = {
        key: {"values": {0: torch.export.Dim.AUTO}, "offsets": {0: rows}}
        if key.startswith("bag/")
        else {0: rows}
        for key in batch
    }
    program = torch.export.export(inputs, (batch,), dynamic_shapes=(shapes,)).module()
    torch.testing.assert_close(program(other), inputs(other))


def test_sparse_gradients_equal_dense_ones():
    features = [f for f in SCHEMA.features if getattr(f, "pooling", "") != "max"]
    schema, batch = FeatureSchema(features), batch_of(20)
    grads = []
    for sparse in (False, True):
        torch.manual_seed(0)
        store = FusedTables(schema, sparse_grad=sparse)
        Inputs(schema, store)(batch).square().sum().backward()
        assert all(table.grad.is_sparse == sparse for table in store.tables.values())
        grads.append({name: t.grad.to_dense() for name, t in store.tables.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])
    with pytest.raises(ArgumentError, match="'words'"):
        FusedTables(SCHEMA, sparse_grad=True)


def test_several_tables_per_feature_lie_side_by_side():
    schema = FeatureSchema([Categorical("a", 9, 4), Categorical("b", 7, 3), Dense("x")])
    store = FusedTables(schema, copies=3)
    inputs = Inputs(schema, store)
    cat, dense = torch.randint(7, (5, 2)), torch.randn(5, 1)
    flat = inputs({"cat": cat, "dense": dense})
    assert flat.shape == (5, 3, 8)
    for copy in range(3):
        expected = [
            F.embedding(cat[:, 0], store.weight("a"))[:, 4 * copy : 4 * copy + 4],
            F.embedding(cat[:, 1], store.weight("b"))[:, 3 * copy : 3 * copy + 3],
            dense,
        ]
        assert torch.equal(flat[:, copy], torch.cat(expected, 1))


def test_schemas_of_one_kind_of_feature_work():
    for features, batch in [
        ([Dense("x", width=2)], {"dense": torch.ones(3, 2)}),
        ([Categorical("a", 9, 4)], {"cat": torch.ones(3, 1).long()}),
        ([MultiHot("t", 9, 4)], {"bag/t": bag(3, 9, torch.Generator().manual_seed(0))}),
    ]:
        schema = FeatureSchema(features)
        assert Inputs(schema, FusedTables(schema))(batch).shape == (3, schema.flat_width)


def test_ids_above_what_float32_holds_find_their_row():
    schema = FeatureSchema([Categorical("a", 2**24 + 10, 1)])
    store = FusedTables(schema, init=1.0)
    ids = torch.tensor([[2**24], [2**24 + 1]])
    found = Inputs(schema, store)({"cat": ids}).flatten()
    assert torch.equal(found, store.weight("a")[ids.flatten(), 0])
    assert found[0] != found[1]
