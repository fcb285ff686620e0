"""Views: the batched ones do what torchvision does to one image, and both follow the seed."""

import random

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision import batch_colour as colour
from moeapps.vision.auto_augment import OPERATIONS, POLICY, cifar_policy
from moeapps.vision.batch_geometry import cutout, rotation, shift_and_warp
from moeapps.vision.datasets import ImageSet
from moeapps.vision.transforms import (
    BATCHED,
    NORMALISATION,
    TwoView,
    batched,
    cifar_strong,
    cifar_weak,
    pair_digits_strong,
    per_image,
)
from moeapps.vision.views import ImageViews, seeded

v2 = pytest.importorskip("torchvision.transforms.v2", reason='needs pip install "moeapps[vision]"')

TORCHVISION = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "colour": "Color", "auto_contrast": "AutoContrast",
}  # fmt: skip


def pixels(count=4, channels=3, height=32, width=32):
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), generator=draws)
    images[1 % count] = images[1 % count] // 2 + 20
    images[2 % count] = 7  # a flat one
    return images.to(torch.uint8)


# ------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 14)])
def test_crop_flip_and_rotation_in_one_sampling_equal_three_steps(height, width):
    images = pixels(6, 3, height, width).float()
    tops, lefts = torch.tensor([0, 4, 8, 3, 1, 7]), torch.tensor([8, 4, 0, 2, 5, 6])
    flips = torch.tensor([True, False, True, True, False, False])
    angles = torch.tensor([0.0, 0.0, 11.0, -14.0, 7.5, 0.0])
    found = shift_and_warp(
        images,
        shift=(lefts - 4.0, tops - 4.0),
        flip=flips,
        matrix=rotation(angles),
        cropped=True,
    )
    for row, image in enumerate(images):
        expected = v2.functional.pad(image, [4] * 4)
        expected = v2.functional.crop(expected, tops[row], lefts[row], height, width)
        if flips[row]:
            expected = v2.functional.horizontal_flip(expected)
        expected = v2.functional.rotate(expected, float(angles[row]))
        # A pixel halfway between two others may fall to either side.
        assert (found[row] != expected).float().mean() < 0.005


def test_rotation_turns_counterclockwise_and_scale_enlarges():
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, 2, 4] = 1  # right of the centre
    turned = shift_and_warp(images, matrix=rotation(torch.tensor([90.0])))
    assert turned[0, 0, 0, 2] == turned.sum() == 1  # above it
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 3:6, 3:6] = 1
    larger = shift_and_warp(images, matrix=rotation(torch.tensor([0.0]), torch.tensor([3.0])))
    assert larger.sum() == 81


def test_hole_is_a_square_that_the_border_may_cut():
    images = torch.ones(500, 2, 12, 12)
    holed = cutout(images, 4, torch.Generator().manual_seed(0), torch.tensor([[[0.25]], [[0.5]]]))
    changed = holed[:, 0] != 1
    assert torch.equal(changed, holed[:, 1] == 0.5)
    areas = changed.sum((1, 2))
    assert areas.max() == 16
    assert areas.min() == 4  # centred on a corner
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(areas, rows * columns)


# ---------------------------------------------------------------------------------- AutoAugment


def test_policy_is_that_of_torchvision():
    published = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._get_policies(
        v2.AutoAugmentPolicy.CIFAR10
    )
    ours = tuple(
        tuple(
            (TORCHVISION.get(name, name.capitalize()), chance, level)
            for name, chance, level in pair
        )
        for pair in POLICY
    )
    for mine, theirs in zip(ours, published, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one == (other[0], other[1], other[2] or 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_torchvision_within_one_grey_level(name):
    augment = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    theirs = TORCHVISION.get(name, name.capitalize())
    magnitudes, signed = augment._AUGMENTATION_SPACE[theirs]
    images = pixels()
    for level in (0, 1, 5, 9):
        for sign in (1.0, -1.0) if signed else (1.0,):
            table = magnitudes(10, 32, 32)
            magnitude = 0.0 if table is None else sign * float(table[level])
            expected = torch.stack(
                [
                    augment._apply_image_or_video_transform(
                        image,
                        theirs,
                        magnitude,
                        interpolation=v2.InterpolationMode.NEAREST,
                        fill={torch.Tensor: None},
                    )
                    for image in images
                ]
            ).float()
            strength = torch.full((4,), float(level)), torch.full((4,), sign)
            found = OPERATIONS[name](images.float(), *strength).floor()
            if name.startswith(("shear", "rotate")):
                assert (found != expected).float().mean() < 0.01
            else:
                assert (found - expected).abs().max() <= 1


def test_policy_gives_8_bit_images_and_changes_most_of_them():
    images = pixels(200).float() / 255
    changed = cifar_policy(images, torch.Generator().manual_seed(0))
    assert (changed * 255).sub((changed * 255).round()).abs().max() < 1e-4
    assert 0 <= changed.min() <= changed.max() <= 1
    moved = (changed != images).flatten(1).any(1).float().mean()
    assert 0.5 < moved < 0.98


@pytest.mark.parametrize("wrong", [-0.01, 1.01, float("nan"), float("inf")])
def test_policy_refuses_values_that_no_8_bit_image_has(wrong):
    images = pixels().float() / 255
    images[2, 1, 3, 4] = wrong
    with pytest.raises(ArgumentError, match="before any normalisation or noise"):
        cifar_policy(images)


@pytest.mark.parametrize("images", [pixels(), torch.rand(3, 8, 8), torch.rand(2, 4, 8, 8)])
def test_policy_refuses_other_shapes_and_types(images):
    with pytest.raises(ArgumentError, match="Pass floats"):
        cifar_policy(images)


# --------------------------------------------------------------------------------------- colours


def test_hue_equals_torchvision():
    images = pixels(3).float() / 255
    for turn in (-0.5, -0.1, 0.07, 0.5):
        expected = v2.functional.adjust_hue(images, turn)
        found = colour.hue(images, torch.full((3,), turn))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_jitter_equals_torchvision():
    images = pixels(3).float() / 255
    for ours, theirs in (
        (colour.brightness, v2.functional.adjust_brightness),
        (colour.contrast, v2.functional.adjust_contrast),
        (colour.saturation, v2.functional.adjust_saturation),
    ):
        factors = torch.tensor([0.6, 1.0, 1.4])
        for row, found in enumerate(ours(images, factors)):
            expected = theirs(images[row], float(factors[row]))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_blur_equals_torchvision():
    images = pixels(3).float() / 255
    sigmas = torch.tensor([0.1, 0.8, 2.0])
    for row, found in enumerate(colour.gaussian_blur(images, sigmas)):
        expected = v2.functional.gaussian_blur(images[row], [9, 9], [float(sigmas[row])] * 2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------- whole views


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("channels", [1, 3])
def test_batched_views_keep_the_shape_and_follow_the_seed(name, channels):
    images = pixels(16, channels).float() / 255
    before = torch.get_rng_state()
    one, same, other = (
        batched(name)(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (name == "none")


def test_batch_of_one_and_small_images_work():
    for name in ("pair-digits-weak", "pair-digits-strong", "cifar-weak", "sade-view"):
        assert batched(name)(torch.rand(1, 1, 8, 14), None).shape == (1, 1, 8, 14)


def test_strong_view_of_cifar_has_a_hole_of_the_mean_colour():
    strong = cifar_strong(torch.ones(32, 3, 32, 32), torch.Generator().manual_seed(0))
    hole = NORMALISATION["cifar"](strong).abs().amax(1) < 1e-6
    assert (hole.sum((1, 2)) >= 64).all()
    assert (hole.sum((1, 2)) <= 256).all()


def test_weak_view_stays_within_its_bounds():
    images = torch.zeros(400, 1, 32, 32)
    images[:, :, 15:17, 15:17] = 1
    weak = cifar_weak(images, torch.Generator().manual_seed(0), degrees=0)
    rows = weak.amax((1, 3)).argmax(1) - 15
    assert rows.min() == -4
    assert rows.max() == 4
    assert set(weak.sum((1, 2, 3)).tolist()) == {4.0}


def test_strong_pair_digits_are_farther_from_the_image_than_weak_ones():
    images = torch.rand(64, 1, 8, 14, generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    weak, strong = (
        (batched(f"pair-digits-{kind}")(images, draws) - images).pow(2).mean()
        for kind in ("weak", "strong")
    )
    assert strong > 1.2 * weak


def test_strong_pair_digits_lose_a_square():
    strong = pair_digits_strong(torch.full((50, 1, 8, 14), 9.0), torch.Generator().manual_seed(0))
    hole = (strong.abs() < 1).sum((1, 2, 3))
    assert (hole >= 4).all()


def test_normalisation_of_its_own_mean_is_zero():
    for name, one in NORMALISATION.items():
        images = torch.tensor(one.mean)[:, None, None].expand(-1, 2, 2)
        assert NORMALISATION[name](images).abs().max() == 0
    assert NORMALISATION["half"](torch.ones(2, 3, 1, 1)).min() == 1


@pytest.mark.parametrize("images", [torch.rand(2, 1, 4, 4), torch.rand(4, 4), pixels(2)])
def test_normalisation_of_colours_refuses_other_channels_and_whole_numbers(images):
    with pytest.raises(ArgumentError, match=r"is for floats \[\.\.\., 3, H, W\]"):
        NORMALISATION["cifar"](images)


def test_grey_image_under_the_normalisation_of_colours_is_an_error():
    with pytest.raises(ArgumentError, match="Choose one with a single mean"):
        per_image("cifar-weak")(pixels(1, 1)[0])
    assert per_image("cifar-weak", "mnist")(pixels(1, 1)[0]).shape == (1, 32, 32)


@pytest.mark.parametrize("name", ["cifar-weak", "cifar-strong", "sade-view", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_single_images_become_normalised_tensors(name, channels):
    transform = per_image(name, NORMALISATION["half"])
    out = transform(pixels(3, channels)[0])
    assert type(out) is torch.Tensor
    assert out.shape == (channels, 32, 32)
    assert -1 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("name", ["imagenet-weak", "imagenet-strong", "imagenet-test"])
def test_photographs_of_any_size_become_224_and_follow_the_seed(name):
    if name == "imagenet-strong":
        pytest.importorskip("timm", reason='needs pip install "moeapps[vision]"')
    transform = per_image(name)
    photograph = pixels(3, 3, 260, 300)[0]
    views = []
    for seed in (1, 1, 2):
        with seeded(seed):
            views.append(transform(photograph))
    assert views[0].shape == (3, 224, 224)
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) == (name == "imagenet-test")


def test_views_of_an_image_do_not_depend_on_the_order_or_move_global_generators():
    images = ImageSet(pixels(6).permute(0, 2, 3, 1).numpy(), np.arange(6) % 2, ("a", "b"))
    views = ImageViews(images, TwoView(per_image("cifar-weak"), per_image("cifar-strong")), seed=3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [views[i] for i in range(6)]
    again = [views[i] for i in (5, 4, 3, 2, 1, 0)][::-1]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["strong"], other["strong"])
        assert (one["label"], one["index"]) == (other["label"], other["index"])
    assert first[3]["label"] == 1
    views.epoch = 1
    assert not torch.equal(views[0]["image"], first[0]["image"])


def test_seeding_leaves_the_generators_of_gpus_alone(monkeypatch):
    def moved(seed):
        raise AssertionError("the generators of the GPUs were seeded and stay so")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", moved)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    with seeded(1, 2):
        first = torch.rand(3)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), first)


def test_unknown_names_get_the_closest():
    for call in (batched, per_image):
        with pytest.raises(UnknownNameError, match="cifar-weak"):
            call("cifar-week")
    with pytest.raises(UnknownNameError, match="imagenet"):
        per_image("none", "imagnet")
