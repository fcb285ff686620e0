import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.gating import BalanceBias, Gate, Linear, MoE, StackedMLP, topk
from moeapps.training import BalanceStep, FreezeGates, GateStatistics, TemperatureSchedule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Plain(pl.LightningModule):
    """Not a MoEModule: the callbacks must work for any Lightning module."""

    def __init__(self, gate=None):
        super().__init__()
        self.layer = MoE(gate or Gate.topk(4, 3, 1), StackedMLP(3, 4, 8, 1))
        self.seen = []

    def training_step(self, batch, batch_index):
        (x,) = batch
        gate = self.layer.gate
        trained = all(p.requires_grad for p in gate.score.parameters())
        self.seen.append((float(gate.temperature), trained))
        return (self.layer(x) - x.sum(-1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, tmp_path, *callbacks, epochs=2, **options):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=5))
    return trainer


def test_statistics_of_a_collapsed_gate(tmp_path):
    module = Plain()
    with torch.no_grad():
        module.layer.gate.score.weight.zero_()
        module.layer.gate.score.weight[1] = 0
    for parameter in module.layer.gate.parameters():
        parameter.requires_grad_(False)
    trainer = fit(module, tmp_path, GateStatistics(window=1))
    values = trainer.callback_metrics
    assert values["gate/layer/utilisation"].item() == pytest.approx(1 / 3)  # one of three in use
    assert values["gate/layer/entropy"].item() == pytest.approx(1)  # scores are all equal
    assert values["gate/layer/dead_experts"].item() == pytest.approx(2 / 3)
    assert values["gate/layer/dropped"].item() == 0


def test_statistics_look_at_the_first_batch_of_each_epoch_at_least(tmp_path):
    trainer = fit(Plain(), tmp_path, GateStatistics(every_n_steps=1000))
    assert "gate/layer/utilisation" in trainer.callback_metrics


def test_statistics_stop_recording_when_a_step_fails(tmp_path):
    class Broken(Plain):
        def training_step(self, batch, batch_index):
            super().training_step(batch, batch_index)
            raise RuntimeError("broken step")

    statistics = GateStatistics()
    module = Broken()
    with pytest.raises(RuntimeError, match="broken step"):
        fit(module, tmp_path, statistics)
    with gating.record(module) as recording:
        module.layer(torch.randn(2, 4))
    assert [len(calls) for calls in recording.routings.values()] == [1]
    assert statistics._recording is None


def test_statistics_keep_nothing_over_many_steps(tmp_path):
    statistics = GateStatistics()
    fit(Plain(), tmp_path, statistics, epochs=3)
    assert statistics._recording is None


def test_statistics_continue_their_window_on_resume(tmp_path):
    first = GateStatistics(window=5)
    fit(Plain(), tmp_path, first)
    second = GateStatistics(window=5)
    second.load_state_dict(first.state_dict())
    counts = torch.tensor([1, 0, 0])
    for _ in range(15):
        expected = first._dead["layer"].update(counts)
        assert torch.equal(second._dead["layer"].update(counts), expected)
    assert expected > 0


def test_temperature_moves_from_start_to_end(tmp_path):
    module = Plain()
    fit(module, tmp_path, TemperatureSchedule(2.0, 1.0, steps=4))
    temperatures = [temperature for temperature, _ in module.seen]
    assert temperatures == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0, 1.0])


def test_temperature_takes_the_whole_run_by_default(tmp_path):
    module = Plain()
    fit(module, tmp_path, TemperatureSchedule(3.0, 1.0, shape="cosine"))
    temperatures = [temperature for temperature, _ in module.seen]
    assert temperatures[0] == 3.0
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[4] == pytest.approx(2.0)  # half of the 8 steps


@pytest.mark.parametrize("bad", [{"start": 0.0, "end": 1.0}, {"start": 1.0, "end": -1.0}])
def test_temperatures_must_be_positive(bad):
    with pytest.raises(ArgumentError, match="positive"):
        TemperatureSchedule(**bad)


def test_unknown_shape_of_a_schedule():
    with pytest.raises(ArgumentError, match="cosine"):
        TemperatureSchedule(1.0, 2.0, shape="quadratic")


def test_frozen_gates_stand_still_and_experts_move(tmp_path):
    module = Plain()
    gate = module.layer.gate.score.weight.clone()
    experts = module.layer.experts.w1.clone()
    fit(module, tmp_path, FreezeGates(100))
    assert torch.equal(module.layer.gate.score.weight, gate)
    assert not torch.equal(module.layer.experts.w1, experts)
    assert module.layer.gate.score.weight.requires_grad  # released at the end


def test_gates_are_released_after_the_given_steps(tmp_path):
    module = Plain()
    gate = module.layer.gate.score.weight.clone()
    fit(module, tmp_path, FreezeGates(3))
    assert [trained for _, trained in module.seen] == [False] * 3 + [True] * 5
    assert not torch.equal(module.layer.gate.score.weight, gate)


def test_freezing_leaves_parameters_alone_that_were_frozen_before(tmp_path):
    module = Plain()
    module.layer.gate.score.weight.requires_grad_(False)
    fit(module, tmp_path, FreezeGates(2))
    assert not module.layer.gate.score.weight.requires_grad


def test_balance_bias_moves_once_per_optimiser_step(tmp_path):
    bias = BalanceBias(3, rate=0.01)
    module = Plain(Gate(Linear(4, 3), topk(1, score="sigmoid"), balance=bias))
    with torch.no_grad():
        module.layer.gate.score.weight.copy_(torch.zeros(3, 4))
    fit(module, tmp_path, BalanceStep(), epochs=1, accumulate_grad_batches=2)
    assert bias.bias.abs().max() > 0
    assert bias.bias.abs().max() <= 2 * 0.01 * 4 / 3 + 1e-6  # two optimiser steps, not four
    assert bias.seen.sum() == 0


def test_balance_step_is_harmless_without_a_bias(tmp_path):
    fit(Plain(), tmp_path, BalanceStep(), epochs=1)
