import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.selections import (
    ExpertChoice,
    Random,
    capacity,
    expert_choice,
    hard,
    random,
    scheduled_top_k,
    soft_slots,
    softmax,
    topk,
    topp,
)

E = 6
INF = math.inf


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def coarse(n, e, seed):
    """Logits with many ties."""
    return torch.randint(0, 3, (n, e), generator=torch.Generator().manual_seed(seed)).float()


def best_by_loop(scores, k):
    return [sorted(range(len(r)), key=lambda e: (-r[e], e))[:k] for r in scores.tolist()]


@given(
    n=st.integers(0, 7),
    e=st.sampled_from([1, 4, 8, 40]),
    k=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_topk_equals_a_stable_sort_also_in_ties(n, e, k, seed):
    k = min(k, e)
    logits = coarse(n, e, seed)
    routing = topk(logits, k).check()
    assert routing.indices.tolist() == best_by_loop(logits, k)


@pytest.mark.parametrize("k", range(1, E + 1))
def test_softmax_topk_normalise_equals_topk_softmax(k):
    logits = torch.randn(9, E, dtype=torch.float64)
    routing = topk(logits, k, normalise=True)
    values, indices = logits.topk(k)
    torch.testing.assert_close(routing.weights, values.softmax(-1))
    assert torch.equal(routing.indices, indices)


def test_all_experts_chosen_equals_the_dense_mixture():
    logits = torch.randn(9, E, dtype=torch.float64)
    torch.testing.assert_close(topk(logits, E).dense(), softmax(logits).weights)


def test_weights_sum_to_one_unless_one_expert_is_chosen():
    logits = torch.randn(9, E)
    torch.testing.assert_close(topk(logits, 2).weights.sum(-1), torch.ones(9))
    torch.testing.assert_close(topk(logits, 1).weights[:, 0], logits.softmax(-1).amax(-1))


def test_any_tie_rule_agrees_when_there_are_no_ties():
    logits = torch.randn(9, E)
    assert torch.equal(topk(logits, 4, tie="any").indices, topk(logits, 4).indices)


def test_sigmoid_scores_are_the_weights_and_probs_sum_to_one():
    logits = torch.randn(9, E)
    routing = topk(logits, 2, score="sigmoid", normalise=False).check()
    torch.testing.assert_close(routing.weights, logits.sigmoid().topk(2).values)
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(9))


def test_raw_scores_are_the_weights():
    logits = torch.randn(9, E)
    routing = topk(logits, 2, score="identity").check()
    torch.testing.assert_close(routing.weights, logits.topk(2).values)
    with pytest.raises(ArgumentError, match="raw scores"):
        topk(logits, 2, score="identity", normalise=True)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_bias_changes_the_choice_and_not_the_weights(score):
    logits = torch.randn(9, E)
    bias = torch.zeros(E)
    bias[3] = 10.0
    routing = topk(logits, 1, score=score, bias=bias).check()
    assert (routing.indices == 3).all()
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    torch.testing.assert_close(routing.weights[:, 0], scores[:, 3])


@pytest.mark.parametrize(("k", "text"), [(9, "top_k=9 exceeds num_experts=6"), (0, "too small")])
def test_impossible_top_k_is_refused(k, text):
    with pytest.raises(ArgumentError, match=text):
        topk(torch.zeros(1, E), k)


@pytest.mark.parametrize("option", [{"score": "tanh"}, {"tie": "last"}, {"null": 6}])
def test_unknown_topk_options_are_refused(option):
    with pytest.raises(ArgumentError):
        topk(torch.zeros(1, E), 1, **option)


def test_null_experts_take_places_but_no_weight():
    logits = torch.tensor([[3.0, 2.0, 1.0, 9.0, 0.0], [0.0, 0.0, 1.0, 9.0, 8.0]])
    routing = topk(logits, 2, null=2).check()
    assert routing.num_experts == 3
    assert routing.indices.tolist() == [[-1, 0], [-1, -1]]
    assert routing.weights.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert routing.extra["choices"].tolist() == [[3, 0], [3, 4]]
    assert routing.probs.shape == (2, 5)
    assert routing.dense()[1].tolist() == [0.0] * 3
    assert routing.importance().shape == (3,)


def test_null_experts_keep_a_bias_of_the_true_ones():
    logits = torch.zeros(1, 4)
    assert topk(logits, 1, null=2, bias=torch.tensor([0.0, 0.1])).indices.item() == 1


@given(
    seed=st.integers(0, 99),
    p=st.floats(0.05, 1.0),
    rows=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_topp_takes_the_shortest_prefix_with_enough_mass(seed, p, rows):
    logits = torch.randn(rows, E, generator=torch.Generator().manual_seed(seed))
    routing = topp(logits, p).check()
    kept = (routing.indices >= 0).sum(-1)
    assert (kept >= 1).all()
    mass = routing.weights.sum(-1)
    assert (mass >= p - 1e-6).all()
    last = routing.weights.gather(-1, (kept - 1).unsqueeze(-1))[:, 0]
    assert ((mass - last < p + 1e-6) | (kept == 1)).all()


def test_topp_weights_are_raw_probabilities_and_ties_go_to_the_lowest_index():
    routing = topp(torch.zeros(1, 4), 0.5)
    assert routing.indices.tolist() == [[0, 1, -1, -1]]
    assert routing.weights.tolist() == [[0.25, 0.25, 0.0, 0.0]]


def test_topp_is_capped():
    routing = topp(torch.zeros(3, 4), 1.0, max_k=2).check()
    assert routing.indices.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 1.5}, {"max_k": 0}, {"max_k": 7}])
def test_impossible_topp_is_refused(options):
    with pytest.raises(ArgumentError):
        topp(torch.zeros(1, E), **options)


def test_hard_weights_are_one_with_the_gradient_of_the_score():
    logits = torch.randn(5, E, dtype=torch.float64, requires_grad=True)
    routing = hard(logits).check()
    assert (routing.weights == 1).all()
    (through,) = torch.autograd.grad(routing.weights.sum(), logits)
    (score,) = torch.autograd.grad(logits.softmax(-1).amax(-1).sum(), logits)
    torch.testing.assert_close(through, score)


def capacity_by_loop(indices, urgency, limit, num_experts):
    """Choice by choice, row by row in order of urgency: a place, or none."""
    rows, top_k = indices.shape
    order = sorted(range(rows), key=lambda n: -urgency[n])
    free = [limit] * num_experts
    kept = indices.clone()
    for k in range(top_k):
        for n in order:
            e = int(indices[n, k])
            if e < 0:
                continue
            if free[e] == 0:
                kept[n, k] = -1
            else:
                free[e] -= 1
    return kept


@given(
    n=st.integers(0, 12),
    k=st.integers(1, 4),
    factor=st.sampled_from([0.3, 0.5, 1.0, 1.25, 2.0]),
    policy=st.sampled_from(["position", "prob"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_capacity_equals_a_loop(n, k, factor, policy, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, E, generator=generator)
    logits[: n // 2, 0] += 3
    valid = torch.rand(n, generator=generator) < 0.8
    chosen = topk(logits, k, valid=valid)
    limit = -(-n * k * int(100 * factor) // (100 * E))
    urgency = chosen.probs.amax(-1).tolist() if policy == "prob" else [0.0] * n
    routing = capacity(chosen, factor, policy=policy).check()
    assert torch.equal(routing.indices, capacity_by_loop(chosen.indices, urgency, limit, E))
    assert (routing.counts() <= limit).all()
    assert torch.equal(routing.weights, torch.where(routing.indices < 0, 0, chosen.weights))
    assert torch.equal(routing.extra["choices"], chosen.indices)


def test_capacity_counts_rows_over_all_leading_axes():
    chosen = topk(torch.zeros(2, 3, E), 1)
    routing = capacity(chosen, size=2).check()
    assert routing.indices.flatten().tolist() == [0, 0, -1, -1, -1, -1]


def test_capacity_keeps_null_choices_apart_from_dropped_ones():
    chosen = topk(torch.tensor([[5.0, 0.0, 9.0]] * 2), 2, null=1)
    routing = capacity(chosen, size=1).check()
    assert routing.extra["choices"].tolist() == [[2, 0], [2, 0]]
    assert routing.indices.tolist() == [[-1, 0], [-1, -1]]


def test_nan_rows_do_not_push_others_out():
    logits = torch.zeros(2, E)
    logits[0] = float("nan")
    logits[1, 0] = 1.0
    routing = capacity(topk(logits, 1), size=1, policy="prob")
    assert routing.indices[1, 0] == 0


@pytest.mark.parametrize(
    "options", [{}, {"factor": 1.0, "size": 2}, {"factor": -1.0}, {"size": 1, "policy": "luck"}]
)
def test_capacity_needs_exactly_one_limit(options):
    with pytest.raises(ArgumentError):
        capacity(topk(torch.zeros(2, E), 1), **options)


def test_capacity_is_for_the_token_layout():
    with pytest.raises(ArgumentError, match="token"):
        capacity(softmax(torch.zeros(2, E)), 1.0)


@pytest.mark.parametrize(
    ("num_rows", "share", "size"), [(10, 2, 4), (7, 1, 2), (12, 0.5, 1), (2, 6, 2)]
)
def test_every_expert_takes_exactly_its_capacity(num_rows, share, size):
    logits = torch.randn(3, num_rows, E)
    routing = expert_choice(logits, share).check()
    assert routing.indices.shape == (3, E, size)
    assert (routing.indices >= 0).all()
    probs = logits.softmax(-1)
    for b in range(3):
        for e in range(E):
            best = sorted(range(num_rows), key=lambda n: (-probs[b, n, e], n))[:size]
            assert routing.indices[b, e].tolist() == best


def test_expert_choice_refuses_what_it_cannot_mean():
    with pytest.raises(GateError, match="single row"):
        expert_choice(torch.zeros(3, 1, E))
    with pytest.raises(GateError, match=r"\[B, N, E\]"):
        expert_choice(torch.zeros(3, E))
    with pytest.raises(ArgumentError, match="capacity=7"):
        expert_choice(torch.zeros(3, 4, E), capacity=7)


def test_expert_choice_threshold_serves_single_rows():
    select = ExpertChoice(E, capacity=1, at_test="threshold")
    batches = [torch.randn(4, 60, E) for _ in range(30)]
    for logits in batches:
        assert select(logits).layout == "expert"
    select.eval()
    kept = select.threshold.clone()
    routing = select(torch.cat(batches).flatten(0, 1)).check()
    assert routing.layout == "token"
    assert torch.equal(select.threshold, kept)
    assert 0.8 < float(routing.mean_active()) < 1.2  # about the capacity it was trained for
    alone = select(batches[0][0, :1])
    assert torch.equal(alone.indices, routing.indices[:1])


def test_expert_choice_threshold_is_the_mean_of_the_last_scores_in():
    select = ExpertChoice(2, capacity=1, at_test="threshold", momentum=0.01)
    seen = []
    for _ in range(3):
        logits = torch.randn(2, 8, 2)
        seen.append(select(logits).weights[..., -1].mean(0))
    torch.testing.assert_close(select.threshold, torch.stack(seen).mean(0))
    with pytest.raises(ArgumentError, match="at_test"):
        ExpertChoice(2, at_test="never")


def test_soft_slots_equal_explicit_matrices():
    logits = torch.randn(2, 7, 3, 2, dtype=torch.float64)
    routing = soft_slots(logits).check()
    flat = logits.flatten(2)
    torch.testing.assert_close(routing.dispatch.flatten(2), flat.exp() / flat.exp().sum(1, True))
    torch.testing.assert_close(routing.weights.flatten(2), flat.exp() / flat.exp().sum(2, True))
    torch.testing.assert_close(routing.dispatch.sum(1), torch.ones(2, 3, 2).double())
    torch.testing.assert_close(routing.logits.softmax(-1), routing.probs)


def test_soft_slots_ignore_padding():
    logits = torch.randn(1, 7, 3, 2)
    valid = torch.tensor([[True] * 4 + [False] * 3])
    routing = soft_slots(logits, valid=valid).check()
    torch.testing.assert_close(routing.dispatch[:, :4], soft_slots(logits[:, :4]).dispatch)
    assert not routing.dispatch[:, 4:].any()
    nobody = soft_slots(logits, valid=torch.zeros_like(valid)).check()
    assert nobody.counts().sum() == 0
    with pytest.raises(GateError, match="Slots"):
        soft_slots(torch.zeros(2, 3, 4))


def test_random_draws_distinct_experts_evenly_from_the_generator():
    logits = torch.zeros(4000, E)
    state = torch.get_rng_state()
    first = random(logits, 2, generator=torch.Generator().manual_seed(3)).check()
    again = random(logits, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(state, torch.get_rng_state())
    assert (first.weights == 0.5).all()
    share = first.counts() / first.counts().sum()
    torch.testing.assert_close(share, torch.full((E,), 1 / E), atol=0.02, rtol=0)


def test_random_per_batch_draws_once():
    routing = random(torch.zeros(2, 5, E), 2, per="batch").check()
    assert routing.indices.shape == (2, 5, 2)
    assert (routing.indices == routing.indices[0, 0]).all()
    assert random(torch.zeros(0, E), per="batch").check().indices.shape == (0, 1)
    with pytest.raises(ArgumentError, match="per"):
        random(torch.zeros(2, E), per="image")


def test_random_never_draws_a_masked_expert():
    logits = torch.full((50, E), -INF)
    logits[:, 2] = 0.0
    routing = random(logits, 2).check()
    assert (routing.indices == torch.tensor([2, -1])).all()
    assert (routing.weights == torch.tensor([1.0, 0.0])).all()


def test_random_is_the_mean_at_test():
    select = Random(1)
    assert select(torch.zeros(3, E)).indices.shape == (3, 1)
    torch.testing.assert_close(select.eval()(torch.zeros(3, E)).dense(), torch.full((3, E), 1 / E))
    assert Random(1, at_test="random").eval()(torch.zeros(3, E)).indices.shape == (3, 1)
    with pytest.raises(ArgumentError, match="at_test"):
        Random(at_test="never")


def test_top_k_schedule_grows_and_stays():
    ks = [scheduled_top_k(t, 100, smallest=1, largest=8) for t in range(0, 201, 10)]
    assert ks[0] == 1
    assert ks[10:] == [8] * 11
    assert ks == sorted(ks)
    with pytest.raises(ArgumentError, match="schedule"):
        scheduled_top_k(0, 100, smallest=5, largest=2)


@pytest.mark.parametrize(
    "select",
    [softmax(), topk(2), topk(2, score="sigmoid"), topk(3, null=1), topp(0.5), hard(), random(2)],
    ids=repr,
)
def test_masked_experts_are_never_used_and_fully_masked_rows_get_nothing(select):
    logits = torch.randn(4, E, requires_grad=True)
    mask = torch.ones(4, E, dtype=torch.bool)
    mask[0] = False
    mask[1, 1:] = False
    routing = select(logits.masked_fill(~mask, -INF)).check()
    assert not routing.dense()[0].any()
    assert not routing.dense()[1, 1:].any()
    if routing.indices is not None:
        assert (routing.indices[0] == -1).all()
    if routing.weights.requires_grad:
        (grad,) = torch.autograd.grad(routing.weights.sum(), logits)
        assert grad.isfinite().all()


def test_softmax_mask_argument_switches_experts_off():
    routing = softmax(torch.zeros(2, 3), torch.tensor([True, False, True])).check()
    assert routing.weights.tolist() == [[0.5, 0.0, 0.5]] * 2


@pytest.mark.parametrize("select", [softmax(), topk(2), topk(4), topp(0.5), hard()], ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_a_broken_row_stays_alone(select, bad):
    logits = torch.randn(5, E)
    clean = select(logits)
    logits[2, 1] = bad
    routing = select(logits).check()
    rest = torch.tensor([0, 1, 3, 4])
    assert torch.equal(routing.weights[rest], clean.weights[rest])
    if routing.indices is not None:
        assert torch.equal(routing.indices[rest], clean.indices[rest])


@pytest.mark.parametrize(
    "select", [softmax(), topk(2), topp(0.5), hard(), random(2), capacity(topk(2), 2.0)], ids=repr
)
@pytest.mark.parametrize("shape", [(0, E), (2, 0, E), (2, 3, E)])
def test_shapes_are_kept_also_when_empty(select, shape):
    valid = torch.rand(shape[:-1]) < 0.5
    routing = select(torch.randn(shape), valid=valid).check()
    assert routing.rows == shape[:-1]
    assert routing.dense().shape == shape
    assert not routing.dense()[~valid].any()


@pytest.mark.parametrize(
    "rule",
    [
        lambda x: topk(x, 2).weights,
        lambda x: topk(x, 1).weights,
        lambda x: topk(x, 2, score="sigmoid").weights,
        lambda x: topk(x, 3, null=2).weights,
        lambda x: topp(x, 0.6).weights,
        lambda x: softmax(x, torch.tensor([True] * 5 + [False])).weights,
        lambda x: capacity(topk(x, 2), 1.0).weights,
        lambda x: expert_choice(x.unsqueeze(0), 2).weights,
        lambda x: soft_slots(x.view(1, 4, 3, 2)).dispatch,
        lambda x: soft_slots(x.view(1, 4, 3, 2)).weights,
    ],
)
def test_weights_pass_gradcheck(rule):
    assert torch.autograd.gradcheck(
        rule, torch.randn(4, E, dtype=torch.float64, requires_grad=True)
    )


def test_permuting_rows_permutes_the_routing():
    logits, order = torch.randn(9, E), torch.randperm(9)
    for select in (topk(2), topp(0.5), softmax()):
        assert torch.equal(select(logits[order]).dense(), select(logits).dense()[order])


def test_a_bound_selection_can_be_overridden_replaced_copied_and_pickled():
    logits = torch.randn(4, E)
    select = topk(2, score="sigmoid")
    assert select(logits, top_k=3).indices.shape == (4, 3)
    assert select.replace(top_k=1)(logits).indices.shape == (4, 1)
    limited = capacity(select, 1.5)
    for one in (select, limited):
        for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert torch.equal(other(logits).weights, one(logits).weights)
            assert repr(other) == repr(one)
            assert (other.layout, other.reads_bias, other.ranks) == ("token", True, True)


def test_a_bound_selection_refuses_unknown_options_at_once():
    with pytest.raises(TypeError, match="topk_k"):
        topk(2, topk_k=3)
    with pytest.raises(TypeError, match="top_k"):
        topk()
