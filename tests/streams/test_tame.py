import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from river import checks, naive_bayes
from sklearn.datasets import load_digits
from torch import nn

from moeapps.errors import ArgumentError, CheckpointError, UnknownNameError
from moeapps.streams import HoeffdingTree
from moeapps.streams.tame import TAME
from moeapps.streams.tame_experts import Batch, default_module

SMALL = {"batch_size": 16, "window": 4, "select_every": 4, "lr": 0.01, "seed": 0}
TREES = {"expert": HoeffdingTree(grace_period=20), "window": 20, "answer": "active", "seed": 0}
SMALL_TREES = {**TREES, "answer": "selector", "batch_size": 4, "select_every": 10}


def rate(model, x, y):
    return float((model.predict(x) == np.asarray(y)).mean())


# ------------------------------------------------------------------------------------ river

# Parameters 1 and 2 of _unit_test_params: small mini-batches of modules, and trees.
CASES = [
    pytest.param(params, check, id=f"{kind}-{number}-{check.__name__}")
    for kind, params in zip(("modules", "trees"), list(TAME._unit_test_params())[1:], strict=True)
    for number, check in enumerate(checks.yield_checks(TAME(**params)))
]


@pytest.mark.parametrize(("params", "check"), CASES)
def test_river_check(params, check):
    assert not TAME(**params)._unit_test_skips()
    check(TAME(**params))


# ----------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits():
    """Training and test rows, and five orders of the pixels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = torch.tensor(x[order] / 16).float(), torch.tensor(y[order])
    pixels = [np.random.default_rng(s).permutation(64) for s in range(1, 6)]
    return x[:1437], y[:1437], x[1437:], y[1437:], pixels


def learn_tasks(model, digits, tasks, epochs=15):
    """One task after the other; how many experts there are, and who is active, after each."""
    x, y, _, _, pixels = digits
    rng, said = np.random.default_rng(0), []
    for task in tasks:
        for _ in range(epochs):
            for rows in torch.from_numpy(rng.permutation(len(x))).split(128):
                model.learn_batch(x[rows][:, pixels[task]], y[rows])
        numbers = model.statistics()
        said.append((numbers["living"], numbers["active"]))
    return said


def mean_rate(model, digits, tasks):
    _, _, x, y, pixels = digits
    return np.mean([rate(model, x[:, pixels[task]], y) for task in set(tasks)])


@pytest.fixture(scope="module")
def five_tasks(digits):
    model = TAME(seed=0)
    return model, learn_tasks(model, digits, range(5))


def test_every_new_task_gets_an_expert(five_tasks, digits):
    model, said = five_tasks
    assert said == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    assert mean_rate(model, digits, range(5)) >= 0.975  # 0.980 is known; one network keeps one task


def test_a_task_that_returns_gets_its_expert_back(digits):
    model = TAME(seed=0)
    said = learn_tasks(model, digits, [0, 1, 2, 1, 3])
    assert said == [(1, 0), (2, 1), (3, 2), (3, 1), (4, 3)]
    assert mean_rate(model, digits, [0, 1, 2, 3]) >= 0.975


def test_published_detection_misses_changes(digits):
    model = TAME(published=True, seed=0)
    learn_tasks(model, digits, range(3))
    assert model.statistics()["living"] < 3
    model.consolidate(epochs=3, expert_sparsity=0.0, selector_sparsity=0.0)
    assert mean_rate(model, digits, range(3)) < 0.9


def test_consolidation_prunes_and_keeps_the_accuracy(five_tasks, digits):
    model = copy.deepcopy(five_tasks[0])
    model.consolidate(expert_sparsity=0.8, selector_sparsity=0.5, epochs=15)
    for module in model._mixture.experts.modules:
        weights = torch.cat([p.flatten() for p in module.parameters() if p.ndim > 1])
        assert float((weights == 0).float().mean()) == pytest.approx(0.8, abs=1e-3)
    gate = model._mixture.selector.gate
    weights = torch.cat([p.flatten() for p in gate.parameters() if p.ndim > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert mean_rate(model, digits, range(5)) > 0.96
    learn_tasks(model, digits, [4], epochs=1)  # it can go on


def test_copies_go_on_as_the_original(five_tasks, digits, tmp_path):
    model = five_tasks[0]
    model.save(tmp_path / "model.npz")
    copies = [
        model,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        TAME.load(tmp_path / "model.npz"),
    ]
    test_rows = digits[2]
    for one in copies:
        learn_tasks(one, digits, [0, 2], epochs=6)
    answers = [one.predict_proba(test_rows).tobytes() for one in copies]
    assert len(set(answers)) == 1
    assert len({str(one.statistics()) for one in copies}) == 1


def test_file_is_not_much_larger_than_the_arrays(five_tasks, tmp_path):
    model = five_tasks[0]
    model.save(tmp_path / "model.npz")
    live = sum(v.nbytes for v in model._state().values() if isinstance(v, np.ndarray))
    assert (tmp_path / "model.npz").stat().st_size < 1.2 * live


# --------------------------------------------------------------------- one answer, whatever way in


def mixed_stream(n=300):
    """Dicts with numbers, words and missing values; the labels are words."""
    rng = np.random.default_rng(1)
    items = []
    for t in range(n):
        x = {"a": float(rng.normal()), "b": str(rng.choice(["u", "v", "w"])), "c": float(t % 7)}
        if t % 5 == 0:
            del x["c"]
        if t > 100:
            x["late"] = float(rng.normal())
        y = "yes" if x["a"] + (x["b"] == "u") > 0.3 else "no"
        items.append((x, "maybe" if t > 150 and x["b"] == "w" else y))
    return items


@pytest.mark.parametrize("params", [SMALL, TREES, SMALL_TREES], ids=["modules", "active", "trees"])
def test_dicts_and_frames_agree_exactly(params):
    one, many = TAME(**params), TAME(**params)
    items = mixed_stream()
    for x, y in items:
        one.learn_one(x, y)
    for start, stop in ((0, 7), (7, 120), (120, 300)):
        part = items[start:stop]
        many.learn_many(pd.DataFrame([x for x, _ in part]), pd.Series([y for _, y in part]))
    for x, _ in items[::10]:
        assert one.predict_proba_one(x) == many.predict_proba_one(x)
    assert str(one.statistics()) == str(many.statistics())


@pytest.mark.parametrize("params", [SMALL, TREES, SMALL_TREES], ids=["modules", "active", "trees"])
def test_arrays_and_dicts_agree_exactly(params):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = (x[:, 0] > 0).astype(int)
    y[200:] = 1 - y[200:]
    loop, fitted, tested = (TAME(**params) for _ in range(3))
    predicted = []
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        features = dict(enumerate(row))
        predicted.append(loop.predict_one(features))
        loop.learn_one(features, label)
    fitted.partial_fit(x[:33], y[:33]).partial_fit(x[33:], y[33:])
    answers = tested.prequential(x, y)
    assert predicted[1:] == answers[1:].tolist()  # before the first label dicts give None
    expected = fitted.predict_proba(x).tobytes()
    assert tested.predict_proba(x).tobytes() == expected
    assert (
        np.array([[*loop.predict_proba_one(dict(enumerate(r))).values()] for r in x]).tobytes()
        == expected
    )
    assert tested.statistics()["usage"].sum() == 398  # all but the two that brought a label


def test_a_tensor_batch_is_one_mini_batch_of_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(160, 3)), rng.integers(3, size=160)
    rows = TAME(**SMALL).partial_fit(x, y, classes=[0, 1, 2])
    tensors = TAME(**SMALL)
    tensors.learn_batch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    model = TAME(**SMALL)
    for part in range(0, 160, 16):
        labels = torch.tensor(y[part : part + 16])
        model.learn_batch(torch.tensor(x[part : part + 16]), labels)
    shuffled = [list(model.classes_).index(c) for c in rows.classes_]
    assert set(model.classes_) == {0, 1, 2}
    same_order = TAME(**SMALL)
    same_order.partial_fit(x, y, classes=model.classes_)
    np.testing.assert_allclose(
        model.predict_proba(torch.tensor(x)), same_order.predict_proba(x), rtol=0, atol=1e-6
    )
    assert shuffled


def test_rows_of_weight_zero_teach_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.integers(2, size=200)
    w = (np.arange(200) % 3 > 0).astype(float)
    weighted = TAME(**SMALL).partial_fit(x, y, classes=[0, 1], sample_weight=w)
    without = TAME(**SMALL).partial_fit(x[w > 0], y[w > 0], classes=[0, 1])
    assert weighted.predict_proba(x).tobytes() == without.predict_proba(x).tobytes()


def test_weights_scale_the_loss():
    model = TAME(**{**SMALL, "batch_size": 2, "lr": 0.1})
    for _ in range(200):
        model.partial_fit(np.array([[1.0, 0.0]] * 2), [0, 1], sample_weight=[3.0, 1.0])
    assert model.predict_proba([[1.0, 0.0]])[0, 0] == pytest.approx(0.75, abs=0.01)


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    x, y = torch.randn(64, 4), torch.arange(64) % 2

    def noisy(width, classes):
        return nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Linear(8, classes))

    before = torch.get_rng_state()
    answers = []
    for seed in (0, 0, 1):
        model = TAME(noisy, seed=seed)
        for _ in range(5):
            model.learn_batch(x, y)
        answers.append(model.predict_proba(x).tobytes())
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------- trees


def concepts(order, n=600):
    """Rows in 0..1; in concept 0 the first feature decides, in 1 the opposite of the second."""
    rng = np.random.default_rng(0)
    x = rng.random((n * len(order), 3))
    which = np.repeat(order, n)
    return x, np.where(which == 0, x[:, 0] > 0.5, x[:, 1] < 0.5).astype(int)


@pytest.mark.parametrize(
    "expert", [HoeffdingTree(grace_period=50), naive_bayes.GaussianNB()], ids=["tree", "river"]
)
def test_trees_switch_on_tabular_streams(expert):
    x, y = concepts([0, 1, 0])
    model = TAME(expert=expert, answer="active", batch_size=20, window=20, seed=0)
    right = model.prequential(x, y) == y
    numbers = model.statistics()
    assert numbers["living"] == 2  # the third concept is the first
    assert [600 < d <= 660 or 1200 < d <= 1260 for d in numbers["drifts"]] == [True, True]
    assert right[1260:].mean() > 0.9
    alone = type(expert)(**expert._get_params())
    if isinstance(expert, HoeffdingTree):
        assert right.mean() > (alone.prequential(x, y) == y).mean() + 0.02


def test_the_loss_of_trees_is_the_smoothed_log_loss():
    x, y = concepts([0], n=200)
    model = TAME(**TREES, max_experts=1).partial_fit(x, y, classes=[0, 1])
    batch = Batch(torch.zeros(200, 3), torch.from_numpy(1 - y), torch.ones(200), x)
    p = model.predict_proba(x)[np.arange(200), 1 - y]
    assert p.min() < 0.01  # sure and wrong
    expected = -np.log(0.98 * p + 0.02 / 2).mean()
    assert model._mixture.experts.loss(0, batch) == pytest.approx(expected)


def test_tree_models_are_saved_and_loaded_with_their_expert(tmp_path):
    x, y = concepts([0, 1])
    model = TAME(**SMALL_TREES).partial_fit(x, y)
    model.save(tmp_path / "trees.npz")
    with pytest.raises(CheckpointError, match=r"TAME\.load\(path, expert=\.\.\.\)"):
        TAME.load(tmp_path / "trees.npz")
    loaded = TAME.load(tmp_path / "trees.npz", expert=HoeffdingTree(grace_period=20))
    assert loaded.prequential(x, y).tobytes() == model.prequential(x, y).tobytes()


def test_other_river_experts_are_saved_by_pickle_only(tmp_path):
    x, y = concepts([0], n=100)
    model = TAME(expert=naive_bayes.GaussianNB(), seed=0).partial_fit(x, y)
    with pytest.raises(ArgumentError, match="pickle"):
        model.save(tmp_path / "river.npz")
    again = pickle.loads(pickle.dumps(model))
    assert again.prequential(x, y).tobytes() == model.prequential(x, y).tobytes()


# -------------------------------------------------------------------------------------- modules


def conv_net(num_features, num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, num_classes)
    )


def test_images_and_any_module(digits, tmp_path):
    x, y, x_test, y_test, _ = digits
    model = TAME(conv_net, seed=0)
    for _ in range(10):
        for rows in torch.arange(len(x)).split(128):
            model.learn_batch(x[rows].view(-1, 1, 8, 8), y[rows])
    assert rate(model, x_test.view(-1, 1, 8, 8), y_test) > 0.8
    model.save(tmp_path / "images.npz")
    loaded = TAME.load(tmp_path / "images.npz", module=conv_net)
    images = x_test.view(-1, 1, 8, 8)
    assert loaded.predict_proba(images).tobytes() == model.predict_proba(images).tobytes()
    with pytest.raises(CheckpointError, match=r"module=\.\.\."):
        TAME.load(tmp_path / "images.npz")
    with pytest.raises(CheckpointError, match="do not fit the module"):
        TAME.load(tmp_path / "images.npz", module=default_module)


def test_optimizer_and_loss_can_be_chosen(digits):
    x, y, x_test, y_test, _ = digits
    model = TAME(
        optimizer_fn=torch.optim.Adam, lr=1e-2, loss_fn="multi_margin_loss", seed=0,
        gradient_clip_value=1.0,
    )  # fmt: skip
    for _ in range(5):
        for rows in torch.arange(len(x)).split(128):
            model.learn_batch(x[rows], y[rows])
    assert rate(model, x_test, y_test) > 0.9


def test_waiting_batches_survive_saving_and_growth(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((600, 2))
    y = (x[:, 0] > 0.5).astype(int)
    model = TAME(batch_size=10, window=10, smoothing=0.02, lr=0.05, seed=0).partial_fit(x, y)
    t = 0
    while not model._mixture.switcher.held:
        model.learn_one(dict(enumerate(x[t])), 1 - y[t])
        t += 1
    assert t <= 20
    model.learn_one({0: 0.1, 1: 0.1, "new": 3.0, "word": "w"}, "third")
    model.save(tmp_path / "waiting.npz")
    loaded = TAME.load(tmp_path / "waiting.npz")
    for one in (model, loaded):
        for row, label in zip(x[:200].tolist(), y[:200].tolist(), strict=True):
            one.learn_one({**dict(enumerate(row)), "new": 1.0}, 1 - label)
    features = {0: 0.3, 1: 0.2, "word": "w"}
    assert loaded.predict_proba_one(features) == model.predict_proba_one(features)
    assert model.statistics()["living"] == 2


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": conv_net, "expert": HoeffdingTree()}, ArgumentError, "one kind"),
        ({"answer": "selektor"}, UnknownNameError, "Did you mean 'selector'"),
        ({"window": 1}, ArgumentError, "window=1"),
        ({"buffer_size": 0}, ArgumentError, "buffer_size=0"),
        ({"batch_size": 0}, ArgumentError, "batch_size=0"),
        ({"max_experts": 0}, ArgumentError, "max_experts=0"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        TAME(**arguments)


def test_tensors_are_checked():
    model = TAME(seed=0)
    good, labels = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        model.learn_batch(good / 0, labels)
    with pytest.raises(ArgumentError, match="whole numbers"):
        model.learn_batch(good, labels.float())
    with pytest.raises(ArgumentError, match="whole numbers"):
        model.learn_batch(good, labels[:3])
    model.learn_batch(good, labels)
    with pytest.raises(ArgumentError, match=r"expected \[B, 3\]"):
        model.learn_batch(torch.zeros(4, 5), labels)
    with pytest.raises(ArgumentError, match="learned from tensors"):
        model.learn_one({"a": 1.0}, 0)
    with pytest.raises(ArgumentError, match="learned from tensors"):
        model.predict_proba_one({"a": 1.0})
    rows = TAME(seed=0).partial_fit(good.numpy(), labels.numpy())
    with pytest.raises(ArgumentError, match="learned from rows"):
        rows.learn_batch(good, labels)


@pytest.mark.parametrize("params", [SMALL, TREES], ids=["modules", "trees"])
def test_extreme_rows_leave_probabilities(params):
    model = TAME(**params)
    values = [1e300, -1e300, np.nan, 0.0, 5.0, 1e6]
    for t in range(400):
        model.learn_one(
            {"a": values[t % 6], "b": 3.0, "c": None, "d": t % 2 == 0}, t % 3 if t > 9 else 0
        )
    for value in values:
        proba = model.predict_proba_one({"a": value})
        assert set(proba) == {0, 1, 2}
        assert sum(proba.values()) == pytest.approx(1, abs=1e-9)
    assert sum(model.predict_proba_one({}).values()) == pytest.approx(1, abs=1e-9)


def test_a_diverged_expert_is_left():
    x, y = torch.randn(64, 4), torch.arange(64) % 2
    model = TAME(lr=1e30, max_experts=3, seed=0)
    for _ in range(30):
        model.learn_batch(x, y)
    assert model.statistics()["living"] == 3
    assert np.isfinite(model.predict_proba(x)).all()
