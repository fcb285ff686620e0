"""The router: equal to torch's, and a row's score depends on nothing but the row."""

import pickle

import numpy as np
import pytest

from moeapps.errors import ArgumentError
from moeapps.streams.router import MAX_ZSCORE, Layers, Router, top_k

ROWS = np.random.default_rng(0).normal(3.0, 2.0, (400, 5))
TARGETS = np.random.default_rng(1).random((400, 4)) < 0.6


def new_router(kind=Router, **changes):
    return kind(5, 0, 4, **({"hidden": 16, "batch_size": 8, "seed": 3} | changes))


def feed(router, rows=ROWS, targets=TARGETS, chunk=1000):
    """Rows and targets in pieces of at most ``chunk``; the logits each row was met with."""
    met, start = [], 0
    while start < len(rows):
        end = start + min(chunk, router.room)
        met.append(router.take(rows[start:end]).copy())
        router.teach(targets[start:end])
        start = min(end, len(rows))
    return np.concatenate(met)


def by_the_book(rows, targets, router, *, zscore, lr=2e-3, batch_size=8):
    """Forward, backward and Adam in float64, straight from the formulas."""
    w = [part.astype(float) for part in router.weights]
    first, second = [np.zeros_like(p) for p in w], [np.zeros_like(p) for p in w]
    met, batch = [], []
    for t, (raw, m) in enumerate(zip(rows, targets, strict=True)):
        x = raw
        if zscore:
            past = rows[:t]
            sd = past.std(0) if t else np.zeros_like(raw)
            x = np.where(sd > 0, (raw - past.mean(0) if t else 0) / np.where(sd > 0, sd, 1), 0)
            x = np.clip(x, -MAX_ZSCORE, MAX_ZSCORE)
        h1 = np.maximum(x @ w[0] + w[1], 0)
        h2 = np.maximum(h1 @ w[2] + w[3], 0)
        z = h2 @ w[4] + w[5]
        met.append(z)
        batch.append((x, h1, h2, z, m))
        if len(batch) == batch_size:
            x, h1, h2, z, m = (np.array(part) for part in zip(*batch, strict=True))
            d3 = (1 / (1 + np.exp(-z)) - m) / m.size
            d2 = (d3 @ w[4].T) * (h2 > 0)
            d1 = (d2 @ w[2].T) * (h1 > 0)
            grads = [x.T @ d1, d1.sum(0), h1.T @ d2, d2.sum(0), h2.T @ d3, d3.sum(0)]
            step = (t + 1) // batch_size
            for p, a, b, g in zip(w, first, second, grads, strict=True):
                a += 0.1 * (g - a)
                b += 0.001 * (g * g - b)
                p -= lr * (a / (1 - 0.9**step)) / (np.sqrt(b / (1 - 0.999**step)) + 1e-8)
            batch = []
    return np.array(met), w


@pytest.mark.parametrize("zscore", [False, True])
def test_router_follows_the_equations(zscore):
    router = new_router(zscore=zscore)
    met, weights = by_the_book(ROWS, TARGETS, router, zscore=zscore)
    np.testing.assert_allclose(feed(router), met, atol=2e-4)
    for mine, expected in zip(router.weights, weights, strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-4)
    assert router.steps == 50


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_torch_router_gives_the_same_after_100_steps(dropout):
    from moeapps.streams.torch_router import TorchRouter

    changes = {"batch_size": 4, "dropout": dropout}
    mine, torchs = new_router(**changes), new_router(TorchRouter, **changes)
    assert all((a == b).all() for a, b in zip(mine.weights, torchs.weights, strict=True))
    before = mine.weights.w2.copy()
    np.testing.assert_allclose(feed(mine), feed(torchs), atol=1e-4)
    assert mine.steps == torchs.steps == 100
    assert np.abs(mine.weights.w2 - before).max() > 0.01
    for a, b in zip(mine.weights, torchs.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_torch_router_restores_what_the_compiled_one_saved():
    from moeapps.streams.torch_router import TorchRouter

    mine, torchs = new_router(), new_router(TorchRouter)
    feed(mine, ROWS[:101], TARGETS[:101])
    torchs.restore(mine.state())
    a, b = feed(mine, ROWS[101:], TARGETS[101:]), feed(torchs, ROWS[101:], TARGETS[101:])
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_pieces_of_any_size_give_the_same_bits():
    whole, single = new_router(), new_router()
    assert (feed(whole) == feed(single, chunk=1)).all()
    assert (whole.parameters == single.parameters).all()


def test_a_row_scores_the_same_alone_and_among_others():
    router = new_router()
    feed(router)
    together = router.logits(ROWS)
    alone = np.concatenate([router.logits(ROWS[n : n + 1]) for n in range(len(ROWS))])
    assert (together == alone).all()


def test_scoring_teaches_nothing():
    router, same = new_router(), new_router()
    feed(router, ROWS[:50], TARGETS[:50])
    router.logits(ROWS)
    feed(same, ROWS[:50], TARGETS[:50])
    assert (feed(router, ROWS[50:], TARGETS[50:]) == feed(same, ROWS[50:], TARGETS[50:])).all()


def test_restored_router_goes_on_bit_for_bit():
    router, other = new_router(dropout=0.2), new_router(dropout=0.2, seed=3)
    feed(router, ROWS[:101], TARGETS[:101])  # 5 rows into a mini-batch
    state = {name: np.copy(value) for name, value in router.state().items()}
    assert state["x"].shape == (5, 5)
    other.restore(state)
    a, b = feed(router, ROWS[101:], TARGETS[101:]), feed(other, ROWS[101:], TARGETS[101:])
    assert (a == b).all()
    assert (router.parameters == other.parameters).all()


def test_new_inputs_change_nothing_until_they_teach():
    router = new_router()
    feed(router, ROWS[:101], TARGETS[:101])
    before = router.logits(ROWS)
    router.grow(7, 1, 4)
    wide = np.insert(ROWS, [5, 5, 5], np.random.default_rng(2).random((400, 3)), axis=1)
    np.testing.assert_allclose(router.logits(wide), before, atol=1e-5)
    feed(router, wide[101:], TARGETS[101:])
    assert np.abs(router.weights.w1[5:]).max(1).min() > 0


def test_new_numeric_inputs_stand_before_the_nominal_ones():
    mixed = Router(2, 3, 4, hidden=16, batch_size=8, seed=3)
    feed(mixed, ROWS[:101], TARGETS[:101])
    before = mixed.logits(ROWS)
    mixed.grow(3, 3, 4)
    np.testing.assert_allclose(mixed.logits(np.insert(ROWS, 2, 1.0, axis=1)), before, atol=1e-5)


def test_pickled_router_goes_on_bit_for_bit_without_working_memory():
    router = new_router(batch_size=64)
    feed(router, ROWS[:101], TARGETS[:101])
    stored = pickle.dumps(router)
    other = pickle.loads(stored)
    a, b = feed(router, ROWS[101:], TARGETS[101:]), feed(other, ROWS[101:], TARGETS[101:])
    assert (a == b).all()
    assert len(stored) < router.parameters.nbytes + 37 * (5 + 4) * 4 + 2_000


def test_new_outputs_leave_the_old_ones_alone():
    router = new_router()
    feed(router, ROWS[:101], TARGETS[:101])
    before = router.logits(ROWS)
    router.grow(5, 0, 6, target=1.0)
    after = router.logits(ROWS)
    np.testing.assert_allclose(after[:, :4], before, atol=1e-6)
    assert np.abs(after[:, 4:]).max() > 0
    assert (
        router.batch.m[:5].tolist()
        == np.pad(TARGETS[96:101], ((0, 0), (0, 2)), constant_values=1).tolist()
    )


def test_warm_start_takes_the_weights_of_another_router():
    taught, fresh = new_router(), new_router(seed=9)
    feed(taught)
    fresh.set_weights(taught.weights)
    fresh.scaler[...] = taught.scaler
    assert (fresh.logits(ROWS) == taught.logits(ROWS)).all()
    with pytest.raises(ArgumentError, match="same width"):
        fresh.set_weights(Router(4, 0, 4, hidden=16).weights)


def test_forgetting_makes_every_step_adams_first():
    router = new_router(batch_size=1, zscore=False)
    for _ in range(3):
        before = Layers(*(part.copy() for part in router.weights))
        router.forget()
        router.take(ROWS[:1])
        router.teach(TARGETS[:1])
        moved = np.abs(router.weights.b3 - before.b3)
        np.testing.assert_allclose(moved, 2e-3, rtol=1e-3)  # lr * g / |g|


def test_dropout_spares_the_scores_and_depends_on_the_seed():
    one, same, other = (new_router(dropout=0.5, seed=s) for s in (3, 3, 4))
    other.set_weights(one.weights)
    assert (one.logits(ROWS) == new_router().logits(ROWS)).all()
    assert (feed(one) == feed(same)).all()
    feed(other)
    assert (one.parameters != other.parameters).any()


@pytest.mark.parametrize("zscore", [False, True])
def test_odd_values_never_spoil_the_scores(zscore):
    rows = ROWS[:64].copy()
    rows[::3, 0] = np.nan
    rows[5, 1], rows[6, 1], rows[7, 2], rows[8, 2] = 1e300, -1e300, np.inf, -np.inf
    rows[9, 1], rows[10, 1] = 1.7e308, -1.7e308
    rows[:, 3] = 0.1
    router = new_router(zscore=zscore)
    assert np.isfinite(feed(router, rows, TARGETS[:64])).all()
    assert np.isfinite(router.logits(rows)).all()


def test_top_k_is_a_stable_sort():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 5, (300, 7)).astype(np.float32)  # many ties
    for k in (1, 3, 7):
        expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        assert (top_k(logits, k) == expected).all()


def test_torch_router_chooses_as_the_compiled_one():
    from moeapps.streams.torch_router import TorchRouter

    logits = np.random.default_rng(0).integers(0, 5, (300, 7)).astype(np.float32)
    assert (new_router(TorchRouter).choose(logits, 3) == top_k(logits, 3)).all()


def test_senseless_arguments_are_refused():
    with pytest.raises(ArgumentError, match="hidden=1"):
        Router(2, 0, 2, hidden=1)
    with pytest.raises(ArgumentError, match="dropout=1"):
        Router(2, 0, 2, dropout=1.0)
