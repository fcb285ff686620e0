"""Opinions and Dempster's rule against values worked out by hand."""

import pytest
import torch

from moeapps.gating.combine import join_opinions, opinions


def test_opinion_of_known_evidence():
    # Evidence (6, 2, 0) over three classes: S = 8 + 3.
    belief, doubt = opinions(torch.tensor([6.0, 2.0, 0.0]).log())
    torch.testing.assert_close(belief.exp(), torch.tensor([6 / 11, 2 / 11, 0.0]))
    torch.testing.assert_close(doubt.exp(), torch.tensor([3 / 11]))


def test_belief_and_doubt_sum_to_one_before_and_after_joining():
    z = 4 * torch.randn(7, 5, dtype=torch.float64)
    one, two = opinions(z), opinions(z.flip(0))
    for belief, doubt in (one, two, join_opinions(*one, *two)[:2]):
        total = belief.exp().sum(-1) + doubt.exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(7, dtype=torch.float64))


def test_joining_is_associative_and_commutative():
    a, b, c = (opinions(3 * torch.randn(6, 4, dtype=torch.float64)) for _ in range(3))
    left = join_opinions(*join_opinions(*a, *b)[:2], *c)[:2]
    right = join_opinions(*a, *join_opinions(*b, *c)[:2])[:2]
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(join_opinions(*a, *b), join_opinions(*b, *a))


def test_agreement_is_one_minus_the_sum_over_unequal_pairs():
    one, two = (opinions(2 * torch.randn(5, 6, dtype=torch.float64)) for _ in range(2))
    pairs = one[0].exp().unsqueeze(-1) * two[0].exp().unsqueeze(-2)  # [5, O, O]
    conflict = pairs.sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(-1)
    agreement = join_opinions(*one, *two)[2].squeeze(-1)
    torch.testing.assert_close(agreement.exp(), 1 - conflict)


def test_certain_experts_of_different_classes_leave_finite_logarithms():
    one, two = opinions(torch.tensor([30.0, -30.0])), opinions(torch.tensor([-30.0, 30.0]))
    belief, doubt, agreement = join_opinions(*one, *two)
    # b1 u2 = u1 b2 = 2 e^-30 (to first order): the rest is negligible, so half and half.
    torch.testing.assert_close(belief.exp(), torch.tensor([0.5, 0.5]))
    assert float(agreement) == pytest.approx(float(torch.tensor(4.0).log()) - 30, rel=0.02)
    assert doubt.isfinite().all()
