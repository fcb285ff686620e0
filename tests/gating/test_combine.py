import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Gate, MoE, Routing, StackedMLP, combine, dempster
from moeapps.gating.combine import _gather_choice, combine_choice, identity, mean, select

F64 = {"dtype": torch.float64}
E = 4


def token(*lead, K=2):
    weights, indices = torch.rand(*lead, E, **F64).topk(K, -1)
    nobody = torch.rand(*lead, K) < 0.3
    weights = torch.where(nobody, 0, weights).requires_grad_()
    return Routing(weights, E, torch.where(nobody, -1, indices), layout="token")


@pytest.mark.parametrize("item", [(), (3,), (3, 2, 2)])
@pytest.mark.parametrize("lead", [(5,), (2, 3), (0,)])
def test_dense_and_token_sums_are_explicit(lead, item):
    ys = torch.randn(*lead, E, *item, requires_grad=True, **F64)
    dense = Routing(torch.rand(*lead, E, requires_grad=True, **F64), E)
    for routing in (dense, token(*lead)):
        weights = routing.dense().view(*lead, E, *[1] * len(item))
        want = (weights * ys).sum(len(lead))
        got = combine(ys, routing)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), [ys, routing.weights]),
            torch.autograd.grad(want.sum(), [ys, routing.weights]),
        )


@pytest.mark.parametrize("T", [1, 2, E])
def test_tasks_are_one_mixture_each(T):
    ys, routing = torch.randn(5, E, 3, **F64), Routing(torch.rand(5, T, E, **F64), E)
    want = torch.einsum("nte,neo->nto", routing.weights, ys)
    torch.testing.assert_close(combine(ys, routing), want)


def test_equal_shapes_read_as_losses_unless_said_otherwise():
    ys, routing = torch.randn(5, E, E, **F64), Routing(torch.rand(5, E, E, **F64), E)
    torch.testing.assert_close(combine(ys, routing), (routing.weights * ys).sum(-1))
    torch.testing.assert_close(combine(ys, routing, tasks=True), routing.weights @ ys)


def test_losses_are_mixed_in_full_precision_under_autocast():
    losses, routing = torch.rand(5, 2), Routing(torch.rand(5, 2).softmax(-1), 2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = combine(losses, routing)
    assert torch.equal(mixed, (losses * routing.weights).sum(-1))


def test_unused_expert_cannot_pass_on_nan():
    weights = torch.tensor([[0.0, 1.0], [0.5, 0.5]], requires_grad=True)
    ys = torch.tensor([[[torch.nan], [2.0]], [[torch.inf], [2.0]]], requires_grad=True)
    y = combine(ys, Routing(weights, 2))
    assert y[0].item() == 2
    assert y[1].isinf().all()
    y[0].sum().backward()
    assert weights.grad[0].isfinite().all()
    assert ys.grad[0].tolist() == [[0.0], [1.0]]


def test_zero_weight_keeps_its_gradient():
    weights = torch.zeros(1, 2, requires_grad=True)
    combine(torch.tensor([[[3.0], [5.0]]]), Routing(weights, 2)).sum().backward()
    assert weights.grad.tolist() == [[3.0, 5.0]]


def test_weights_are_cast_to_the_outputs_dtype():
    ys = torch.randn(5, E, 3, dtype=torch.bfloat16)
    assert combine(ys, Routing(torch.rand(5, E), E)).dtype == torch.bfloat16


def test_expert_choice_sums_are_explicit_with_and_without_atomics():
    probs = torch.rand(2, 6, E, **F64).softmax(-1)
    weights, indices = probs.transpose(1, 2).topk(3, -1)
    indices[0, 1, 2] = -1
    routing = Routing(weights.requires_grad_(), E, indices, probs=probs, layout="expert")
    ys = torch.randn(2, E, 3, 5, requires_grad=True, **F64)
    want = torch.zeros(2, 6, 5, **F64)
    for b in range(2):
        for e in range(E):
            for c in range(3):
                if indices[b, e, c] >= 0:
                    want[b, indices[b, e, c]] += weights[b, e, c] * ys[b, e, c]
    for name, got in {
        "index_add": combine(ys, routing),
        "gather": _gather_choice(ys, weights, indices, 6).view(2, 6, 5),
    }.items():
        torch.testing.assert_close(got, want, msg=name)
        grads = torch.autograd.grad(got.pow(2).sum(), [ys, weights], retain_graph=True)
        torch.testing.assert_close(
            grads, torch.autograd.grad(want.pow(2).sum(), [ys, weights], retain_graph=True)
        )


def test_unchosen_place_of_an_expert_passes_nothing_on():
    indices = torch.tensor([[[0, -1]]])
    routing = Routing(
        torch.tensor([[[1.0, 0.0]]]), 1, indices, probs=torch.ones(1, 2, 1), layout="expert"
    )
    y = combine_choice(torch.tensor([[[[1.0], [torch.nan]]]]), routing)
    assert y.tolist() == [[[1.0], [0.0]]]


def test_slots_are_an_einsum():
    weights = torch.rand(2, 6, E, 3, **F64)
    ys = torch.randn(2, E, 3, 5, **F64)
    routing = Routing(weights, E, dispatch=weights, layout="slot")
    torch.testing.assert_close(combine(ys, routing), torch.einsum("bnes,beso->bno", weights, ys))


def test_mean_counts_only_those_who_take_part():
    ys = torch.randn(5, E, 3, **F64)
    routing = token(5)
    for n in range(5):
        chosen = [i for i in routing.indices[n].tolist() if i >= 0]
        want = ys[n, chosen].mean(0) if chosen else torch.zeros(3, **F64)
        torch.testing.assert_close(mean(ys, routing)[n], want)
    assert not mean(ys, routing).requires_grad


@pytest.mark.parametrize("layout", ["dense", "token"])
def test_select_takes_the_best(layout):
    ys, weights = torch.randn(5, E, 3, **F64), torch.rand(5, E, **F64)
    routing = Routing(weights, E)
    if layout == "token":
        top, indices = weights.topk(2, -1)
        routing = Routing(top.flip(-1), E, indices.flip(-1), layout="token")
    want = ys[torch.arange(5), weights.argmax(-1)]
    torch.testing.assert_close(select(ys, routing), want)


def test_identity_is_unscaled_but_teaches_the_gate():
    ys = torch.randn(5, E, 3, **F64)
    routing = token(5, K=1)
    y = identity(ys, routing)
    used = routing.indices[:, 0] >= 0
    want = ys[torch.arange(5), routing.indices[:, 0]][used]
    torch.testing.assert_close(y[used], want)
    assert not y[~used].any()
    (grad,) = torch.autograd.grad(y.sum(), routing.weights)
    torch.testing.assert_close(grad[used, 0], want.sum(-1))
    with pytest.raises(ArgumentError, match="one expert per row"):
        identity(ys, token(5, K=2))


def by_hand(opinions):
    """Dempster's rule on explicit masses, from the definition by intersecting sets."""
    C = opinions[0].shape[-1]
    b, u = None, None
    for z in opinions:
        e = z.exp()
        b2, u2 = e / (e.sum() + C), C / (e.sum() + C)
        if b is None:
            b, u = b2, u2
            continue
        conflict = sum(b[i] * b2[j] for i in range(C) for j in range(C) if i != j)
        b, u = (
            (b * b2 + b * u2 + b2 * u) / (1 - conflict),
            u * u2 / (1 - conflict),
        )
    return b + u / C


def test_dempster_equals_the_rule_and_does_not_mind_the_order():
    z = torch.randn(E, 3, **F64)
    got = dempster(z.unsqueeze(0), Routing(torch.ones(1, E), E))[0]
    torch.testing.assert_close(got, by_hand(list(z)))
    torch.testing.assert_close(got.sum(), torch.tensor(1.0, **F64))
    shuffled = dempster(z[[2, 0, 3, 1]].unsqueeze(0), Routing(torch.ones(1, E), E))[0]
    torch.testing.assert_close(got, shuffled)


def test_dempster_ignores_who_takes_no_part():
    z = torch.randn(1, E, 3, **F64)
    for routing in (
        Routing(torch.tensor([[1.0, 0, 1.0, 0]]), E),
        Routing(torch.ones(1, 3), E, torch.tensor([[2, -1, 0]]), layout="token"),
    ):
        torch.testing.assert_close(dempster(z, routing)[0], by_hand([z[0, 0], z[0, 2]]))


def test_dempster_survives_full_conflict_and_has_gradients():
    z = torch.tensor([[[300.0, 0.0], [0.0, 300.0]]], requires_grad=True)
    p = dempster(z, Routing(torch.ones(1, 2), 2))
    torch.testing.assert_close(p, torch.full((1, 2), 0.5))
    p[0, 0].backward()
    assert z.grad.isfinite().all()
    leaf = torch.randn(2, E, 3, requires_grad=True, **F64)
    part = Routing(torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]]), E)
    assert torch.autograd.gradcheck(lambda ys: dempster(ys, part), leaf)


def test_combine_passes_gradcheck():
    ys = torch.randn(3, E, 2, requires_grad=True, **F64)
    weights = torch.rand(3, E, requires_grad=True, **F64)
    assert torch.autograd.gradcheck(lambda y, w: combine(y, Routing(w, E)), (ys, weights))


@pytest.mark.parametrize("name", ["mean", "select", "identity"])
def test_layer_runs_only_chosen_experts_but_equals_the_combiner_on_all(name):
    K = 1 if name == "identity" else 2
    moe = MoE(Gate.topk(5, E, K), StackedMLP(E, 5, 7, 3), combine=name).double()
    x = torch.randn(6, 5, **F64)
    y, routing = moe(x, return_routing=True)
    want = {"mean": mean, "select": select, "identity": identity}[name](moe.experts.all(x), routing)
    torch.testing.assert_close(y, want)


def test_layer_takes_a_combiner_of_ones_own():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(3))

        def forward(self, ys, routing):
            score = (ys @ self.query).softmax(-1)
            return (score.unsqueeze(-1) * ys).sum(-2)

    moe = MoE(Gate.softmax(5, E), StackedMLP(E, 5, 7, 3), combine=Attend())
    moe(torch.randn(6, 5)).sum().backward()
    assert moe.combine.query.grad is not None
    doubled = MoE(Gate.softmax(5, E), moe.experts, combine=lambda ys, routing: ys.sum(-2))
    x = torch.randn(6, 5)
    torch.testing.assert_close(doubled(x), moe.experts.all(x).sum(1))


def test_dempster_in_a_layer_gives_probabilities():
    moe = MoE(Gate.topk(5, E, 2), StackedMLP(E, 5, 7, 3), combine="dempster")
    torch.testing.assert_close(moe(torch.randn(6, 5)).sum(-1), torch.ones(6))


def test_bad_input_is_refused():
    with pytest.raises(UnknownNameError, match="weighted"):
        MoE(Gate.softmax(5, E), StackedMLP(E, 5, 7, 3), combine="weigthed")
    with pytest.raises(ArgumentError, match="expert axis"):
        combine(torch.randn(5, 3, E), token(5))
    weights = torch.rand(2, 6, E, 3)
    with pytest.raises(ArgumentError, match=r"\[B, E, S"):
        combine(torch.randn(2, E, 2, 5), Routing(weights, E, dispatch=weights, layout="slot"))
    with pytest.raises(ArgumentError, match="per row"):
        mean(torch.randn(2, E, 3, 5), Routing(weights, E, dispatch=weights, layout="slot"))
    with pytest.raises(ArgumentError, match="Gates per task"):
        dempster(torch.randn(5, E, 3), Routing(torch.rand(5, 2, E), E))
