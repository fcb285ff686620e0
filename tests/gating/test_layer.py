"""The MoE layer: equalities, invariances, padding and empty input."""

import copy
import math

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError
from moeapps.gating import (
    BalanceBias,
    Conv,
    Gate,
    Linear,
    Mlp,
    ModuleExperts,
    MoE,
    PooledLinear,
    Routing,
    SharedExperts,
    StackedConv2d,
    StackedFiLM,
    StackedMLP,
    Tasks,
    combine,
    hard,
    softmax,
    topk,
)

D, E, F, OUT = 6, 4, 8, 5
F64 = {"dtype": torch.float64}


def gates(num_experts=E):
    return {
        "softmax": Gate.softmax(D, num_experts),
        "top1": Gate.topk(D, num_experts, 1),
        "top2": Gate.topk(D, num_experts, 2),
        "sigmoid": Gate.topk(D, num_experts, 2, score="sigmoid"),
        "null": Gate.topk(D, num_experts, 3, null=num_experts),
        "expert_choice": Gate.expert_choice(D, num_experts),
        "soft": Gate.soft(D, num_experts, 2),
    }


@pytest.fixture(params=list(gates()))
def moe(request):
    torch.manual_seed(0)
    gate = gates()[request.param]
    for p in gate.parameters():
        nn.init.normal_(p)  # scores far apart, so that finite differences cross no tie
    return MoE(gate, StackedMLP(E, D, F, OUT)).double()


def groups(moe, N=7):
    return torch.randn(2, N, D, **F64)


def test_output_is_the_explicit_sum_of_the_routing(moe):
    x = groups(moe)
    y, routing = moe(x, return_routing=True)
    routing.check()
    if routing.layout == "slot":
        ys = torch.einsum("bnes,bnd->besd", routing.dispatch, x)
        ys = torch.stack([f(ys[:, e]) for e, f in enumerate(moe.experts.functions())], 1)
        want = torch.einsum("bnes,beso->bno", routing.weights, ys)
    else:
        want = torch.einsum("bne,bneo->bno", routing.dense(), moe.experts.all(x))
    torch.testing.assert_close(y, want)


def test_permuting_rows_permutes_outputs(moe):
    x, order = groups(moe), torch.randperm(7)
    torch.testing.assert_close(moe(x[:, order]), moe(x)[:, order])


def test_permuting_experts_changes_nothing():
    order = torch.tensor([2, 0, 3, 1])
    for name in ("softmax", "top1", "top2", "sigmoid", "expert_choice"):
        moe = MoE(gates()[name], StackedMLP(E, D, F, OUT)).double()
        shuffled = copy.deepcopy(moe)
        with torch.no_grad():
            for p in [*shuffled.experts.parameters(), shuffled.gate.score.weight]:
                p.copy_(p[order])
        x = groups(moe)
        torch.testing.assert_close(shuffled(x), moe(x), msg=name)


def test_gradcheck_through_gate_weights_and_experts(moe):
    moe.requires_grad_(True)
    x = torch.randn(1, 5, D, requires_grad=True, **F64)
    names, values = zip(*moe.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("name", ["softmax", "top1", "sigmoid"])
def test_one_expert_equals_a_plain_layer(name):
    gate = gates(1)[name] if name != "sigmoid" else Gate.topk(D, 1, 1, score="sigmoid")
    moe = MoE(
        gate, StackedMLP(1, D, F, OUT), combine="identity" if name != "softmax" else "weighted"
    )
    (plain,) = moe.experts.to_modules()
    x = torch.randn(9, D)
    torch.testing.assert_close(moe(x), plain(x))


@pytest.mark.parametrize("N", [1, 7])
def test_choosing_every_expert_equals_the_dense_mixture(N):
    dense, token = Gate.softmax(D, E), Gate.topk(D, E, E, normalise=False)
    token.score.load_state_dict(dense.score.state_dict())
    experts, x = StackedMLP(E, D, F, OUT).double(), torch.randn(N, D, **F64)
    torch.testing.assert_close(MoE(token, experts).double()(x), MoE(dense, experts).double()(x))


def test_leading_axes_make_no_difference():
    for name in ("softmax", "top2", "null"):
        moe, x = (
            MoE(gates()[name], StackedMLP(E, D, F, OUT)).double(),
            torch.randn(2, 3, 4, D, **F64),
        )
        torch.testing.assert_close(moe(x), moe(x.view(24, D)).view(2, 3, 4, OUT), msg=name)


@pytest.mark.parametrize("name", ["softmax", "top1", "top2", "sigmoid", "null"])
@pytest.mark.parametrize("shape", [(0,), (0, 7), (2, 0)])
def test_empty_batch_keeps_its_shape(name, shape):
    moe = MoE(gates()[name], StackedMLP(E, D, F, OUT), shared=Mlp(D, F, OUT))
    y = moe(torch.randn(*shape, D))
    assert y.shape == (*shape, OUT)
    y.sum().backward()
    assert all(p.grad is not None for p in moe.experts.parameters())


def test_padding_rows_are_zero_and_reach_nothing(moe):
    moe.shared = Mlp(D, F, OUT).double()
    x, valid = groups(moe), torch.ones(2, 7, dtype=torch.bool)
    valid[0, 5:] = False
    x[0, 5:] = torch.nan
    y = moe(x, valid=valid)
    assert not y[~valid].any()
    assert y[valid].isfinite().all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in moe.parameters() if p.grad is not None)
    torch.testing.assert_close(moe(x[1:]), y[1:])


def test_padding_equals_leaving_the_rows_out():
    for name in ("softmax", "top2", "null", "soft"):
        moe, x = MoE(gates()[name], StackedMLP(E, D, F, OUT)).double(), torch.randn(1, 7, D, **F64)
        valid = torch.arange(7).view(1, 7) < 5
        torch.testing.assert_close(moe(x, valid=valid)[:, :5], moe(x[:, :5]), msg=name)


@pytest.mark.parametrize("name", ["softmax", "top1", "top2", "sigmoid", "null"])
def test_nan_row_stays_alone(name):
    moe, x = MoE(gates()[name], StackedMLP(E, D, F, OUT)).double(), torch.randn(9, D, **F64)
    clean = moe(x)
    x[4] = torch.nan
    y, others = moe(x), torch.arange(9) != 4
    torch.testing.assert_close(y[others], clean[others])
    assert name == "null" or y[4].isnan().all()


def test_shared_expert_is_added_to_every_row_and_task():
    x = torch.randn(5, D)
    shared = SharedExperts(Mlp(D, F, OUT), in_features=D)
    moe = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, OUT), shared=shared)
    torch.testing.assert_close(moe(x), moe.experts(x, moe.gate(x)) + shared(x))
    tasks = MoE(Gate(Tasks(D, E, 3), softmax), StackedMLP(E, D, F, OUT), shared=shared)
    torch.testing.assert_close(tasks(x), tasks.experts(x, tasks.gate(x)) + shared(x).unsqueeze(1))


def test_return_routing_gives_the_gates_decision():
    moe, x = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, OUT)), torch.randn(5, D)
    y, routing = moe(x, return_routing=True)
    torch.testing.assert_close(y, moe(x))
    assert isinstance(routing, Routing)
    assert torch.equal(routing.indices, moe.gate(x).indices)


def test_output_dtype_is_the_inputs_and_autocasts_under_autocast():
    moe = MoE(Gate.topk(8, E, 2), StackedMLP(E, 8, 16, 8))
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = moe(x, return_routing=True)
    assert y.dtype == torch.bfloat16
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.indices, moe.gate(x).indices)
    half = moe.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_worked_example_multi_task():
    moe = MoE(Gate(Tasks(D, E, 3), softmax), StackedMLP(E, D, F, OUT))
    assert moe(torch.randn(7, D)).shape == (7, 3, OUT)


def test_worked_example_transformer_block():
    gate = Gate(Linear(D, 8), topk(2, score="sigmoid"), balance=BalanceBias(8))
    moe = MoE(gate, StackedMLP(8, D, 4 * D, D), shared=Mlp(D, 4 * D))
    assert moe(torch.randn(2, 10, D)).shape == (2, 10, D)


def test_worked_example_two_stages_of_pixels():
    feat, mask = torch.randn(2, D, 4, 4), torch.rand(2, 1, 4, 4)
    maps = torch.rand(2, 4, 4, 3)
    inner = Gate(Conv(D, (3, 2)), softmax)(feat)
    outer = Gate(Conv(D, 3), softmax)(feat * mask)
    groups = [[0, 1], [0, 2], [1, 2]]
    density = combine(maps, outer.compose(inner, groups))
    pairs = torch.stack([maps[..., g] for g in groups], dim=-2)
    two_stage = (outer.weights * (inner.weights * pairs).sum(-1)).sum(-1)
    torch.testing.assert_close(density, two_stage)


def test_worked_example_convolutions_per_image():
    moe = MoE(Gate(PooledLinear(3, E), hard), StackedConv2d(E, 3, 4, 3), combine="identity")
    x = torch.randn(5, 3, 6, 6)
    y, routing = moe(x, return_routing=True)
    torch.testing.assert_close(y, moe.experts.all(x)[torch.arange(5), routing.indices[:, 0]])
    y.sum().backward()
    assert moe.gate.score.weight.grad.any()


def test_worked_example_film_per_image_and_per_row():
    x = torch.randn(2, 9, D)
    assert MoE(Gate.softmax(D, E), StackedFiLM(E, D))(x).shape == x.shape
    assert MoE(Gate.topk(D, E, 2), StackedFiLM(E, D))(x).shape == x.shape


def test_modules_of_different_kinds_share_a_layer():
    experts = ModuleExperts([nn.Linear(D, OUT), Mlp(D, F, OUT), Mlp(D, 2 * F, OUT, act="relu")])
    for gate in (Gate.softmax(D, 3), Gate.topk(D, 3, 1), Gate.expert_choice(D, 3)):
        assert MoE(gate, experts)(torch.randn(2, 6, D)).shape == (2, 6, OUT)


def test_layer_learns_a_piecewise_function():
    """Two regions, one linear expert each; one linear map cannot do it."""
    torch.manual_seed(0)
    x = torch.randn(256, 2)
    target = torch.where(x[:, :1] > 0, 2 + x[:, 1:], -2 - x[:, 1:])
    design = torch.cat([x, torch.ones(256, 1)], 1)
    linear = (design @ torch.linalg.lstsq(design, target).solution - target).pow(2).mean()
    moe = MoE(Gate.topk(2, 2, 1), ModuleExperts([nn.Linear(2, 1), nn.Linear(2, 1)]))
    optimizer = torch.optim.Adam(moe.parameters(), lr=0.1)
    for _ in range(150):
        loss = (moe(x) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * linear


def test_state_dict_is_plain_tensors_of_fixed_size():
    moe = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, OUT))
    before = {k: v.shape for k, v in moe.state_dict().items()}
    moe(torch.randn(50, D)).sum().backward()
    assert {k: v.shape for k, v in moe.state_dict().items()} == before
    again = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, OUT))
    again.load_state_dict(moe.state_dict())
    x = torch.randn(5, D)
    assert torch.equal(again(x), moe(x))


def test_bad_input_is_refused():
    moe = MoE(Gate.topk(D, E, 2), StackedMLP(E, D, F, OUT))
    with pytest.raises(ArgumentError, match="one flag per row"):
        moe(torch.randn(5, D), valid=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="over 3 experts"):
        MoE(Gate.topk(D, 3, 2), StackedMLP(E, D, F, OUT))(torch.randn(5, D))
    assert math.isfinite(moe(torch.randn(5, D)).sum().item())
