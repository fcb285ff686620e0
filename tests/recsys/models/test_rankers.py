"""What holds for every ranking model."""

import copy
import json

import pytest
import torch
from sample_rankers import FIELDS, KINDS, SCHEMA, TASKS, batch_for, batch_of, bce, build, warmed

from moeapps import gating
from moeapps.errors import ArgumentError, IdRangeError
from moeapps.recsys.schema import Task

NORMED = {"norm": "batch", "act": "silu", "tower_norm": "batch"}
every_kind = pytest.mark.parametrize("name", KINDS)


@every_kind
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_gives_one_logit_per_row_and_task(name, rows):
    model, batch = build(name).eval(), batch_for(name, rows)
    logits = model(batch)
    assert logits.shape == batch["labels"].shape
    assert logits.isfinite().all()


@every_kind
def test_a_batch_without_rows_gives_no_logits(name):
    batch = batch_for(name, 0)
    assert build(name).eval()(batch).shape == batch["labels"].shape


@every_kind
def test_a_backward_pass_reaches_every_parameter(name):
    model, batch = build(name).train(), batch_for(name, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # some parameters start at zero, and others wait for them
        optimizer.zero_grad()
        logits = model(batch)
        loss = bce(logits, batch)
        penalty = model.penalty(logits)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@every_kind
@pytest.mark.parametrize("options", [{}, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize("training", [True, False])
def test_batched_equals_loop(name, options, training):
    batch = batch_for(name, 20, dtype=torch.float64)
    results = []
    for backend in ("batched", "loop"):
        model = warmed(build(name, backend=backend, **options).double(), batch)
        model.train(training)
        torch.manual_seed(1)  # of SNR's gates
        logits = model(batch)
        bce(logits, batch).backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((logits.detach(), grads, dict(model.named_buffers())))
    (logits, grads, buffers), (other_logits, other_grads, other_buffers) = results
    torch.testing.assert_close(logits, other_logits, rtol=1e-10, atol=1e-12)
    for parameter_name, grad in grads.items():
        other = other_grads[parameter_name]
        torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-12, msg=parameter_name)
    for buffer_name, buffer in buffers.items():
        torch.testing.assert_close(buffer, other_buffers[buffer_name], msg=buffer_name)


@every_kind
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_fused_equals_evaluation_mode(name, norm):
    options = {"norm": norm, "tower_norm": norm, "gate": {"temperature": 0.7}}
    model = warmed(build(name, **options), batch_for(name, 50, seed=3))
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse_for_inference()
    for rows in (0, 1, 16, 300):
        batch = batch_for(name, rows, seed=rows)
        with torch.no_grad():
            torch.testing.assert_close(fused(batch), model(batch), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                fused.predict_proba(batch), model.predict_proba(batch), rtol=1e-5, atol=1e-5
            )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize(
    ("name", "fuse"), [*((name, False) for name in KINDS), ("mmoe", True), ("home", True)]
)
def test_exports_with_any_number_of_rows(name, fuse):
    model = warmed(build(name), batch_for(name, 9))
    served = model.fuse_for_inference() if fuse else model
    example = {k: v for k, v in batch_for(name, 5).items() if k != "labels"}
    rows, values = torch.export.Dim("rows", min=2), torch.export.Dim("values", min=2)
    shapes = {
        key: {"values": {0: values}, "offsets": {0: rows}} if key.startswith("bag/") else {0: rows}
        for key in example
    }
    program = torch.export.export(served, (example,), dynamic_shapes=({**shapes},)).module()
    for size in (5, 31):
        other = {k: v for k, v in batch_for(name, size, seed=size).items() if k != "labels"}
        with torch.no_grad():
            torch.testing.assert_close(program(other), model(other), rtol=1e-5, atol=1e-5)


@every_kind
def test_learns_under_bfloat16_autocast(name):
    model, batch = build(name).train(), batch_for(name, 40)
    expected = warmed(model, batch)(batch).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()
    bce(logits.float(), batch).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_kind
def test_inference_in_chunks_equals_one_pass(name):
    model, batch = build(name).eval(), batch_for(name, 600)
    whole = model(batch).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(batch), whole, rtol=1e-5, atol=1e-5)


@every_kind
def test_two_models_of_one_seed_agree_and_share_nothing(name):
    batch = batch_for(name, 6)
    first, second = build(name).eval(), build(name).eval()
    assert torch.equal(first(batch), second(batch))
    pointers = {p.data_ptr() for p in first.parameters()}
    assert not any(p.data_ptr() in pointers for p in second.parameters())


@every_kind
def test_arguments_may_be_plain_values(name):
    _, _, _, schema, tasks = KINDS[name]
    plain = json.loads(json.dumps([schema.to_dict(), [task.to_dict() for task in tasks]]))
    batch = batch_for(name, 4)
    model = build(name, schema=plain[0], tasks=plain[1]).eval()
    assert torch.equal(model(batch), build(name).eval()(batch))


@every_kind
def test_parameters_fall_into_three_groups(name):
    model = build(name)
    groups = [
        list(group())
        for group in (
            model.embedding_parameters,
            model.shared_parameters,
            model.tower_parameters,
        )
    ]
    ids = [id(p) for group in groups for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert all(groups) or name == "esmm"  # which is towers on embeddings


@every_kind
def test_aux_describes_every_level(name):
    model, batch = build(name).eval(), batch_for(name, 6)
    logits, aux = model(batch, return_aux=True)
    assert torch.equal(logits, model(batch))
    same_for_all = name in ("shared_bottom", "omoe", "esmm")
    assert aux.representation.shape[:-1] == (logits.shape[:1] if same_for_all else logits.shape)
    for level in aux.levels:
        rows, gates, experts = level.routing.dense().shape
        assert (rows, gates) == (6, len(level.gates))
        assert experts == len(level.owners) == level.experts.shape[1]
        level.routing.check()


@every_kind
def test_reports_its_routings(name):
    model, batch = build(name).eval(), batch_for(name, 6)
    with gating.record(model) as recording:
        _, aux = model(batch, return_aux=True)
    routings = [routing for calls in recording.routings.values() for routing in calls]
    assert len(routings) == len(aux.levels)
    for routing, level in zip(routings, aux.levels, strict=True):
        assert torch.equal(routing.weights, level.routing.weights)


@every_kind
def test_resizing_a_vocabulary_keeps_the_rows(name):
    model, batch = build(name).eval(), batch_for(name, 6)
    before = model(batch)
    model.resize_vocab("item", 40)
    assert torch.equal(model(batch), before)
    batch["cat"][0, 1] = 39
    assert model(batch).isfinite().all()


@every_kind
def test_learns_a_small_batch_by_heart(name):
    # So small, a ReLU network may die.
    model, batch = build(name, act="silu").train(), batch_for(name, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    torch.manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        logits = model(batch)
        bce(logits, batch).backward()
        optimizer.step()
    right = (model.eval()(batch) > 0) == (batch["labels"] > 0)
    assert right.float().mean() > 0.95


@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_a_batch_of_one_in_training_is_refused_with_batch_norm(name):
    model = build(name, norm="batch").train()
    with pytest.raises(ArgumentError, match="one row"):
        model(batch_for(name, 1))
    build(name).train()(batch_for(name, 1))


def test_ids_beyond_the_vocabulary_and_below_zero_are_refused():
    model, batch = build("mmoe").eval(), batch_of(5)
    batch["cat"][3, 1] = 20
    with pytest.raises(IdRangeError, match=r"'item' holds id 20 in row 3"):
        model(batch)
    batch["cat"][3, 1] = -1
    with pytest.raises(IdRangeError, match=r"'item' holds id -1 in row 3"):
        model(batch)


def test_columns_are_packed_on_the_way():
    model, packed = build("mmoe").eval(), batch_of(4)
    bag = packed["bag/tags"]
    columns = {
        "user": packed["cat"][:, 0],
        "item": packed["cat"][:, 1].numpy(),
        "hour": packed["cat"][:, 2].tolist(),
        "age": packed["dense"][:, 0],
        "counts": packed["dense"][:, 1:],
        "tags": (bag["values"], bag["offsets"]),
    }
    assert torch.equal(model(columns), model(packed))


def test_predictions_are_in_the_units_of_each_task():
    tasks = [
        Task("click"),
        Task("seconds", type="regression"),
        Task("stars", type="ordinal", levels=4),
    ]
    model, batch = build("mmoe", tasks=tasks).eval(), batch_of(5)
    logits, predictions = model(batch), model.predict_proba(batch)
    cuts = model.cut_points("stars")
    assert cuts.diff().min() > 0
    above = torch.sigmoid(logits[:, 2:] - cuts)
    torch.testing.assert_close(predictions[:, 0], logits[:, 0].sigmoid())
    torch.testing.assert_close(predictions[:, 1], logits[:, 1])
    torch.testing.assert_close(predictions[:, 2], above.sum(1))
    assert {id(p) for p in model.cuts.parameters()} <= {id(p) for p in model.tower_parameters()}


def test_sparse_gradients_equal_dense_ones():
    batch = batch_of(30)
    grads = []
    for sparse in (False, True):
        model = build("mmoe", sparse_grad=sparse)
        bce(model(batch), batch).backward()
        (table,) = model.embedding_parameters()
        assert table.grad.is_sparse == sparse
        grads.append(table.grad.to_dense())
    torch.testing.assert_close(*grads)


def test_gates_may_drop_experts_in_training():
    model, batch = build("mmoe", gate={"dropout": 0.5}), batch_of(50)
    with gating.record(model) as recording:
        model(batch)
    (weights,) = [r[0].weights for r in recording.routings.values()]
    assert ((weights == 0).float().mean() - 0.5).abs() < 0.2
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, 3))
    with gating.record(model.eval()) as recording:
        model(batch)
    assert not (recording.routings["level"][0].weights == 0).any()


def test_a_rare_task_starts_at_its_base_rate():
    tasks = [Task("like", base_rate=0.01), Task("click", base_rate=0.3)]
    bias = build("mmoe", tasks=tasks).towers.out.b.detach().flatten()
    assert float(bias[0].sigmoid()) == pytest.approx(0.01)
    assert float(bias[1].sigmoid()) != pytest.approx(0.3, abs=1e-4)
    bias = build("mmoe", tasks=tasks, init_output_bias=True).towers.out.b.detach().flatten()
    assert float(bias[1].sigmoid()) == pytest.approx(0.3)


def test_compiles_without_a_graph_break():
    model, batch = build("ple", norm="batch"), batch_of(8)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), model(batch))


def test_samples_have_all_kinds_of_features():
    assert SCHEMA.bags
    assert SCHEMA.dense
    assert len({f.dim for f in FIELDS.embedded}) == 1
    assert len({task.group for task in TASKS}) == 2
