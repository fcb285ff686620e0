"""Dispersion, gates, losses, prediction modes and invariances of Mowst."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn.models import GCN, MLP

from moeapps import gating
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.graphs.metrics import expected_accuracy
from moeapps.graphs.models.mowst import (
    Mowst,
    MowstOutput,
    dispersion,
    log_mixture,
    mowst,
    mowst_loss,
)
from moeapps.graphs.models.mowst_gates import GATES, cheap_dropout, confidence_gate

V, D, N = 30, 8, 4


def small_graph(seed=0, nodes=V):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, D, generator=g)
    edge_index = torch.randint(nodes, (2, 4 * nodes), generator=g)
    y = torch.randint(N, (nodes,), generator=g)
    return x, edge_index, y


def make(**options):
    torch.manual_seed(0)
    weak = MLP([D, 16, N], norm="batch_norm")
    strong = GCN(D, 16, 2, N, norm="batch")
    return Mowst(weak, strong, out_channels=N, in_channels=D, **options)


def routing_of(s):
    """The routing for a confidence with these logits."""
    return gating.Gate(gating.Confidence(), gating.softmax)(s)


def random_output(seed, *, mix="prob", dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    weak = 3 * torch.randn(V, N, generator=g, dtype=dtype)
    strong = 3 * torch.randn(V, N, generator=g, dtype=dtype)
    routing = routing_of(2 * torch.randn(V, generator=g, dtype=dtype))
    y = torch.randint(N, (V,), generator=g)
    prediction = make(mix=mix).mixture(weak, strong, routing)
    return MowstOutput(prediction, weak, strong, routing), y


# ---------------------------------------------------------------------------------- dispersion


@pytest.mark.parametrize("n", [2, 7, 100])
def test_dispersion_is_0_at_uniform_and_1_at_one_hot(n):
    uniform = torch.zeros(1, n)
    one_hot = 1e4 * torch.eye(n)
    torch.testing.assert_close(dispersion(uniform), torch.zeros(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(dispersion(one_hot), torch.ones(n, 2))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_dispersion_ignores_the_order_of_classes(logits, rng):
    shuffled = list(logits)
    rng.shuffle(shuffled)
    a = dispersion(torch.tensor([logits], dtype=torch.float64))
    b = dispersion(torch.tensor([shuffled], dtype=torch.float64))
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert ((a >= 0) & (a <= 1)).all()


@pytest.mark.parametrize("n", [2, 5, 100])
def test_dispersion_grows_from_uniform_to_a_vertex(n):
    t = torch.linspace(0, 0.999, 200, dtype=torch.float64)[:, None]
    p = (1 - t) / n + t * F.one_hot(torch.tensor(1), n)
    d = dispersion(p.log())
    assert (d.diff(dim=0) > 0).all()


def test_dispersion_matches_its_definition():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 6, generator=g, dtype=torch.float64)
    p = logits.softmax(-1)
    d1 = ((p - 1 / 6) ** 2).mean(-1) / (5 / 36)
    d2 = 1 + (p * p.log()).sum(-1) / math.log(6)
    torch.testing.assert_close(dispersion(logits), torch.stack([d1, d2], -1))


def test_dispersion_is_finite_at_huge_logits():
    logits = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4], [1e4, 0.0, -1e4]])
    logits.requires_grad_()
    d = dispersion(logits)
    d.sum().backward()
    assert d.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("n", "d1", "d2"), [(7, 0.039, 0.047), (40, 0.0017, 0.0063)])
def test_probabilities_instead_of_logits_give_a_wrong_number(n, d1, d2):
    wrong = dispersion(F.one_hot(torch.tensor([3]), n).float())[0]
    assert wrong.tolist() == pytest.approx([d1, d2], rel=0.02)


def test_dispersion_of_half_precision_is_float32():
    assert dispersion(torch.randn(2, 3).half()).dtype == torch.float32


def test_dispersion_needs_two_classes():
    with pytest.raises(ArgumentError, match="2 or more"):
        dispersion(torch.zeros(3, 1))


# -------------------------------------------------------------------------------------- losses


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["prob", "logit"]))
def test_mowst_loss_bounds_both_forms_of_the_star_loss(seed, mix):
    output, y = random_output(seed, mix=mix)
    upper = mowst_loss(output.weak_logits, output.strong_logits, output.routing, y)
    assert upper >= F.cross_entropy(output.prediction, y) - 1e-12


@pytest.mark.parametrize("mix", ["prob", "logit"])
@pytest.mark.parametrize("s", [80.0, -80.0])
def test_full_and_no_confidence_give_one_experts_loss(mix, s):
    output, y = random_output(0)
    routing = routing_of(torch.full((V,), s, dtype=torch.float64))
    alone = F.cross_entropy(output.weak_logits if s > 0 else output.strong_logits, y)
    weak, strong = output.weak_logits, output.strong_logits
    torch.testing.assert_close(mowst_loss(weak, strong, routing, y), alone)
    mixed = make(mix=mix).mixture(weak, strong, routing)
    torch.testing.assert_close(F.cross_entropy(mixed, y), alone)


def test_log_mixture_equals_mixing_probabilities():
    output, _ = random_output(3)
    c = output.routing.weights[:, :1]
    naive = c * output.weak_logits.softmax(-1) + (1 - c) * output.strong_logits.softmax(-1)
    torch.testing.assert_close(output.prediction.exp(), naive)


@pytest.mark.parametrize("mix", ["prob", "logit"])
@pytest.mark.parametrize("s", [-200.0, 200.0])
def test_star_loss_has_finite_gradients_at_certainty(mix, s):
    weak = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    strong = torch.tensor([[-200.0, 200.0], [-200.0, 200.0]], requires_grad=True)
    confidence = torch.full((2,), s, requires_grad=True)
    model = Mowst(nn.Identity(), nn.Identity(), out_channels=2, joint=True, mix=mix)
    prediction = model.mixture(weak, strong, routing_of(confidence))
    F.cross_entropy(prediction, torch.tensor([0, 0])).backward()
    for tensor in (weak, strong, confidence):
        assert tensor.grad.isfinite().all()


def test_detached_dispersion_keeps_the_gate_out_of_the_weak_experts_gradient():
    x, edge_index, _ = small_graph()
    grads = {}
    for detach in (True, False):
        model = make(detach_dispersion=detach).eval()
        output = model(x, edge_index, return_routing=True)
        c = output.routing.weights[:, 0]
        gate_only = (c * torch.randn(V, generator=torch.Generator().manual_seed(0))).sum()
        weak = list(model.weak.parameters())
        grads[detach] = torch.autograd.grad(gate_only, weak, allow_unused=True)
    assert all(g is None for g in grads[True])
    assert any(g is not None and g.abs().sum() > 0 for g in grads[False])


# --------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("name", GATES)
def test_every_gate_gives_a_confidence_per_node(name):
    x, edge_index, y = small_graph()
    model = make(gate=name)
    output = model(x, edge_index, return_routing=True)
    weights = output.routing.check().weights
    assert weights.shape == (V, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(V))
    model.loss(output, y).backward()
    if name != "power":
        grads = [p.grad for p in model.gate.parameters()]
        assert all(g is not None for g in grads)
        assert any(g.abs().sum() > 0 for g in grads)


def test_power_gate_is_the_variance_to_a_power():
    logits = torch.randn(50, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for power in (0.5, 1.0, 3.0):
        c = make(gate="power", power=power).route(logits).weights[:, 0]
        torch.testing.assert_close(c, dispersion(logits)[:, 0] ** power)


def test_power_gate_stays_finite_at_both_ends():
    model = make(gate="power", detach_dispersion=False)
    logits = torch.tensor([[0.0] * N, [1e4, 0.0, 0.0, 0.0]], requires_grad=True)
    routing = model.route(logits)
    log_mixture(logits, logits.detach().flip(-1), routing).exp()[:, 0].sum().backward()
    assert routing.weights[:, 0].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert logits.grad.isfinite().all()


def test_monotone_gate_never_falls():
    gate = confidence_gate("learned", monotone=True, num_layers=3).eval()
    with torch.no_grad():
        for p in gate.parameters():
            p.normal_(0, 2, generator=torch.Generator().manual_seed(1))
        grid = torch.linspace(0, 1, 30)
        along = torch.cartesian_prod(grid, grid)
        s = gate(along).view(30, 30)
    assert (s.diff(dim=0) >= -1e-5).all()
    assert (s.diff(dim=1) >= -1e-5).all()
    assert s.max() > s.min()


def test_hyper_gate_matches_a_loop_over_nodes():
    gate = confidence_gate("hyper", in_channels=D, hidden_channels=5, dropout=0.0).double()
    evidence = torch.rand(6, 2 + D, dtype=torch.float64)
    for row, got in zip(evidence, gate(evidence), strict=True):
        spread, x = row[:2], row[2:]
        w1 = gate.w1(x).view(2, 5)
        expected = (spread @ w1 + gate.b1(x)) @ gate.w2(x) + gate.b2(x)
        torch.testing.assert_close(got, expected.squeeze())


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_cheap_dropout_drops_a_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(300, 301, requires_grad=True)
    y = cheap_dropout(x, p)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    columns = (y == 0).float().mean(0)  # every 16-bit part of a word is as random as the others
    assert (columns - p).abs().max() < 0.15
    torch.manual_seed(0)
    assert torch.equal(cheap_dropout(x, p), y)


def test_own_gate_module_is_used():
    class Mean(nn.Module):
        def forward(self, evidence):
            return evidence.mean(-1)

    logits = torch.randn(5, N)
    c = make(gate=Mean()).route(logits).weights[:, 0]
    torch.testing.assert_close(c, dispersion(logits).mean(-1).sigmoid())


def test_features_of_a_sparse_matrix_reach_the_gate():
    x, *_ = small_graph()
    model = make(gate="learned+features").eval()
    logits = torch.randn(V, N)
    dense = model.route(logits, x).weights
    torch.testing.assert_close(model.route(logits, x.to_sparse_csr()).weights, dense)


def test_bad_gates_are_explained():
    with pytest.raises(UnknownNameError, match="learned"):
        make(gate="lerned")
    with pytest.raises(ArgumentError, match="in_channels"):
        confidence_gate("hyper")
    with pytest.raises(ArgumentError, match="monotone"):
        confidence_gate("power", monotone=True)
    with pytest.raises(ArgumentError, match="power=-1"):
        confidence_gate("power", power=-1)
    with pytest.raises(ArgumentError, match="gate_layers=0"):
        confidence_gate("learned", num_layers=0)


# ---------------------------------------------------------------------------------- prediction


def test_closed_form_accuracy_is_the_mean_of_many_draws():
    output, y = random_output(5)
    model = make()
    g = torch.Generator().manual_seed(0)
    draws = [
        (model.predict(output, "sample", generator=g) == y).double().mean() for _ in range(2000)
    ]
    exact = expected_accuracy(
        output.weak_logits, output.strong_logits, output.routing.weights[:, 0], y
    )
    assert torch.stack(draws).mean().item() == pytest.approx(exact.item(), abs=0.01)


@pytest.mark.parametrize("mode", ["soft", "hard", "sample"])
def test_prediction_modes_are_deterministic_given_a_seed(mode):
    output, _ = random_output(2)
    model = make()
    first, second = (
        model.predict(output, mode, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_hard_asks_one_expert_by_threshold():
    output, _ = random_output(2)
    c = output.routing.weights[:, 0]
    got = make().predict(output, "hard", threshold=0.7)
    weak, strong = output.weak_logits.argmax(-1), output.strong_logits.argmax(-1)
    assert torch.equal(got, torch.where(c > 0.7, weak, strong))


def test_soft_is_the_mixtures_best_class():
    output, _ = random_output(2)
    c = output.routing.weights[:, :1]
    mixed = c * output.weak_logits.softmax(-1) + (1 - c) * output.strong_logits.softmax(-1)
    assert torch.equal(make().predict(output, "soft"), mixed.argmax(-1))


def test_default_mode_depends_on_the_kind_of_training():
    assert make().predict_mode == "hard"
    assert make(joint=True).predict_mode == "soft"
    assert make(joint=True, predict_mode="hard").predict_mode == "hard"


def test_bad_modes_are_explained():
    output, _ = random_output(0)
    with pytest.raises(ArgumentError, match="generator"):
        make().predict(output, "sample")
    with pytest.raises(UnknownNameError, match="soft"):
        make().predict(output, "sofd")
    with pytest.raises(UnknownNameError, match="hard"):
        make(predict_mode="hart")
    with pytest.raises(UnknownNameError, match="prob"):
        make(mix="probs")


# --------------------------------------------------------------------------------- whole model


def test_relabelling_nodes_permutes_outputs():
    x, edge_index, _ = small_graph()
    model = make(gate="learned+features").double().eval()
    x = x.double()
    order = torch.randperm(V, generator=torch.Generator().manual_seed(3))
    inverse = torch.argsort(order)
    a = model(x, edge_index, return_routing=True)
    b = model(x[order], inverse[edge_index], return_routing=True)
    torch.testing.assert_close(a.prediction[order], b.prediction)
    torch.testing.assert_close(a.routing.weights[order], b.routing.weights)


@pytest.mark.parametrize("case", ["no edges", "isolated nodes", "loops and duplicates"])
def test_odd_graphs_give_finite_outputs(case):
    x, edge_index, y = small_graph()
    edge_index = {
        "no edges": edge_index[:, :0],
        "isolated nodes": edge_index % 3,
        "loops and duplicates": edge_index.repeat(1, 2) // 2,
    }[case]
    model = make()
    output = model(x, edge_index, return_routing=True)
    model.loss(output, y).backward()
    assert output.prediction.isfinite().all()


def test_weak_expert_may_be_a_graph_network():
    x, edge_index, _ = small_graph()
    model = Mowst(GCN(D, 8, 2, N), GCN(D, 8, 3, N), out_channels=N).eval()
    output = model(x, edge_index, return_routing=True)
    torch.testing.assert_close(output.weak_logits, model.weak(x, edge_index))


def test_edge_weights_reach_the_strong_expert():
    x, edge_index, _ = small_graph()
    weight = torch.rand(edge_index.size(1))
    model = make().eval()
    output = model(x, edge_index, weight, return_routing=True)
    torch.testing.assert_close(output.strong_logits, model.strong(x, edge_index, weight))


def test_recording_sees_the_routing():
    x, edge_index, _ = small_graph()
    model = make()
    with gating.record(model) as recording:
        output = model(x, edge_index, return_routing=True)
    ((routing,),) = recording.routings.values()
    assert torch.equal(routing.weights, output.routing.weights)


def test_gate_stays_in_float32_under_autocast():
    x, edge_index, _ = small_graph()
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, edge_index, return_routing=True)
    assert output.weak_logits.dtype == torch.bfloat16
    assert output.routing.weights.dtype == torch.float32
    assert output.routing.logits.dtype == torch.float32


def test_reset_parameters_changes_every_part():
    model = make()
    before = copy.deepcopy(model.state_dict())
    model.reset_parameters()
    for part in ("weak", "strong", "gate"):
        changed = [
            not torch.equal(value, before[name])
            for name, value in model.state_dict().items()
            if name.startswith(part) and name.endswith("weight") and value.dim() == 2
        ]
        assert changed
        assert all(changed)


def test_one_class_and_wrong_widths_are_refused():
    x, edge_index, _ = small_graph()
    with pytest.raises(ArgumentError, match="two classes"):
        Mowst(nn.Identity(), nn.Identity(), out_channels=1)
    with pytest.raises(ArgumentError, match="weak expert gave 8"):
        Mowst(nn.Identity(), GCN(D, 8, 2, N), out_channels=N)(x, edge_index)


def test_factory_builds_experts_of_one_size():
    model = mowst(D, 16, 3, N, strong="gat", strong_arguments={"heads": 2}, joint=True)
    assert model.joint
    assert model(*small_graph()[:2]).shape == (V, N)
    with pytest.raises(UnknownNameError, match="gcn"):
        mowst(D, 16, 2, N, strong="gcnn")
