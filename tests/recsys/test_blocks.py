"""Expert banks, normalisation, gates and towers against one plain module per expert."""

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.blocks import LARGEST_BATCHED, ExpertBank, Towers, stacked_linear
from moeapps.recsys.gates import GateBank, GateScores, everyone, sees
from moeapps.recsys.norm import StackedNorm
from moeapps.recsys.schema import Task

SETS = [None, [1, 1, 1, 1], [2, 2], [2, 1, 1], [1, 3], [4]]


def inputs(sets, rows=20, width=6):
    return torch.randn(rows, width) if sets is None else torch.randn(rows, len(sets), width)


def own_inputs(x, sets):
    if sets is None:
        return [x] * 4
    return [x[:, s] for s, count in enumerate(sets) for _ in range(count)]


@pytest.mark.parametrize("sets", SETS, ids=str)
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_a_bank_equals_separate_networks(sets, norm, training, backend):
    torch.manual_seed(0)
    bank = ExpertBank(sets or 4, 6, [5, 3], norm=norm, act="silu", backend=backend).double()
    with torch.no_grad():
        for parameter in bank.norms.parameters():
            parameter.normal_()
    bank.train(training)
    experts = bank.to_expert_list()
    x = inputs(sets).double()
    y = bank(x)
    expected = torch.stack([f(one) for f, one in zip(experts, own_inputs(x, sets), strict=True)], 1)
    torch.testing.assert_close(y, expected)
    if norm == "batch" and training:
        for layer, norm_of in enumerate(bank.norms):
            for e, expert in enumerate(experts):
                plain = [m for m in expert if isinstance(m, nn.BatchNorm1d)][layer]
                torch.testing.assert_close(norm_of.running_mean[e], plain.running_mean)
                torch.testing.assert_close(norm_of.running_var[e], plain.running_var)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for e, expert in enumerate(experts):
        plain = [m for m in expert if isinstance(m, nn.Linear)]
        for layer, linear in enumerate(bank.linears):
            torch.testing.assert_close(linear.w.grad[e], plain[layer].weight.grad)
            torch.testing.assert_close(linear.b.grad[e], plain[layer].bias.grad)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_experts_travel_through_lists(norm):
    first, second = (ExpertBank(3, 6, [5, 4], norm=norm) for _ in range(2))
    x = torch.randn(8, 6)
    first(x)
    second.from_expert_list(first.to_expert_list())
    assert torch.equal(second.eval()(x), first.eval()(x))


def test_lists_of_another_shape_are_refused():
    bank = ExpertBank(2, 6, [5, 4])
    plain = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(2)]
    bank.from_expert_list(plain)
    with pytest.raises(ArgumentError, match="3 modules for 2 experts"):
        bank.from_expert_list([*plain, plain[0]])
    with pytest.raises(ArgumentError, match="holds 1 Linear, expected 2"):
        bank.from_expert_list([nn.Linear(6, 5)] * 2)
    with pytest.raises(ArgumentError, match="w is"):
        bank.from_expert_list([nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))] * 2)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_folding_equals_evaluation_mode(norm):
    bank = ExpertBank([2, 1], 6, [5, 3], norm=norm)
    x = torch.randn(30, 2, 6)
    bank(x)
    expected = bank.eval()(x)
    bank.fold_norm()
    assert len(bank.norms) == (0 if norm == "batch" else 2)
    torch.testing.assert_close(bank(x), expected, rtol=1e-5, atol=1e-5)


def test_the_path_follows_rows_times_width_in_training_on_cpu():
    bank = ExpertBank(2, 3, [512, 4])
    small, large = torch.zeros(256, 3), torch.zeros(257, 3)
    assert LARGEST_BATCHED == 256 * 512
    assert [bank._loops(small), bank._loops(large)] == [False, True]
    with torch.no_grad():
        assert not bank._loops(large)
    assert ExpertBank(2, 3, [4], backend="loop")._loops(small)
    assert not ExpertBank(2, 3, [4], backend="batched")._loops(torch.zeros(10**6, 3))


def test_experts_start_as_their_own_linear_layers_would():
    torch.manual_seed(0)
    bank = ExpertBank(6, 400, [100])
    w, b = bank.linears[0].w.detach(), bank.linears[0].b.detach()
    assert w.abs().max() <= 1 / 20
    assert b.abs().max() <= 1 / 20
    assert float(w.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert (w[0] - w[1]).abs().mean() > 0.01


def test_dropout_acts_in_training_only():
    for backend in ("batched", "loop"):
        bank, x = ExpertBank(3, 6, [50], dropout=0.5, backend=backend), torch.randn(40, 6)
        plain = ExpertBank(3, 6, [50])
        plain.load_state_dict(bank.state_dict())
        dropped = (bank(x) == 0).float().mean() - (plain(x) == 0).float().mean()
        assert float(dropped) == pytest.approx(0.25, abs=0.05)
        torch.testing.assert_close(bank.eval()(x), plain(x))


@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_a_batch_of_one_in_training_is_an_error_with_batch_norm(backend):
    bank = ExpertBank(3, 6, [4], norm="batch", backend=backend)
    with pytest.raises(ArgumentError, match="one row"):
        bank(torch.randn(1, 6))
    assert bank.eval()(torch.randn(1, 6)).shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("experts", "widths"), [(0, [4]), (2, []), (2, [0]), ([], [4]), ([1, 0], [4])]
)
def test_banks_of_nothing_are_refused(experts, widths):
    with pytest.raises(ArgumentError, match="make no experts"):
        ExpertBank(experts, 6, widths)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="batch"):
        StackedNorm("bach", 2, 3)
    with pytest.raises(UnknownNameError, match="batched"):
        ExpertBank(2, 3, [4], backend="batch")
    with pytest.raises(UnknownNameError, match="relu"):
        ExpertBank(2, 3, [4], act="rellu")
    with pytest.raises(ArgumentError, match="dropout"):
        ExpertBank(2, 3, [4], dropout=1.0)


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_stacked_maps_may_have_no_bias(sets):
    x, w = inputs(sets), torch.randn(4, 3, 6)
    expected = [one @ w[e].T for e, one in enumerate(own_inputs(x, sets))]
    torch.testing.assert_close(stacked_linear(x, w, None, sets), torch.cat(expected, 1))


VISIBLE = torch.tensor([[True, True, False, False], [False, True, True, True]])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("hidden", [(), (7,)])
@pytest.mark.parametrize("visible", [VISIBLE, everyone(2, 4)], ids=["some", "all"])
def test_gates_equal_one_softmax_each(shared, hidden, visible):
    gate = GateBank(6, visible, shared_input=shared, hidden=hidden, temperature=0.5).double()
    x = torch.randn(9, 6).double() if shared else torch.randn(9, 2, 6).double()
    weights = gate(x).check().weights
    score, first = gate.score, 0
    for n in range(2):
        seen = x if shared else x[:, n]
        if hidden:
            seen = score.bank.to_expert_list()[n](seen)
        own = slice(first, first + int(visible[n].sum()))
        first = own.stop
        logits = seen @ score.linear.w[own, 0].T + score.linear.b[own, 0]
        torch.testing.assert_close(weights[:, n, visible[n]], (logits / 0.5).softmax(-1))
        assert not weights[:, n, ~visible[n]].any()
    assert first == len(score.linear.w)


def test_hidden_experts_get_exactly_no_gradient():
    gate, H = GateBank(6, VISIBLE), torch.randn(9, 4, 3, requires_grad=True)
    torch.bmm(gate(torch.randn(9, 6)).weights, H)[:, 0].sum().backward()
    assert not H.grad[:, 2:].any()
    assert H.grad[:, :2].any()


def test_gates_may_normalise_their_logits():
    score = GateScores(6, VISIBLE, norm="batch")
    logits = score(torch.randn(50, 6))[:, VISIBLE]
    torch.testing.assert_close(logits.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(5), atol=1e-2, rtol=0)


def test_gates_may_have_no_bias():
    score = GateScores(6, VISIBLE, bias=False)
    assert not score(torch.zeros(1, 6))[:, VISIBLE].any()


def test_a_gate_that_sees_nobody_is_refused():
    with pytest.raises(ArgumentError, match="sees no expert"):
        GateScores(6, torch.tensor([[True], [False]]))


def test_masks_from_owners():
    mask = sees([["a", "s"], ["b", "s"], ["a", "b", "s"]], ["a", "a", "b", "s"])
    assert mask.int().tolist() == [[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("widths", [[], [5], [5, 4]])
def test_towers_equal_separate_networks(widths):
    tasks = [Task("a"), Task("b"), Task("c")]
    towers, z = Towers(tasks, 6, widths), torch.randn(7, 3, 6)
    expected = []
    for t in range(3):
        h = z[:, t] if not widths else towers.hidden.to_expert_list()[t](z[:, t])
        expected.append(h @ towers.out.w[t].T + towers.out.b[t])
    torch.testing.assert_close(towers(z), torch.cat(expected, 1))
    same = z[:, 0]
    torch.testing.assert_close(towers(same), towers(same.unsqueeze(1).expand(-1, 3, -1)))


def test_narrow_maps_have_all_derivatives():
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stacked_linear, (x, w, b))
    assert torch.autograd.gradgradcheck(stacked_linear, (x, w, b))
    # Several tasks' gradients at once, as gradient methods ask for them.
    y = stacked_linear(x, w, b)
    weights = torch.randn(4, *y.shape, dtype=torch.float64)
    at_once = torch.autograd.grad(y, (x, w), weights, is_grads_batched=True, retain_graph=True)
    for k in range(4):
        single = torch.autograd.grad(y, (x, w), weights[k], retain_graph=True)
        for many, one in zip(at_once, single, strict=True):
            torch.testing.assert_close(many[k], one)
