import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from moeapps import gating
from moeapps.errors import UnknownNameError
from moeapps.gating import Gate, MoE, StackedMLP, losses
from moeapps.training import GateStatistics, MoEModule, RNGState


class Regression(MoEModule):
    def __init__(self, **aux_losses):
        super().__init__(aux_losses=aux_losses)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(
                MoE(Gate.topk(4, 3, 2), StackedMLP(3, 4, 8, 4)),
                MoE(Gate.softmax(4, 2), StackedMLP(2, 4, 8, 1)),
            )

    def training_step(self, batch, batch_index):
        x, y = batch
        return self.shared_step(lambda: (self.model(x) - y).square().mean(), batch_size=len(x))

    def validation_step(self, batch, batch_index):
        x, y = batch
        self.shared_step(
            lambda: (self.model(x) - y).square().mean(), stage="val", batch_size=len(x)
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.fixture
def batch():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    return x, x.sum(-1, keepdim=True)


def make_trainer(tmp_path, *callbacks, **options):
    return pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **({"max_epochs": 2} | options),
    )  # fmt: skip


def fit(module, batch, tmp_path, *callbacks, **options):
    data = DataLoader(TensorDataset(*batch), batch_size=5)
    trainer = make_trainer(tmp_path, *callbacks, **options)
    trainer.fit(module, data, data)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_fixed_names_are_logged(batch, tmp_path):
    trainer = fit(Regression(balance=0.01, router_z=0.001), batch, tmp_path)
    names = {"train/loss", "val/loss", "aux/balance", "aux/router_z"} | {
        f"gate/model.{layer}/{value}"
        for layer in (0, 1)
        for value in ("utilisation", "entropy", "dead_experts", "dropped")
    }
    assert names <= trainer.callback_metrics.keys()
    assert all(value.isfinite() for value in trainer.callback_metrics.values())


def test_total_is_task_plus_weighted_auxiliary_losses(batch):
    x, y = batch
    module = Regression(balance=0.5, importance=0.25)
    total = module.training_step(batch, 0)
    with gating.record(module) as recording:
        task = (module.model(x) - y).square().mean()
    expected = task
    for routing in (calls[0] for calls in recording.routings.values()):
        expected = expected + 0.5 * losses.balance(routing) + 0.25 * losses.importance(routing)
    torch.testing.assert_close(total, expected)


def test_auxiliary_losses_reach_the_gate(batch):
    x, _ = batch
    module = Regression(router_z=1.0)
    module.shared_step(lambda: module.model(x).sum() * 0).backward()
    assert module.model[0].gate.score.weight.grad.abs().sum() > 0


def test_other_stages_have_no_auxiliary_losses(batch):
    x, y = batch
    module = Regression(balance=100.0)
    loss = module.shared_step(lambda: (module.model(x) - y).square().mean(), stage="val")
    torch.testing.assert_close(loss, (module.model(x) - y).square().mean())


def test_an_unknown_auxiliary_loss_is_refused():
    with pytest.raises(UnknownNameError, match="'balance'"):
        Regression(balence=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_trainers_own_callbacks_win(batch, tmp_path):
    mine = GateStatistics(per_expert=True)
    trainer = fit(Regression(), batch, tmp_path, mine)
    found = [callback for callback in trainer.callbacks if isinstance(callback, GateStatistics)]
    assert found == [mine]
    assert sum(isinstance(callback, RNGState) for callback in trainer.callbacks) == 1
    shares = [trainer.callback_metrics[f"gate/model.0/utilisation/{expert}"] for expert in range(3)]
    assert sum(shares).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_training_learns(batch, tmp_path):
    module = Regression(balance=0.01)
    trainer = fit(module, batch, tmp_path, max_epochs=30)
    assert trainer.callback_metrics["val/loss"] < 0.5 * batch[1].square().mean()
