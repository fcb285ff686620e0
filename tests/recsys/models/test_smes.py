"""SMES-style: a bounded set of experts per row."""

import pytest
import torch
from sample_rankers import batch_of, build

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.recsys.models.smes import SharedPrivate


def test_rows_choose_shared_experts_jointly_and_private_ones_alone():
    logits = torch.randn(40, 3, 8)
    routing = SharedPrivate(2, 1)(logits).check()
    probs = logits.softmax(-1)
    for n in range(40):
        joint = set(probs[n].mean(0).topk(2).indices.tolist())
        for t in range(3):
            chosen = routing.indices[n, t].tolist()
            assert set(chosen[:2]) == joint
            rest = probs[n, t].clone()
            rest[list(joint)] = -1
            assert chosen[2] == int(rest.argmax())
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(40, 3))


def test_a_row_runs_a_bounded_number_of_experts():
    routing = SharedPrivate(2, 1)(torch.randn(100, 3, 16))
    active = (routing.dense() != 0).any(1).sum(1)
    assert int(active.max()) <= 2 + 3 * 1
    assert int(active.min()) >= 3


def test_all_experts_chosen_equals_mmoe():
    batch = batch_of(9)
    sparse = build("smes", shared_k=6, private_k=0).eval()
    dense = build("mmoe", num_experts=6).eval()
    dense.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(batch), dense(batch))


def test_the_balance_loss_counts_over_all_tasks():
    model, batch = build("smes", shared_k=1, private_k=1).eval(), batch_of(50)
    with gating.record(model) as recording:
        model(batch)
    routing = recording.routings["level"][0]
    counts = torch.bincount(routing.indices.flatten(), minlength=6)
    f, p = counts / counts.sum(), routing.probs.flatten(0, 1).mean(0)
    torch.testing.assert_close(recording.loss({"balance": 1.0}), 6 * (f * p).sum())


def test_experts_nobody_chose_get_exactly_no_gradient():
    model, batch = build("smes", num_experts=30, shared_k=1, private_k=1), batch_of(2)
    logits, aux = model(batch, return_aux=True)
    logits.sum().backward()
    used = set(aux.levels[0].routing.indices.flatten().tolist())
    for e, grad in enumerate(model.level.experts.layers[-1][0].b.grad):
        assert bool(grad.any()) <= (e in used)


def test_more_experts_than_there_are_is_an_error():
    with pytest.raises(ArgumentError, match="num_experts=6"):
        build("smes", shared_k=4, private_k=3)
