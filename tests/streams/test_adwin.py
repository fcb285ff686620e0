import numpy as np
import pytest
from river.drift import ADWIN

from moeapps.errors import ArgumentError
from moeapps.streams.adwin import (
    SEEN,
    TOTAL,
    VARIANCE,
    mean,
    new_detectors,
    reset,
    update,
    width,
)


def stream(seed, *, noise=0.0, length=800):
    """Ten levels, each held for a while: errors of 0/1, or numbers around the level."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.uniform(0.05, 0.6, 10), length)
    if noise:
        return levels + rng.normal(0, noise, len(levels))
    return (rng.random(len(levels)) < levels).astype(float)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("delta", [0.002, 0.1])
def test_window_equals_rivers_after_every_value(noise, delta):
    ours, rivers = new_detectors(2, delta), ADWIN(delta=delta)
    for value in stream(3, noise=noise):
        update(ours, 1, value)
        # river's wrapper starts anew after a drift; its core keeps the shrunk window as we do.
        rivers._helper.update(value)
        assert width(ours, 1) == rivers.width
    assert ours.summary[1, TOTAL] == pytest.approx(rivers.total)
    assert rivers.n_detections > 3


def test_mean_and_variance_are_those_of_the_window():
    detectors = new_detectors(1, 0.002)
    values = stream(4, noise=0.1)
    for t, value in enumerate(values):
        update(detectors, 0, value)
        if t % 500 == 499:
            window = values[t + 1 - int(width(detectors, 0)) : t + 1]
            assert mean(detectors, 0) == pytest.approx(window.mean())
            # Merged buckets are exact; only what dropping a bucket subtracts is rounded.
            assert detectors.summary[0, VARIANCE] == pytest.approx(window.var() * len(window))


def test_only_a_rise_is_reported_but_a_fall_cuts_the_window():
    low, high = np.zeros(1000), np.ones(1000)
    for before, after in ((low, high), (high, low)):
        detectors = new_detectors(1, 0.002)
        alarms = [update(detectors, 0, value) for value in np.concatenate([before, after])]
        assert any(alarms) == (after is high)
        assert width(detectors, 0) <= 1000


def test_a_steady_stream_raises_no_alarm():
    errors = np.random.default_rng(0).random(8_000) < 0.3
    detectors = new_detectors(1, 0.002)
    alarms = sum(update(detectors, 0, error) for error in errors)
    assert alarms == 0
    assert width(detectors, 0) == 8_000


def test_detectors_do_not_touch_each_other_and_reset_forgets():
    errors = stream(5)
    together, alone, empty = new_detectors(3, 0.01), new_detectors(1, 0.01), new_detectors(3, 0.01)
    for error in errors:
        update(together, 0, 1 - error)
        update(together, 2, error)
        update(alone, 0, error)
    assert np.array_equal(together.summary[2], alone.summary[0])
    assert np.array_equal(together.buckets[2], alone.buckets[0])
    assert together.summary[1, SEEN] == 0
    reset(together, 2)
    assert (width(together, 2), mean(together, 2)) == (0, 0)
    for error in errors:
        assert update(together, 2, error) == update(empty, 1, error)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, float("nan")])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        new_detectors(1, delta)
