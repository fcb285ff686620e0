"""Tiles: the identity is exact, blends are weighted means, counts are those of the whole image."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.vision.tile_memory import choose_tile, free_memory, peak_bytes
from moeapps.vision.tiling import tiled_density, tiled_inference

SIZES = [(101, 77), (1, 1), (1, 50), (7, 5), (64, 64), (240, 33)]


def identity(x):
    return x


@pytest.mark.parametrize("blend", ["uniform", "hann"])
@pytest.mark.parametrize("size", SIZES)
def test_the_identity_is_exact(size, blend):
    x = torch.rand(2, 3, *size, generator=torch.manual_seed(0))
    for tile, overlap, multiple, batch in [
        (None, None, 8, 1), (48, 24, 8, 1), (40, 27, 8, 3), (16, 0, 16, 2), (32, None, 1, 5),
        ("auto", None, 8, 2),
    ]:  # fmt: skip
        got = tiled_inference(identity, x, tile, overlap, multiple, blend=blend, tile_batch=batch)
        assert torch.equal(got, x), (tile, overlap)


@pytest.mark.parametrize("size", SIZES)
def test_cores_cover_every_pixel_once(size):
    x = torch.rand(1, 3, *size, generator=torch.manual_seed(0))
    for tile, halo, multiple in [(None, None, 16), (48, 16, 16), (32, 5, 4), (20, 0, 1)]:
        got = tiled_density(lambda part: part.mean(1, keepdim=True), x, tile, halo, multiple)
        torch.testing.assert_close(got, x.mean(1, keepdim=True), rtol=0, atol=1e-7)


def naive(model, x, tile, stride, window):
    """Dictionaries of pixels in float64."""
    total, weight = np.zeros(x.shape[1:]), np.zeros(x.shape[2:])
    for top, left in itertools.product(
        *([*range(0, side - tile, stride), side - tile] for side in x.shape[2:])
    ):
        part = model(x[:, :, top : top + tile, left : left + tile])[0].double().numpy()
        total[:, top : top + tile, left : left + tile] += part * window
        weight[top : top + tile, left : left + tile] += window
    return total / weight


@pytest.mark.parametrize("blend", ["uniform", "hann"])
def test_blends_are_the_weighted_means_of_a_naive_loop(blend):
    x = torch.rand(1, 3, 90, 60, generator=torch.manual_seed(0))

    def model(part):  # depends on the whole tile, as attention does
        return part * part.mean((1, 2, 3), keepdim=True) + part.flip(-1)

    line = np.ones(24) if blend == "uniform" else 0.5 - 0.5 * np.cos(2 * np.pi * np.linspace(
        0.5 / 24, 1 - 0.5 / 24, 24))  # fmt: skip
    got = tiled_inference(model, x, 24, 12, blend=blend, tile_batch=4)
    expected = naive(model, x, 24, 12, np.outer(line, line))
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=1e-6)


def test_the_published_protocol_has_fifteen_tiles():
    calls = []
    tiled_inference(lambda part: calls.append(part.shape) or part, torch.rand(1, 3, 480, 720),
                    240, 120, 8, tile_batch=2)  # fmt: skip
    assert sum(shape[0] for shape in calls) == 15
    assert {shape[2:] for shape in calls} == {(240, 240)}


class Counter(nn.Module):
    """Strides of 4 and back, with a reach of less than 16 pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.mix = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 1, 5, padding=2)

    def forward(self, x):
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, -width % 4, 0, -height % 4), value=7.0)  # not a mirror
        density = self.mix(self.down(x)).relu()
        return nn.functional.interpolate(density, scale_factor=4)[..., :height, :width]


def test_a_halo_beyond_the_reach_gives_the_density_of_the_whole_image():
    model, x = Counter().eval(), torch.rand(1, 3, 203, 149, generator=torch.manual_seed(1))
    whole = tiled_density(model, x, None, None, 4)
    assert whole.shape == (1, 1, 203, 149)
    assert torch.equal(whole, model(x))
    for tile, batch in ((48, 1), (80, 3), (160, 1), (256, 1)):
        parts = tiled_density(model, x, tile, 16, 4, tile_batch=batch)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    naive_parts = tiled_density(model, x, 48, 0, 4)
    assert (naive_parts - whole).abs().max() > 1e-3  # without a halo the seams are wrong


def test_padding_mirrors_the_image():
    x = torch.arange(3.0).reshape(1, 1, 1, 3)
    seen = []
    tiled_inference(lambda part: seen.append(part) or part, x, None, None, 8)
    line = np.pad(np.arange(3.0), (0, 5), mode="reflect")
    assert seen[0][0, 0, 0].tolist() == line.tolist()
    assert seen[0][0, 0, :, 1].tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"tile": 20, "multiple": 8}, "multiple of 8. Choose 16"),
        ({"tile": 16, "overlap": 16}, "cannot share 16 pixels"),
        ({"tile": "large"}, "None or 'auto'"),
        ({"tile_batch": 0}, "must be 1 or more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, word):
    with pytest.raises(ArgumentError, match=word):
        tiled_inference(identity, torch.rand(1, 3, 40, 40), **arguments)


def test_unknown_blends_and_other_inputs_are_refused():
    with pytest.raises(UnknownNameError, match="hann"):
        tiled_inference(identity, torch.rand(1, 3, 8, 8), blend="han")
    with pytest.raises(ArgumentError, match=r"expected float images \[B, C, H, W\]"):
        tiled_density(identity, torch.zeros(3, 8, 8))
    with pytest.raises(ArgumentError, match="Choose tiles above 40"):
        tiled_density(identity, torch.zeros(1, 3, 8, 8), 40, 17, 4)
    with pytest.raises(ArgumentError, match="not empty"):
        tiled_inference(identity, torch.zeros(1, 3, 0, 8))
    with pytest.raises(ArgumentError, match="Expected the same height and width"):
        tiled_inference(lambda x: x[..., ::2], torch.rand(1, 3, 8, 8))


# ------------------------------------------------------------------------------------------ memory


def crowded(most, error):
    """A network that runs out of memory on more than so many pixels."""

    def model(x):
        if x[:, 0].numel() > most:
            raise error
        return x

    return model


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError("no memory"),
    ],
)
def test_fewer_tiles_then_smaller_ones_after_running_out_of_memory(error):
    x = torch.rand(1, 3, 150, 130)
    assert torch.equal(tiled_inference(crowded(64**2, error), x, 64, tile_batch=4), x)  # no warning
    with pytest.warns(UserWarning, match="tiles of 128 pixels: 64 were used"):
        assert torch.equal(tiled_inference(crowded(64**2, error), x, 128, tile_batch=4), x)
    with pytest.warns(UserWarning, match="tiles of 152 pixels: 72 were used"):
        assert torch.equal(tiled_density(crowded(80**2, error), x, None, None, 8), x)
    with pytest.raises(ConfigError, match="even with tiles of 32 pixels"):
        tiled_inference(crowded(100, error), x, "auto")


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"):
        tiled_inference(crowded(0, RuntimeError("wrong shape")), torch.rand(1, 3, 99, 99), 32)


def test_peak_counts_what_is_alive_at_once():
    mega = torch.zeros(1000, 1000)  # 4 million bytes
    assert peak_bytes(lambda x: x + 1, mega) == 4_000_000
    assert peak_bytes(lambda x: ((x + 1) + 1) + 1, mega) == 8_000_000  # the first one is freed
    assert peak_bytes(lambda x: [x + k for k in range(5)], mega) == 20_000_000
    assert peak_bytes(lambda x: x.reshape(-1)[:5].view(5), mega) == 0
    assert peak_bytes(lambda x: (x + 1).relu_().mul_(2), mega) == 4_000_000


def test_tile_follows_from_memory_also_where_it_grows_with_the_square():
    def attention(x):  # all pairs of every sixteenth pixel
        flat = x[:, :1, ::4, ::4].flatten(2)
        return (flat.transpose(1, 2) @ flat).mean() + x

    x = torch.rand(1, 3, 300, 300)
    tile = choose_tile(attention, x, free=int(2 * (4 * 24**4 + 12 * 96**2) * 1.02), multiple=8)
    assert tile == 96
    assert choose_tile(attention, x, free=1, multiple=8) == 32
    assert choose_tile(identity, x, multiple=8) == 304  # the whole image
    assert choose_tile(identity, torch.zeros(1, 3, 2000, 10), multiple=8) == 512


def test_free_memory_keeps_to_the_limit_of_a_container(monkeypatch):
    from pathlib import Path

    group = "/sys/fs/cgroup/memory."
    text = {group + "max": "5000000\n", group + "current": "1000000\n"}
    text["/proc/meminfo"] = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text[str(self)])
    assert free_memory() == 4_000_000
    text[group + "max"] = "max\n"
    assert free_memory() == 8000 * 1024


SCARCE = """
import resource, warnings, torch
from torch import nn
from moeapps.vision.tiling import tiled_inference
model = nn.Sequential(nn.Conv2d(3, 128, 1), nn.ReLU(), nn.Conv2d(128, 3, 1)).eval()
x = torch.rand(1, 3, 640, 640)
expected = tiled_inference(model, x, 128, 0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), -1))
try:
    model(x)
except RuntimeError as error:
    print("whole:", "allocate memory" in str(error))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    got = tiled_inference(model, x, None, 0)
print("tiles:", torch.allclose(got, expected, atol=1e-6), "Memory ran out" in str(said[0].message))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_process_that_may_take_little_memory_uses_smaller_tiles():
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["whole: True", "tiles: True True"], done.stderr
