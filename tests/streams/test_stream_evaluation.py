import pickle

import numpy as np
import pytest
from river import evaluate, metrics, naive_bayes, tree
from river.base import Classifier
from river.forest import ARFClassifier

from moeapps import streams
from moeapps.errors import ArgumentError, CheckpointError
from moeapps.streams.driftmoe import DriftMoE
from moeapps.streams.evaluation import STATE, Evaluation
from moeapps.streams.hoeffding_tree import HoeffdingTree
from moeapps.streams.record import Record


class Log(Classifier):
    """Always says the label of the last instance it learned; writes down what it was asked."""

    def __init__(self):
        self.calls = []
        self.last = None

    def learn_one(self, x, y):
        self.calls.append(("learn", x["x0"]))
        self.last = y

    def predict_one(self, x):
        self.calls.append(("predict", x["x0"]))
        return self.last


class Told(HoeffdingTree):
    """A tree that claims to have experts."""

    def _statistics(self):
        n = self._num_learned
        return {"drifts": list(range(0, n, 500)), "living": n // 1000, "usage": [n, n // 2]}


def predictions(model, stream, **options):
    evaluation = Evaluation({"m": model}, stream, keep_predictions=True, **options)
    return evaluation.run()["m"].arrays()["predictions"]


@pytest.mark.parametrize("delay", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("window", [1, 7, 30])
def test_delay_is_a_queue(delay, window):
    stream = streams.load("sea", limit=60)
    x0, expected = stream.X[:, 0].tolist(), []
    for t in range(60):
        if delay > 1 and t >= delay:
            expected.append(("learn", x0[t - delay]))
        expected.append(("predict", x0[t]))
        if delay <= 1:
            expected.append(("learn", x0[t]))
    model = Log()
    found = predictions(model, stream, delay=delay, window=window)
    assert model.calls == expected
    lag = max(delay, 1)
    assert found[:lag].tolist() == [-1] * min(lag, 60)
    assert found[lag:].tolist() == stream.y[: 60 - lag].tolist()


@pytest.mark.parametrize("delay", [0, 1, 30])
def test_accuracy_is_that_of_river(delay):
    stream = streams.load("image_segments", limit=400)
    record = Evaluation({"m": naive_bayes.GaussianNB()}, stream, delay=delay).run()["m"]
    metric = evaluate.progressive_val_score(
        iter(stream), naive_bayes.GaussianNB(), metrics.Accuracy(), delay=delay or None
    )
    # river leaves out instances without an answer; they are wrong here.
    assert record.windows().summed().model == metric.cm.total_true_positives


@pytest.mark.parametrize("delay", [0, 1, 5, 60])
def test_array_and_dict_ways_agree(delay):
    stream = streams.load("agrawal", limit=1_500)
    tree_of_arrays = HoeffdingTree(grace_period=50, nominal_attributes=stream.nominal)
    arrays = predictions(tree_of_arrays, stream, delay=delay, window=400)

    class Dicts(Classifier):
        def __init__(self):
            self.tree = HoeffdingTree(grace_period=50)

        def learn_one(self, x, y):
            self.tree.learn_one(x, y)

        def predict_one(self, x):
            return self.tree.predict_one(x)

    dicts = predictions(Dicts(), stream, delay=delay, window=400)
    lag = max(delay, 1)
    assert np.array_equal(arrays[lag:], dicts[lag:])
    whole = HoeffdingTree(grace_period=50, nominal_attributes=stream.nominal)
    assert np.array_equal(arrays[lag:], whole.prequential(stream.X, stream.y, delay=delay)[lag:])


def test_window_does_not_change_the_predictions():
    stream = streams.load("sea_a", limit=3_000, length=3_000)
    found = [predictions(HoeffdingTree(), stream, window=w) for w in (100, 999, 10_000)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_counts_are_those_of_the_predictions():
    stream = streams.load("sea", limit=2_500)
    evaluation = Evaluation({"m": HoeffdingTree()}, stream, keep_predictions=True)
    record = evaluation.run()["m"]
    right = record.arrays()["predictions"] == stream.y
    assert record.ends == [1_000, 2_000, 2_500]
    windows = record.windows()
    assert windows.total.tolist() == [1_000, 1_000, 500]
    parts = (right[:1_000], right[1_000:2_000], right[2_000:])
    assert windows.model.tolist() == [part.sum() for part in parts]
    again = stream.y[1:] == stream.y[:-1]
    assert windows.last.sum() == again.sum()
    assert record.seconds > 0


def test_what_a_model_tells_is_kept_per_window():
    stream = streams.load("sea", limit=2_500)
    record = Evaluation({"m": Told()}, stream).run()["m"]
    assert record.drifts == [0, 500, 1_000, 1_500, 2_000]
    assert record.living == [1, 2, 2]
    assert [row.tolist() for row in record.usage] == [[1_000, 500], [1_000, 500], [500, 250]]
    late = Evaluation({"m": Told()}, stream, delay=100).run()["m"]
    assert late.drifts == [100, 600, 1_100, 1_600, 2_100]


def test_record_survives_its_arrays():
    record = Evaluation({"m": Told()}, streams.load("sea", limit=2_500)).run()["m"]
    again = Record.of(record.arrays())
    for key, value in record.arrays().items():
        assert np.array_equal(again.arrays()[key], value, equal_nan=True)
    grown = Record(usage=[np.array([1.0]), np.array([2.0, 3.0])])
    assert grown.arrays()["usage"].tolist() == [[1, 0], [2, 3]]


def models():
    return {
        "native": HoeffdingTree(grace_period=50),
        "told": Told(),
        "moe": DriftMoE(num_experts=3, top_k=2, batch_size=64, hidden=8, seed=1),
        "arf": ARFClassifier(n_models=2, seed=4),
    }


@pytest.mark.parametrize("delay", [0, 150])
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(tmp_path, delay):
    stream = streams.load("rbf_f", limit=1_500)
    options = {"delay": delay, "window": 200, "keep_predictions": True}
    whole = Evaluation(models(), stream, **options).run()
    first = Evaluation(models(), stream, **options)
    for _ in range(2):
        first.step()
    first.save(tmp_path)
    first.step()
    first.save(tmp_path)  # the older state is replaced
    assert len(list(tmp_path.iterdir())) == 5
    first.step()  # lost
    second = Evaluation(models(), stream, **options)
    second.restore(tmp_path)
    assert second.done == 600
    for name, record in second.run().items():
        for key, value in record.arrays().items():
            if key != "seconds":
                assert np.array_equal(value, whole[name].arrays()[key], equal_nan=True), (name, key)


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    stream = streams.load("sea", limit=600)
    run = Evaluation(models(), stream, window=200)
    run.step()
    run.save(tmp_path)
    for other in (
        Evaluation(models(), stream, window=100),
        Evaluation({"native": HoeffdingTree()}, stream, window=200),
        Evaluation(models(), streams.load("sea", limit=600, seed=1), window=200),
    ):
        with pytest.raises(CheckpointError, match="saved by another run"):
            other.restore(tmp_path)
    model = next(path for path in tmp_path.iterdir() if path.suffix == ".pkl")
    content = model.read_bytes()
    model.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        Evaluation(models(), stream, window=200).restore(tmp_path)
    model.write_bytes(content)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        Evaluation(models(), stream, window=200).restore(tmp_path)


def test_a_pickle_is_not_opened_before_its_checksum_is_right(tmp_path):
    stream = streams.load("sea", limit=400)
    run = Evaluation({"nb": naive_bayes.GaussianNB()}, stream, window=200)
    run.step()
    run.save(tmp_path)
    (file,) = tmp_path.glob("*.pkl")
    file.write_bytes(pickle.dumps(Exception("not this")))
    with pytest.raises(CheckpointError, match="damaged"):
        Evaluation({"nb": naive_bayes.GaussianNB()}, stream, window=200).restore(tmp_path)


def test_a_model_that_cannot_take_the_stream_is_named():
    stream = streams.load("agrawal", limit=100)
    with pytest.raises(ArgumentError, match="nb failed between the instances 0 and 100"):
        Evaluation({"nb": naive_bayes.GaussianNB()}, stream).run()


def test_trees_of_river_take_nominal_and_missing_values(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"{i % 7 if i % 5 else ''},{'ab'[i % 2]},{'yn'[i % 2]}" for i in range(300)]
    path.write_text("number,letter,label\n" + "\n".join(rows))
    stream = streams.load_csv(path, "label")
    run = Evaluation(
        {
            "river": tree.HoeffdingTreeClassifier(grace_period=20),
            "ours": HoeffdingTree(grace_period=20, nominal_attributes=stream.nominal),
        },
        stream,
    ).run()
    for record in run.values():
        assert record.windows().model.sum() > 250


@pytest.mark.parametrize("bad", [{"delay": -1}, {"window": 0}])
def test_bad_numbers_are_refused(bad):
    stream = streams.load("sea", limit=10)
    with pytest.raises(ArgumentError, match="cannot be run"):
        Evaluation({"m": HoeffdingTree()}, stream, **bad)
    with pytest.raises(ArgumentError, match="0 models"):
        Evaluation({}, stream)


def test_an_empty_stream_is_over_at_once():
    record = Evaluation({"m": HoeffdingTree()}, streams.load("sea", limit=0)).run()["m"]
    assert record.ends == []
