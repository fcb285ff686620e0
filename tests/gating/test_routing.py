import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.selections import expert_choice, soft_slots, softmax, topk

E, D = 5, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def experts(num=E):
    maps = torch.randn(num, D, D, dtype=torch.float64)
    return [lambda x, w=w: torch.tanh(x @ w) for w in maps]


def summed(routing, x, fs):
    """The output by the definition of ``dense()``: every expert on every row."""
    return sum(routing.dense()[..., e, None] * f(x) for e, f in enumerate(fs))


def test_dense_reproduces_the_token_output():
    x, fs = torch.randn(7, D, dtype=torch.float64), experts()
    routing = topk(torch.randn(7, E, dtype=torch.float64), 2)
    expected = torch.zeros_like(x)
    for n in range(7):
        for k in range(2):
            expected[n] += routing.weights[n, k] * fs[routing.indices[n, k]](x[n])
    torch.testing.assert_close(summed(routing.check(), x, fs), expected)


def test_dense_reproduces_the_expert_choice_output():
    x, fs = torch.randn(2, 6, D, dtype=torch.float64), experts()
    routing = expert_choice(torch.randn(2, 6, E, dtype=torch.float64), capacity=2)
    expected = torch.zeros_like(x)
    for b in range(2):
        for e in range(E):
            for c in range(routing.indices.shape[-1]):
                n = routing.indices[b, e, c]
                expected[b, n] += routing.weights[b, e, c] * fs[e](x[b, n])
    torch.testing.assert_close(summed(routing.check(), x, fs), expected)


def test_dense_of_slots_is_the_weight_of_each_expert():
    routing = soft_slots(torch.randn(2, 6, E, 3, dtype=torch.float64)).check()
    constants = torch.randn(E, D, dtype=torch.float64)  # experts that ignore their input
    by_slot = torch.einsum("bnes,ed->bnd", routing.weights, constants)
    torch.testing.assert_close(routing.dense() @ constants, by_slot)


def test_dense_is_differentiable():
    logits = torch.randn(4, E, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: topk(x, 2).dense(), logits)
    groups = torch.randn(2, 4, E, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expert_choice(x, 1).dense(), groups)


@given(n=st.integers(0, 9), k=st.integers(1, E), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_token_methods_agree_with_loops(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    routing = topk(torch.randn(n, E, generator=generator), k).check()
    counts = torch.zeros(E, dtype=torch.int64)
    for e in routing.indices.flatten().tolist():
        counts[e] += 1
    assert torch.equal(routing.counts(), counts)
    torch.testing.assert_close(routing.dense().sum(-1), routing.weights.sum(-1))
    torch.testing.assert_close(routing.importance(), routing.probs.sum(0))
    assert routing.mean_active() == (k if n else 0)


def test_counts_of_each_layout():
    assert softmax(torch.zeros(3, E)).counts().tolist() == [3] * E
    early = Routing(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 2)
    assert early.counts().tolist() == [2, 1]
    assert early.mean_active() == 1.5
    chosen = expert_choice(torch.randn(2, 10, E), capacity=1)
    assert chosen.counts().tolist() == [2 * 2] * E
    assert chosen.mean_active() == 1
    slots = soft_slots(torch.randn(2, 10, E, 3))
    assert slots.counts().tolist() == [2 * 3] * E
    assert slots.mean_active() == E


def test_importance_counts_every_task():
    routing = softmax(torch.zeros(4, 3, 2)).check()
    torch.testing.assert_close(routing.importance(), torch.full((2,), 6.0))


def test_importance_without_probs_reads_the_weights():
    assert Routing(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 2).importance().tolist() == [1.5, 0.5]


def test_statistics_skip_padding_and_nan_rows():
    logits = torch.randn(4, E)
    logits[1] = float("nan")
    valid = torch.tensor([True, True, True, False])
    routing = topk(logits, 2, valid=valid).check()
    assert routing.counted_rows().tolist() == [True, False, True, False]
    only = topk(logits[[0, 2]], 2)
    assert torch.equal(routing.counts(), only.counts())
    torch.testing.assert_close(routing.importance(), only.importance())
    assert routing.mean_active() == 2


def test_statistics_of_tasks_skip_padding_rows():
    valid = torch.tensor([True, False])
    routing = softmax(torch.zeros(2, 3, E), valid=valid).check()
    assert routing.counts().tolist() == [3] * E
    assert routing.mean_active() == E


def test_expert_choice_statistics_skip_padding_rows():
    valid = torch.tensor([[True] * 3 + [False]])
    routing = expert_choice(torch.randn(1, 4, 2), capacity=2, valid=valid).check()
    assert routing.counts().tolist() == [3, 3]
    assert (routing.indices == -1).sum() == 2


def test_compose_equals_two_stage_mixing():
    groups = [[0, 1], [0, 2], [1, 3]]
    outer = softmax(torch.randn(2, 6, 3, dtype=torch.float64))
    inner = softmax(torch.randn(2, 6, 3, 2, dtype=torch.float64))
    maps = torch.randn(2, 6, 4, dtype=torch.float64)
    intermediate = (inner.weights * maps[..., torch.tensor(groups)]).sum(-1)
    expected = (outer.weights * intermediate).sum(-1)
    composed = outer.compose(inner, groups).check()
    torch.testing.assert_close((composed.weights * maps).sum(-1), expected)
    assert composed.num_experts == 4


def test_compose_takes_sparse_outer_weights():
    outer = topk(torch.randn(6, 3), 1)
    inner = softmax(torch.randn(6, 3, 2))
    composed = outer.compose(inner, [[0, 1], [2, 3], [4, 5]])
    assert ((composed.weights != 0).sum(-1) == 2).all()


def test_compose_refuses_what_does_not_fit():
    outer, inner = softmax(torch.zeros(6, 3)), softmax(torch.zeros(6, 3, 2))
    with pytest.raises(ArgumentError, match=r"2 groups of \[2\]"):
        outer.compose(inner, [[0, 1], [2, 3]])
    with pytest.raises(ArgumentError, match="layouts"):
        outer.compose(expert_choice(torch.zeros(2, 3, 2)), [[0, 1]])


def test_select_rows_takes_everything_along():
    routing = topk(torch.randn(6, E), 2, valid=torch.tensor([True] * 5 + [False]))
    routing = dataclasses.replace(routing, extra={"state": torch.arange(6)})
    part = routing.select_rows(torch.tensor([5, 2])).check()
    assert torch.equal(part.weights, routing.weights[[5, 2]])
    assert torch.equal(part.probs, routing.probs[[5, 2]])
    assert part.valid.tolist() == [False, True]
    assert part.extra["state"].tolist() == [5, 2]


def test_detach_cuts_every_gradient():
    routing = softmax(torch.zeros(2, E, requires_grad=True)).detach()
    assert not routing.weights.requires_grad
    assert not routing.logits.requires_grad
    assert not routing.probs.requires_grad


def test_mask_rows_leaves_expert_choice_to_the_selection():
    with pytest.raises(ArgumentError, match="expert-choice"):
        mask_rows(expert_choice(torch.zeros(1, 4, 2)), torch.ones(1, 4, dtype=torch.bool))


def token(weights, indices, **fields):
    return Routing(torch.tensor(weights), 3, torch.tensor(indices), layout="token", **fields)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (token([[1.0]], [[3]]), "lie in"),
        (token([[1.0]], [[-2]]), "lie in"),
        (token([[1.0]], [[-1]]), "weight must be 0"),
        (token([[0.5, 0.5]], [[1, 1]]), "chosen twice"),
        (token([[0.5]], [[1, 2]]), "one weight per index"),
        (token([[float("nan")]], [[1]], probs=torch.ones(1, 3) / 3), "finite"),
        (token([[1.0]], [[1]], valid=torch.tensor([False])), "padding rows must have weight 0"),
        (token([[0.0]], [[1]], valid=torch.tensor([False])), "padding rows must have index -1"),
        (token([[1.0]], [[1]], probs=torch.ones(1, 3)), "sum to 1"),
        (token([[1.0]], [[1]], extra={"state": torch.ones(2)}), "state"),
        (Routing(torch.ones(1, 2), 3), "one weight per expert"),
        (Routing(torch.ones(1, 3).bfloat16(), 3), "float32"),
        (Routing(torch.ones(1, 3), 3, layout="token"), "indices"),
        (Routing(torch.ones(1, 2, 3, 1), 3, layout="slot"), "dispatch"),
        (Routing(torch.ones(1, 3), 3, layout="other"), "layout"),
    ],
)
def test_check_names_the_broken_invariant(broken, rule):
    with pytest.raises(GateError, match=rule):
        broken.check()


def test_an_expert_routing_must_know_its_rows():
    bare = Routing(torch.ones(1, 2, 1), 2, torch.zeros(1, 2, 1).long(), layout="expert")
    with pytest.raises(GateError, match="how many"):
        bare.dense()
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert dataclasses.replace(bare, valid=valid).dense().shape == (1, 4, 2)


def test_routing_survives_pickle_and_deepcopy():
    routing = topk(torch.randn(3, E), 2)
    for other in (pickle.loads(pickle.dumps(routing)), copy.deepcopy(routing)):
        assert torch.equal(other.check().weights, routing.weights)
        assert other.layout == "token"


def test_routing_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        softmax(torch.zeros(1, E)).weights = torch.zeros(1, E)
