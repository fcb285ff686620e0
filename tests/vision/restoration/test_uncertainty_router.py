import math

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.gating import Gate, softmax, topk
from moeapps.vision.restoration.uncertainty_router import MODES, UncertaintyRouter, whitened


def passes(router, x, samples):
    """The logits that the router drew, from the same random numbers."""
    return router.linear(torch.nn.functional.dropout(x.expand(samples, *x.shape), router.p))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_without_dropout_it_is_the_plain_router(mode, training):
    router = UncertaintyRouter(8, 5, p=0.0, mode=mode, eval_samples=3).train(training)
    x = torch.randn(2, 7, 8)
    plain = Gate(router.linear, topk(2))(x)
    routing = Gate(router, topk(2)).train(training)(x)
    assert torch.equal(routing.weights, plain.weights)
    assert torch.equal(routing.indices, plain.indices)


@pytest.mark.parametrize("mode", MODES)
def test_eval_is_one_pass_without_dropout_by_default(mode):
    router = UncertaintyRouter(8, 5, mode=mode).eval()
    x = torch.randn(4, 8)
    assert torch.equal(router(x), router.linear(x))


def test_mean_mode_averages_probabilities():
    router, x = UncertaintyRouter(8, 5, p=0.4, samples=6), torch.randn(3, 8)
    torch.manual_seed(1)
    want = passes(router, x, 6).softmax(-1).mean(0)
    torch.manual_seed(1)
    torch.testing.assert_close(Gate(router, softmax)(x).weights, want)
    torch.manual_seed(1)
    chosen = Gate(router, topk(2))(x)
    kept = want.topk(2, -1).values
    torch.testing.assert_close(chosen.weights, kept / kept.sum(-1, keepdim=True))


def test_temper_mode_flattens_uncertain_logits():
    router, x = UncertaintyRouter(8, 5, p=0.4, samples=6, mode="temper"), torch.randn(3, 8)
    torch.manual_seed(1)
    z = passes(router, x, 6)
    want = z.mean(0) / torch.sqrt(1 + math.pi / 8 * ((z - z.mean(0)) ** 2).mean(0))
    torch.manual_seed(1)
    torch.testing.assert_close(router(x)[0], want)


@pytest.mark.parametrize(("samples", "experts"), [(5, 3), (3, 12)])
def test_whiten_mode_is_the_formula_with_a_ridge(samples, experts):
    router = UncertaintyRouter(8, experts, p=0.4, samples=samples, mode="whiten").double()
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.manual_seed(1)
    probs = passes(router, x, samples).softmax(-1)
    torch.manual_seed(1)
    got = router(x)[0]
    for row in range(4):
        p = probs[:, row]
        sigma = (p - p.mean(0)).T @ (p - p.mean(0)) / samples
        ridge = 1e-3 * sigma.trace() / experts + 1e-6
        r = router.linear(x[row]).softmax(-1) - p.mean(0)
        want = torch.linalg.solve(sigma + ridge * torch.eye(experts).double(), r)
        torch.testing.assert_close(got[row], want / want.norm())


def test_whitening_without_spread_stays_finite():
    out = whitened(torch.zeros(2, 4), torch.zeros(3, 2, 4))
    assert torch.equal(out, torch.zeros(2, 4))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_the_weights(mode):
    torch.manual_seed(0)
    router = UncertaintyRouter(8, 5, p=0.3, mode=mode)
    Gate(router, softmax)(torch.randn(6, 8)).weights[:, 0].sum().backward()
    assert router.linear.weight.grad.isfinite().all()
    assert router.linear.weight.grad.any()


def test_uncertainty_is_the_variance_of_the_probabilities():
    torch.manual_seed(0)
    router, x = UncertaintyRouter(8, 5, p=0.4, samples=6), torch.randn(3, 7, 8)
    torch.manual_seed(1)
    want = passes(router, x, 6).softmax(-1).var(0, unbiased=False).mean(-1)
    torch.manual_seed(1)
    routing = Gate(router, softmax)(x)
    torch.testing.assert_close(routing.extra["variance"], want.detach())
    torch.testing.assert_close(router.uncertainty, want.mean().detach())
    assert "uncertainty" not in router.state_dict()


def test_samples_at_eval_change_with_the_seed_only():
    gate = Gate(UncertaintyRouter(8, 5, eval_samples=4, p=0.5), softmax).eval()
    x = torch.randn(3, 8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(gate(x).weights)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "options", [{"p": 1.0}, {"samples": 0}, {"eval_samples": -1}, {"mode": "median"}]
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ArgumentError):
        UncertaintyRouter(8, 5, **options)
