import copy
import pickle

import pytest
import torch
from torch import nn

from moeapps import kernels
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import (
    Mlp,
    ModuleExperts,
    OnlineExperts,
    Routing,
    SharedExperts,
    StackedConv2d,
    StackedFiLM,
    StackedLinear,
    StackedMLP,
)

F64 = {"dtype": torch.float64}
E = 4


def kinds():
    return {
        "mlp": (StackedMLP(E, 5, 7, 3), (5,)),
        "gated": (StackedMLP(E, 5, 7, 3, "silu", gated=True, bias=False), (5,)),
        "linear": (StackedLinear(E, 5, 3), (5,)),
        "film": (StackedFiLM(E, 5), (5,)),
        "constant film": (StackedFiLM(E, 5, dynamic=False), (5,)),
        "conv": (StackedConv2d(E, 2, 3, 3, stride=2), (2, 5, 5)),
        "grouped conv": (StackedConv2d(E, 2, 4, 3, groups=2), (2, 5, 5)),
        "modules": (ModuleExperts([Mlp(5, 6 + e, 3) for e in range(E)]), (5,)),
        "image modules": (
            ModuleExperts([nn.Conv2d(2, 3, 3) for _ in range(E)], item_dims=3),
            (2, 5, 5),
        ),
    }


def token(lead, K=2, num_experts=E):
    weights = torch.rand(*lead, num_experts, **F64)
    weights, indices = weights.topk(K, -1)
    nobody = torch.rand(*lead, K) < 0.3
    indices = torch.where(nobody, -1, indices)
    weights = torch.where(nobody, 0, weights)
    return Routing(weights.requires_grad_(), num_experts, indices, layout="token")


def dense(lead, tasks=()):
    weights = torch.rand(*lead, *tasks, E, **F64).softmax(-1)
    return Routing(weights.requires_grad_(), E)


def expert_choice(B, N, C=2):
    probs = torch.rand(B, N, E, **F64).softmax(-1)
    weights, indices = probs.transpose(1, 2).topk(C, -1)
    indices[0, 0, -1] = -1
    weights = torch.where(indices < 0, 0, weights)
    return Routing(weights.requires_grad_(), E, indices, probs=probs, layout="expert")


def slots(B, N, S=3):
    score = torch.rand(B, N, E, S, **F64)
    combine = score.flatten(2).softmax(-1).view_as(score).requires_grad_()
    return Routing(combine, E, dispatch=score.softmax(1), layout="slot")


@pytest.fixture(params=list(kinds()))
def kind(request):
    torch.manual_seed(0)
    experts, item = kinds()[request.param]
    return experts.double(), item


def each(experts, x, lead):
    """Expert by expert, through plain callables: the oracle of this file."""
    flat = x.reshape(-1, *x.shape[len(lead) :])
    ys = torch.stack([f(flat) for f in experts.functions()], 1)
    return ys.view(*lead, *ys.shape[1:])


def weighted(ys, weights, lead):
    return (weights.view(*weights.shape, *[1] * (ys.dim() - len(lead) - 1)) * ys).sum(len(lead))


def same_with_gradients(experts, routing, x, y, want):
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    leaves = [x, routing.weights, *experts.parameters()]
    got = torch.autograd.grad(y.pow(2).sum(), leaves, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(
        want.pow(2).sum(), leaves, allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("lead", [(6,), (2, 3), (1,)])
def test_all_is_every_expert_on_every_row(kind, lead):
    experts, item = kind
    x = torch.randn(*lead, *item, **F64)
    torch.testing.assert_close(experts.all(x), each(experts, x, lead))


@pytest.mark.parametrize("lead", [(6,), (2, 3), (1,)])
def test_token_routing_is_the_weighted_sum_of_the_chosen(kind, lead):
    experts, item = kind
    x, routing = torch.randn(*lead, *item, requires_grad=True, **F64), token(lead)
    want = weighted(each(experts, x, lead), routing.dense(), lead)
    same_with_gradients(experts, routing, x, experts(x, routing), want)


@pytest.mark.parametrize("lead", [(6,), (2, 3), (1,)])
def test_dense_routing_is_the_weighted_sum_of_all(kind, lead):
    experts, item = kind
    x, routing = torch.randn(*lead, *item, requires_grad=True, **F64), dense(lead)
    want = weighted(each(experts, x, lead), routing.weights, lead)
    same_with_gradients(experts, routing, x, experts(x, routing), want)


@pytest.mark.parametrize("lead", [(6,), (2, 3)])
def test_dense_routing_with_tasks_gives_one_mixture_per_task(kind, lead):
    experts, item = kind
    x, routing = torch.randn(*lead, *item, requires_grad=True, **F64), dense(lead, tasks=(2,))
    ys = each(experts, x, lead)
    want = torch.stack([weighted(ys, w, lead) for w in routing.weights.unbind(-2)], len(lead))
    same_with_gradients(experts, routing, x, experts(x, routing), want)


def test_expert_choice_adds_each_experts_rows(kind):
    experts, item = kind
    x, routing = torch.randn(2, 6, *item, requires_grad=True, **F64), expert_choice(2, 6)
    want = weighted(each(experts, x, (2, 6)), routing.dense(), (2, 6))
    same_with_gradients(experts, routing, x, experts(x, routing), want)


def test_slots_are_mixed_in_and_out(kind):
    experts, item = kind
    x, routing = torch.randn(2, 6, *item, requires_grad=True, **F64), slots(2, 6)
    filled = torch.einsum("bnes,bn...->bes...", routing.dispatch, x)
    ys = torch.stack([f(filled[:, e].flatten(0, 1)) for e, f in enumerate(experts.functions())], 0)
    ys = ys.view(E, 2, 3, *ys.shape[2:]).transpose(0, 1)
    want = torch.einsum("bnes,bes...->bn...", routing.weights, ys)
    same_with_gradients(experts, routing, x, experts(x, routing), want)


def test_grouped_runs_each_expert_on_its_slice(kind):
    experts, item = kind
    rows, ids = torch.randn(7, *item, **F64), torch.tensor([0, 0, 2, 2, 2, E, E])
    ends = torch.tensor([2, 2, 5, 5], dtype=torch.int32)
    y = experts.grouped(rows, ids, ends)
    functions = experts.functions()
    torch.testing.assert_close(y[:2], functions[0](rows[:2]))
    torch.testing.assert_close(y[2:5], functions[2](rows[2:5]))
    if not isinstance(experts, StackedFiLM):  # shift of nobody is zero, scale of nobody too
        assert not y[5:].any()


def test_empty_batch_keeps_its_shape_and_graph(kind):
    experts, item = kind
    for routing in (token((0,)), dense((0,))):
        y = experts(torch.randn(0, *item, **F64), routing)
        assert y.shape == (0, *experts.all(torch.randn(1, *item, **F64)).shape[2:])
        y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in experts.parameters())


def test_every_parameter_gets_a_gradient_when_one_expert_takes_all(kind):
    experts, item = kind
    routing = Routing(torch.ones(3, 1, **F64), E, torch.full((3, 1), 2), layout="token")
    experts(torch.randn(3, *item, **F64), routing).sum().backward()
    assert all(p.grad is not None for p in experts.parameters())


@pytest.mark.parametrize("strategy", ["reference", "dense", "padded", "loop"])
def test_kernels_use_reaches_the_experts(strategy):
    experts = StackedMLP(E, 5, 7, 3).double()
    x, routing = torch.randn(6, 5, **F64), token((6,))
    want = experts(x, routing)
    with kernels.use(strategy):
        torch.testing.assert_close(experts(x, routing), want)
        modules = ModuleExperts(experts.to_modules())
        torch.testing.assert_close(modules(x, routing), want)


def test_each_expert_starts_as_its_own_linear_would():
    torch.manual_seed(0)
    experts, plain = StackedMLP(8, 64, 32, 16), Mlp(64, 32, 16)
    for name, like in {
        "w1": plain.fc1.weight,
        "b1": plain.fc1.bias,
        "w2": plain.fc2.weight,
        "b2": plain.fc2.bias,
    }.items():
        stacked = getattr(experts, name)
        bound = like.abs().max()
        for e in range(8):
            assert stacked[e].abs().max() <= 1.1 * bound
            assert stacked[e].std() > 0.7 * like.std()


@pytest.mark.parametrize(
    "experts",
    [
        StackedMLP(3, 4, 6, 2),
        StackedMLP(3, 4, 6, 2, "relu", gated=True, bias=False),
        StackedLinear(3, 4, 2),
        StackedConv2d(3, 4, 2, 3, stride=2, groups=2, bias=False),
    ],
    ids=["mlp", "gated", "linear", "conv"],
)
def test_experts_survive_being_taken_apart(experts):
    modules = experts.to_modules()
    like = {"act": experts.act, "gated": experts.gated} if hasattr(experts, "gated") else {}
    again = type(experts).from_modules(modules, **like)
    x = torch.randn(5, 4, 5, 5) if experts.item_dims == 3 else torch.randn(5, 4)
    for e, module in enumerate(modules):
        torch.testing.assert_close(module(x), experts.all(x)[:, e])
    torch.testing.assert_close(again.all(x), experts.all(x))


def test_from_modules_takes_any_network_of_two_linears():
    modules = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(3)]
    experts, x = StackedMLP.from_modules(modules, "relu"), torch.randn(5, 4)
    torch.testing.assert_close(experts.all(x), torch.stack([m(x) for m in modules], 1))


def test_copy_from_upcycles_one_network():
    plain, x = Mlp(4, 6, 2), torch.randn(5, 4)
    experts = StackedMLP(3, 4, 6, 2).copy_from(plain)
    torch.testing.assert_close(experts.all(x), plain(x).unsqueeze(1).expand(5, 3, 2))
    g = torch.Generator().manual_seed(0)
    noisy = StackedMLP(3, 4, 6, 2).copy_from(plain, noise=0.1, generator=g)
    difference = (noisy.w1 - plain.fc1.weight).std() / plain.fc1.weight.std()
    assert 0.05 < difference < 0.2
    assert not torch.equal(noisy.w1[0], noisy.w1[1])


def test_film_accepts_one_set_of_weights_per_image():
    experts, x = StackedFiLM(E, 5).double(), torch.randn(2, 7, 5, **F64)
    per_image = torch.rand(2, E, **F64)
    per_row = per_image.unsqueeze(1).expand(2, 7, E)
    torch.testing.assert_close(experts(x, Routing(per_image, E)), experts(x, Routing(per_row, E)))


def test_constant_film_starts_near_the_identity():
    experts = StackedFiLM(E, 64, dynamic=False)
    x = torch.randn(3, 64)
    assert (experts.all(x) - x.unsqueeze(1)).abs().max() < 0.2 * (1 + x.abs().max())


def test_modules_take_structured_inputs_with_a_dense_routing():
    class Graph(nn.Module):
        def forward(self, x, adjacency):
            return adjacency @ x

    experts = ModuleExperts([nn.Identity(), Graph()])
    with pytest.raises(TypeError):
        experts.all(torch.ones(3, 2), torch.eye(3))  # Identity takes no second argument
    experts = ModuleExperts([Graph(), Graph()])
    x, adjacency = torch.randn(3, 2), torch.rand(3, 3)
    y = experts(x, Routing(torch.full((3, 2), 0.5), 2), adjacency)
    torch.testing.assert_close(y, adjacency @ x)


def test_modules_take_a_dict_with_a_dense_routing():
    class Read(nn.Module):
        def forward(self, fields):
            return fields["a"]

    experts = ModuleExperts([Read(), Read()])
    fields = {"a": torch.randn(3, 2)}
    y = experts(fields, Routing(torch.full((3, 2), 0.5), 2))
    torch.testing.assert_close(y, fields["a"])
    with pytest.raises(ArgumentError, match="structured"):
        experts(fields, token((3,), K=1, num_experts=2))


def test_shared_experts_weigh_by_a_sigmoid():
    shared, x = SharedExperts(nn.Linear(4, 2), in_features=4), torch.randn(3, 4)
    want = torch.sigmoid(x @ shared.weight.weight.T) * shared.module(x)
    torch.testing.assert_close(shared(x), want)
    plain = SharedExperts(shared.module)
    torch.testing.assert_close(plain(x), shared.module(x))


class Count:
    def __init__(self, label):
        self.label, self.learned = label, []

    def predict_proba_one(self, x):
        return {self.label: 0.75, "other": 0.25}

    def learn_one(self, x, y):
        self.learned.append(y)


def test_online_experts_predict_and_learn_by_the_routing():
    experts = OnlineExperts([Count("a"), Count("b"), Count("c")])
    routing = Routing(
        torch.tensor([[0.6, 0.4, 0.0]]), 3, torch.tensor([[2, 0, -1]]), layout="token"
    )
    assert experts({}, routing) == pytest.approx({"c": 0.45, "a": 0.3, "other": 0.25})
    assert experts.predict_one({}, routing) == "c"
    experts.learn_one({}, "y", routing)
    assert [e.learned for e in experts.experts] == [["y"], [], ["y"]]
    with pytest.raises(ArgumentError, match="one row"):
        experts({}, Routing(torch.ones(2, 3), 3))
    with pytest.raises(ArgumentError, match="over 2 experts"):
        experts({}, Routing(torch.ones(2), 2))


def test_experts_pickle_and_deepcopy(kind):
    experts, item = kind
    x = torch.randn(3, *item, **F64)
    for again in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        torch.testing.assert_close(again.all(x), experts.all(x))


def test_dropout_is_off_in_evaluation():
    experts, x = StackedMLP(E, 5, 64, 3, dropout=0.5), torch.randn(6, 5)
    routing = Routing(torch.ones(6, 1), E, torch.zeros(6, 1).long(), layout="token")
    assert not torch.equal(experts(x, routing), experts(x, routing))
    experts.eval()
    torch.testing.assert_close(experts(x, routing), experts.all(x)[:, 0])


@pytest.mark.parametrize(
    ("x", "routing"),
    [
        (torch.zeros(6, 5, **F64), dense((7,))),
        (torch.zeros(6, 5, **F64), token((7,))),
        (torch.zeros(6, 5, **F64), token((2, 3))),
        (torch.zeros(3, 6, 5, **F64), expert_choice(2, 6)),
        (torch.zeros(12, 5, **F64), expert_choice(2, 6)),
        (torch.zeros(2, 7, 5, **F64), slots(2, 6)),
    ],
)
def test_rows_that_do_not_fit_the_routing_are_refused(x, routing):
    with pytest.raises(ArgumentError, match=r"expected|do not fit"):
        StackedMLP(E, 5, 7, 3).double()(x, routing)


def test_bad_arguments_are_refused():
    with pytest.raises(ArgumentError, match="over 4 experts"):
        StackedMLP(3, 5, 7, 3)(torch.zeros(2, 5), dense((2,)))
    with pytest.raises(ArgumentError, match="num_experts=0"):
        StackedMLP(0, 5, 7, 3)
    with pytest.raises(UnknownNameError, match="gelu"):
        StackedMLP(2, 5, 7, 3, "gleu")
    with pytest.raises(ArgumentError, match="dropout"):
        StackedMLP(2, 5, 7, 3, dropout=1.0)
    with pytest.raises(ArgumentError, match="groups=2"):
        StackedConv2d(2, 3, 4, 3, groups=2)
    with pytest.raises(ArgumentError, match="2 modules for 3"):
        StackedMLP(3, 4, 6, 2).load_modules([Mlp(4, 6, 2)] * 2)
    with pytest.raises(ArgumentError, match="w1 is"):
        StackedMLP(1, 4, 6, 2).load_modules([Mlp(4, 7, 2)])
    with pytest.raises(ArgumentError, match="b1 is"):
        StackedMLP(1, 4, 6, 2, bias=False).load_modules([Mlp(4, 6, 2)])
