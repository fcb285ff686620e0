import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from moeapps.errors import ArgumentError
from moeapps.vision.counting.metrics import CountingMetrics, game, mae, nae, region_counts, rmse


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 900, 50), rng.integers(0, 4, 50) * rng.integers(0, 300, 50)


def naive_game(predicted, true, level):
    """Split into rows and columns with numpy, one image and region at a time."""
    total = 0.0
    for p, t in zip(predicted.double().numpy()[:, 0], true.double().numpy()[:, 0], strict=True):
        sides = 2**level
        at = [[round(i * n / sides) for i in range(1, sides)] for n in p.shape]
        for rp, rt in zip(np.split(p, at[0]), np.split(t, at[0]), strict=True):
            parts = zip(np.split(rp, at[1], 1), np.split(rt, at[1], 1), strict=True)
            total += sum(abs(a.sum() - b.sum()) for a, b in parts)
    return total / len(predicted)


def test_counts_agree_with_scikit_learn(counts):
    predicted, true = counts
    p, t = torch.tensor(predicted), torch.tensor(true)
    assert mae(p, t) == pytest.approx(mean_absolute_error(true, predicted), rel=1e-12)
    assert rmse(p, t) == pytest.approx(root_mean_squared_error(true, predicted), rel=1e-12)
    some = true > 0
    assert 0 < some.sum() < len(true)
    expected = np.mean(np.abs(predicted - true)[some] / true[some])
    assert nae(p, t) == pytest.approx(expected, rel=1e-12)


def test_counts_are_compared_in_float64():
    true = torch.full((1000,), 20_000_001, dtype=torch.int64)
    assert mae(torch.full((1000,), 20_000_000.0), true) == 1.0
    assert math.isnan(nae(torch.tensor([1.0]), torch.tensor([0])))


@pytest.mark.parametrize("size", [(32, 32), (37, 51), (5, 3)])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_game_agrees_with_a_loop_over_regions(size, level):
    generator = torch.Generator().manual_seed(1)
    predicted = torch.rand(3, 1, *size, generator=generator)
    true = torch.rand(3, 1, *size, generator=generator)
    assert game(predicted, true, level) == pytest.approx(naive_game(predicted, true, level))


def test_game_grows_with_the_level_from_the_absolute_error():
    generator = torch.Generator().manual_seed(2)
    predicted = torch.rand(4, 1, 41, 64, generator=generator)
    true = torch.rand(4, 1, 41, 64, generator=generator)
    levels = [game(predicted, true, level) for level in range(5)]
    assert levels == sorted(levels)
    sums = predicted.double().sum((1, 2, 3)), true.double().sum((1, 2, 3))
    assert levels[0] == pytest.approx(mae(*sums))
    assert region_counts(true, 3).sum(1).tolist() == pytest.approx(sums[1].tolist())


def test_a_region_of_interest_hides_the_rest():
    predicted, true = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    predicted[..., 0, 0], true[..., 3, 3] = 5.0, 2.0
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, 0] = False
    assert game(predicted, true, 0) == 3
    assert game(predicted, true, 1) == 7
    assert game(predicted, true, 1, mask) == 2


def test_gathered_batches_give_what_all_images_give(counts):
    p, t = torch.tensor(counts[0]), torch.tensor(counts[1])
    generator = torch.Generator().manual_seed(3)
    maps, true_maps = torch.rand(2, 50, 1, 17, 23, generator=generator)
    metrics = CountingMetrics()
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        metrics.update(p[part], t[part], maps[part], true_maps[part])
    found = metrics.compute()
    assert set(found) == {"mae", "rmse", "nae", "game/0", "game/1", "game/2", "game/3"}
    assert float(found["mae"]) == pytest.approx(mae(p, t))
    assert float(found["rmse"]) == pytest.approx(rmse(p, t))
    assert float(found["nae"]) == pytest.approx(nae(p, t))
    for level in range(4):
        assert float(found[f"game/{level}"]) == pytest.approx(game(maps, true_maps, level))
    assert found["mae"].dtype == torch.float64
    metrics.reset()
    metrics.update(p[:2], t[:2])
    assert set(metrics.compute()) == {"mae", "rmse", "nae"}


def test_shapes_that_would_be_broadcast_are_refused():
    with pytest.raises(ArgumentError, match="cannot be compared"):
        mae(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(ArgumentError, match=r"GAME\(1\)"):
        game(torch.ones(3, 1, 4, 4), torch.ones(3, 4, 4), 1)
