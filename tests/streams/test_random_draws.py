import numpy as np
import pytest
from scipy import stats

from moeapps.streams.random_draws import mix, poisson, uniform

MASK = 2**64 - 1


def splitmix64(state, steps):
    """The published generator in Python integers."""
    for _ in range(steps):
        state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_mix_is_the_published_splitmix64():
    # First outputs of splitmix64 started at 0, as printed with the reference program.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix64(0, step) for step in (1, 2, 3)] == known
    for step in (1, 2, 3):
        assert int(mix(np.uint64((step * 0x9E3779B97F4A7C15) & MASK))) == known[step - 1]


def test_draws_are_uniform_and_streams_do_not_correlate():
    draws = np.array([[uniform(3, stream, t) for t in range(2000)] for stream in range(20)])
    assert 0 <= draws.min() <= draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.01
    correlation = np.corrcoef(draws) - np.eye(20)
    assert abs(correlation).max() < 4 / 2000**0.5
    shifted = np.corrcoef(draws.ravel()[1:], draws.ravel()[:-1])[0, 1]
    assert abs(shifted) < 4 / draws.size**0.5


def test_every_name_changes_the_draw():
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (2**40, 3, 5), (-1, 0, 0)]
    assert len({uniform(*name) for name in names}) == len(names)


@pytest.mark.parametrize("rate", [0.3, 1.0, 6.0, 30.0])
def test_poisson_is_the_inverse_of_its_distribution_function(rate):
    draws = np.array([uniform(1, 2, t) for t in range(3000)])
    counts = np.array([poisson(rate, draw) for draw in draws])
    assert np.array_equal(counts, stats.poisson.ppf(draws, rate))


def test_poisson_of_the_largest_draw_ends():
    assert 20 < poisson(6.0, 1 - 2.0**-53) < 40
    assert poisson(0.0, 1 - 2.0**-53) == 0
