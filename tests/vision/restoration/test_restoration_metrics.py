"""PSNR and SSIM against scikit-image, torchmetrics and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from moeapps import errors
from moeapps.vision.restoration.metrics import luma, psnr, ssim


def pair(height, width, noise, seed):
    rng = np.random.default_rng(seed)
    clean = rng.random((height // 4 + 1, width // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)
    clean = clean[:height, :width]
    noisy = (clean + rng.normal(0, noise, clean.shape)).clip(0, 1)
    return noisy, clean


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(64, 80), (101, 77), (11, 11), (480, 720)])
def test_equal_to_scikit_image(size):
    metrics = pytest.importorskip("skimage.metrics")
    noisy, clean = pair(*size, 0.1, 0)
    assert float(psnr(tensor(noisy), tensor(clean))[0]) == pytest.approx(
        metrics.peak_signal_noise_ratio(clean, noisy, data_range=1), abs=1e-9
    )
    expected = metrics.structural_similarity(
        clean, noisy, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert float(ssim(tensor(noisy), tensor(clean))[0]) == pytest.approx(expected, abs=1e-7)


def test_close_to_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    noisy, clean = (tensor(image) for image in pair(96, 120, 0.1, 1))
    theirs = functional.structural_similarity_index_measure(noisy, clean, data_range=1.0)
    assert float(ssim(noisy, clean)) == pytest.approx(float(theirs), abs=0.01)


def test_mean_of_images_and_not_of_pooled_errors():
    black = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    errors_ = torch.tensor([10 ** (-22.2 / 20), 10 ** (-34.0 / 20)], dtype=torch.float64)
    restored = black + errors_.view(2, 1, 1, 1)
    found = psnr(restored, black)
    assert found.tolist() == pytest.approx([22.2, 34.0], abs=1e-9)
    assert float(found.mean()) == pytest.approx(28.1, abs=1e-9)
    pooled = -10 * math.log10(float((restored - black).square().mean()))
    assert pooled == pytest.approx(24.9, abs=0.05)  # what must not come out


def test_luma_is_bt_601_in_its_limited_range():
    colours = torch.eye(3).view(3, 3, 1, 1)
    assert (255 * luma(colours)).flatten().tolist() == pytest.approx(
        [16 + 65.481, 16 + 128.553, 16 + 24.966], abs=1e-4
    )
    noisy = 0.5 + 10 ** (-22.2 / 20) * torch.randn(
        1, 3, 256, 256, generator=torch.Generator().manual_seed(0)
    ).clamp(-4, 4)
    grey = torch.full_like(noisy, 0.5)
    # Independent noise of three channels: weaker in their weighted sum by 4.8 dB.
    gain = -20 * math.log10(math.hypot(65.481, 128.553, 24.966) / 255)
    found = psnr(noisy, grey, y_channel=True) - psnr(noisy, grey)
    assert float(found) == pytest.approx(gain, abs=0.1)


def test_pixels_outside_the_range_are_clamped():
    white = torch.ones(1, 3, 12, 12)
    assert math.isinf(float(psnr(white + 0.5, white)))
    assert float(ssim(white + 0.5, white)) == 1


def test_images_smaller_than_a_window():
    image = torch.rand(1, 3, 1, 5)
    assert float(ssim(image, image)) == pytest.approx(1)


def test_shapes_must_be_equal():
    with pytest.raises(errors.ArgumentError, match="B, 3, H, W"):
        psnr(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
