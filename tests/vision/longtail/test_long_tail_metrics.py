"""Accuracies by class frequency, calibration, diversity: against numbers counted by hand."""

import math

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.vision.longtail import metrics


def images(*wanted):
    """Predicted and true classes from pairs."""
    predicted, target = zip(*wanted, strict=True)
    return torch.tensor(predicted), torch.tensor(target)


def test_class_without_test_images_is_nan_and_left_out_of_the_mean():
    predicted, target = images((0, 0), (1, 0), (2, 2))
    accuracy = metrics.per_class_accuracy(predicted, target, 3)
    np.testing.assert_array_equal(accuracy.numpy(), [0.5, np.nan, 1.0])
    assert metrics.balanced_accuracy(predicted, target, 3) == 0.75


def test_balanced_accuracy_is_plain_accuracy_on_a_balanced_set():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(60) % 6
    predicted = torch.randint(6, (60,), generator=generator)
    plain = float((predicted == target).float().mean())
    assert metrics.balanced_accuracy(predicted, target, 6) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("counts", "limits", "sizes"),
    [
        ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], (100, 20), (8, 2, 0)),
        ([int(500 * 0.01 ** (j / 99)) for j in range(100)], (100, 20), (35, 35, 30)),
        ([int(60 * (1 / 60) ** (j / 99)) for j in range(100)], (20, 5), (26, 35, 39)),
    ],
    ids=["CIFAR-10-LT", "CIFAR-100-LT", "PairDigits-LT"],
)
def test_groups_have_the_published_sizes(counts, limits, sizes):
    groups = metrics.class_groups(torch.tensor(counts), many=limits[0], few=limits[1])
    assert tuple(int(groups[name].sum()) for name in metrics.GROUPS) == sizes


def test_groups_partition_the_classes():
    counts = torch.arange(1, 200)
    groups = metrics.class_groups(counts, many=50, few=10)
    assert torch.equal(sum(of.int() for of in groups.values()), torch.ones(199, dtype=torch.int))
    with pytest.raises(ArgumentError, match="overlap"):
        metrics.class_groups(counts, many=10, few=50)


def test_empty_group_is_nan_and_group_score_is_the_mean_of_class_accuracies():
    predicted, target = images((0, 0), (0, 0), (1, 0), (1, 1), (0, 2))
    found = metrics.group_accuracy(predicted, target, torch.tensor([500, 300, 7]))
    assert found["many"] == pytest.approx((2 / 3 + 1) / 2)  # not 3/4, the share of the images
    assert math.isnan(found["medium"])
    assert found["few"] == 0


def test_an_image_without_an_answer_is_wrong_and_not_of_class_zero():
    output = torch.tensor([[torch.nan, 0.0], [0.2, 0.8], [0.0, torch.nan]])
    called = metrics.called(output)
    assert called.tolist() == [-1, 1, -1]
    assert metrics.balanced_accuracy(called, torch.tensor([0, 1, 0]), 2) == 0.5
    bins = metrics.reliability(output, torch.tensor([0, 1, 0]), bins=2)
    np.testing.assert_array_equal(bins[:, 2], [0, 1])


def test_only_images_that_both_answered_can_be_called_differently():
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 3)
    logits[0, 1] = torch.nan  # of the other two images all differ
    assert metrics.disagreement(logits).tolist() == [[0, 1], [1, 0]]
    logits[:, 1] = torch.nan
    found = metrics.disagreement(logits)
    np.testing.assert_array_equal(found, [[0, np.nan], [np.nan, np.nan]])


def test_calibration_error_is_the_weighted_gap_of_the_reliability_bins():
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(400, 5, generator=generator)).softmax(-1)
    target = torch.randint(5, (400,), generator=generator)
    for bins in (10, 15):
        rows = metrics.reliability(probabilities, target, bins=bins)
        assert float(rows[:, 2].sum()) == pytest.approx(1)
        gap = ((rows[:, 0] - rows[:, 1]).abs() * rows[:, 2]).nansum()
        error = metrics.calibration_error(probabilities, target, bins=bins)
        assert error == pytest.approx(float(gap), abs=1e-5)


def test_a_sure_and_right_network_is_calibrated():
    target = torch.tensor([0, 1, 2])
    assert metrics.calibration_error(torch.eye(3), target) == pytest.approx(0)
    assert metrics.calibration_error(torch.eye(3), (target + 1) % 3) == pytest.approx(1)


def test_diversity_of_equal_experts_is_zero_and_of_one_expert_undefined():
    same = torch.randn(8, 1, 4).expand(8, 3, 4)
    assert metrics.mean_off_diagonal(metrics.disagreement(same)) == 0
    assert metrics.mean_off_diagonal(metrics.pairwise_kl(same)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(metrics.mean_off_diagonal(metrics.disagreement(same[:, :1])))


def test_pairwise_divergence_is_the_mean_of_the_images_divergences():
    logits = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    found = metrics.pairwise_kl(logits)
    for k in range(3):
        for other in range(3):
            by_hand = (p[:, k] * (p[:, k] / p[:, other]).log()).sum(-1).mean()
            assert float(found[k, other]) == pytest.approx(float(by_hand), abs=1e-6)
