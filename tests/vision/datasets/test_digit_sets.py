"""Digits-LT and PairDigits-LT: counts, seeds, no digit in two splits."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')

from moeapps.errors import ArgumentError
from moeapps.vision.datasets import load, pair_digits


def test_pair_digits_has_the_counts_of_its_recipe():
    splits = pair_digits()
    counts = splits.train.class_counts
    assert counts.sum() == 1410
    assert (counts[0], counts[-1]) == (60, 1)
    assert (counts[:-1] >= counts[1:]).all()
    groups = ((counts > 20).sum(), ((counts >= 5) & (counts <= 20)).sum(), (counts < 5).sum())
    assert groups == (26, 35, 39)
    assert set(splits.test.class_counts) == {20}
    assert set(splits.val.class_counts) == {10}
    assert splits.train.shape == (8, 14, 1)
    assert splits.train.images.dtype == np.float32
    assert sorted(splits.class_names) == [f"{i:02d}" for i in range(100)]


def test_pair_without_noise_is_two_digits_that_share_two_columns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {}
    for image, digit in zip(bunch.images / 16, bunch.target, strict=True):
        known.setdefault(digit, []).append(image.astype(np.float32))
    train = pair_digits(noise=0).train
    for row in (0, 100, 1409):
        name = train.class_names[train.labels[row]]
        picture = train.images[row, ..., 0]
        left = [d for d in known[int(name[0])] if np.array_equal(d[:, :6], picture[:, :6])]
        right = [d for d in known[int(name[1])] if np.array_equal(d[:, 2:], picture[:, 8:])]
        shared = [np.clip(a[:, 6:] + b[:, :2], 0, 1) for a in left for b in right]
        assert any(np.array_equal(s, picture[:, 6:8]) for s in shared)


def test_splits_of_pairs_share_no_digit():
    splits = pair_digits(noise=0, val_per_class=30)
    columns = {}
    for name in ("train", "val", "test"):
        images = getattr(splits, name).images[..., 0]
        columns[name] = {image[:, :6].tobytes() for image in images}
    assert not columns["train"] & columns["test"]
    assert not columns["train"] & columns["val"]
    assert not columns["val"] & columns["test"]
    assert len(columns["train"]) <= 200


def test_pairs_follow_the_seed_and_not_the_size_of_other_splits():
    one, again, other = (pair_digits(seed) for seed in (1, 1, 2))
    assert np.array_equal(one.train.images, again.train.images)
    assert one.class_names != other.class_names
    fewer = pair_digits(1, test_per_class=5, val_per_class=3)
    assert np.array_equal(fewer.train.images, one.train.images)
    assert len(fewer.test) == 500


def test_images_are_those_of_the_published_results():
    def digest(splits):
        parts = (splits.train, splits.val, splits.test)
        return hashlib.sha256(b"".join(part.images.tobytes() for part in parts)).hexdigest()[:16]

    assert digest(pair_digits(1, noise=0)) == "d18aabbcac5727b4"
    assert digest(load("digits-lt", seed=1)) == "40032874bc3a9af9"


def test_noise_has_the_deviation_asked_for():
    clean, noisy = pair_digits(noise=0).test, pair_digits(noise=0.25).test
    difference = noisy.images - clean.images
    assert abs(difference.mean()) < 0.002
    assert difference.std() == pytest.approx(0.25, abs=0.002)


def test_pair_arguments_out_of_range_are_refused():
    beyond = ({"noise": float("nan")}, {"noise": float("inf")}, {"largest": float("nan")})
    small = ({"test_per_class": 0}, {"noise": -1})
    for wrong in ({"per_digit": 61}, {"imbalance": 1000}, *small, *beyond):
        with pytest.raises(ArgumentError):
            pair_digits(**wrong)


def test_digits_are_long_tailed_and_the_splits_disjoint():
    splits = load("digits-lt")
    assert splits.train.class_counts.tolist() == [100, 71, 51, 36, 26, 18, 13, 9, 6, 5]
    assert set(splits.test.class_counts) == {50}
    assert set(splits.val.class_counts) == {20}
    seen = [{i.tobytes() for i in s.images} for s in (splits.train, splits.val, splits.test)]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert 0 <= splits.train.images.min() <= splits.train.images.max() == 1


def test_digits_reverse_turns_train_and_shifted_test():
    splits = load("digits-lt", reverse=True, test="forward-10")
    assert splits.train.class_counts.tolist() == [5, 6, 9, 13, 18, 26, 36, 51, 71, 100]
    assert splits.test.class_counts.tolist() == [5, 6, 8, 10, 13, 17, 23, 29, 38, 50]


def test_too_long_a_tail_names_the_class():
    with pytest.raises(ArgumentError, match="Class 8 is left without an image"):
        load("digits-lt", imbalance=200)
