"""One battery of checks for every registered stream classifier."""

import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.registry import ModelEntry, create_model, model_info


class StreamSubject:
    """A registered stream classifier under test.

    Args:
        model: Its name in the registry.
    """

    def __init__(self, model: str) -> None:
        self.name = model
        self.entry: ModelEntry = model_info(model)

    def build(self) -> Any:
        """A new model from the entry's example arguments."""
        return create_model(self.name, **self.entry.example)

    def stream(self, rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
        """Two bells per class of three, some values missing; the classes turn in the middle."""
        rng = np.random.default_rng(5)
        y = rng.integers(0, 3, rows)
        turned = (y + (np.arange(rows) >= rows // 2)) % 3
        x = rng.normal(0, 0.7, (rows, 4)) + np.stack([turned, turned == 1, y, y == 2], 1)
        x[rng.random(x.shape) < 0.03] = np.nan
        return x, y


def check_river(subject: StreamSubject) -> None:
    """River's own checks pass, but for those that the class itself names as not applicable."""
    from river import checks

    model = subject.build()
    skipped = model._unit_test_skips()
    found: Any = checks.yield_checks(model)
    for check in found:
        name = getattr(check, "__name__", None) or check.func.__name__  # a partial
        if name not in skipped:
            try:
                check(model.clone())
            except Exception as error:
                raise AssertionError(f"river's {name}: {error}") from error


def check_ways_in_agree(subject: StreamSubject) -> None:
    """Dicts, frames, arrays and test-then-train runs give the same answers to the last bit."""
    import pandas as pd

    x, y = subject.stream()
    by_dict, by_frame, by_array, at_once = (subject.build() for _ in range(4))
    said: list[Any] = []
    for row, label in zip(x, y, strict=True):
        features = dict(enumerate(row.tolist()))
        said.append(by_dict.predict_one(features))
        by_dict.learn_one(features, int(label))
    answers = at_once.prequential(x, y)
    _require(answers[1:].tolist() == said[1:], "prequential and the dict loop answer differently")
    for start in range(0, len(x), 97):
        part = slice(start, start + 97)
        by_frame.learn_many(pd.DataFrame(x[part]), pd.Series(y[part]))
        by_array.partial_fit(x[part], y[part])
    expected = at_once.predict_proba(x[:50])
    _require(np.array_equal(by_array.predict_proba(x[:50]), expected), "partial_fit differs")
    frame = by_frame.predict_proba_many(pd.DataFrame(x[:50])).to_numpy()
    _require(np.array_equal(frame, expected), "learn_many differs")
    one = [by_dict.predict_proba_one(dict(enumerate(row.tolist()))) for row in x[:50]]
    _require(np.array_equal([[*p.values()] for p in one], expected), "learn_one differs")


def check_probabilities(subject: StreamSubject) -> None:
    """Probabilities are finite, sum to one and have an entry for every label seen."""
    x, y = subject.stream()
    proba = subject.build().partial_fit(x, y).predict_proba(x)
    _require(proba.shape == (len(x), 3), f"probabilities of shape {proba.shape}, not [N, 3]")
    _require(bool(np.isfinite(proba).all()), "a probability is not finite")
    _require(bool((np.abs(proba.sum(1) - 1) < 1e-9).all()), "probabilities do not sum to 1")


def check_seed(subject: StreamSubject) -> None:
    """The same model answers the same twice."""
    x, y = subject.stream()
    first, second = (subject.build().prequential(x, y) for _ in range(2))
    _require(np.array_equal(first, second), "two runs with one seed differ")


def check_learns(subject: StreamSubject) -> None:
    """Better than the majority class before the change, and again some time after it."""
    x, y = subject.stream(3000)
    right = subject.build().prequential(x, y) == y
    majority = np.bincount(y).max() / len(y)
    for part in (slice(500, 1500), slice(2000, 3000)):
        found = right[part].mean()
        _require(bool(found > majority + 0.1), f"accuracy {found:.2f}; majority {majority:.2f}")


def check_save(subject: StreamSubject) -> None:
    """A saved and loaded model goes on exactly like the original."""
    x, y = subject.stream()
    model = subject.build().partial_fit(x[:350], y[:350])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model.save(path)
        loaded = type(model).load(path)
    same = np.array_equal(loaded.prequential(x[350:], y[350:]), model.prequential(x[350:], y[350:]))
    _require(same, "the loaded model answers differently")


def check_odd_features(subject: StreamSubject) -> None:
    """Huge, missing, nominal and changing features never crash it or mix up labels."""
    model = subject.build()
    odd: list[Any] = [math.nan, None, 1e300, -1e300, math.inf, "a", True, 0, -0.0, 1e-300, "", "b"]
    labels = ["yes", 7, None, (1, 2), True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(300):
            features = {f"f{(t + i) % 7}": odd[(t * 5 + i) % len(odd)] for i in range(t % 5)}
            proba = model.predict_proba_one(features)
            _require(
                set(proba) <= set(labels), f"labels {set(proba) - set(labels)} were never seen"
            )
            total = sum(proba.values())
            _require(not proba or abs(total - 1) < 1e-9, f"probabilities sum to {total}")
            model.learn_one(features, labels[t % len(labels)])
    _require(set(model.predict_proba_one({})) == set(labels), "not every label has a probability")


STREAM_CHECKS: dict[str, Callable[[StreamSubject], None]] = {
    "river": check_river,
    "ways_in": check_ways_in_agree,
    "probabilities": check_probabilities,
    "seed": check_seed,
    "learns": check_learns,
    "save": check_save,
    "odd_features": check_odd_features,
}
"""Checks by the name under which a registry entry may declare that it ``cannot`` do it."""


def check_stream_model(model: str) -> dict[str, str]:
    """Run every check of :data:`STREAM_CHECKS` that the model does not declare it cannot pass.

    Args:
        model: Name of a registered stream classifier.

    Returns:
        What the model declares it cannot do, with the reason.

    Raises:
        AssertionError: A property does not hold; the message names model and check.
    """
    subject = StreamSubject(model)
    for name, check in STREAM_CHECKS.items():
        if name not in subject.entry.cannot:
            try:
                check(subject)
            except AssertionError as error:
                raise AssertionError(f"{model}, {name}: {error}") from error
    return dict(subject.entry.cannot)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
