import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.counting.density_maps import (
    density_map,
    inside,
    knn_sigmas,
    size_sigmas,
    sum_pool,
)

CORNERS = [[0, 0], [50, 0], [0, 30], [50, 30]]


@pytest.mark.parametrize("mode", ["fixed", "knn", "size"])
def test_the_mass_is_the_number_of_points_in_corners_too(mode):
    points = np.concatenate([CORNERS, np.random.default_rng(0).random((300, 2)) * [50, 30]])
    sizes = np.random.default_rng(1).uniform(1, 80, (304, 2))
    density = density_map(points, (30, 50), mode=mode, head_sizes=sizes)
    assert density.shape == (30, 50)
    assert density.dtype == np.float32
    assert abs(density.sum(dtype=np.float64) - 304) < 1e-5 * 304
    assert (density >= 0).all()


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 5)), max_size=6),
    st.floats(0.05, 40),
)
@settings(max_examples=60, deadline=None)
def test_any_points_keep_their_mass(points, sigma):
    density = density_map(points, (5, 9), sigma)
    assert abs(density.sum(dtype=np.float64) - len(points)) < 1e-5


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2)), np.zeros(0)])
@pytest.mark.parametrize("mode", ["fixed", "knn", "size"])
def test_no_points_give_no_density(empty, mode):
    density = density_map(empty, (4, 6), mode=mode, head_sizes=[])
    assert density.shape == (4, 6)
    assert not density.any()


def test_a_pixel_holds_the_integral_of_the_gaussian():
    density = density_map([[6.3, 5.8]], (12, 12), 1.5, normalize=False)

    def gauss(y, x):
        return np.exp(-((x - 6.3) ** 2 + (y - 5.8) ** 2) / 4.5) / (4.5 * np.pi)

    for row, column in [(5, 6), (3, 8), (8, 2)]:
        exact, _ = dblquad(gauss, column, column + 1, row, row + 1)
        assert density[row, column] == pytest.approx(exact, rel=2e-4)


def test_the_centre_of_mass_is_the_point_even_within_a_pixel():
    density = density_map([[20.2, 15.7]], (30, 40), 2.0).astype(np.float64)
    rows, columns = np.indices(density.shape) + 0.5
    assert (density * columns).sum() == pytest.approx(20.2, abs=1e-5)
    assert (density * rows).sum() == pytest.approx(15.7, abs=1e-5)


def test_maps_add_up_over_points():
    one, two = [[3.0, 4.0]], [[7.5, 1.0], [0.2, 9.9]]
    together = density_map(one + two, (10, 10))
    np.testing.assert_allclose(
        together, density_map(one, (10, 10)) + density_map(two, (10, 10)), atol=1e-7
    )


def test_points_outside_the_image_are_not_counted():
    points = [[-0.1, 2], [8.1, 2], [3, 6.5], [8, 6], [0, 0]]
    assert inside(points, (6, 8)).tolist() == [False, False, False, True, True]
    assert density_map(points, (6, 8)).sum() == pytest.approx(2)
    sizes = [1, 2, 3, 4, 5]
    assert density_map(points, (6, 8), mode="size", head_sizes=sizes).sum() == pytest.approx(2)


def test_what_leaves_the_image_is_lost_only_on_request():
    assert density_map([[0, 0]], (20, 20), normalize=False).sum() == pytest.approx(0.25, rel=1e-3)


def test_knn_blur_is_the_mean_distance_to_three_neighbours():
    points = np.random.default_rng(3).random((40, 2)) * 100
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(-1))
    expected = 0.3 * np.sort(distances, 1)[:, 1:4].mean(1)
    np.testing.assert_allclose(knn_sigmas(points), np.clip(expected, 1, 15))


def test_few_or_crowded_points_have_a_usable_blur():
    assert knn_sigmas([[1, 1], [2, 2], [3, 3]], fallback=7).tolist() == [7, 7, 7]
    assert knn_sigmas([[1, 1]] * 5).tolist() == [1] * 5
    assert knn_sigmas([[0, 0], [900, 0], [0, 900], [900, 900]]).tolist() == [15] * 4
    assert size_sigmas([8, 200]).tolist() == [2, 15]


def test_pooling_keeps_the_mass_at_odd_sizes():
    density = torch.from_numpy(density_map(CORNERS, (30, 51)))[None, None]
    pooled = sum_pool(density, 4)
    assert pooled.shape == (1, 1, 8, 13)
    assert pooled.double().sum() == pytest.approx(4, abs=1e-5)
    assert pooled[0, 0, 2, 3] == pytest.approx(float(density[0, 0, 8:12, 12:16].sum()))


@pytest.mark.parametrize(
    "points", [[[1.0, np.nan]], [1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]], [[np.inf, 1.0]]]
)
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ArgumentError, match="points of shape"):
        density_map(points, (4, 4))


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match="sigma=0"):
        density_map([[1, 1]], (4, 4), 0)
    with pytest.raises(UnknownNameError, match="Did you mean 'fixed'"):
        density_map([[1, 1]], (4, 4), mode="fix")
    with pytest.raises(ArgumentError, match="no head sizes for 1 points"):
        density_map([[1, 1]], (4, 4), mode="size")
    with pytest.raises(ArgumentError, match="1 head sizes"):
        density_map([[1, 1]], (4, 4), mode="size", head_sizes=[0.0])
