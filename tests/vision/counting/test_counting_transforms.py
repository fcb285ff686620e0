"""Crops, mirror images and sizes keep points where they were in the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeapps import errors
from moeapps.vision.counting import transforms
from moeapps.vision.counting.transforms import Scene


def scene(height=37, width=50, count=25, seed=0, mask=False):
    """A black image with one white pixel under each point."""
    rng = np.random.default_rng(seed)
    points = rng.random((count, 2)) * (width, height)
    image = np.zeros((height, width, 3), np.uint8)
    x, y = points.astype(int).T
    image[y, x] = 255
    region = rng.random((height, width)) < 0.5 if mask else None
    return Scene(image, points, rng.uniform(2, 9, count), region)


def marked(made):
    """Whether every point stands on its white pixel."""
    x, y = made.points.astype(int).T
    return bool((made.image[y, x] == 255).all())


def test_windows_that_tile_an_image_share_its_points_out():
    whole = scene()
    parts = [
        transforms.crop(whole, top, left, min(10, 37 - top), min(20, 50 - left))
        for top in range(0, 37, 10)
        for left in range(0, 50, 20)
    ]
    assert sum(len(part.points) for part in parts) == 25
    assert all(marked(part) for part in parts)
    assert all(len(part.sizes) == len(part.points) for part in parts)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60))
def test_random_crops_of_any_size_keep_points_on_their_pixels(seed, height, width):
    made = transforms.random_crop(scene(mask=True), height, width, np.random.default_rng(seed))
    assert made.size == (height, width) == made.mask.shape
    assert marked(made)
    inside = (made.points >= 0) & (made.points < (width, height))
    assert inside.all()


def test_small_images_are_padded_where_nothing_counts():
    whole = scene(mask=True)
    made = transforms.pad(whole, 40, 50)
    assert made.size == (40, 50)
    assert not made.image[37:].any()
    assert not made.mask[37:].any()
    assert np.array_equal(made.points, whole.points)
    assert transforms.pad(whole, 10, 10) is whole


def test_mirror_twice_is_the_scene_and_once_moves_points_with_their_pixels():
    whole = scene(mask=True)
    once = transforms.mirror(whole)
    assert marked(once)
    np.testing.assert_allclose(once.points[:, 0], 50 - whole.points[:, 0])
    twice = transforms.mirror(once)
    assert np.array_equal(twice.image, whole.image)
    assert np.array_equal(twice.mask, whole.mask)
    np.testing.assert_allclose(twice.points, whole.points, atol=1e-12)


def test_a_head_at_the_very_edge_survives_the_mirror():
    edge = Scene(np.zeros((4, 100, 3), np.uint8), np.array([[99.9, 1.0], [0.0, 1.0]]))
    points = transforms.mirror(edge).points
    np.testing.assert_allclose(points[:, 0], [0.1, 100.0])
    assert (points[:, 0] < 100).all()


@pytest.mark.parametrize("size", [(74, 100), (20, 31), (1, 1)])
def test_resizing_keeps_every_point_in_proportion(size):
    whole = scene(mask=True)
    made = transforms.resize(whole, *size)
    assert made.size == size == made.mask.shape
    np.testing.assert_allclose(
        made.points / (size[1], size[0]), whole.points / (50, 37), rtol=1e-12
    )
    factor = np.sqrt(size[0] / 37 * size[1] / 50)
    np.testing.assert_allclose(made.sizes, whole.sizes * factor)
    assert (made.points < (size[1], size[0])).all()


def test_a_blob_stays_under_its_point_when_the_image_grows():
    image = np.zeros((20, 30, 3), np.uint8)
    image[6:9, 10:13] = 255
    made = transforms.resize(Scene(image, np.array([[11.5, 7.5]])), 60, 60)
    rows, columns = np.nonzero(made.image[..., 0] > 127)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], made.points[0], atol=0.5)


def test_long_sides_are_capped_and_multiples_floored():
    whole = scene()
    capped = transforms.cap_long_side(whole, 25)
    assert capped.size == (18, 25)
    assert len(capped.points) == 25
    assert transforms.cap_long_side(whole, 50) is whole
    assert transforms.floor_to_multiple(whole, 16).size == (32, 48)
    assert transforms.floor_to_multiple(whole, 64).size == (64, 64)
    assert len(transforms.floor_to_multiple(whole, 16).points) == 25


def test_points_outside_the_mask_do_not_count():
    whole = scene(mask=True)
    x, y = whole.points.astype(int).T
    counted = transforms.only_counted(whole)
    assert len(counted.points) == len(counted.sizes) == whole.mask[y, x].sum()
    with pytest.raises(errors.ArgumentError, match="size of the image"):
        transforms.only_counted(Scene(whole.image, whole.points, mask=np.ones((3, 3), bool)))


def test_dots_count_points_per_pixel():
    image = np.zeros((3, 4, 3), np.uint8)
    made = transforms.dots(Scene(image, np.array([[0.2, 0.9], [0.8, 0.1], [3.99, 2.99]])))
    assert made[0, 0] == 2
    assert made[2, 3] == 1
    assert made.sum() == 3


@pytest.mark.parametrize("window", [(-1, 0, 4, 4), (0, 47, 4, 4), (0, 0, 38, 4), (0, 0, 0, 4)])
def test_windows_beyond_the_image_are_refused(window):
    with pytest.raises(errors.ArgumentError, match="does not fit"):
        transforms.crop(scene(), *window)


def test_sizes_without_a_pixel_are_refused():
    with pytest.raises(errors.ArgumentError, match="1 pixel or more"):
        transforms.resize(scene(), 0, 5)
