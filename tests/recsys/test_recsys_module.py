"""The Lightning module: what it logs, keeps, optimises and refuses; two processes as one."""

import json
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ranking import SMALL, TASKS, ranking_data, train, trainer, weights

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.recsys import metrics
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.schema import Task
from moeapps.training import (
    AtomicCheckpointIO,
    MetricsLog,
    RunFolder,
    RunKeeper,
    load_checkpoint,
)
from moeapps.training.balancing import BALANCINGS


def evaluate(module, data, split="validate"):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        [found] = getattr(trainer(), split)(module, datamodule=data, verbose=False)
    return found


class Scores(pl.Callback):
    def __init__(self):
        self.seen, self.logged = [], []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(pl_module.score)
        self.logged.append(dict(trainer.callback_metrics))


# ---------------------------------------------------------------------------------- what it logs


def test_logs_carry_the_fixed_names():
    _, run = train()
    names = {f"val/{metric}/{task.name}" for metric in ("auc", "gauc", "logloss") for task in TASKS}
    names |= {"val/auc_mean", "val/gauc_mean", "val/loss", "train/loss"}
    names |= {f"{kind}/{task.name}" for kind in ("train/loss", "balance") for task in TASKS}
    assert names <= set(run.callback_metrics)


def test_logged_metrics_are_those_of_all_validation_rows_together():
    data = ranking_data(gaps=True)
    module, _ = train(data=data)
    found = evaluate(module, data)
    batches = list(data.val_dataloader())
    labels = torch.cat([batch["labels"] for batch in batches])
    with torch.no_grad():
        logits = torch.cat([module.model(batch) for batch in batches])
    group = torch.cat([batch["group"] for batch in batches])
    assert len(batches) > 1
    assert labels.isnan().any()
    for t, task in enumerate(TASKS):
        expected = metrics.auc(labels[:, t], logits[:, t])
        assert found[f"val/auc/{task.name}"] == pytest.approx(expected)
        expected = metrics.gauc(labels[:, t], logits[:, t], group).value
        assert found[f"val/gauc/{task.name}"] == pytest.approx(expected)
    mean = np.mean([found[f"val/auc/{task.name}"] for task in TASKS])
    assert found["val/auc_mean"] == pytest.approx(mean)


def test_training_learns_and_the_test_split_adds_calibration():
    data = ranking_data(rows=2000)
    module, _ = train(data=data, max_epochs=4)
    found = evaluate(module, data, "test")
    assert found["test/auc/click"] > 0.75
    assert found["test/auc/like"] > 0.7
    assert {"test/ne/click", "test/calibration/like", "test/ece/click"} <= set(found)


def test_same_seed_gives_bit_identical_weights():
    one, other, another = (weights(train(seed=seed)[0]) for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, another)


# ------------------------------------------------------------------------------------ best weights


def test_training_stops_early_and_ends_with_its_best_weights():
    scores, data = Scores(), ranking_data(rows=128, batch_size=32)
    module = MultiTaskRanker("mmoe", **{**SMALL, "lr": 0.05}, patience=2)
    train(module, data, max_epochs=60, callbacks=[scores])
    best = int(np.argmax(scores.seen))
    assert len(scores.seen) == best + 3 < 60
    assert evaluate(module, data)["val/auc_mean"] == pytest.approx(max(scores.seen))


def test_validations_within_an_epoch_count():
    scores, data = Scores(), ranking_data()
    module, _ = train(data=data, max_epochs=1, val_check_interval=2, callbacks=[scores])
    assert len(scores.seen) == 4
    assert evaluate(module, data)["val/auc_mean"] == pytest.approx(max(scores.seen))


def test_losses_are_minimised_and_other_scores_maximised():
    scores, data = Scores(), ranking_data(rows=128, batch_size=32)
    module = MultiTaskRanker("mmoe", **{**SMALL, "lr": 0.1}, monitor="val/logloss/like", patience=2)
    train(module, data, max_epochs=30, callbacks=[scores])
    assert module.monitor_mode == "min"
    assert evaluate(module, data)["val/logloss/like"] == pytest.approx(min(scores.seen))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/auc_mean", "max"), ("val/loss", "min"), ("val/auc/loss", "max"), ("val/mae/x", "min")],
)
def test_the_metric_says_whether_small_is_good(monitor, mode):
    assert MultiTaskRanker(monitor=monitor).monitor_mode == mode


def test_fitting_never_reads_the_test_split():
    data = ranking_data()
    data.setup()
    data._rows["test"] = None
    train(data=data)


def test_interrupted_training_leaves_the_best_weights():
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise RuntimeError("stop")

    scores, data = Scores(), ranking_data()
    module = MultiTaskRanker("mmoe", **SMALL)
    with pytest.raises(RuntimeError, match="stop"):
        train(module, data, max_epochs=5, callbacks=[scores, Stop()])
    assert evaluate(module, data)["val/auc_mean"] == pytest.approx(max(scores.seen))


class CopyLast(pl.Callback):
    """Copy the run's last checkpoint within epoch 2, as a kill would leave it."""

    def __init__(self, run, path):
        self.run, self.path = run, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2 and not self.path.exists():
            shutil.copy(self.run.last, self.path)


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    options = {"schedule": "cosine", "warmup_steps": 2, "balancing": "uncertainty"}
    killed = tmp_path / "killed.ckpt"
    found = []
    for checkpoint in (None, killed):
        run = RunFolder.create(tmp_path, "test", "ranker")
        keeper = RunKeeper(run, MetricsLog(run.metrics_file), config={}, every_seconds=0.0)
        module, _ = train(
            MultiTaskRanker("mmoe", **SMALL, **options), seed=len(found), max_epochs=4,
            callbacks=[keeper, CopyLast(run, killed)], ckpt_path=checkpoint,
            enable_checkpointing=True, plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        found.append(weights(module))
    assert torch.equal(*found)
    stored = load_checkpoint(killed)
    assert stored["epoch"] == 2
    assert stored["hyper_parameters"]["schema"]["features"][0]["name"] == "user"


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", BALANCINGS)
def test_every_strategy_lowers_the_losses(name):
    scores = Scores()
    arguments = {"warmup": 2} if name == "stch" else {}
    module = MultiTaskRanker("mmoe", **SMALL, balancing=name, balancing_args=arguments)
    train(module, max_epochs=3, callbacks=[scores])
    losses = [float(logged["val/loss"]) for logged in scores.logged]
    assert losses[-1] < losses[0]


def test_a_strategy_of_gradients_without_conflict_is_plain_training():
    """One task: PCGrad's step is the gradient itself, taken by hand instead of by Lightning."""
    data = ranking_data(TASKS[:1])
    plain, surgery = (
        train(MultiTaskRanker("mmoe", **SMALL, balancing=name), data)[0]
        for name in ("equal", "pcgrad")
    )
    torch.testing.assert_close(weights(surgery), weights(plain), rtol=1e-4, atol=1e-6)


def test_tasks_can_be_compared_at_the_inputs():
    module = MultiTaskRanker("mmoe", **SMALL, balancing="mgda", compare_at="inputs")
    _, run = train(module)
    balance = [float(run.callback_metrics[f"balance/{task.name}"]) for task in TASKS]
    assert sum(balance) == pytest.approx(1.0, abs=1e-5)


def test_gradnorm_watches_the_last_layer_of_the_experts():
    model_args = {**SMALL["model_args"], "expert_dims": [16, 6]}
    module = MultiTaskRanker("mmoe", model_args=model_args, balancing="gradnorm")
    train(module)
    [watched] = module._shared()
    assert watched.shape == (3, 6, 16)
    assert any(watched is p for p in module.model.shared_parameters())
    assert module.balancing.logits.detach().abs().max() > 0


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "sparse_adam"])
def test_sparse_gradients_move_only_rows_of_the_batch(optimizer):
    data = ranking_data()
    module = MultiTaskRanker("mmoe", **SMALL, sparse_grad=True, sparse_optimizer=optimizer)
    data.setup()
    before = {}

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before["table"] = pl_module.model.inputs.store.weight("user").detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            now = pl_module.model.inputs.store.weight("user").detach()
            moved = (now != before["table"]).any(1).nonzero().flatten().tolist()
            assert set(moved) == set(batch["cat"][:, 0].tolist())

    train(module, data, callbacks=[Watch()])


def test_embeddings_are_a_group_of_their_own():
    module = MultiTaskRanker("mmoe", **SMALL, embedding_lr=0.5, weight_decay=0.1, optimizer="adamw")
    _, run = train(module)
    [optimizer] = run.optimizers
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["embeddings"]["lr"] == 0.5
    assert groups["embeddings"]["weight_decay"] == 0
    assert groups["rest"]["weight_decay"] == 0.1
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    assert len(held) == len(list(module.parameters()))


def test_embedding_penalty_shrinks_the_rows_it_sees():
    plain, shrunk = (
        train(MultiTaskRanker("mmoe", **SMALL, embedding_l2=weight))[0] for weight in (0.0, 1.0)
    )
    norms = [m.model.inputs.store.weight("user").detach()[1:].norm() for m in (plain, shrunk)]
    assert norms[1] < 0.5 * norms[0]


def test_auxiliary_losses_of_the_gates_are_added():
    for balancing in ("equal", "pcgrad"):
        module = MultiTaskRanker("mmoe", **SMALL, balancing=balancing, aux_losses={"balance": 10.0})
        _, run = train(module)
        total = sum(float(run.callback_metrics[f"train/loss/{task.name}"]) for task in TASKS)
        assert float(run.callback_metrics["train/loss"]) > total + 5


def test_regression_and_ordinal_tasks_train_beside_binary_ones():
    tasks = (
        Task("click"), Task("price", type="regression"), Task("stars", type="ordinal", levels=5),
    )  # fmt: skip
    data = ranking_data(tasks, rows=1500)
    module, _ = train(data=data, max_epochs=8)
    found = evaluate(module, data, "test")
    assert found["test/mse/price"] < 2.0  # the variance is 9.25
    assert found["test/mae/stars"] < 0.5
    assert found["test/auc_mean"] == found["test/auc/click"]
    predicted = module.predict_step(next(iter(data.test_dataloader())), 0)
    assert list(predicted) == ["click", "price", "stars"]
    assert ((predicted["stars"] > 0) & (predicted["stars"] < 4)).all()


def test_without_binary_tasks_the_loss_is_watched():
    data = ranking_data((Task("price", type="regression"),))
    module, run = train(data=data)
    assert module.monitor == "val/loss"
    assert module.monitor_mode == "min"
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(
        float(run.callback_metrics["val/mse/price"]), rel=1e-5
    )


def test_a_task_without_positives_is_undefined_and_left_out_of_the_mean():
    data = ranking_data((*TASKS, Task("never", label="zeros")))
    for part in (data._own.train, data._own.val, data._own.test):
        part["zeros"] = np.zeros(len(part["user"]), np.float32)
    with pytest.warns(UserWarning, match="'never' has no positive"):
        _, run = train(data=data)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert np.isnan(found["val/auc/never"])
    assert found["val/auc_mean"] == pytest.approx(
        (found["val/auc/click"] + found["val/auc/like"]) / 2, rel=1e-5
    )


# -------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_alone_rebuilds_the_network_and_knows_the_encoder(tmp_path):
    data = ranking_data()
    module, run = train(data=data)
    run.save_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    again = MultiTaskRanker.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        assert torch.equal(again.model(batch), module.eval().model(batch))
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    stored = checkpoint["RankingData"]["encoder"]
    assert stored["vocabularies"]["user"] == list(range(20))
    json.dumps(dict(again.hparams))


# ---------------------------------------------------------------------------------------- bad input


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="pcgrad"):
        MultiTaskRanker(balancing="pcgrd")
    with pytest.raises(UnknownNameError, match="adamw"):
        MultiTaskRanker(optimizer="adamv")
    with pytest.raises(UnknownNameError, match="parameters"):
        MultiTaskRanker(compare_at="parameter")
    with pytest.raises(UnknownNameError, match="rowwise_adagrad"):
        MultiTaskRanker(sparse_optimizer="adagrad")


def test_training_without_a_data_module_says_what_to_pass():
    with pytest.raises(ConfigError, match="RankingData"):
        trainer().fit(MultiTaskRanker("mmoe", **SMALL))


def test_data_with_other_features_or_tasks_is_refused():
    data = ranking_data()
    module, _ = train(data=data)
    other = ranking_data()
    other._own.train["user"] = other._own.train["user"] % 10
    with pytest.raises(ArgumentError, match=r"'vocab_size': 21.*'vocab_size': 11"):
        train(module, other)
    with pytest.raises(ArgumentError, match=r"click \(binary\)', 'like \(binary\)"):
        train(module, ranking_data(TASKS[:1]))


def test_unknown_monitor_lists_what_is_logged():
    module = MultiTaskRanker("mmoe", **SMALL, monitor="val/auc/clik")
    with pytest.raises(UnknownNameError, match="val/auc/click"):
        train(module)


def test_batch_of_one_with_batch_normalisation_is_refused():
    model_args = {**SMALL["model_args"], "norm": "batch"}
    data = ranking_data(rows=9, batch_size=4, drop_last=False)
    with pytest.raises(ArgumentError, match="drop_last=True"):
        train(MultiTaskRanker("mmoe", model_args=model_args), data)


# ------------------------------------------------------------------------------------ two processes

CONFIGS = {
    "equal": {},
    "uncertainty": {"balancing": "uncertainty"},
    "pcgrad": {"balancing": "pcgrad"},
    "inputs": {"balancing": "mgda", "compare_at": "inputs"},
    "sparse": {"sparse_grad": True},
}

PARALLEL = """
    import sys
    sys.path.insert(0, {folder!r})
    import torch
    from ranking import SMALL, ranking_data, train, weights
    from test_recsys_module import CONFIGS
    from moeapps.recsys.modules import MultiTaskRanker

    if __name__ == "__main__":
        for name, options in CONFIGS.items():
            module = MultiTaskRanker("mmoe", **SMALL, **options)
            data = ranking_data(rows=270, batch_size=32, gaps=True)
            _, run = train(module, data, devices=2, strategy="ddp", max_epochs=1)
            others = run.strategy.all_gather(weights(module))
            assert torch.equal(others[0], others[1]), name
            if run.is_global_zero:
                found = {{k: float(v) for k, v in run.callback_metrics.items()}}
                torch.save((weights(module), found), {out!r} + "/" + name + ".pt")
"""


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path):
    script = tmp_path / "parallel.py"
    folder = str(Path(__file__).parent)
    script.write_text(textwrap.dedent(PARALLEL).format(folder=folder, out=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    for name, options in CONFIGS.items():
        data = ranking_data(rows=270, batch_size=64, gaps=True)
        module, run = train(MultiTaskRanker("mmoe", **SMALL, **options), data, max_epochs=1)
        expected, metrics_of_two = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(weights(module), expected, rtol=1e-3, atol=1e-5, msg=name)
        for metric in (
            "val/auc/click",
            "val/gauc/like",
            "val/loss",
            "train/loss/like",
            "train/loss",
        ):
            one = float(run.callback_metrics[metric])
            assert one == pytest.approx(metrics_of_two[metric], abs=1e-4), (name, metric)
