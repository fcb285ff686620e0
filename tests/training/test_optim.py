import math

import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Gate, MoE, StackedMLP
from moeapps.training import build_optimizer, build_schedule, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))
        self.moe = MoE(Gate.topk(4, 3, 2), StackedMLP(3, 4, 8, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.shared = self.stem[2]


def names_by_group(model, **options):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=1.0, **options)
    return {g["name"]: sorted(names[parameter] for parameter in g["params"]) for g in groups}


def test_gates_experts_and_rest_are_told_apart():
    assert names_by_group(Model()) == {
        "gates": ["moe.gate.score.weight"],
        "experts": ["moe.experts.w1", "moe.experts.w2"],
        "experts/no_decay": ["moe.experts.b1", "moe.experts.b2"],
        "rest": ["stem.0.weight", "stem.2.weight"],
        "rest/no_decay": ["stem.0.bias", "stem.1.bias", "stem.1.weight"],
    }


def test_every_trained_parameter_appears_once():
    model = Model()
    grouped = [p for group in parameter_groups(model, lr=1.0) for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) == len(trained)
    assert set(grouped) == set(trained)


def test_own_rates_and_decay():
    groups = parameter_groups(
        Model(), lr=0.1, weight_decay=0.5, gates={"lr": 0.01}, experts={"weight_decay": 0.2}
    )
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert found == {
        "gates": (0.01, 0.5),
        "experts": (0.1, 0.2),
        "experts/no_decay": (0.1, 0.0),
        "rest": (0.1, 0.5),
        "rest/no_decay": (0.1, 0.0),
    }


def test_modules_can_be_declared_gates_and_experts():
    model = Model()
    groups = names_by_group(model, gate_modules=[model.stem[0]], expert_modules=[model.stem])
    assert groups["gates"] == ["moe.gate.score.weight", "stem.0.weight"]
    assert "stem.2.weight" in groups["experts"]


def test_an_unknown_option_of_a_role_is_refused():
    with pytest.raises(ArgumentError, match="momentum"):
        parameter_groups(Model(), lr=0.1, gates={"momentum": 0.9})


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_step_every_group(name):
    model = Model()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = build_optimizer(model, name, lr=0.1, gates={"lr": 0.0})
    x = torch.randn(16, 4)
    (model.moe(model.stem(x)) - 1).square().sum().backward()
    optimizer.step()
    for key, value in model.named_parameters():
        moved = not torch.equal(value, before[key])
        assert moved == (not key.startswith(("moe.gate", "frozen"))), key


def test_unknown_optimizer_gets_close_names():
    with pytest.raises(UnknownNameError, match="adamw"):
        build_optimizer(Model(), "adamv", lr=0.1)


def rates(name, steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, name, **options)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_constant_schedule_with_warmup():
    assert rates("constant", 5, warmup_steps=2) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


def test_cosine_schedule_matches_the_formula_and_stays_at_its_end():
    found = rates("cosine", 14, warmup_steps=2, total_steps=12, final=0.1)
    expected = [1.0, 2.0] + [
        2 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(t, 10) / 10)) / 2) for t in range(12)
    ]
    assert found == pytest.approx(expected)


def test_cosine_without_an_end_is_refused():
    with pytest.raises(ArgumentError, match="total_steps=None"):
        rates("cosine", 1)
    with pytest.raises(UnknownNameError, match="cosine"):
        rates("cosin", 1)


def test_schedule_state_holds_plain_values():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    state = build_schedule(optimizer, "cosine", total_steps=5).state_dict()
    assert not any(callable(value) for value in state["lr_lambdas"])
