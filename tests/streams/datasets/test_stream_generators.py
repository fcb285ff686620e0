import hashlib
import subprocess
import sys

import numpy as np
import pytest
from river.datasets import synth

from moeapps import streams
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams.datasets import GENERATORS
from moeapps.streams.datasets.agrawal import rule
from moeapps.streams.datasets.drift import concept_at, schedule, stream_key
from moeapps.streams.datasets.led import RANDOM, RELEVANT, SEGMENTS, SWAPPED, _place
from moeapps.streams.datasets.sea import THRESHOLDS


def digest(stream):
    return hashlib.sha256(stream.X.tobytes() + stream.y.tobytes()).hexdigest()[:16]


# Recorded once: a change of a generator changes every published number.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("led_a", "0aafbf0cfbf9a5ef"),
        ("led_g", "908bf78201ccd88c"),
        ("sea_a", "de344307efc67a2d"),
        ("sea_g", "e6cdc0020a7ed876"),
        ("agrawal_a", "2b9bf023bb6d1641"),
    ],
)
def test_bytes_of_a_seed_never_change(name, expected):
    assert digest(streams.load(name, limit=2_000, length=2_000, seed=1)) == expected


def test_rbf_of_a_seed_never_changes():
    # Cosines and logarithms differ in the last bit between machines, so no bytes here.
    stream = streams.load("rbf_m", limit=2_000, seed=1)
    assert stream.X[1_999, :3] == pytest.approx(
        [0.565767110282074, 0.7989520147551573, 0.38144704480601976]
    )


@pytest.mark.parametrize("name", list(GENERATORS))
def test_neither_chunks_nor_the_start_change_a_stream(name):
    whole = streams.load(name, limit=3_000, length=3_000, seed=5)
    for size in (1, 7, 1_000):
        stream = streams.load(name, limit=3_000 if size > 1 else 50, length=3_000, seed=5)
        parts = list(stream.chunks(size))
        assert np.array_equal(np.concatenate([X for X, _ in parts]), whole.X[: len(stream)])
        assert np.array_equal(np.concatenate([y for _, y in parts]), whole.y[: len(stream)])
    X, y = next(whole.chunks(10, start=2_900))
    assert np.array_equal(X, whole.X[2_900:2_910])
    assert np.array_equal(y, whole.y[2_900:2_910])


@pytest.mark.parametrize("name", list(GENERATORS))
def test_seeds_differ(name):
    assert digest(streams.load(name, limit=500)) != digest(streams.load(name, limit=500, seed=1))


def bayes_led(segments, noise=0.1):
    """The likeliest digit: the one whose pattern differs in the fewest segments."""
    return (segments[:, None, :] != SEGMENTS[None]).sum(axis=2).argmin(axis=1)


def test_led_ceiling_is_74_percent():
    stream = streams.load("led", limit=200_000)
    right = bayes_led(stream.X[:, :RELEVANT]) == stream.y
    assert right.mean() == pytest.approx(0.740, abs=3 * np.sqrt(0.74 * 0.26 / 200_000))
    assert stream.X[:, RELEVANT:].mean(axis=0) == pytest.approx(np.full(RANDOM, 0.5), abs=0.005)


def test_led_concepts_swap_their_segments_with_random_bits():
    stream = streams.load("led_a", limit=40_000, length=40_000, seed=3)
    r, o = _place(stream_key("led_a", 3))
    for concept, swapped in enumerate(SWAPPED):
        X, y = stream.X[10_000 * concept + 100 :][:9_800].copy(), stream.y[10_000 * concept + 100 :]
        i = np.arange(swapped)
        a, b = (i + r) % RELEVANT, RELEVANT + (i + o) % RANDOM
        before = (bayes_led(X[:, :RELEVANT]) == y[:9_800]).mean()
        X[:, a], X[:, b] = X[:, b].copy(), X[:, a].copy()
        assert (bayes_led(X[:, :RELEVANT]) == y[:9_800]).mean() == pytest.approx(0.74, abs=0.015)
        assert before < 0.65


def test_sea_ceiling_is_90_percent_in_every_concept():
    stream = streams.load("sea_a", limit=80_000, length=80_000)
    for concept, threshold in enumerate(THRESHOLDS):
        part = slice(20_000 * concept + 100, 20_000 * (concept + 1) - 100)
        X, y = stream.X[part], stream.y[part]
        right = ((X[:, 0] + X[:, 1] > threshold) == y).mean()
        assert right == pytest.approx(0.90, abs=3 * 0.3 / np.sqrt(len(y)))
    assert stream.X.min() >= 0
    assert stream.X.max() < 10


@pytest.mark.parametrize(("variant", "concept"), [(0, 0), (1, 1), (3, 2), (0, 3)])
def test_sea_labels_are_those_of_river(variant, concept):
    for x, y in synth.SEA(variant=variant, seed=1).take(300):
        assert (x[0] + x[1] > THRESHOLDS[concept]) == y


@pytest.mark.parametrize("function", range(1, 11))
def test_agrawal_labels_are_those_of_river(function):
    theirs = getattr(synth.Agrawal, f"_classification_function_{function - 1}")
    stream = streams.load("agrawal", limit=2_000, function=function, perturbation=0)
    for row, y in zip(stream.X, stream.y, strict=True):
        assert theirs(*row) == y
    # and for river's own people, whose salaries are drawn in another way
    for x, y in synth.Agrawal(classification_function=function - 1, seed=2).take(500):
        assert rule(function, np.array(list(x.values()), dtype=float)) == y


def test_agrawal_facts_have_the_published_ranges():
    stream = streams.load("agrawal_a", limit=50_000)
    salary, commission, age, elevel, car, zipcode, hvalue, hyears, loan = stream.X.T
    for values, low, high in (
        (salary, 20_000, 150_000),
        (age, 20, 80),
        (hyears, 1, 30),
        (loan, 0, 500_000),
        (hvalue / (9 - zipcode) / 100_000, 0.5, 1.5),
    ):
        assert values.min() >= low
        assert values.max() <= high
        assert values.max() - values.min() > 0.99 * (high - low)
    paid = commission > 0
    assert (salary[paid] < 75_000 * 1.1).all()
    assert commission[paid].min() >= 10_000
    for codes, count in ((elevel, 5), (car, 20), (zipcode, 9)):
        assert np.array_equal(np.unique(codes), np.arange(count))
        assert np.bincount(codes.astype(int)) / 50_000 == pytest.approx(
            np.full(count, 1 / count), abs=0.01
        )


def test_agrawal_concepts_are_the_published_rules():
    exact = streams.load("agrawal_a", limit=8_000, length=8_000, perturbation=0)
    for concept, function in enumerate((1, 2, 1, 4)):
        rows = range(2_000 * concept + 50, 2_000 * (concept + 1) - 100)
        assert all(rule(function, exact.X[t]) == exact.y[t] for t in rows)


def test_rbf_instances_lie_around_moving_centroids():
    # With one centroid everything is known: its class, its unit speed, its spread.
    stream = streams.load("rbf_f", limit=20_000, num_centroids=1, num_features=3)
    assert len(np.unique(stream.y)) == 1
    places = stream.X.reshape(200, 100, 3).mean(axis=1)
    ways = np.diff(places, axis=0) / 100
    assert np.median(np.linalg.norm(ways, axis=1)) < 5e-3
    still = streams.load("rbf", limit=20_000, num_centroids=1, num_features=3)
    offsets = still.X - still.X.mean(axis=0)
    lengths = np.linalg.norm(offsets, axis=1)
    spread = np.sqrt((lengths**2).mean())
    assert np.mean(lengths < spread) == pytest.approx(0.683, abs=0.02)  # a normal length
    assert np.linalg.norm(still.X[:10_000].mean(axis=0) - still.X[10_000:].mean(axis=0)) < 0.05


def test_rbf_moves_with_its_speed_and_stays_in_the_cube():
    slow, fast = (
        streams.load("rbf_f", limit=30_000, num_centroids=1, num_features=2, speed=speed)
        for speed in (1e-4, 1e-3)
    )
    # Between bounces the centroid goes a straight way: 1000 instances x speed.
    for stream, speed in ((slow, 1e-4), (fast, 1e-3)):
        # The spread cancels: both streams have the same draws around their centroids.
        assert stream.X.shape == (30_000, 2)
        middle = stream.X.reshape(-1, 1_000, 2).mean(axis=1)
        assert middle.min() > -0.2
        assert middle.max() < 1.2
        steps = np.linalg.norm(np.diff(middle, axis=0), axis=1)
        assert np.median(steps) <= 1_000 * speed * 1.2 + 0.1
    at_rest = streams.load("rbf_f", limit=30_000, num_centroids=1, num_features=2, speed=0)
    way = np.linalg.norm(slow.X[:3_000] - at_rest.X[:3_000], axis=1)
    assert way == pytest.approx(1e-4 * np.arange(3_000), abs=1e-9)


def test_changes_are_where_the_papers_have_them():
    assert schedule("abrupt").positions.tolist() == [249_975, 499_975, 749_975]
    assert schedule("gradual").positions.tolist() == [225_000, 475_000, 725_000]
    assert streams.load("led_a").drifts == (249_975, 499_975, 749_975)
    assert streams.load("sea_g", limit=300_000).drifts == (225_000,)


def test_a_change_is_a_sigmoid():
    changes = schedule("gradual")
    draws = (np.arange(1_000) + 0.5) / 1_000
    for t, expected in ((225_000, 0.5), (237_500, 1 / (1 + np.exp(-1))), (350_000, 1.0)):
        share = np.mean([concept_at(t, draw, *changes) for draw in draws])
        assert share == pytest.approx(expected, abs=2e-3)


def test_ten_million_instances_fit_in_flat_memory():
    stream = streams.load("sea_a", limit=10_000_000)
    X, y = next(stream.chunks(1_000, start=9_999_000))
    assert len(stream) == 10_000_000
    assert ((X[:, 0] + X[:, 1] > 8) == y).mean() > 0.85  # the last concept goes on


def test_dicts_have_names_for_nominal_values():
    stream = streams.load("agrawal", limit=5)
    pairs = list(stream)
    assert len(pairs) == 5
    x, y = pairs[0]
    assert list(x) == list(stream.feature_names)
    assert isinstance(x["salary"], float)
    assert x["car"] == str(int(stream.X[0, 4]) + 1)
    assert y == stream.y[0]
    assert all(v in ("0", "1") for v in next(iter(streams.load("led", limit=1)))[0].values())


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="'led_a'"):
        streams.load("led-b")
    with pytest.raises(ArgumentError, match="does not take lenght"):
        streams.load("led_a", lenght=5)
    with pytest.raises(ArgumentError, match="leaves no room"):
        streams.load("led_a", length=100)
    with pytest.raises(ArgumentError, match="negative"):
        streams.load("led_a", limit=-1)
    with pytest.raises(ArgumentError, match="num_centroids=0"):
        streams.load("rbf", num_centroids=0)
    with pytest.raises(ArgumentError, match="function=11"):
        streams.load("agrawal", function=11)
    with pytest.raises(ArgumentError, match="size=0"):
        next(streams.load("sea", limit=5).chunks(0))


def test_cards_need_no_numba_river_or_torch():
    code = (
        "import sys\n"
        "from moeapps import streams\n"
        "assert len([streams.card(name) for name in streams.list_datasets()]) >= 12\n"
        "assert not {'numba', 'river', 'torch', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
