"""Failure prediction, tail detection and foreign images: ranks only, one scale, both directions."""

import math

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.vision.longtail import uncertainty as u


def test_auroc_counts_pairs_and_halves_ties():
    score = torch.tensor([0.0, 1.0, 1.0, 2.0])
    positive = torch.tensor([False, False, True, True])
    assert u.auroc(score, positive) == pytest.approx((2 + 1.5) / 4)


def test_only_ranks_matter_even_where_the_scores_would_underflow():
    log_u = torch.tensor([-300.0, -200.0, -250.0, -100.0])
    wrong = torch.tensor([False, True, False, True])
    assert u.auroc(log_u, wrong) == 1
    assert u.auroc(log_u, wrong) == u.auroc(torch.tensor([1.0, 3.0, 2.0, math.inf]), wrong)


def test_one_kind_alone_has_no_score():
    assert math.isnan(u.auroc(torch.randn(4), torch.ones(4, dtype=torch.bool)))
    assert math.isnan(u.fpr_at_recall(torch.randn(4), torch.zeros(4, dtype=torch.bool)))


def test_false_positives_are_those_of_the_first_threshold_that_passes():
    score = torch.arange(20).flip(0).float()
    positive = torch.zeros(20, dtype=torch.bool)
    positive[:9] = True
    positive[14] = True  # the last positive lies below 5 of the 10 negatives
    assert [u.fpr_at_recall(score, positive, recall) for recall in (0.9, 0.95, 1)] == [0, 0.5, 0.5]


def test_false_positives_are_interpolated_between_tied_scores():
    score = torch.tensor([1.0, 1.0, 1.0, 0.0])
    positive = torch.tensor([True, True, False, False])
    assert u.fpr_at_recall(score, positive, 0.9) == pytest.approx(0.45)  # 0.9 of the way to 0.5


def test_failure_prediction_is_one_for_a_perfect_order_and_zero_for_the_reverse():
    doubt = torch.tensor([0.1, 0.2, 0.8, 0.9])
    correct = torch.tensor([True, True, False, False])
    assert u.failure_prediction(doubt, correct) == {"auroc": 1.0, "fpr95": 0.0}
    assert u.failure_prediction(doubt, ~correct) == {"auroc": 0.0, "fpr95": 1.0}


def test_tail_detection_reports_both_orientations():
    generator = torch.Generator().manual_seed(0)
    doubt, target = torch.rand(50, generator=generator), torch.arange(50) % 5
    found = u.tail_detection(doubt, target, torch.arange(5) >= 3)
    assert found["by_confidence"] + found["by_uncertainty"] == pytest.approx(1)


def test_foreign_images_are_compared_on_one_scale():
    known, foreign = torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.01, 0.02, 0.04])
    assert u.foreign_detection(known, foreign)["auroc"] == 0  # each by its own maximum: 0.5
    own = u.foreign_detection(known / known.max(), foreign / foreign.max())["auroc"]
    assert own == pytest.approx(0.5)


def test_nan_scores_are_refused():
    with pytest.raises(ArgumentError, match="1 scores are NaN"):
        u.auroc(torch.tensor([0.0, np.nan]), torch.tensor([True, False]))
    with pytest.raises(ArgumentError, match="one of each per image"):
        u.auroc(torch.zeros(2), torch.zeros(3).bool())
