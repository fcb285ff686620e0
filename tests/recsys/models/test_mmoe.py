"""MMoE, OMoE and SharedBottom are one family."""

import torch
from sample_rankers import batch_of, build


def test_one_expert_equals_shared_bottom():
    batch = batch_of(9)
    mixture = build("mmoe", num_experts=1).eval()
    bottom = build("shared_bottom").eval()
    state = {
        name.replace("level.experts.", "bottom."): tensor
        for name, tensor in mixture.state_dict().items()
        if ".gate." not in name
    }
    bottom.load_state_dict(state)
    torch.testing.assert_close(mixture(batch), bottom(batch))


def test_one_gate_equals_tied_gates():
    batch = batch_of(9)
    one, many = build("omoe").eval(), build("mmoe").eval()
    state = {
        name: tensor.repeat(3, *[1] * (tensor.dim() - 1)) if "gate.score" in name else tensor
        for name, tensor in one.state_dict().items()
    }
    many.load_state_dict(state)
    torch.testing.assert_close(many(batch), one(batch))


def test_equals_the_formula_written_expert_by_expert():
    model, batch = build("mmoe", norm="batch").double().eval(), batch_of(9, dtype=torch.float64)
    x = model.inputs(batch)
    score = model.level.gate.score.linear
    experts = [expert(x) for expert in model.level.experts.to_expert_list()]
    logits = []
    for t in range(3):
        own = slice(3 * t, 3 * t + 3)
        weights = (x @ score.w[own, 0].T + score.b[own, 0]).softmax(-1)
        z = sum(weights[:, e : e + 1] * h for e, h in enumerate(experts))
        hidden = model.towers.hidden.to_expert_list()[t](z)
        logits.append(hidden @ model.towers.out.w[t].T + model.towers.out.b[t])
    torch.testing.assert_close(model(batch), torch.cat(logits, 1))


def test_the_sizes_of_the_papers_study():
    from moeapps.recsys.schema import Dense, FeatureSchema, Task

    schema = FeatureSchema([Dense("x", width=100)])
    tasks = [Task("y1", type="regression"), Task("y2", type="regression")]
    sizes = {"tower_dims": [8], "gate": {"bias": False}}
    mixture = {"num_experts": 8, "expert_dims": [16]}
    count = {
        name: sum(p.numel() for p in build(name, schema=schema, tasks=tasks, **args).parameters())
        for name, args in {
            "shared_bottom": {**sizes, "bottom_dims": [113]},
            "omoe": {**sizes, **mixture},
            "mmoe": {**sizes, **mixture},
        }.items()
    }
    assert {name: round(n, -2) for name, n in count.items()} == {
        "shared_bottom": 13300,
        "omoe": 14000,
        "mmoe": 14800,
    }
