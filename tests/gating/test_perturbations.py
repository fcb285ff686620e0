import math

import pytest
import torch
from torch.nn import functional as F

from moeapps.errors import ArgumentError
from moeapps.gating.gates import Gate
from moeapps.gating.perturbations import (
    GateDropout,
    Gaussian,
    Gumbel,
    Jitter,
    Learned,
    MonteCarlo,
    Perturbation,
)
from moeapps.gating.scores import Linear
from moeapps.gating.selections import softmax, topk

D, E = 6, 4
ALL = {
    "gaussian": Gaussian,
    "learned": lambda: Learned(D, E),
    "jitter": Jitter,
    "gumbel": Gumbel,
    "dropout": lambda: GateDropout(0.5),
    "monte_carlo": lambda: MonteCarlo(3, dropout=0.5),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ALL)
def test_noise_acts_in_training_only_and_follows_the_generator(name):
    gate = Gate(Linear(D, E), softmax, perturb=ALL[name]())
    x = torch.randn(20, D)
    state = torch.get_rng_state()
    first = gate(x, generator=seeded(1)).check()
    assert torch.equal(first.weights, gate(x, generator=seeded(1)).weights)
    assert not torch.equal(first.weights, gate(x, generator=seeded(2)).weights)
    assert torch.equal(state, torch.get_rng_state())
    gate.eval()
    torch.testing.assert_close(gate(x).weights, gate.score(x).softmax(-1))


@pytest.mark.parametrize("name", ["gaussian", "learned", "gumbel", "dropout"])
def test_stored_logits_are_clean(name):
    gate = Gate(Linear(D, E), softmax, perturb=ALL[name]())
    x = torch.randn(20, D)
    torch.testing.assert_close(gate(x).logits, gate.score(x))


@pytest.mark.parametrize("name", ALL)
def test_gradients_pass_the_noise(name):
    gate = Gate(Linear(D, E), softmax, perturb=ALL[name]()).double()
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gate(x, generator=seeded(1)).weights, x)


def test_gaussian_size_is_one_over_the_number_of_experts():
    logits = torch.zeros(20000, E)
    noisy, extra = Gaussian()(logits, logits)
    assert abs(float(noisy.std()) - 1 / E) < 0.01
    assert torch.equal(extra["noisy_logits"], noisy)
    assert Gaussian(0.0)(logits, logits)[0].abs().max() == 0
    with pytest.raises(ArgumentError, match="std"):
        Gaussian(-1.0)


def test_learned_size_follows_its_formula():
    perturb = Learned(D, E)
    with torch.no_grad():
        perturb.weight.normal_()
    x, logits = torch.randn(5, D), torch.randn(5, E)
    noisy, extra = perturb(logits, x, seeded(0))
    sigma = F.softplus(x @ perturb.weight.T) + 0.01
    torch.testing.assert_close(extra["sigma"], sigma)
    eps = torch.empty(5, E).normal_(generator=seeded(0))
    torch.testing.assert_close(noisy, logits + eps * sigma)


def test_noise_is_stored_in_the_units_of_the_logits():
    gate = Gate(Linear(D, E), topk(2), perturb=Gaussian(0.5), temperature=4.0)
    x = torch.randn(30000, D)
    routing = gate(x).check()
    noise = (routing.extra["noisy_logits"] - routing.logits).detach()
    torch.testing.assert_close(routing.extra["sigma"], torch.full((30000, E), 2.0))
    assert abs(float(noise.std()) - 2.0) < 0.02


def test_jitter_multiplies_the_input():
    seen = []
    x = torch.randn(4000)
    Jitter(0.1).around(lambda x: seen.append(x) or (x, {}), x, None)
    factor = seen[0] / x
    assert factor.min() >= 0.9 - 1e-6
    assert factor.max() <= 1.1 + 1e-6
    assert factor.std() > 0.05
    with pytest.raises(ArgumentError, match="eps"):
        Jitter(1.0)


def test_the_largest_gumbel_logit_is_a_draw_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20000, E)
    drawn = Gumbel()(logits, logits)[0].argmax(-1)
    share = F.one_hot(drawn, E).float().mean(0)
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_dropped_experts_get_nothing_and_the_rest_is_renormalised():
    logits = torch.randn(5000, E)
    dropped = GateDropout(0.3)(logits, logits)[0]
    weights = softmax(dropped).check().weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(5000))
    assert abs(float((weights == 0).float().mean()) - 0.3) < 0.02
    with pytest.raises(ArgumentError, match="p=1"):
        GateDropout(1.0)


def test_dropout_never_leaves_a_row_without_a_visible_expert():
    logits = torch.randn(500, E)
    logits[:, 1:] = -math.inf
    assert (GateDropout(0.9)(logits, logits)[0][:, 0] > -math.inf).all()


def test_monte_carlo_gives_mean_and_covariance_of_its_passes():
    passes = []
    weight = torch.randn(D, E)

    def score(x):
        passes.append(x @ weight)
        return passes[-1], {"state": x}

    mean, extra = MonteCarlo(5, dropout=0.5).around(score, torch.randn(3, D), None)
    stacked = torch.stack(passes)
    assert len(passes) == 5
    torch.testing.assert_close(mean, stacked.mean(0))
    for n in range(3):
        expected = torch.cov(stacked[:, n].T, correction=0)
        torch.testing.assert_close(extra["covariance"][n], expected)
    assert set(extra) == {"state", "covariance"}
    with pytest.raises(ArgumentError, match="passes"):
        MonteCarlo(0)


def test_monte_carlo_mean_approaches_the_clean_score():
    x, weight = torch.randn(3, D), torch.randn(D, E)
    mean, _ = MonteCarlo(4000, dropout=0.2).around(lambda x: (x @ weight, {}), x, None)
    torch.testing.assert_close(mean, x @ weight, atol=0.15, rtol=0)


def test_the_base_changes_nothing():
    x = torch.randn(3, D)
    logits, extra = Perturbation()(x, x)
    assert torch.equal(logits, x)
    assert not extra
