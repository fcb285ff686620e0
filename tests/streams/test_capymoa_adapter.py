import sys

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, MissingExtraError
from moeapps.streams import HoeffdingTree
from moeapps.streams.capymoa_adapter import _classes, to_capymoa


def test_without_capymoa_the_extra_is_named(monkeypatch):
    _classes.cache_clear()
    monkeypatch.setitem(sys.modules, "capymoa", None)
    monkeypatch.setitem(sys.modules, "capymoa.base", None)
    with pytest.raises(MissingExtraError, match="capymoa"):
        to_capymoa(HoeffdingTree(), schema=None)
    _classes.cache_clear()


@pytest.fixture(scope="module")
def capymoa():
    return pytest.importorskip(
        "capymoa.stream.generator",
        reason="needs CapyMOA and Java: pip install 'moeapps[capymoa]'",
        exc_type=ImportError,
    )


def drain(stream, n):
    instances = [stream.next_instance() for _ in range(n)]
    return np.array([i.x for i in instances]), np.array([i.y_index for i in instances])


def test_predictions_are_those_of_the_model(capymoa):
    from capymoa.evaluation import prequential_evaluation

    stream = capymoa.SEA()
    learner = to_capymoa(HoeffdingTree(grace_period=50), stream.get_schema())
    results = prequential_evaluation(
        stream, learner, max_instances=2000, window_size=500, store_predictions=True
    )
    stream.restart()
    x, y = drain(stream, 2000)
    expected = HoeffdingTree(grace_period=50).prequential(x, y, classes=[0, 1])
    assert list(results.predictions())[1:] == expected[1:].tolist()  # the first one is None
    assert results.accuracy() == pytest.approx(100 * (expected == y).mean(), abs=0.1)
    assert results.accuracy() > 80


def test_nominal_attributes_are_declared(capymoa):
    schema = capymoa.AgrawalGenerator().get_schema()
    model = to_capymoa(HoeffdingTree(), schema).model
    # education level, car and zip code among salary, commission, age, ..., house value
    assert model.nominal_attributes == [3, 4, 5]


def test_classes_are_numbered_by_the_schema(capymoa):
    stream = capymoa.LEDGenerator()
    learner = to_capymoa(HoeffdingTree(), stream.get_schema())
    instance = stream.next_instance()
    assert learner.predict(instance) is None
    assert learner.predict_proba(instance) is None
    while instance.y_index == 0:
        instance = stream.next_instance()
    learner.train(instance)
    proba = learner.predict_proba(instance)
    assert proba.shape == (10,)
    assert learner.predict(instance) == instance.y_index == proba.argmax()


def test_batches_are_learned_row_by_row(capymoa):
    from capymoa.evaluation import prequential_evaluation

    stream = capymoa.SEA()
    learner = to_capymoa(HoeffdingTree(), stream.get_schema(), batch=True)
    results = prequential_evaluation(stream, learner, max_instances=1100, batch_size=200)
    assert results.accuracy() > 70  # of the first batch it knows nothing
    stream.restart()
    x, y = drain(stream, 1100)
    expected = HoeffdingTree().partial_fit(x, y, classes=[0, 1]).predict_proba(x)
    given = learner.batch_predict_proba(torch.from_numpy(x))
    assert given.numpy().tobytes() == expected.tobytes()


def test_every_model_gets_the_seed(capymoa):
    from moeapps.streams import TAME

    learner = to_capymoa(TAME(), capymoa.SEA().get_schema(), random_seed=7)
    assert learner.model.seed == 7
    assert str(learner) == "TAME"


def test_regression_is_refused(capymoa):
    from capymoa.stream import Schema

    schema = Schema.from_custom(["a", "target"], "target")
    with pytest.raises(ArgumentError, match="regression"):
        to_capymoa(HoeffdingTree(), schema)
