from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps.cli.main import main
from moeapps.errors import ArgumentError, CheckpointError, ConfigError, UnknownNameError
from moeapps.streams import DriftMoE, load
from moeapps.streams.driftmoe import correctness
from moeapps.streams.tame_module import (
    RouterData,
    RouterTraining,
    SelectorData,
    SelectorTraining,
    record_experts,
)
from moeapps.streams.tame_selector import new_gate
from moeapps.training.runs import RunFolder

CONFIGS = Path(__file__).parents[2] / "examples/configs/streams"
SMALL_TASKS = {"num_tasks": 2, "epochs": 10, "tame": {"window": 50}}
SMALL_DRIFTMOE = {"num_experts": 4, "hidden": 16, "top_k": 2}


def new_trainer(**options):
    return pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", **options,
    )  # fmt: skip


def train(module, data, epochs):
    trainer = new_trainer(max_epochs=epochs)
    trainer.fit(module, datamodule=data)
    return trainer, trainer.test(module, datamodule=data, verbose=False)[0]


@pytest.fixture(scope="module")
def selector():
    torch.manual_seed(0)
    data, module = SelectorData(**SMALL_TASKS), SelectorTraining()
    return data, module, *train(module, data, epochs=5)


@pytest.fixture(scope="module")
def router():
    torch.manual_seed(0)
    data = RouterData("rbf_m", limit=4001, driftmoe=SMALL_DRIFTMOE)
    module = RouterTraining(hidden=16, top_k=2)
    return data, module, *train(module, data, epochs=5)


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def test_selector_learns_who_learned_what(selector):
    _, _, _, numbers = selector
    assert numbers["test/acc"] > 0.99


def test_tame_answers_with_the_installed_selector(selector):
    data, module, _, _ = selector
    x, expert = data.model.recorded()
    model = module.install(data.model)
    gate = module.model.eval()
    assert torch.equal(model._mixture.who(x), gate(x).indices[:, 0])
    assert (model._mixture.who(x) == expert).float().mean() > 0.99
    assert model.predict(x).shape == (len(x),)
    for _ in range(80):  # and it learns on
        model.learn_batch(x[:64], expert[:64])


def test_selector_of_other_experts_is_refused(selector):
    data = selector[0]
    with pytest.raises(CheckpointError, match="do not fit"):
        data.model.set_selector(new_gate((64,), 5))


def test_selector_data_takes_a_saved_model(selector, tmp_path):
    data = selector[0]
    data.model.save(tmp_path / "tame.npz")
    again = SelectorData(file=str(tmp_path / "tame.npz"))
    again.setup()
    assert again.dataset == "recorded"
    assert (again.shape, again.num_experts) == (data.shape, data.num_experts)
    for one, other in zip(again.parts["test"].tensors, data.parts["test"].tensors, strict=True):
        assert torch.equal(one, other)


def test_parts_do_not_overlap_and_are_all(selector):
    data = selector[0]
    sizes = [len(data.parts[name]) for name in ("train", "val", "test")]
    assert sum(sizes) == len(data.model.recorded()[0])
    assert sizes[0] == pytest.approx(8 * sizes[1], abs=8)


def test_recorded_targets_are_who_was_right_before_learning():
    stream = load("rbf_m", limit=300)
    rows, right = record_experts(DriftMoE(**SMALL_DRIFTMOE, seed=0), stream.X, stream.y)
    slow = DriftMoE(**SMALL_DRIFTMOE, seed=0)
    slow.partial_fit(stream.X[:1], stream.y[:1], classes=np.unique(stream.y).tolist())
    for t in range(1, 300):
        x = np.repeat(stream.X[t : t + 1], 4, axis=0)
        proba = slow._pool.proba(x, np.arange(4))
        said, y = proba.argmax(1)[None], stream.y[t : t + 1]
        code = np.array([list(slow.classes_).index(y[0])])
        expected = correctness(said, code, proba[:, code[0]][None])
        np.testing.assert_array_equal(right[t - 1], expected[0])
        slow.partial_fit(stream.X[t : t + 1], y)
    assert rows.shape == (299, 10)
    assert np.abs(rows.mean(0)).max() < 0.1  # standardised
    assert rows.std(0) == pytest.approx(np.ones(10), abs=0.1)


def test_recording_changes_nothing_in_the_model():
    stream = load("sea_a", limit=500)
    recorded, plain = DriftMoE(**SMALL_DRIFTMOE, seed=0), DriftMoE(**SMALL_DRIFTMOE, seed=0)
    record_experts(recorded, stream.X, stream.y)
    plain.partial_fit(stream.X, stream.y, classes=np.unique(stream.y).tolist())
    assert recorded.predict_proba(stream.X).tobytes() == plain.predict_proba(stream.X).tobytes()


def test_driftmoe_routes_with_the_installed_router(router):
    data, module, _, numbers = router
    assert numbers["test/acc"] > 0.5
    model = module.install(data.model)
    stream = load("rbf_m", limit=4001)
    rows, _ = record_experts(DriftMoE(**SMALL_DRIFTMOE, seed=0), stream.X, stream.y)
    logits = module.model.eval()(torch.from_numpy(rows)).logits
    given = model._router.logits(np.asarray(stream.X[1:], float))
    np.testing.assert_allclose(given, logits.detach().numpy(), rtol=0, atol=1e-4)
    assert not np.allclose(given, data.model._router.logits(np.asarray(stream.X[1:], float)))
    model.partial_fit(stream.X[:300], stream.y[:300])  # and it learns on


def test_router_needs_a_model_that_has_one(router):
    module = router[1]
    with pytest.raises(ArgumentError, match="no router yet"):
        module.install(DriftMoE(**SMALL_DRIFTMOE))
    other = DriftMoE(num_experts=5, hidden=16).partial_fit(np.zeros((2, 10)), [0, 1])
    with pytest.raises(ArgumentError, match="weights of shape"):
        module.install(other)


@pytest.mark.parametrize("fixture", ["selector", "router"])
def test_a_checkpoint_rebuilds_the_gate(fixture, request, tmp_path):
    data, module, trainer, _ = request.getfixturevalue(fixture)
    trainer.save_checkpoint(tmp_path / "gate.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "gate.ckpt", weights_only=True).eval()
    x = data.parts["test"].tensors[0]
    assert torch.equal(loaded.model(x).logits, module.eval().model(x).logits)


def test_data_of_other_sizes_is_refused(selector):
    data, _, trainer, _ = selector
    with pytest.raises(ArgumentError, match="num_experts=7"):
        trainer.test(SelectorTraining(num_experts=7), datamodule=data, verbose=False)
    module, loader = SelectorTraining(shape=[64], num_experts=2), data.test_dataloader()
    with pytest.raises(ConfigError, match="no recorded rows"):
        new_trainer().test(module, loader, verbose=False)
    with pytest.raises(UnknownNameError, match="Did you mean 'permuted-digits'"):
        SelectorData("permutated-digits")


CONFIGURATIONS = [
    ("tame_selector_permuted_digits", ["--data.num_tasks", "2", "--data.epochs", "1"]),
    ("driftmoe_router_led_a", ["--data.limit", "600"]),
    pytest.param("driftmoe_router_electricity", ["--data.limit", "2000"], marks=pytest.mark.data),
]


@pytest.mark.parametrize(("name", "small"), CONFIGURATIONS)
def test_configuration_runs(name, small, tmp_path, request):
    if request.node.get_closest_marker("data"):
        request.getfixturevalue("real_data")
    code = main(
        ["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--runs", str(tmp_path), *small,
         "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    )  # fmt: skip
    assert code == 0
    (found,) = tmp_path.glob("streams/*/*/report.json")
    report = RunFolder.open(found.parent).read_report()
    assert report["domain"] == "streams"
    assert "test/acc" in report["metrics"]


def test_every_configuration_is_tested():
    names = {getattr(given, "values", given)[0] for given in CONFIGURATIONS}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == names
