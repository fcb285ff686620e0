"""Strategies against torchjd, an independent implementation."""

import numpy as np
import pytest
import torch

from moeapps.training.balancing import create_balancing

aggregation = pytest.importorskip("torchjd.aggregation", reason="needs pip install torchjd")
scalarization = pytest.importorskip("torchjd.scalarization", reason="needs pip install torchjd")


def jacobian(seed, tasks, width=12):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.exp(rng.normal(size=(tasks, 1))) * rng.normal(size=(tasks, width)))


def ours(name, gradients, **arguments):
    balancing = create_balancing(name, len(gradients), **arguments)
    return balancing.weigh(gradients @ gradients.T, torch.ones(len(gradients))) @ gradients


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_of_two_tasks(seed):
    g = jacobian(seed, 2)
    torch.testing.assert_close(ours("pcgrad", g), aggregation.PCGrad()(g))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tasks", [2, 4])
def test_imtl_g(seed, tasks):
    g = jacobian(seed, tasks)
    torch.testing.assert_close(ours("imtl_g", g), aggregation.IMTLG()(g))


@pytest.mark.parametrize("seed", range(5))
def test_mgda_is_as_short_as_many_frank_wolfe_steps(seed):
    g = jacobian(seed, 4)
    theirs = aggregation.MGDA(epsilon=1e-10, max_iters=5000)(g)
    torch.testing.assert_close(ours("mgda", g), theirs, rtol=1e-2, atol=1e-2)
    assert ours("mgda", g).norm() <= theirs.norm() + 1e-9


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("c", [0.3, 0.8])
def test_cagrad(seed, c):
    pytest.importorskip("cvxpy", reason="needs pip install cvxpy")
    g = jacobian(seed, 4)
    theirs = aggregation.CAGrad(c=c)(g)
    torch.testing.assert_close(ours("cagrad", g, c=c, rescale=False), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:You are solving")
@pytest.mark.parametrize("seed", range(5))
def test_nash_has_the_direction_of_their_convex_programs(seed):
    pytest.importorskip("ecos", reason="needs pip install ecos")
    g = jacobian(seed, 3).float()
    theirs = aggregation.NashMTL(n_tasks=3, max_norm=1.0, optim_niter=200)(g)
    mine = ours("nash", g)
    similarity = torch.nn.functional.cosine_similarity(mine, theirs, dim=0)
    assert similarity > 0.999


def test_dwa():
    mine, theirs = create_balancing("dwa", 3), scalarization.DWA()
    rng = np.random.default_rng(0)
    for _ in range(4):
        for _ in range(3):
            losses = torch.from_numpy(rng.random(3)).float()
            torch.testing.assert_close(mine.total(losses)[0], theirs(losses))
        mine.end_epoch()
        theirs.step()


def test_uncertainty():
    mine, theirs = create_balancing("uncertainty", 2, regression=[True, True]), scalarization.UW(2)
    mine.log_variance.data = theirs.log_var.data = torch.tensor([0.3, -0.7])
    losses = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(mine.total(losses)[0], theirs(losses))


def test_famo():
    mine, theirs = create_balancing("famo", 3), scalarization.FAMO(3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = torch.from_numpy(0.1 + rng.random(3)).float().requires_grad_()
        [expected] = torch.autograd.grad(theirs(losses), losses)
        torch.testing.assert_close(mine.weigh(losses.detach()), expected, rtol=1e-4, atol=1e-5)
        after = losses.detach() * torch.from_numpy(0.5 + rng.random(3)).float()
        mine.after_step(after)
        theirs.update(after)


def test_stch_of_relative_log_losses():
    mine = create_balancing("stch", 3, mu=0.5, warmup=1)
    start = torch.tensor([1.0, 2.0, 4.0])
    mine.weigh(start)
    losses = torch.tensor([0.5, 1.9, 2.0], requires_grad=True)
    theirs = scalarization.STCH(0.5, weights=torch.ones(3))((losses / start).log())
    [expected] = torch.autograd.grad(3 * theirs, losses)
    torch.testing.assert_close(mine.weigh(losses.detach()), expected)
