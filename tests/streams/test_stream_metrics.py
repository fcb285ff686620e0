import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeapps.errors import ArgumentError
from moeapps.streams.metrics import (
    Counts,
    References,
    accuracy,
    kappa_m,
    kappa_temporal,
    recovery_time,
    usage_entropy,
)


def counts(total, model, majority, last):
    return Counts(*map(np.array, (total, model, majority, last)))


def test_kappas_are_gains_over_their_references():
    one = counts([100], [90], [60], [80])
    assert accuracy(one) == pytest.approx(0.9)
    assert kappa_m(one) == pytest.approx((0.9 - 0.6) / 0.4)
    assert kappa_temporal(one) == pytest.approx((0.9 - 0.8) / 0.2)
    perfect, worse = counts([10], [10], [6], [9]), counts([10], [3], [6], [9])
    assert kappa_m(perfect) == kappa_temporal(perfect) == 1
    assert kappa_m(worse) < 0
    assert kappa_temporal(worse) < 0


def test_nothing_to_gain_and_nothing_counted_are_nan():
    assert np.isnan(kappa_m(counts([10], [10], [10], [10])))
    assert np.isnan(accuracy(counts([0], [0], [0], [0])))


def test_a_run_is_the_sum_of_its_windows():
    windows = counts([10, 5], [9, 1], [5, 3], [2, 3])
    assert accuracy(windows.summed()) == pytest.approx(10 / 15)
    assert kappa_m(windows.summed()) == pytest.approx((10 - 8) / (15 - 8))


labels = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(labels, st.integers(1, 9))
def test_references_are_those_of_a_loop_however_the_stream_is_cut(y, size):
    seen, last, expected = [0, 0, 0, 0], None, [0, 0]
    for label in y:
        if sum(seen):
            expected[0] += seen.index(max(seen)) == label
        expected[1] += last == label
        seen[label] += 1
        last = label
    references = References(4)
    found = np.zeros(2, int)
    for start in range(0, len(y), size):
        part = np.array(y[start : start + size])
        found += references.right(part, part)
    assert found.tolist() == expected


@given(labels, st.integers(1, 9))
def test_late_labels_make_late_references(y, lag):
    """The references know y[t - lag] only after instance t."""
    expected = [0, 0]
    for t, label in enumerate(y):
        known = y[: max(0, t - lag)]
        if known:
            seen = [known.count(c) for c in range(4)]
            expected[0] += seen.index(max(seen)) == label
            expected[1] += known[-1] == label
    revealed = np.array([-1] * lag + y)[: len(y)]
    assert References(4).right(np.array(y), revealed) == tuple(expected)


ENDS = np.arange(1, 11) * 100


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.8] * 4 + [0.5, 0.7, 0.79, 0.8, 0.8, 0.8], {}, 300),  # within one point
        ([0.8] * 4 + [0.5, 0.7, 0.78, 0.78, 0.8, 0.8], {}, 500),
        ([0.8] * 4 + [0.5] * 6, {}, np.nan),
        ([0.8] * 4 + [0.5, 0.7, 0.78, 0.78, 0.8, 0.8], {"until": 800}, np.nan),
        ([0.8] * 10, {}, 100),  # never lost: the first whole window
        # The two windows inside a gradual change are not "before".
        ([0.8, 0.8, 0.6, 0.5, 0.5, 0.7, 0.79, 0.8, 0.8, 0.8], {"width": 200}, 300),
    ],
)
def test_recovery_time(values, options, expected):
    found = recovery_time(np.array(values), ENDS, 400, **options)
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_window_across_the_change_is_no_recovery():
    assert recovery_time(np.array([0.8] * 10), ENDS, 450) == 150


def test_without_a_window_before_there_is_no_recovery_time():
    assert np.isnan(recovery_time(np.array([0.8, 0.8]), ENDS[:2], 50))
    with pytest.raises(ArgumentError, match="one end per window"):
        recovery_time(np.zeros(3), ENDS[:2], 50)


def test_usage_entropy_is_one_when_even_and_zero_when_one_expert_does_all():
    assert usage_entropy(np.full(7, 3.0)) == pytest.approx(1)
    assert usage_entropy(np.array([0, 5, 0])) == 0
    assert usage_entropy(np.array([5])) == 0
    assert np.isnan(usage_entropy(np.zeros(3)))
    assert 0 < usage_entropy(np.array([1, 2, 3])) < 1
