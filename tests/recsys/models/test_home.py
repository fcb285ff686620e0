"""HoME: what each part does, and what it does not."""

import pytest
import torch
from sample_rankers import SCHEMA, TASKS, batch_of, bce, build, warmed

from moeapps.errors import ArgumentError
from moeapps.recsys.models.home import FeatureGate, HoME
from moeapps.recsys.schema import Task


def stepped(model, batch):
    """The model after a step that moves every gate away from where it starts."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        bce(model(batch), batch).backward()
        optimizer.step()
    return model


def oracle(model, x):
    """HoME written expert by expert from the formulas, in evaluation mode."""
    G, T = 2, 3
    groups = [0, 0, 1]
    experts_1 = model.level_1.experts.to_expert_list()
    experts_2 = model.level_2.experts.to_expert_list()
    K, n_S = 2, 2

    def feature_gate(gate, x, q, own):
        L, d = gate.num_lora, x.shape[1]
        B = gate.down[q].view(L, -1, d)
        A = gate.up.view(-1, L, B.shape[1], d)[q]
        lora = [2 * torch.sigmoid(x @ B[k].T @ A[k]) for k in range(L)]
        if L == 1:
            return x * lora[0]
        share = own(gate.choose, x, q).softmax(-1)
        return x * sum(share[:, k : k + 1] * lora[k] for k in range(L))

    def row(score, x, n):
        first = sum(score.counts[:n])
        chosen = slice(first, first + score.counts[n])
        return x @ score.linear.w[chosen, 0].T + score.linear.b[chosen, 0]

    H = [
        [experts_1[q * K + k](feature_gate(model.feature_gate_1, x, q, row)) for k in range(K)]
        for q in range(1 + G)
    ]
    z = []
    for q in range(1 + G):
        seen = [*H[0], *H[1], *H[2]] if q == 0 else H[0] + H[q]
        weights = row(model.level_1.gate.score, x, q).softmax(-1)
        self_weights = row(model.level_1.residual.score, x, q).softmax(-1)
        mixed = sum(weights[:, e : e + 1] * h for e, h in enumerate(seen))
        z.append(mixed + sum(self_weights[:, k : k + 1] * h for k, h in enumerate(H[q])))
    inputs = [*z, *(z[1 + groups[t]] for t in range(T))]
    gated = [feature_gate(model.feature_gate_2, one, q, row) for q, one in enumerate(inputs)]
    shared = [experts_2[k](gated[0]) for k in range(n_S)]
    category = [experts_2[n_S + c](gated[1 + c]) for c in range(G)]
    own = [experts_2[n_S + G + t](gated[1 + G + t]) for t in range(T)]
    logits = []
    for t in range(T):
        z_c = z[1 + groups[t]]
        weights = row(model.level_2.gate.score, torch.cat([z[0], z_c], 1), t).softmax(-1)
        seen = [*shared, category[groups[t]], own[t]]
        y = sum(weights[:, e : e + 1] * h for e, h in enumerate(seen))
        y = y + torch.sigmoid(row(model.level_2.residual.score, z_c, t)) * own[t]
        hidden = model.towers.hidden.to_expert_list()[t](y)
        logits.append(hidden @ model.towers.out.w[t].T + model.towers.out.b[t])
    return torch.cat(logits, 1)


def test_equals_the_formulas_written_expert_by_expert():
    batch = batch_of(40, dtype=torch.float64)
    model = warmed(stepped(build("home").double(), batch), batch)
    with torch.no_grad():
        expected = oracle(model, model.inputs(batch))
    torch.testing.assert_close(model(batch), expected, rtol=1e-8, atol=1e-10)


def test_feature_gates_change_nothing_at_the_start():
    batch = batch_of(30)
    gated = build("home")
    plain = build("home", feature_gate_1=False, feature_gate_2=False)
    state = {k: v for k, v in gated.state_dict().items() if not k.startswith("feature_gate")}
    plain.load_state_dict(state)
    for training in (True, False):
        first, second = gated.train(training)(batch), plain.train(training)(batch)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_other_categories_get_exactly_no_gradient():
    batch = batch_of(30)
    model = stepped(build("home"), batch)
    model.zero_grad()
    model(batch)[:, :2].sum().backward()  # the watch tasks
    owners = model.level_2.owners
    for linear, _ in model.level_2.experts.layers:
        for owner, grad in zip(owners, linear.w.grad, strict=True):
            assert bool(grad.any()) == (owner not in ("interact", "like")), owner
    gate = model.level_2.gate.score
    like = sum(gate.counts[:2])
    assert not gate.linear.w.grad[like:].any()
    assert gate.linear.w.grad[:like].any()


def test_another_category_is_reached_only_through_the_shared_meta_experts():
    batch = batch_of(30)
    model = stepped(build("home"), batch)
    meta = model.level_1.experts.layers[-1][0].w
    other = [owner == "interact" for owner in model.level_1.owners]

    def gradient(cut):
        model.zero_grad()
        hook = None
        if cut:  # z_S no longer passes a gradient on

            def stop_shared(module, args, output):
                z = output.mixed
                mixed = torch.cat([z[:, :1].detach(), z[:, 1:]], 1)
                return type(output)(
                    mixed, output.experts, output.routing, output.gates, output.owners
                )

            hook = model.level_1.register_forward_hook(stop_shared)
        model(batch)[:, :2].sum().backward()
        if hook is not None:
            hook.remove()
        return meta.grad[other]

    assert gradient(cut=False).any()
    assert not gradient(cut=True).any()


def test_the_gate_alone_is_what_the_diagnostics_read():
    model, batch = build("home").eval(), batch_of(9)
    _, aux = model(batch, return_aux=True)
    for level in aux.levels:
        torch.testing.assert_close(level.routing.probs.sum(-1), torch.ones(9, 3))
        assert (level.routing.weights.sum(-1) > 1).all()


@pytest.mark.parametrize(
    "switch",
    ["feature_gate_1", "feature_gate_2", "self_gate", "hierarchy", "norm_act"],
)
def test_every_switch_takes_its_part_away(switch):
    batch = batch_of(20)
    whole, less = build("home"), build("home", **{switch: False})
    names = {name.split(".")[0] for name in less.state_dict()}
    parts = {
        "feature_gate_1": "feature_gate_1" not in names,
        "feature_gate_2": "feature_gate_2" not in names,
        "self_gate": less.level_1.residual is None and less.level_2.residual is None,
        "hierarchy": less.level_1.gates == ("shared", "all"),
        "norm_act": not less.level_1.experts.norms and less.level_1.experts.act_name == "relu",
    }
    assert parts[switch]
    assert sum(p.numel() for p in less.parameters()) < sum(p.numel() for p in whole.parameters())
    bce(less(batch), batch).backward()
    fused = warmed(less, batch).fuse_for_inference()
    torch.testing.assert_close(fused(batch), less(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tasks", [TASKS[:2], TASKS[2:], TASKS])
@pytest.mark.parametrize("num_meta", [1, 3])
def test_one_category_one_task_and_one_meta_expert_work(tasks, num_meta):
    model = build("home", tasks=tasks, num_meta=num_meta, num_shared=1)
    batch = batch_of(12, num_tasks=len(tasks))
    bce(model(batch), batch).backward()
    assert model.eval()(batch).shape == (12, len(tasks))
    _, aux = model(batch, return_aux=True)
    alone = aux.levels[0].routing.weights - aux.levels[0].routing.probs
    total = alone.sum(-1)
    if num_meta == 1:  # a sigmoid, not a softmax over one, which would be 1
        assert (total < 0.999).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


def test_a_task_without_a_category_is_an_error():
    with pytest.raises(ArgumentError, match="'like' has no group"):
        HoME(SCHEMA, [Task("click", group="watch"), Task("like")])
    HoME(SCHEMA, [Task("click"), Task("like")], hierarchy=False, expert_dims=[[4], [4]])


def test_feature_gates_in_parts_equal_the_whole(monkeypatch):
    gate, x = FeatureGate(2, 6, 2, 3).double(), torch.randn(50, 6).double()
    torch.nn.init.normal_(gate.up)
    whole = gate(x)
    monkeypatch.setattr("moeapps.recsys.models.home.CACHED", 4 * 6 * 7)
    torch.testing.assert_close(gate(x), whole)


def test_the_rank_of_the_paper_needs_a_divisor():
    assert FeatureGate(2, 12, 3, "paper").up.shape == (6, 4, 12)
    with pytest.raises(ArgumentError, match="does not divide"):
        FeatureGate(2, 13, 3, "paper")


def test_experts_start_different():
    w = build("home").level_1.experts.layers[0][0].w
    assert (w[0] - w[1]).abs().max() > 0.01
