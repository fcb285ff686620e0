import numpy as np
import pytest

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.metrics import (
    ausuc,
    gate_quality,
    harmonic_mean,
    per_class_accuracy,
    score,
)


def test_accuracy_weighs_classes_and_not_images():
    labels, answers = [0] * 8 + [1] * 2, [0] * 8 + [0, 1]
    assert per_class_accuracy(labels, answers, [0, 1]) == 0.75
    assert per_class_accuracy(labels, answers, [0, 1, 2]) == 0.75  # class 2 has no image


def test_harmonic_mean_of_two_zeros_is_zero():
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(0.748, 0.748) == pytest.approx(0.748)


def test_area_of_a_hand_made_curve():
    # Triangles and rectangles: 0..0.2 at 0.5, then down to 0.3 at 0.6, then down to 0 at 0.8.
    seen, unseen = [0.6, 0.0, 0.8, 0.2], [0.3, 0.5, 0.0, 0.5]
    expected = 0.2 * 0.5 + 0.4 * 0.4 + 0.2 * 0.15
    assert ausuc(seen, unseen) == pytest.approx(expected)


def test_the_curve_is_closed_at_both_ends():
    assert ausuc([0.005, 0.8], [0.5, 0.005]) == pytest.approx(0.005 * 0.5 + 0.795 * 0.2525)


def test_a_sweep_that_stops_early_is_refused():
    with pytest.raises(ArgumentError, match=r"0\.200.*Sweep a wider range"):
        ausuc([0.2, 0.8], [0.5, 0.0])


def test_gate_quality_agrees_with_a_ranking_by_hand():
    rng = np.random.default_rng(0)
    is_seen = np.arange(400) % 2 == 0
    scores = rng.normal(size=400) + is_seen
    found = gate_quality(scores, is_seen)
    pairs = scores[is_seen][:, None] > scores[~is_seen]
    assert found["auroc"] == pytest.approx(pairs.mean())
    threshold = np.sort(scores[is_seen])[10]  # 190 of 200 are at least this large
    assert found["fpr95"] == pytest.approx((scores[~is_seen] >= threshold).mean())


@pytest.mark.parametrize("is_seen", [[True, True], [False, False]])
def test_gate_quality_needs_both_kinds(is_seen):
    with pytest.raises(ArgumentError, match="seen and of unseen"):
        gate_quality([0.1, 0.2], is_seen)


def test_a_kind_without_images_is_refused():
    with pytest.raises(ArgumentError, match="None of the classes"):
        score([0, 0], [0, 1], seen=[0], unseen=[1])
