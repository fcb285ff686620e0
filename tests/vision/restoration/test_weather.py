"""Weather that is made over photographs: the recipe, its strength, and what it leaves alone."""

import numpy as np
import pytest

from moeapps import errors
from moeapps.vision.restoration.photos import (
    PHOTOS,
    bundled_photos,
    depth_of_disparity,
    resize_short,
)
from moeapps.vision.restoration.weather import WEATHER, add_weather, draw_depth, line_kernel

pytest.importorskip("skimage", reason='needs pip install "moeapps[vision]"')


@pytest.fixture(scope="module")
def photos():
    return bundled_photos()


@pytest.mark.parametrize("weather", list(WEATHER))
def test_images_and_maps_are_float32_from_0_to_1(weather, photos):
    made = add_weather(photos[0].image, weather, np.random.default_rng(0))
    for values in (made.image, *made.maps.values()):
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert values.max() <= 1
    assert made.image.shape == photos[0].image.shape
    assert all(values.shape == made.image.shape[:2] for values in made.maps.values())


@pytest.mark.parametrize("weather", list(WEATHER))
def test_the_generator_decides_everything(weather, photos):
    def once(seed):
        return add_weather(photos[1].image, weather, np.random.default_rng(seed)).image

    assert np.array_equal(once(3), once(3))
    assert not np.array_equal(once(3), once(4))


@pytest.mark.parametrize("weather", list(WEATHER))
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 3), (101, 77)])
def test_any_size(weather, size):
    clean = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    made = add_weather(clean, weather, np.random.default_rng(1))
    assert made.image.shape == clean.shape
    assert np.isfinite(made.image).all()


# Of the recipe's description, measured on crops of 32 x 32 from the right 30 % of the photographs.
@pytest.mark.parametrize(
    ("weather", "decibels"),
    [("haze", 12.2), ("rain", 21.5), ("raindrop", 24.0), ("snow", 18.3), ("night", 11.0)],
)
def test_strength_is_that_of_the_recipe(weather, decibels, photos):
    found = []
    for seed in range(4):
        for number, photo in enumerate(photos):
            rng = np.random.default_rng([seed, number])
            made = add_weather(photo.image, weather, rng, photo.depth)
            gap = np.square(made.image - photo.image / 255)
            height, width = gap.shape[:2]
            for _ in range(4):
                y, x = rng.integers(0, height - 31), rng.integers(int(0.7 * width), width - 31)
                found.append(-10 * np.log10(max(gap[y : y + 32, x : x + 32].mean(), 1e-5)))
    assert np.mean(found) == pytest.approx(decibels, abs=2.5)


def test_haze_follows_koschmieder(photos):
    photo = photos[2]
    made = add_weather(photo.image, "haze", np.random.default_rng(5), photo.depth)
    t, clean = made.maps["transmission"][..., None].astype(np.float64), photo.image / 255
    light = (made.image - clean * t) / (1 - t)
    middle = np.median(light, (0, 1))
    np.testing.assert_allclose(made.image, clean * t + middle * (1 - t), atol=2e-3)
    beta = -np.log(made.maps["transmission"]) / (0.15 + photo.depth)
    assert np.ptp(beta) < 1e-4
    assert 0.8 <= beta.mean() <= 2.4


def test_drops_and_flakes_leave_the_rest_alone(photos):
    clean = photos[4].image / np.float32(255)
    for weather, name in (("raindrop", "drops"), ("snow", "flakes")):
        made = add_weather(photos[4].image, weather, np.random.default_rng(0))
        untouched = made.maps[name] < 1e-8
        assert 0.02 < untouched.mean() < 0.98
        np.testing.assert_allclose(made.image[untouched], clean[untouched], atol=1e-6)


def test_a_line_has_mass_one_and_its_length():
    upright = line_kernel(6.0, 0.0)
    assert upright.sum() == pytest.approx(1, abs=1e-6)
    column = upright[:, upright.shape[1] // 2]
    assert column.sum() / column.max() == pytest.approx(12)
    turned = line_kernel(6.0, 0.5)
    y, x = np.mgrid[-7:8, -7:8]
    slope = np.arctan2((turned * x * y).sum(), (turned * y * y).sum())
    assert slope == pytest.approx(0.5, abs=0.03)


def test_streaks_by_fft_are_those_of_direct_convolution():
    from scipy.signal import convolve

    from moeapps.vision.restoration.weather import _streaks

    made = _streaks(30, 40, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    half, angle = rng.uniform(4, 11), rng.uniform(-0.5, 0.5)
    kernel = line_kernel(half, angle) * rng.uniform(3, 7)
    shape = (30 + kernel.shape[0] - 1, 40 + kernel.shape[1] - 1)
    seeds = rng.random(shape, np.float32) < rng.uniform(0.004, 0.015)
    seeds = seeds * rng.uniform(0.5, 1.0, shape)
    direct = convolve(seeds, kernel, mode="valid", method="direct")
    np.testing.assert_allclose(made, direct, atol=1e-5)


def test_drops_are_the_largest_of_a_loop_over_them():
    from moeapps.vision.restoration.weather import _drops

    made = _drops(50, 40, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    count = max(1, rng.poisson(rng.uniform(0.003, 0.006) * 50 * 40))
    y, x = rng.uniform(0, 50, count), rng.uniform(0, 40, count)
    radius, aspect = rng.uniform(1.5, 5.0, count), rng.uniform(0.8, 1.4, count)
    naive = np.zeros((50, 40))
    rows, columns = np.mgrid[0.5:50, 0.5:40]
    for i in range(count):
        q = ((rows - y[i]) / (radius[i] * aspect[i])) ** 2 + ((columns - x[i]) / radius[i]) ** 2
        naive = np.maximum(naive, np.clip(1.3 - q, 0, 1))
    np.testing.assert_allclose(made, naive, atol=1e-6)


def test_depth_rises_to_the_horizon():
    depth = draw_depth(120, 90, np.random.default_rng(0))
    assert 0 <= depth.min() <= depth.max() <= 1
    assert depth[:20].mean() > depth[-20:].mean() + 0.3


def test_eight_photographs_of_the_right_size(photos):
    assert [photo.name for photo in photos] == list(PHOTOS)
    assert all(min(photo.image.shape[:2]) == 224 for photo in photos)
    whole = bundled_photos(["motorcycle"], short_side=None)[0]
    assert whole.image.shape == (500, 741, 3)
    assert whole.depth.shape == (500, 741)
    assert (whole.depth.min(), whole.depth.max()) == (0, 1)
    half = whole.columns(0.5, 1.0)
    assert half.image.shape[1] == half.depth.shape[1] == 741 - 370


def test_unknown_disparity_takes_the_nearest_depth():
    depth = depth_of_disparity(np.array([[1.0, np.inf, 4.0], [1.0, 0.0, 4.0]]))
    assert depth[:, 0].tolist() == [1, 1]
    assert depth[:, 2].tolist() == [0, 0]
    assert set(depth[:, 1].tolist()) <= {0.0, 1.0}


def test_bad_photographs_and_names_are_refused():
    rng, grey = np.random.default_rng(0), np.full((4, 4, 3), 0.5, np.float32)
    with pytest.raises(errors.UnknownNameError, match="haze"):
        add_weather(grey, "hase", rng)
    with pytest.raises(errors.ArgumentError, match="uint8"):
        add_weather(grey * 255, "haze", rng)
    with pytest.raises(errors.ArgumentError, match="depth"):
        add_weather(grey, "haze", rng, np.zeros((3, 4), np.float32))
    with pytest.raises(errors.ArgumentError, match="H, W, 3"):
        add_weather(grey[..., 0], "haze", rng)
    with pytest.raises(errors.UnknownNameError, match="coffee"):
        bundled_photos(["cofee"])
    with pytest.raises(errors.ArgumentError, match="short_side"):
        resize_short(np.zeros((4, 4, 3), np.uint8), 0)
