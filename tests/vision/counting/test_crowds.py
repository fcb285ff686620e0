"""Rendered crowds: counts of the specification, exact centres, one seed one image."""

import numpy as np
import pytest

from moeapps import errors
from moeapps.vision.counting.crowds import RADII, render_crowd


def crowds(radii, count=250):
    return [render_crowd(np.random.default_rng([7, i]), radii=radii) for i in range(count)]


@pytest.mark.parametrize(
    ("radii", "mean", "deviation"), [("narrow", 44.8, 32.8), ("wide", 37.4, 22.7)]
)
def test_counts_are_those_of_the_specification(radii, mean, deviation):
    made = crowds(radii)
    counts = np.array([len(crowd.points) for crowd in made])
    assert abs(counts.mean() - mean) < 3 * deviation / np.sqrt(len(counts))
    assert 0.6 * deviation < counts.std() < 1.4 * deviation
    smallest, largest = RADII[radii]
    every = np.concatenate([crowd.radii for crowd in made])
    assert every.min() >= smallest
    assert every.max() <= smallest + 1.2 * (largest - smallest)


def test_heads_are_inside_below_the_horizon_and_apart():
    for crowd in crowds("wide", 30):
        assert crowd.image.dtype == np.float32
        assert crowd.image.shape == (96, 96, 3)
        assert 0 <= crowd.image.min() <= crowd.image.max() <= 1
        assert ((crowd.points >= 0) & (crowd.points < 96)).all()
        assert (np.diff(crowd.radii) >= 0).all()  # far heads first
        x, y = crowd.points.astype(int).T
        assert (crowd.scale[y, x] > 0).mean() > 0.99  # a pixel may lie on both sides
        distance = np.linalg.norm(crowd.points[:, None] - crowd.points, axis=-1)
        larger = np.maximum(crowd.radii[:, None], crowd.radii)
        apart = distance >= 0.9 * larger
        assert apart[~np.eye(len(x), dtype=bool)].all()


def test_the_nearest_head_is_painted_round_its_point():
    spreads = []
    for crowd in crowds("wide", 20):
        x, y = crowd.points[-1]
        reach = 0.5 * crowd.radii[-1]
        rows, columns = np.ogrid[:96, :96]
        inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < reach**2
        spreads.append(crowd.image[inside].std(0).max())
    assert max(spreads) < 0.04  # one tone and pixel noise of 0.02


def test_one_seed_gives_one_image():
    first, again, other = (render_crowd(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.points, again.points)
    assert not np.array_equal(first.image, other.image)


def test_radii_grow_with_the_canvas_and_may_be_given():
    small, large = (
        render_crowd(np.random.default_rng(1), size=size, radii=(2.0, 2.0)) for size in (96, 192)
    )
    assert set(small.radii) == {2.0}
    assert set(large.radii) == {4.0}


def test_what_cannot_be_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'narrow'"):
        render_crowd(rng, radii="narow")
    with pytest.raises(errors.ArgumentError, match="smallest above 0"):
        render_crowd(rng, radii=(3.0, 2.0))
    for options in ({"size": 8}, {"people": 0.0}):
        with pytest.raises(errors.ArgumentError, match="make no crowd"):
            render_crowd(rng, **options)
