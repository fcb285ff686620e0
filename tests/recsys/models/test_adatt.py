"""AdaTT: fusion of all experts and the native residual."""

import pytest
import torch
from sample_rankers import TASKS, batch_of, build, warmed

from moeapps.errors import ArgumentError


@pytest.mark.parametrize("num_native", [1, 2])
@pytest.mark.parametrize("num_shared", [0, 1, 2])
def test_equals_the_formulas_written_expert_by_expert(num_native, num_shared):
    batch = batch_of(20, dtype=torch.float64)
    model = build("adatt", norm="batch", num_native=num_native, num_shared=num_shared)
    model = warmed(model.double(), batch)
    names = [task.name for task in TASKS]
    state = dict.fromkeys([*names, "shared"], model.inputs(batch))
    for level in model.levels:
        experts = level.experts.to_expert_list()
        outputs = [
            expert(state[owner]) for expert, owner in zip(experts, level.owners, strict=True)
        ]
        E, score, native, mixed = len(outputs), level.gate.score.linear, 0, {}
        for n, gate in enumerate(level.gates):
            own = slice(E * n, E * n + E)
            weights = (state[gate] @ score.w[own, 0].T + score.b[own, 0]).softmax(-1)
            fused = sum(weights[:, e : e + 1] * h for e, h in enumerate(outputs))
            of_unit = [h for h, owner in zip(outputs, level.owners, strict=True) if owner == gate]
            for h in of_unit:
                weight = 1.0
                if len(of_unit) > 1:
                    weight, native = level.residual.free[native], native + 1
                fused = fused + weight * h
            mixed[gate] = fused
        assert level.residual.free is None or native == len(level.residual.free)
        state = mixed
    towers = model.towers.hidden.to_expert_list()
    logits = [
        towers[t](state[name]) @ model.towers.out.w[t].T + model.towers.out.b[t]
        for t, name in enumerate(names)
    ]
    torch.testing.assert_close(model(batch), torch.cat(logits, 1))


def test_native_weights_start_within_their_bound():
    model = build("adatt", num_native=4, num_shared=3)
    free = model.levels[0].residual.free
    assert len(free) == 3 * 4 + 3
    assert free[:12].abs().max() <= 1 / 4**0.5
    assert free[:12].std() > 0.1


def test_the_form_without_a_shared_unit():
    model = build("adatt_sp")
    assert all("shared" not in level.owners + level.gates for level in model.levels)


def test_layers_of_nothing_are_refused():
    with pytest.raises(ArgumentError, match="native"):
        build("adatt", num_native=0)
