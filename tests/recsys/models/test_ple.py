"""PLE: levels, and who sees whom."""

import pytest
import torch
from sample_rankers import TASKS, batch_of, build, warmed

from moeapps.errors import ArgumentError


def test_one_level_equals_cgc():
    batch = batch_of(9)
    ple = build("ple", expert_dims=[[12, 8]], num_specific=2)
    cgc = build("cgc")
    cgc.load_state_dict(ple.state_dict())
    for training in (True, False):
        assert torch.equal(ple.train(training)(batch), cgc.train(training)(batch))


def test_equals_the_formulas_written_expert_by_expert():
    batch = batch_of(20, dtype=torch.float64)
    model = warmed(build("ple", norm="batch", num_specific=2).double(), batch)
    x = model.inputs(batch)
    names = [task.name for task in TASKS]
    state = dict.fromkeys([*names, "shared"], x)
    for level in model.levels:
        experts = level.experts.to_expert_list()
        outputs = [
            expert(state[owner]) for expert, owner in zip(experts, level.owners, strict=True)
        ]
        score, first, mixed = level.gate.score.linear, 0, {}
        for gate in level.gates:
            seen = [
                h
                for h, owner in zip(outputs, level.owners, strict=True)
                if gate == "shared" or owner in (gate, "shared")
            ]
            own = slice(first, first + len(seen))
            first += len(seen)
            weights = (state[gate] @ score.w[own, 0].T + score.b[own, 0]).softmax(-1)
            mixed[gate] = sum(weights[:, e : e + 1] * h for e, h in enumerate(seen))
        assert first == len(score.w)
        state = mixed
    towers = model.towers.hidden.to_expert_list()
    logits = [
        towers[t](state[name]) @ model.towers.out.w[t].T + model.towers.out.b[t]
        for t, name in enumerate(names)
    ]
    torch.testing.assert_close(model(batch), torch.cat(logits, 1))


def test_the_last_level_has_no_shared_gate():
    model = build("ple")
    assert [level.gates[-1] for level in model.levels] == ["shared", "shared", "like"]


def test_experts_of_another_task_get_exactly_no_gradient_on_the_last_level():
    model, batch = build("ple"), batch_of(30)
    model(batch)[:, 0].sum().backward()
    last = model.levels[-1]
    for owner, grad in zip(last.owners, last.experts.layers[0][0].w.grad, strict=True):
        assert bool(grad.any()) == (owner in ("click", "shared"))


def test_levels_of_nothing_are_refused():
    with pytest.raises(ArgumentError, match="make no levels"):
        build("ple", expert_dims=[])
    with pytest.raises(ArgumentError, match="make no levels"):
        build("ple", num_shared=0)
