"""Metrics against loops over pairs, against scikit-learn, and at their edges."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys import metrics


def pairs_auc(labels, scores):
    """Share of (positive, negative) pairs in the right order, ties half; the definition."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return None
    right = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    return right / (len(positive) * len(negative))


def loop_gauc(labels, scores, groups, weight):
    total = found = 0.0
    users = rows = 0
    for user in np.unique(groups):
        own = groups == user
        value = pairs_auc(labels[own], scores[own])
        if value is None:
            continue
        w = {"impressions": own.sum(), "positives": labels[own].sum(), "uniform": 1}[weight]
        total, found, users, rows = total + w * value, found + w, users + 1, rows + own.sum()
    return (total / found if found else np.nan), users, rows / len(labels)


def log(rows, users, levels, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(float)
    scores = rng.integers(0, levels, rows) / levels  # few levels: many ties
    return labels, scores, rng.integers(-3, users, rows)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 80),
    users=st.integers(1, 12),
    levels=st.sampled_from([2, 5, 1000]),
    weight=st.sampled_from(["impressions", "positives", "uniform"]),
    seed=st.integers(0, 10_000),
)
def test_gauc_equals_a_loop_over_users_and_pairs(rows, users, levels, weight, seed):
    labels, scores, groups = log(rows, users, levels, seed)
    value, number, share = loop_gauc(labels, scores, groups, weight)
    got = metrics.gauc(labels, scores, groups, weight=weight)
    np.testing.assert_allclose(got.value, value, rtol=1e-12)
    assert got.groups == number
    assert got.share == pytest.approx(share if number else 0.0)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_numbers_equal_scikit_learns(levels):
    labels, scores, _ = log(4000, 5, levels, seed=1)
    assert metrics.auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    probability = np.clip(scores, 0.01, 0.99)
    expected = sk.log_loss(labels, probability)
    assert metrics.log_loss(labels, probability) == pytest.approx(expected, rel=1e-12)
    logits = np.log(probability / (1 - probability))
    assert metrics.log_loss(labels, logits, logits=True) == pytest.approx(expected, rel=1e-9)
    error = sk.mean_squared_error(labels, scores)
    assert metrics.mse(labels, scores) == pytest.approx(error, rel=1e-12)
    error = sk.mean_absolute_error(labels, scores)
    assert metrics.mae(labels, scores) == pytest.approx(error, rel=1e-12)


def test_users_with_one_label_do_not_count():
    labels, scores = np.array([1, 0, 1, 1, 0, 0]), np.array([0.9, 0.1, 0.1, 0.2, 0.3, 0.4])
    got = metrics.gauc(labels, scores, np.array([1, 1, 2, 2, 3, 3]))
    assert got == metrics.GroupedAUC(1.0, 1, 2 / 6)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1], [np.nan, np.nan]])
def test_undefined_auc_is_nan_and_never_a_half(labels):
    scores = np.linspace(0, 1, len(labels))
    assert np.isnan(metrics.auc(labels, scores))
    assert np.isnan(metrics.gauc(labels, scores, np.arange(len(labels)) // 2).value)


def test_missing_labels_do_not_count():
    labels, scores, groups = log(300, 6, 50, seed=2)
    gaps = labels.copy()
    gaps[::3] = np.nan
    known = ~np.isnan(gaps)
    for metric in (metrics.auc, metrics.log_loss, metrics.normalized_entropy, metrics.ece,
                   metrics.calibration, metrics.mse, metrics.mae):  # fmt: skip
        assert metric(gaps, scores) == pytest.approx(metric(labels[known], scores[known]))
    assert metrics.gauc(gaps, scores, groups) == metrics.gauc(
        labels[known], scores[known], groups[known]
    )


def test_scores_that_are_nan_give_nan():
    assert np.isnan(metrics.auc([0, 1], [np.nan, 0.5]))


def test_order_of_rows_and_increasing_maps_change_nothing():
    labels, scores, groups = log(500, 20, 40, seed=3)
    value = metrics.gauc(labels, scores, groups)
    order = np.random.default_rng(0).permutation(500)
    assert metrics.gauc(labels[order], scores[order], groups[order]) == pytest.approx(value)
    assert metrics.gauc(labels, np.exp(3 * scores), groups) == pytest.approx(value)


def test_tensors_and_arrays_give_the_same():
    labels, scores, groups = log(200, 4, 30, seed=4)
    tensors = torch.tensor(labels), torch.tensor(scores, requires_grad=True), torch.tensor(groups)
    assert metrics.gauc(*tensors) == metrics.gauc(labels, scores, groups)
    half = torch.tensor(scores).bfloat16()
    assert metrics.auc(tensors[0], half) == metrics.auc(labels, half.float().numpy())


def test_large_ids_are_kept_apart():
    big = 2**24  # the next whole number does not exist in float32
    got = metrics.gauc([0, 1, 0, 1], [0.1, 0.2, 0.4, 0.3], [big, big, big + 1, big + 1])
    assert (got.value, got.groups) == (0.5, 2)


def test_log_loss_clips_probabilities_and_keeps_large_logits():
    assert metrics.log_loss([1.0], [0.0]) == pytest.approx(-np.log(1e-7))
    assert metrics.log_loss([1.0], [-800.0], logits=True) == pytest.approx(800.0)


def test_normalized_entropy_of_the_base_rate_is_one():
    labels = np.array([1.0] * 3 + [0.0] * 7)
    assert metrics.normalized_entropy(labels, np.full(10, 0.3)) == pytest.approx(1.0)
    assert np.isnan(metrics.normalized_entropy(np.ones(4), np.full(4, 0.3)))


def test_calibration_is_predicted_over_observed():
    assert metrics.calibration([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]) == 2.0
    assert np.isnan(metrics.calibration([0, 0], [0.5, 0.5]))


def test_ece_equals_a_loop_over_bins():
    labels, scores, _ = log(1003, 3, 500, seed=5)
    order = np.argsort(scores, kind="stable")
    edges = [i * 1003 // 20 for i in range(21)]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    expected = sum(abs(scores[p].mean() - labels[p].mean()) * len(p) for p in parts) / 1003
    assert metrics.ece(labels, scores) == pytest.approx(expected)
    assert metrics.ece([1.0, 0.0], [0.9, 0.2]) == pytest.approx(0.15)  # fewer rows than bins


def test_ece_of_calibrated_predictions_is_small():
    rng = np.random.default_rng(0)
    probability = rng.random(100_000)
    labels = (rng.random(100_000) < probability).astype(float)
    assert metrics.ece(labels, probability) < 0.01
    assert metrics.ece(labels, probability**2) > 0.05


def test_gain_over_chance():
    assert metrics.auc_gain(0.6, 0.55) == pytest.approx((1.0, 0.05))
    with pytest.raises(ArgumentError, match="the same"):
        metrics.multitask_gain({"click": 0.7}, {"like": 0.7})


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="A label is 2"):
        metrics.auc([0, 2], [0.1, 0.2])
    with pytest.raises(ArgumentError, match="another column 1"):
        metrics.auc([0, 1], [0.1])
    with pytest.raises(ArgumentError, match=r"\(2, 1\)"):
        metrics.auc([0, 1], [[0.1], [0.2]])
    with pytest.raises(UnknownNameError, match="impressions"):
        metrics.gauc([0, 1], [0.1, 0.2], [0, 0], weight="impression")
    with pytest.raises(ArgumentError, match="bins=0"):
        metrics.ece([0, 1], [0.1, 0.2], bins=0)


def test_a_million_rows_of_fifty_thousand_users_take_under_two_seconds():
    rng = np.random.default_rng(0)
    n, users = 1_000_000, 50_000
    labels, scores = rng.integers(0, 2, n), rng.random(n).astype(np.float32)
    groups = rng.integers(0, users, n)
    start = time.process_time()
    got = metrics.gauc(labels, scores, groups)
    assert time.process_time() - start < 2.0
    assert got.groups > 49_900
