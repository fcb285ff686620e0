"""Evidence against values worked out by hand and against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.evidence import (
    evidential_kl,
    log_engagement,
    log_uncertainty,
)

# Evidence of four experts over two classes, S = sum + 2:
#   (6, 2): b = (.6, .2), u = .2   (1, 1): b = (.25, .25), u = .5
#   (0, 2): b = (0, .5),  u = .5   (2, 0): b = (.5, 0),    u = .5
LOGITS = torch.tensor([[[6.0, 2.0], [1.0, 1.0], [0.0, 2.0], [2.0, 0.0]]]).log()


def test_released_engagement_by_hand():
    # Q2 = .6*.25 + .2*.25 = .2, Q3 = .25*.5 = .125, Q4 = .5*.5 = .25
    w3 = 0.2 * 0.5 / 0.8
    w4 = w3 * 0.5 / 0.875
    w5 = w4 * 0.5 / 0.75
    expected = torch.tensor([[1, 0.2, w3, w4, w5]])
    torch.testing.assert_close(log_engagement(LOGITS).exp(), expected)


def test_combined_engagement_is_the_doubt_of_the_joint_opinion():
    # Of 1 and 2: b = (.15 + .3 + .05, .05 + .1 + .05) / .8 = (.625, .25), u = .125
    # with 3: Q = .625 * .5 = .3125, b = (.3125, .125 + .125 + .0625) / .6875, u = .0625 / .6875
    # with 4: b = (5/11, 5/11), u = 1/11; Q = 5/11 * .5, u = .5/11 / (1 - 2.5/11)
    expected = torch.tensor([[1, 0.2, 0.125, 1 / 11, 0.5 / 8.5]])
    torch.testing.assert_close(log_engagement(LOGITS, "combined").exp(), expected)


def test_both_forms_agree_on_the_weights_of_three_experts():
    z = 3 * torch.randn(8, 3, 5)
    released, combined = log_engagement(z), log_engagement(z, "combined")
    torch.testing.assert_close(released[:, :3], combined[:, :3])
    assert not torch.allclose(released[:, 3], combined[:, 3])


def test_one_expert_leaves_its_own_doubt():
    z = torch.randn(4, 1, 6)
    doubt = 6 / (z.exp().sum(-1) + 6)
    torch.testing.assert_close(log_uncertainty(z).exp(), doubt.squeeze(-1))


def test_certain_images_do_not_tie():
    z = torch.full((3, 3, 10), -30.0)
    z[:, :, 0] = torch.tensor([[28.0], [29.0], [30.0]])
    scores = log_uncertainty(z)
    assert scores[0] > scores[1] > scores[2]
    # log10 w = 3 log10(10 / e^28) = -33.5: beyond what keeps precision as a plain number
    assert float(scores[0]) == pytest.approx(3 * (math.log(10) - 28), rel=1e-4)


def test_engagement_does_not_see_other_images():
    z = torch.randn(6, 3, 4)
    torch.testing.assert_close(log_engagement(z)[2:3], log_engagement(z[2:3]))


def test_unknown_conflict_and_missing_axis_are_named():
    with pytest.raises(ArgumentError, match="conflict='pairs'"):
        log_engagement(LOGITS, "pairs")
    with pytest.raises(ArgumentError, match="experts, classes"):
        log_engagement(torch.zeros(4))


def test_evidential_kl_by_hand():
    # Label 2; evidence (1, 2) for the others: Dir(2, 3, 1), S = 6:
    # ln 5! - ln 2! - (ln 1! + ln 2! + 0) + 1*(psi(2) - psi(6)) + 2*(psi(3) - psi(6))
    # psi(6) - psi(2) = 1/2 + 1/3 + 1/4 + 1/5, psi(6) - psi(3) = 1/3 + 1/4 + 1/5
    expected = math.log(120) - 2 * math.log(2) - (77 / 60) - 2 * (47 / 60)
    z = torch.tensor([[1.0, 2.0, 1e6]]).log()
    assert float(evidential_kl(z, torch.tensor([2]))) == pytest.approx(expected, rel=1e-6)


def test_evidential_kl_equals_the_divergence_of_dirichlets():
    z = 2 * torch.randn(5, 7, dtype=torch.float64)
    target = torch.arange(5)
    alpha = (z.exp() + 1).scatter(1, target.unsqueeze(1), 1)
    expected = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
    torch.testing.assert_close(evidential_kl(z, target), expected)


def test_evidential_kl_is_exact_at_the_largest_evidence():
    # One wrong class with evidence A: ln Gamma(A + C) - ln Gamma(A + 1) -> (C - 1) ln A, and
    # A (psi(A + 1) - psi(A + C)) -> -(C - 1).
    num_classes = 100
    z = torch.full((1, num_classes), -30.0)
    z[0, 3] = 30.0
    got = float(evidential_kl(z, torch.tensor([0])))
    expected = (num_classes - 1) * (30.0 - 1) - math.lgamma(num_classes)
    assert got == pytest.approx(expected, rel=1e-4)
    in_float32 = kl_divergence(
        Dirichlet((z.exp() + 1).scatter(1, torch.tensor([[0]]), 1)), Dirichlet(torch.ones(1, 100))
    )
    assert abs(float(in_float32) - expected) > expected / 2


def test_no_evidence_for_wrong_classes_costs_nothing():
    z = torch.tensor([[30.0, -40.0, -40.0]])
    assert float(evidential_kl(z, torch.tensor([0]))) == pytest.approx(0, abs=1e-6)


def test_gradients():
    z = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(lambda z: evidential_kl(z[:, 0], target), z)
    for conflict in ("released", "combined"):
        assert torch.autograd.gradcheck(lambda z, c=conflict: log_engagement(z, c), z)


def test_an_expert_without_finite_logits_has_no_opinion():
    z = LOGITS.clone()
    z[:, 1] = math.nan
    got = log_engagement(z, "combined").exp()
    # of 1 and 3: Q = .6 * .5 = .3, u = .1 / .7; then b = (.3, .1 + .1 + .1) / .7, Q = .15 / .7
    joint = 0.1 / 0.7
    expected = torch.tensor([[1, 0.2, 0.2, joint, joint * 0.5 / (1 - 0.15 / 0.7)]])
    torch.testing.assert_close(got, expected)
