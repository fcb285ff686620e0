import math

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError
from moeapps.vision.counting.density_mixture import group_importance
from moeapps.vision.counting.hmode import HMoDE
from moeapps.vision.counting.losses import (
    Cells,
    attention_loss,
    counting_terms,
    relative_counting,
    squared_error,
)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def repeated(maps, stride, size):
    return F.interpolate(maps, scale_factor=stride, mode="nearest")[..., : size[0], : size[1]]


@pytest.mark.parametrize(("size", "stride"), [((32, 48), 4), ((37, 50), 4), ((5, 7), 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_squared_errors_are_those_of_repeated_maps(random, size, stride, masked):
    target = torch.rand(2, 1, *size, generator=random, dtype=torch.float64)
    rows, columns = (-(-n // stride) for n in size)
    maps = torch.rand(2, 7, rows, columns, generator=random, dtype=torch.float64)
    maps.requires_grad_()
    mask = torch.rand(2, 1, *size, generator=random) < 0.6 if masked else None
    inside = 1 if mask is None else mask
    full = ((repeated(maps, stride, size) - target).square() * inside).sum((2, 3))
    fast = squared_error(maps, Cells.of(target, stride, mask))
    torch.testing.assert_close(fast, full, rtol=1e-12, atol=1e-12)
    weights = torch.rand(2, 7, generator=random, dtype=torch.float64)
    gradients = [torch.autograd.grad((e * weights).sum(), maps)[0] for e in (fast, full)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def naive_relative(map, target, q, k):
    """One full-resolution map and target, window by window."""
    windows = []
    for y in range(0, map.shape[0] - q + 1, q):
        for x in range(0, map.shape[1] - q + 1, q):
            d, t = map[y : y + q, x : x + q], target[y : y + q, x : x + q]
            windows.append((float((d - t).square().sum()), float(d.sum()), float(t.sum())))
    k = min(k, len(windows) // 3 * 3)
    hardest = sorted(windows, reverse=True)[:k]
    P = [d for _, d, _ in sorted(hardest, key=lambda w: -w[2])]
    m, loss = k // 3, 0.0
    for s in range(min(3, m)):
        a, b, c = P[s], P[s + m], P[s + 2 * m]
        loss += max(0, b - a) + max(0, c - a) + max(0, c - b)
    return loss


@pytest.mark.parametrize("size", [(96, 80), (50, 70), (32, 32), (16, 33)])
def test_relative_counting_agrees_with_a_loop(random, size):
    target = torch.rand(2, 1, *size, generator=random, dtype=torch.float64)
    maps = torch.rand(
        2, 3, -(-size[0] // 4), -(-size[1] // 4), generator=random, dtype=torch.float64
    )
    full = repeated(maps, 4, size)
    found = relative_counting(maps, Cells.of(target, 4))
    for b in range(2):
        for j in range(3):
            expected = naive_relative(full[b, j], target[b, 0], 16, 9)
            assert float(found[b, j]) == pytest.approx(expected, abs=1e-9)


def test_relative_counting_by_hand():
    # nine windows of one pixel, true counts 9..1, predictions right but for two
    target = torch.arange(9.0, 0, -1).view(1, 1, 3, 3)
    maps = target.clone()
    cells = Cells.of(target, 1)
    assert float(relative_counting(maps, cells, window=1)) == 0
    maps[0, 0, 0, 0] = 5.0  # P_0 = 5 below P_3 = 6, above P_6 = 3
    assert float(relative_counting(maps, cells, window=1)) == 1
    maps[0, 0, 2, 2] = 8.0  # P_8 = 8 above P_2 = 7 and P_5 = 4
    assert float(relative_counting(maps, cells, window=1)) == 1 + 1 + 4


def test_relative_counting_needs_three_windows_and_a_fitting_side():
    cells = Cells.of(torch.rand(1, 1, 16, 32), 4)
    maps = torch.rand(1, 1, 4, 8, requires_grad=True)
    loss = relative_counting(maps, cells)
    assert loss.item() == 0
    loss.sum().backward()
    with pytest.raises(ArgumentError, match="no multiple of the stride 4"):
        relative_counting(maps, cells, window=6)
    with pytest.raises(ArgumentError, match="hard=8"):
        relative_counting(maps, cells, hard=8)


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_attention_loss_is_that_of_the_repeated_attention(random, size):
    attention = torch.rand(2, 1, 4, 4, generator=random)
    occupied = torch.rand(2, 1, *size, generator=random) < 0.3
    full = repeated(attention, 16, size)
    expected = F.binary_cross_entropy(full, occupied.float(), reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(attention_loss(attention, occupied, 16), expected)


def test_certain_and_wrong_attention_stays_finite():
    attention = torch.ones(1, 1, 1, 2, requires_grad=True)
    occupied = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    loss = attention_loss(attention, occupied, 2)
    assert loss.item() == pytest.approx(-2 * math.log(1e-30))
    loss.sum().backward()
    assert attention.grad.isfinite().all()


def test_importance_by_hand():
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.0, 0.25]]).expand(2, 3, 5, 2, 3)
    members = torch.tensor([[True, True, False], [True, False, True]])
    # sums 22.5 and 7.5: variance 112.5, mean 15
    assert float(group_importance(weights, members)) == pytest.approx(112.5 / 225)


def test_terms_of_one_image_by_hand():
    ones = torch.ones(1, 1, 1, 1)
    density = torch.tensor([[[[0.02, 0.0], [0.0, 0.0]]]])  # times 100: 2 in one of four pixels
    aux = {
        "experts": torch.cat([ones, 2 * ones], 1),
        "groups": 0.5 * ones,
        "output": 0 * ones,
        "attention": 0.25 * ones,
        "importance": torch.tensor(0.3),
    }
    terms = counting_terms(aux, density, label_scale=100, stride=2, gate_stride=2)
    levels = (1 + 3 * 1) + (0 + 3 * 4) + 2 * (1.5**2 + 3 * 0.25) + 4 * 4
    assert float(terms["levels"]) == pytest.approx(levels)
    assert float(terms["attention"]) == pytest.approx(-math.log(0.25) - 3 * math.log(0.75))
    assert float(terms["importance"]) == pytest.approx(0.3)
    assert float(terms["relative"]) == 0
    last = counting_terms(
        aux, density, label_scale=100, stride=2, gate_stride=2, level_weights=(0, 0, 1)
    )
    assert float(last["levels"]) == pytest.approx(4)


def test_terms_are_means_over_the_images(random):
    model = HMoDE(backbone="plain", strides=(2, 4, 8), decoder_width=4, slim=True).eval()
    images = torch.rand(2, 3, 40, 56, generator=random)
    density = torch.rand(2, 1, 40, 56, generator=random) / 50

    def terms(part):
        _, aux = model(images[part], return_aux=True)
        return counting_terms(aux, density[part], label_scale=100, stride=2, gate_stride=8)

    both, one, other = terms(slice(None)), terms(slice(1)), terms(slice(1, 2))
    for name in ("levels", "relative", "attention"):
        torch.testing.assert_close(both[name], (one[name] + other[name]) / 2)


def test_autocast_leaves_the_terms_in_float32(random):
    maps = 1 + torch.rand(1, 1, 32, 32, generator=random) / 100
    aux = {"experts": maps, "groups": maps, "output": maps, "attention": None}
    aux["importance"] = torch.zeros(())
    density = torch.rand(1, 1, 32, 32, generator=random)
    scale = {"label_scale": 1, "stride": 1, "gate_stride": 1}
    expected = counting_terms(aux, density, **scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = counting_terms(aux, density, **scale)
    for name, term in expected.items():
        assert torch.equal(found[name], term)


def test_targets_that_would_be_broadcast_are_refused():
    ones = torch.ones(2, 1, 4, 4)
    aux = {"experts": ones, "groups": ones, "output": ones, "attention": None, "importance": 0}
    scale = {"label_scale": 100, "stride": 4, "gate_stride": 16}
    with pytest.raises(ArgumentError, match="would be broadcast"):
        counting_terms(aux, torch.ones(2, 16, 16), **scale)
    with pytest.raises(ArgumentError, match="do not fit a density"):
        counting_terms(aux, torch.ones(2, 1, 16, 20), **scale)
