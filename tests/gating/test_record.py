import copy
import gc
import weakref

import pytest
import torch
import torch._dynamo.config
from torch import nn
from torch.utils.checkpoint import checkpoint

from moeapps import gating
from moeapps.errors import GateError, UnknownNameError
from moeapps.gating import LOSSES, Gate, MoE, Routing, StackedMLP, record, report_routing

D, E = 8, 4
WEIGHTS = {"balance": 1e-2, "router_z": 1e-3}


def layer():
    return MoE(Gate.topk(D, E, 2), StackedMLP(E, D, 8, D))


class Net(nn.Module):
    """Two layers, the first called twice."""

    def __init__(self, use_reentrant=None):
        super().__init__()
        self.first, self.second = layer(), layer()
        self.use_reentrant = use_reentrant

    def run(self, block, x):
        if self.use_reentrant is None:
            return block(x)
        return checkpoint(block, x, use_reentrant=self.use_reentrant)

    def forward(self, x):
        x = x + self.run(self.first, x)
        x = x + self.run(self.first, x)
        return x + self.run(self.second, x)


def step(model, x):
    """Loss with auxiliary part, and the gradient of every parameter."""
    model.zero_grad()
    with record(model) as rec:
        y = model(x)
    loss = y.pow(2).mean() + rec.loss(WEIGHTS)
    loss.backward()
    return rec, loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


def test_layers_are_named_and_calls_kept_in_order():
    model, x = Net(), torch.randn(5, D)
    with record(model) as rec:
        model(x)
    assert {name: len(calls) for name, calls in rec.routings.items()} == {"first": 2, "second": 1}
    torch.testing.assert_close(rec.routings["first"][0].weights, model.first.gate(x).weights)


def test_loss_is_the_weighted_sum_over_all_routings():
    model = Net()
    with record(model) as rec:
        model(torch.randn(5, D))
    routings = [*rec.routings["first"], *rec.routings["second"]]
    want = sum(w * LOSSES[name](r) for r in routings for name, w in WEIGHTS.items())
    torch.testing.assert_close(rec.loss(WEIGHTS), want)
    own = rec.loss({lambda routing: routing.weights.sum(): 2.0})
    torch.testing.assert_close(own, 2 * sum(r.weights.sum() for r in routings))


def test_stats_are_the_mean_over_calls():
    model = Net()
    with record(model) as rec:
        model(torch.randn(5, D))
    stats = rec.stats()
    assert stats.keys() == {"first", "second"}
    each = [gating.routing_stats(r) for r in rec.routings["first"]]
    for key, value in stats["first"].items():
        torch.testing.assert_close(value, (each[0][key] + each[1][key]) / 2)


def test_empty_weights_give_zero_and_nothing_recorded_raises():
    with record(nn.Linear(2, 2)) as rec:
        pass
    assert rec.loss({}).item() == 0
    assert rec.stats() == {}
    with pytest.raises(GateError, match="No routing was recorded"):
        rec.loss(WEIGHTS)


def test_unknown_loss_is_named():
    with record(layer()) as rec:
        pass
    with pytest.raises(UnknownNameError, match="balance"):
        rec.loss({"balanec": 1.0})


def test_root_layer_has_its_class_as_name():
    model = layer()
    with record(model) as rec:
        model(torch.randn(3, D))
    assert list(rec.routings) == ["MoE"]


def test_nothing_is_kept_outside_a_block_or_on_modules():
    model = Net()
    before = {n: set(vars(m)) for n, m in model.named_modules()}
    model(torch.randn(5, D))
    with record(model) as rec:
        model(torch.randn(5, D))
    model(torch.randn(5, D))
    assert len(rec.routings["second"]) == 1
    assert {n: set(vars(m)) for n, m in model.named_modules()} == before
    copy.deepcopy(model)


def test_records_do_not_keep_graphs_alive_over_steps():
    model, alive = Net(), []
    for _ in range(3):
        rec, _, _ = step(model, torch.randn(5, D))
        alive.append(weakref.ref(rec.routings["first"][0].weights))
    del rec
    gc.collect()
    assert all(ref() is None for ref in alive)


def test_nested_records_see_what_belongs_to_their_model():
    inner, outer = layer(), Net()
    with record(outer) as whole:
        outer(torch.randn(5, D))
        with record(outer.second) as part, record(inner) as other:
            outer(torch.randn(5, D))
            inner(torch.randn(5, D))
    assert {n: len(r) for n, r in whole.routings.items()} == {"first": 4, "second": 2}
    assert {n: len(r) for n, r in part.routings.items()} == {"MoE": 1}
    assert {n: len(r) for n, r in other.routings.items()} == {"MoE": 1}


def test_an_exception_closes_the_record():
    model = Net()
    with pytest.raises(GateError, match="gate expected"), record(model) as rec:
        model(torch.randn(5, D + 1))
    model(torch.randn(5, D))
    assert rec.routings == {}


def test_any_module_can_report():
    class Own(nn.Module):
        def forward(self, x):
            report_routing(self, Routing(x.softmax(-1), x.shape[-1]))
            return x

    model = nn.Sequential(Own())
    model(torch.randn(3, 2))
    with record(model) as rec:
        model(torch.randn(3, 2))
    assert rec.routings["0"][0].num_experts == 2


def test_checkpointing_without_reentry_changes_nothing():
    torch.manual_seed(0)
    plain = Net()
    saved = Net(use_reentrant=False)
    saved.load_state_dict(plain.state_dict())
    x = torch.randn(5, D)
    _, loss, grads = step(plain, x)
    rec, saved_loss, saved_grads = step(saved, x)
    assert loss == saved_loss
    torch.testing.assert_close(grads, saved_grads)
    assert {n: len(r) for n, r in rec.routings.items()} == {"first": 2, "second": 1}


def test_recomputation_inside_the_block_is_not_recorded_again():
    model = Net(use_reentrant=False)
    with record(model) as rec:
        model(torch.randn(5, D)).sum().backward()
    assert {n: len(r) for n, r in rec.routings.items()} == {"first": 2, "second": 1}


def test_reentrant_checkpointing_raises():
    model = Net(use_reentrant=True)
    x = torch.randn(5, D, requires_grad=True)
    with record(model), pytest.raises(GateError, match="use_reentrant=False"):
        model(x)
    model(x).sum().backward()  # fine as long as nothing is recorded


def test_recording_without_gradient_is_fine():
    model = Net()
    with torch.no_grad(), record(model) as rec:
        model(torch.randn(5, D))
    with record(model) as late, torch.no_grad():
        model(torch.randn(5, D))
    assert rec.loss(WEIGHTS).isfinite()
    assert late.loss(WEIGHTS).isfinite()


@pytest.mark.parametrize("use_reentrant", [None, False])
# The compiler refuses side effects under checkpointing unless told not to replay them.
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
def test_compiled_full_graph_records_the_same_without_recompiling(use_reentrant):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    model, x = Net(use_reentrant), torch.randn(5, D)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    _, loss, grads = step(model, x)
    for _ in range(3):
        model.zero_grad()
        with record(compiled) as rec:
            y = compiled(x)
        assert {n: len(r) for n, r in rec.routings.items()} == {"first": 2, "second": 1}
        total = y.pow(2).mean() + rec.loss(WEIGHTS)
        total.backward()
        assert total.item() == pytest.approx(loss, rel=1e-4)
        got = {n: p.grad for n, p in model.named_parameters()}
        torch.testing.assert_close(got, grads, atol=1e-5, rtol=1e-3)
    assert len(graphs) == 1
