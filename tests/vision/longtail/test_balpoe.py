"""BalPoE's loss against values worked out by hand, and when its mean is balanced."""

import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.vision.longtail.balpoe import BalPoE, mixup
from moeapps.vision.longtail.losses import logit_adjusted_cross_entropy

COUNTS = [8, 2]  # pi = .8, .2


def test_mean_over_experts_by_hand():
    model = BalPoE(2, COUNTS, backbone="resnet8")
    loss = model.loss({"logits": torch.zeros(1, 3, 2)}, torch.tensor([1]), epoch=1)
    # lambda 0, 1, 2: the rare class has .5, .2 and .04 / .68
    expected = -(math.log(0.5) + math.log(0.2) + math.log(0.04 / 0.68)) / 3
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_experts", "lambda_max", "lambdas"),
    [(3, 2.0, [0, 1, 2]), (3, 2.5, [0, 1.25, 2.5]), (2, 2.0, [0, 2]), (1, 2.0, [1])],
)
def test_lambdas_are_evenly_spread(num_experts, lambda_max, lambdas):
    model = BalPoE(2, COUNTS, num_experts=num_experts, lambda_max=lambda_max, backbone="resnet8")
    assert model.lam == pytest.approx(lambdas)


def test_loss_gradient():
    model = BalPoE(3, [5, 2, 1], backbone="resnet8")
    z = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda z: model.loss({"logits": z}, target, 1), z)


class Bayes:
    """A discrete problem solved exactly: ten images, three classes, a long-tailed prior."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.given_class = torch.rand(3, 10, dtype=torch.float64, generator=generator) ** 3
        self.given_class /= self.given_class.sum(1, keepdim=True)  # p(x | y)
        self.prior = torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64)
        joint = self.prior.unsqueeze(1) * self.given_class
        self.posterior = (joint / joint.sum(0)).T  # [x, y]

    def minimiser(self, lam):
        """Logits of an expert trained to the end; see the test of it below."""
        return self.posterior.log() - lam * self.prior.log()

    def balanced_error(self, decided):
        hit = F.one_hot(decided, 3).T * self.given_class
        return 1 - float(hit.sum() / 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_of_logits_is_balanced_if_and_only_if_the_mean_lambda_is_one(seed):
    problem = Bayes(seed)
    best = problem.balanced_error(problem.given_class.T.argmax(1))

    def error(lambdas):
        mean = torch.stack([problem.minimiser(lam) for lam in lambdas]).mean(0)
        return problem.balanced_error(mean.argmax(1))

    assert error((0, 1, 2)) == pytest.approx(best)
    assert error((-0.5, 1, 2.5)) == pytest.approx(best)  # MDCS
    assert error((0, 2)) == pytest.approx(best)
    assert error((0, 0, 0)) > best + 0.01
    assert error((0, 1, 0)) > best + 0.01
    assert error((2, 3, 2.5)) > best + 0.01


@pytest.mark.parametrize("lam", [-0.5, 0, 1, 2, 3])
def test_adjusted_cross_entropy_is_least_at_the_posterior_over_the_prior_to_the_lambda(lam):
    problem = Bayes(0)
    z = problem.minimiser(lam).requires_grad_()
    loss = logit_adjusted_cross_entropy(z, problem.posterior, problem.prior.log(), lam)
    (gradient,) = torch.autograd.grad(loss, z)  # the loss is convex
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_mixed_targets_give_the_mixture_of_the_losses():
    pytest.importorskip("torchvision", reason='needs pip install "moeapps[vision]"')
    torch.manual_seed(3)
    images, target = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    mixed, shares = mixup(images, target, num_classes=3, alpha=0.4)
    partner = target.roll(1)
    share = float(shares[1, 1])  # 1 beside 0
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    model = BalPoE(3, [5, 2, 1], backbone="resnet8")
    aux = {"logits": torch.randn(4, 3, 3)}
    expected = share * model.loss(aux, target, 1) + (1 - share) * model.loss(aux, partner, 1)
    torch.testing.assert_close(model.loss(aux, shares, 1), expected)


def test_mixup_without_alpha_mixes_nothing():
    images, target = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 1])
    same, shares = mixup(images, target, num_classes=2, alpha=0)
    assert torch.equal(same, images)
    assert shares.tolist() == [[1, 0], [0, 1], [0, 1]]
