"""Strategies against closed forms and optimality conditions, and the gradients they leave."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.training.balancing import BALANCINGS, create_balancing
from moeapps.training.balancing.simplex import minimise_on_simplex

GRADIENT = ["gradnorm", "pcgrad", "mgda", "cagrad", "imtl_g", "nash", "metabalance", "db_mtl"]


def jacobian(seed, tasks=4, width=9):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(tasks, 1)))
    return torch.from_numpy(scale * rng.normal(size=(tasks, width)))


def step(name, gradients, losses=None, **arguments):
    """Weights and the combined gradient."""
    losses = torch.ones(len(gradients), dtype=torch.float64) if losses is None else losses
    weights = create_balancing(name, len(gradients), **arguments).weigh(
        gradients @ gradients.T, losses
    )
    return weights, weights @ gradients


class Two(nn.Module):
    """Two shared tensors and a tower per task."""

    def __init__(self, tasks=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.shared = nn.Linear(5, 4, dtype=torch.float64)
        self.towers = nn.ModuleList(nn.Linear(4, 1, dtype=torch.float64) for _ in range(tasks))

    def forward(self, x):
        self.v = torch.tanh(self.shared(x))
        return torch.cat([tower(self.v) for tower in self.towers], 1)


def losses_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(16, len(model.towers), generator=generator, dtype=torch.float64)
    scale = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)[: len(model.towers)]
    return ((model(x) - y) ** 2).mean(0) * scale


def task_gradients(model):
    losses = losses_of(model)
    rows = [
        torch.autograd.grad(loss, list(model.shared.parameters()), retain_graph=True)
        for loss in losses
    ]
    return [torch.stack([row[k].flatten() for row in rows]) for k in range(2)]


# -------------------------------------------------------------------------------- closed forms


@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 8), width=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_simplex_minimum_meets_its_optimality_conditions(seed, tasks, width):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(tasks, width)) * np.exp(2 * rng.normal(size=(tasks, 1)))
    q = root @ root.T
    b = q @ rng.normal(size=tasks) * rng.integers(0, 2)
    w = minimise_on_simplex(q, b)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1.0)
    slope = q @ w + b
    assert w @ slope - slope.min() <= 1e-9 * (np.abs(q).max() + np.abs(b).max())


def test_mgda_with_two_tasks_is_the_closed_form():
    for seed in range(20):
        g = jacobian(seed, tasks=2)
        first = ((g[1] - g[0]) @ g[1] / (g[0] - g[1]).square().sum()).clamp(0, 1)
        weights, _ = step("mgda", g)
        torch.testing.assert_close(weights, torch.stack([first, 1 - first]))


def test_mgda_makes_no_task_worse():
    for seed in range(20):
        g = jacobian(seed, tasks=6, width=8)
        _, direction = step("mgda", g)
        assert (g @ direction).min() >= direction.square().sum() - 1e-9


def test_mgda_normalises_gradients_by_norm_and_loss():
    g, losses = jacobian(0), torch.tensor([0.1, 1.0, 2.0, 4.0], dtype=torch.float64)
    norms = g.norm(dim=1)
    for how, scale in (("l2", norms), ("loss", losses), ("loss+", losses * norms)):
        expected, _ = step("mgda", g / scale[:, None])
        torch.testing.assert_close(step("mgda", g, losses, normalize=how)[0], expected)
    with pytest.raises(UnknownNameError, match="loss\\+"):
        create_balancing("mgda", 2, normalize="loss-")


def test_pcgrad_by_hand():
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    first = g[0] - (g[0] @ g[1]) / g[1].square().sum() * g[1]  # [0.5, 0.5]
    second = g[1] - (g[1] @ g[0]) / g[0].square().sum() * g[0]  # [0, 1]
    torch.testing.assert_close(step("pcgrad", g)[1], first + second)


def test_pcgrad_equals_projecting_the_vectors():
    for seed in range(10):
        g = jacobian(seed, tasks=5, width=6)
        balancing = create_balancing("pcgrad", 5, seed=seed)
        orders = torch.Generator().manual_seed(seed)  # the first step's number is 0
        total = torch.zeros(6, dtype=torch.float64)
        for t in range(5):
            own = g[t].clone()
            for j in torch.randperm(5, generator=orders).tolist():
                if j != t and own @ g[j] < 0:
                    own -= (own @ g[j]) / g[j].square().sum() * g[j]
            total += own
        got = balancing.weigh(g @ g.T, torch.ones(5)) @ g
        torch.testing.assert_close(got, total)


def test_pcgrad_without_conflict_is_the_sum():
    g = jacobian(0).abs()
    torch.testing.assert_close(step("pcgrad", g)[1], g.sum(0))


def test_pcgrad_orders_follow_the_seed_and_the_step():
    gram = jacobian(3, tasks=6, width=3)
    gram = gram @ gram.T
    one, other = (create_balancing("pcgrad", 6, seed=s) for s in (0, 1))
    same = create_balancing("pcgrad", 6, seed=0)
    first, second = (one.weigh(gram, torch.ones(6)) for _ in range(2))
    assert torch.equal(same.weigh(gram, torch.ones(6)), first)
    assert not torch.equal(first, second)
    assert not torch.equal(other.weigh(gram, torch.ones(6)), first)
    resumed = create_balancing("pcgrad", 6, seed=0)
    resumed.load_state_dict(same.state_dict())
    assert torch.equal(resumed.weigh(gram, torch.ones(6)), second)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_the_best_worst_task_in_its_ball(c):
    for seed in range(8):
        g = jacobian(seed, tasks=3, width=3)
        mean = g.mean(0)
        direction = step("cagrad", g, c=c, rescale=False)[1]
        radius = c * mean.norm()
        torch.testing.assert_close((direction - mean).norm(), radius)
        noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(4000, 3)))
        others = mean + radius * noise / noise.norm(dim=1, keepdim=True)
        assert (g @ direction).min() >= (others @ g.T).min(1).values.max() - 1e-9


def test_cagrad_without_radius_is_the_mean_and_rescales():
    g = jacobian(1)
    torch.testing.assert_close(step("cagrad", g, c=0.0)[1], g.mean(0))
    plain, scaled = (step("cagrad", g, c=0.5, rescale=r)[1] for r in (False, True))
    torch.testing.assert_close(scaled * 1.25, plain)


def test_imtl_projects_equally_on_unit_gradients():
    for seed in range(20):
        g = jacobian(seed, tasks=5)
        weights, direction = step("imtl_g", g)
        projections = (g / g.norm(dim=1, keepdim=True)) @ direction
        torch.testing.assert_close(projections, projections[0].expand(5))
        torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))


def test_imtl_equals_the_papers_formula():
    g = jacobian(0, tasks=4)
    unit = g / g.norm(dim=1, keepdim=True)
    d, u = g[0] - g[1:], unit[0] - unit[1:]
    rest = g[0] @ u.T @ torch.linalg.inv(d @ u.T)
    expected = torch.cat([(1 - rest.sum()).view(1), rest])
    torch.testing.assert_close(step("imtl_g", g)[0], expected)


def test_nash_meets_its_bargaining_equation():
    for seed in range(20):
        g = jacobian(seed, tasks=4)
        weights, direction = step("nash", g, max_norm=1e9)
        torch.testing.assert_close(g @ direction, 1 / weights, rtol=1e-4, atol=1e-6)
        assert step("nash", g, max_norm=0.5)[1].norm() <= 0.5 + 1e-9


def test_metabalance_matches_norms_of_the_target():
    g = jacobian(0)
    gram = (g @ g.T).unsqueeze(0)
    losses = torch.ones(4)
    full = create_balancing("metabalance", 4, target=2, relax=1.0).weigh(gram, losses)[0]
    torch.testing.assert_close((full[:, None] * g).norm(dim=1), g[2].norm().expand(4))
    half = create_balancing("metabalance", 4, target=2, relax=0.5).weigh(gram, losses)[0]
    torch.testing.assert_close(half, 0.5 * full + 0.5)


def test_metabalance_norms_move_slowly_and_come_back_from_a_checkpoint():
    balancing = create_balancing("metabalance", 2, relax=1.0, beta=0.9)
    gram = torch.diag(torch.tensor([1.0, 4.0])).unsqueeze(0)
    balancing.weigh(gram, torch.ones(2))
    resumed = create_balancing("metabalance", 2, relax=1.0, beta=0.9)
    resumed.load_state_dict(balancing.state_dict())
    for one in (balancing, resumed):  # the second task's norm falls from 2 to 1: 0.9 * 2 + 0.1 * 1
        got = one.weigh(torch.eye(2).unsqueeze(0), torch.ones(2))
        torch.testing.assert_close(got, torch.tensor([[1.0, 1 / 1.9]]))


def test_db_mtl_gives_log_losses_equal_gradient_norms():
    g, losses = jacobian(0), torch.tensor([0.1, 1.0, 2.0, 4.0], dtype=torch.float64)
    weights, _ = step("db_mtl", g, losses)
    norms = (weights[:, None] * g).norm(dim=1)
    torch.testing.assert_close(norms, (g.norm(dim=1) / losses).max().expand(4))


@pytest.mark.parametrize("name", ["mgda", "cagrad", "imtl_g", "nash", "pcgrad", "db_mtl"])
def test_degenerate_gradients_give_finite_weights(name):
    row = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    cases = [
        torch.zeros(3, 3, dtype=torch.float64),
        torch.stack([row, row, row]),
        torch.stack([row, -row, row]),
        torch.stack([row, 0 * row, 1e-9 * row]),
    ]
    for g in cases:
        weights, direction = step(name, g)
        assert weights.isfinite().all()
        assert direction.isfinite().all()


@pytest.mark.parametrize("name", ["mgda", "cagrad", "imtl_g", "nash", "pcgrad", "db_mtl"])
def test_one_task_follows_its_own_gradient(name):
    g = jacobian(0, tasks=1)
    _, direction = step(name, g)
    torch.testing.assert_close(direction / direction.norm(), g[0] / g[0].norm())


# -------------------------------------------------------------------------------- loss weights


def test_equal_is_the_sum():
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    assert create_balancing("equal", 2).backward(losses).tolist() == [1, 1]
    assert losses.grad.tolist() == [1, 1]


def test_static_weights_fade_by_the_step():
    static = create_balancing("static", 2, weights=[2.0, 1.0], decay=[0.5, 1.0])
    assert [static.weigh(torch.ones(2)).tolist() for _ in range(3)] == [[2, 1], [1, 1], [0.5, 1]]
    resumed = create_balancing("static", 2, weights=[2.0, 1.0], decay=[0.5, 1.0])
    resumed.load_state_dict(static.state_dict())
    assert resumed.weigh(torch.ones(2)).tolist() == [0.25, 1]
    with pytest.raises(ArgumentError, match="one per"):
        create_balancing("static", 2, weights=[1.0])


def test_uncertainty_learns_the_loss_as_its_variance():
    # With the classification form the minimum over c of L e^-c + c / 2 is at e^c = 2 L; with the
    # regression form of L e^-c / 2 + c / 2 at e^c = L.
    losses = torch.tensor([0.3, 2.0])
    balancing = create_balancing("uncertainty", 2, regression=[False, True])
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        balancing.total(losses)[0].backward()
        optimizer.step()
    torch.testing.assert_close(
        balancing.log_variance.exp().detach(), torch.tensor([0.6, 2.0]), rtol=1e-3, atol=1e-3
    )


def test_dwa_follows_the_ratio_of_epoch_means():
    dwa = create_balancing("dwa", 2, temperature=2.0)
    epochs = [[[1.0, 4.0], [3.0, 4.0]], [[1.0, 4.0]], [[9.0, 9.0], [9.0, 9.0]]]
    for epoch in epochs:
        seen = [dwa.weigh(torch.tensor(losses)) for losses in epoch]
        dwa.end_epoch()
    ratio = torch.tensor([1.0 / 2.0, 4.0 / 4.0])
    expected = 2 * torch.softmax(ratio / 2, 0)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(seen[1], expected)


def test_dwa_weighs_the_first_two_epochs_alike():
    dwa = create_balancing("dwa", 2)
    for losses in ([1.0, 9.0], [0.1, 9.0]):
        assert dwa.weigh(torch.tensor(losses)).tolist() == [1, 1]
        dwa.end_epoch()
    assert dwa.weigh(torch.ones(2))[1] > 1


def test_famo_gives_equal_log_speed():
    """Two quadratics of very different scale fall at about the same rate."""
    x = nn.Parameter(torch.tensor([3.0, 3.0]))
    famo = create_balancing("famo", 2, lr=0.05)

    def losses():
        return torch.stack([x[0].square(), 0.01 * x[1].square()])

    start = losses().detach()
    for _ in range(60):
        x.grad = None
        famo.backward(losses())
        with torch.no_grad():
            x -= 0.05 * x.grad
        famo.after_step(losses().detach())
    fallen = (start / losses().detach()).log()
    assert fallen.min() / fallen.max() > 0.6
    x = nn.Parameter(torch.tensor([3.0, 3.0]))
    for _ in range(60):
        x.grad = None
        create_balancing("equal", 2).backward(losses())
        with torch.no_grad():
            x -= 0.05 * x.grad
    fallen = (start / losses().detach()).log()
    assert fallen.min() / fallen.max() < 0.1


def test_stch_is_the_gradient_of_its_scalarisation():
    stch = create_balancing("stch", 3, mu=0.3, warmup=2)
    first = torch.tensor([1.0, 2.0, 4.0])
    assert stch.weigh(first).tolist() == [1, 1, 1]
    assert stch.weigh(3 * first).tolist() == [1, 1, 1]
    losses = torch.tensor([1.0, 1.5, 7.0], requires_grad=True)
    total = 3 * 0.3 * torch.logsumexp((losses / (2 * first)).log() / 0.3, 0)
    [expected] = torch.autograd.grad(total, losses)
    torch.testing.assert_close(stch.weigh(losses.detach()), expected)


# ---------------------------------------------------------------------------- gradients it leaves


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "cagrad", "imtl_g", "nash"])
def test_shared_parameters_get_the_combination_and_towers_their_own_gradient(name):
    model = Two()
    gradients = task_gradients(model)
    losses = losses_of(model)
    gram = sum(g @ g.T for g in gradients)
    expected = create_balancing(name, 3).weigh(gram, losses.detach())
    towers = list(model.towers.parameters())
    plain = torch.autograd.grad(losses.sum(), towers, retain_graph=True)
    weights = create_balancing(name, 3).backward(losses, list(model.shared.parameters()))
    torch.testing.assert_close(weights, expected)
    for parameter, g in zip(model.shared.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.flatten(), expected @ g)
    for parameter, g in zip(towers, plain, strict=True):
        torch.testing.assert_close(parameter.grad, g)


def test_metabalance_weighs_each_tensor_by_itself():
    model = Two()
    gradients = task_gradients(model)
    balancing = create_balancing("metabalance", 3, relax=1.0)
    balancing.backward(losses_of(model), list(model.shared.parameters()))
    for parameter, g in zip(model.shared.parameters(), gradients, strict=True):
        scale = g[0].norm() / g.norm(dim=1)
        torch.testing.assert_close(parameter.grad.flatten(), scale @ g)


def test_gradients_at_a_representation_choose_the_weights():
    model = Two()
    losses = losses_of(model)
    rows = torch.stack(
        [torch.autograd.grad(loss, model.v, retain_graph=True)[0].flatten() for loss in losses]
    )
    expected = create_balancing("mgda", 3).weigh(rows @ rows.T, losses)
    gradients = task_gradients(model)
    losses = losses_of(model)
    balancing = create_balancing("mgda", 3)
    weights = balancing.backward(losses, list(model.shared.parameters()), representation=model.v)
    torch.testing.assert_close(weights, expected)
    for parameter, g in zip(model.shared.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.flatten(), expected @ g)


def test_gradients_add_to_those_already_there():
    model = Two()
    shared = list(model.shared.parameters())
    balancing = create_balancing("imtl_g", 3)
    balancing.backward(losses_of(model), shared)
    once = [p.grad.clone() for p in model.parameters()]
    balancing.backward(losses_of(model), shared)
    for parameter, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * g)


@pytest.mark.parametrize("name", GRADIENT)
def test_a_task_that_misses_the_shared_parameters_is_no_obstacle(name):
    model = Two()
    losses = losses_of(model)
    own = nn.Parameter(torch.ones((), dtype=torch.float64))
    losses = torch.cat([losses[:2], (own * 2).square().view(1)])
    weights = create_balancing(name, 3).backward(losses, list(model.shared.parameters()))
    assert weights.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.shared.parameters())
    assert own.grad != 0


def test_gradnorm_objective_is_differentiated_in_the_weights_alone():
    model = Two()
    shared = [model.shared.weight]
    norms = task_gradients(model)[0].norm(dim=1)
    balancing = create_balancing("gradnorm", 3, alpha=1.5).double()
    balancing.logits.data = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)
    losses = losses_of(model)
    balancing.start = losses.detach() * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    logits = balancing.logits.detach().clone().requires_grad_()
    weights = 3 * torch.softmax(logits, 0)
    speed = losses.detach() / balancing.start
    target = ((weights * norms).mean() * (speed / speed.mean()) ** 1.5).detach()
    [expected] = torch.autograd.grad((weights * norms - target).abs().sum(), logits)
    got = balancing.backward(losses, shared)
    torch.testing.assert_close(balancing.logits.grad, expected)
    torch.testing.assert_close(got, weights.detach())
    plain = torch.autograd.grad(weights.detach() @ losses_of(model), list(model.parameters()))
    for parameter, g in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, g)


def test_gradnorm_without_speed_differences_makes_norms_equal():
    model = Two()
    balancing = create_balancing("gradnorm", 3, alpha=0.0)
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.02)
    norms = task_gradients(model)[0].norm(dim=1)
    for _ in range(400):
        optimizer.zero_grad()
        weights = balancing.backward(losses_of(model), [model.shared.weight])
        optimizer.step()
    pulled = weights * norms
    assert pulled.max() / pulled.min() < 1.1
    assert norms.max() / norms.min() > 5


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", BALANCINGS)
def test_another_number_of_losses_is_an_error(name):
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(ArgumentError, match=r"balances 2 tasks, got losses \[3\]"):
        create_balancing(name, 2).backward(w * torch.ones(3), [w])


@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_methods_need_shared_parameters(name):
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(ArgumentError, match="shared_parameters"):
        create_balancing(name, 2).backward(w * torch.ones(2))


def test_unknown_names_and_arguments_are_named():
    with pytest.raises(UnknownNameError, match="'pcgrad'"):
        create_balancing("pc_grad", 2)
    with pytest.raises(ArgumentError, match="'alpha'"):
        create_balancing("cagrad", 2, alpha=1)
    with pytest.raises(ArgumentError, match="num_tasks=0"):
        create_balancing("equal", 0)
