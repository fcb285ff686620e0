import numpy as np
import pytest

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.datasets import load
from moeapps.recsys.datasets.short_video import RATES, oracle_scores, short_video_log
from moeapps.recsys.datasets.two_task_regression import two_task_regression


@pytest.fixture(scope="module", params=["mixed", "conflict"])
def log(request):
    return request.param, short_video_log(request.param, rows=60_000, test_rows=40_000, seed=0)


def logits(tables):
    chances = np.stack([tables.test[f"oracle/{task.name}"] for task in tables.tasks])
    return np.log(chances / (1 - chances))


def test_oracle_reaches_the_stated_auc_and_gauc(log):
    preset, tables = log
    auc, gauc = {"mixed": (0.855, 0.829), "conflict": (0.900, 0.877)}[preset]
    scores = oracle_scores(tables)
    assert scores["auc"] == pytest.approx(auc, abs=0.015)
    assert scores["gauc"] == pytest.approx(gauc, abs=0.02)


def test_rates_are_those_of_the_tasks(log):
    _, tables = log
    for rates in RATES.values():
        for name, rate in rates.items():
            chance = np.concatenate(
                [part[f"oracle/{name}"] for part in (tables.train, tables.val, tables.test)]
            )
            assert chance.mean() == pytest.approx(rate, rel=1e-6)
            error = 4 * np.sqrt(rate / 60_000)
            assert tables.train[name].mean() == pytest.approx(rate, abs=error)


def test_tasks_of_a_group_are_alike_and_groups_are_not(log):
    preset, tables = log
    correlation = np.corrcoef(logits(tables))
    within = correlation[:4, :4][np.triu_indices(4, 1)].mean()
    assert within == pytest.approx({"mixed": 0.7, "conflict": 0.96}[preset], abs=0.06)
    assert abs(correlation[:4, 4:].mean()) < 0.3


def test_scale_is_the_spread_of_the_logits(log):
    preset, tables = log
    spread = logits(tables).std(axis=1)
    assert np.allclose(spread, {"mixed": 1.6, "conflict": 2.0}[preset], rtol=0.03)


def test_log_has_eight_categories_and_24_numbers(log):
    _, tables = log
    assert len(tables.schema.categorical) == 8
    assert tables.schema.dense_width == 24
    assert tables.schema.group_key == "user"
    train = tables.train
    assert len(np.unique(train["tab"])) == 4
    assert len(np.unique(train["duration"])) == 8
    often = np.bincount(train["item"])
    assert np.allclose(train["item_count"], np.log1p(often[train["item"]]))
    assert train["user_noise"].max() > 10  # heavy tails


def test_columns_belong_to_user_and_item(log):
    _, tables = log
    for key, column in (("user", "user_vector"), ("user", "cluster"), ("item", "author")):
        keys, values = tables.train[key], tables.train[column].reshape(60_000, -1)
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        assert np.array_equal(values[first][place], values)


def test_popular_items_follow_a_power_of_their_rank(log):
    _, tables = log
    counts = np.sort(np.bincount(tables.train["item"]))[::-1]
    rank = np.arange(1, 101)
    slope = np.polyfit(np.log(rank[9:]), np.log(counts[9:100]), 1)[0]
    assert slope == pytest.approx(-0.8, abs=0.1)


def test_same_seed_gives_the_same_log_and_another_seed_another():
    small = {"rows": 500, "val_rows": 100, "test_rows": 100}
    one, two, other = (load("short-video", seed=seed, **small) for seed in (3, 3, 4))
    assert all(np.array_equal(one.train[name], two.train[name]) for name in one.train)
    assert not np.array_equal(one.train["item"], other.train["item"])


def test_default_sizes_are_those_of_the_presets():
    assert load("short-video", preset="conflict").num_rows == {
        "train": 200_000, "val": 20_000, "test": 80_000,
    }  # fmt: skip


def test_bad_arguments_of_the_log_are_named():
    with pytest.raises(UnknownNameError, match="'conflict'"):
        short_video_log("conflicts")
    with pytest.raises(ArgumentError, match="rows are"):
        short_video_log(rows=0)


# ---------------------------------------------------------------------------- two-task regression


def directions(tables):
    """Recovered by regressing x on y: for Gaussian x that is in proportion to w."""
    x = np.concatenate([tables.train["x"], tables.test["x"]])
    y = [np.concatenate([tables.train[k], tables.test[k]]) for k in ("y1", "y2")]
    found = np.stack([x.T @ column / len(x) for column in y])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("correlation", [1.0, 0.5, 0.0, -0.5])
def test_directions_have_the_stated_cosine(correlation):
    tables = two_task_regression(correlation, rows=100_000, test_rows=100_000, width=20)
    one, two = directions(tables)
    assert one @ two == pytest.approx(correlation, abs=0.02)


def test_target_is_a_function_of_one_direction_and_little_noise():
    tables = two_task_regression(1.0, rows=50_000, width=5)
    x, y1, y2 = (tables.train[name] for name in ("x", "y1", "y2"))
    spread = (y1 - y2).std()  # equal directions: only the noise of both is left
    along = x @ directions(tables)[0]
    order = np.argsort(along)
    raw_noise = 0.1 * np.sqrt(2)
    s = along[order]
    clean = s + sum(np.sin(a * s + b) for a, b in zip((1, 2, 3, 4), (0, 1, 2, 3), strict=True))
    unit = clean.std()
    assert spread == pytest.approx(raw_noise / unit, rel=0.05)
    assert np.corrcoef(clean, y1[order])[0, 1] > 0.98


def test_targets_are_standardised_by_the_training_rows():
    tables = load("two-task-regression", rows=5000, seed=2)
    assert [task.type for task in tables.tasks] == ["regression", "regression"]
    for name in ("y1", "y2"):
        assert tables.train[name].mean() == pytest.approx(0, abs=1e-9)
        assert tables.train[name].std() == pytest.approx(1)
        assert tables.test[name].std() == pytest.approx(1, abs=0.05)
    assert tables.train["x"].shape == (5000, 100)


def test_bad_arguments_of_the_regression_are_named():
    with pytest.raises(ArgumentError, match=r"correlation=1.5"):
        two_task_regression(1.5)
    with pytest.raises(ArgumentError, match="width=1"):
        two_task_regression(width=1)
