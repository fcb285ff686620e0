import io
import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import DataLoader, TensorDataset

from moeapps.training import LineProgress, progress_bar
from moeapps.training.progress import _clock

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_index):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("gate/layer/entropy", 0.5, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_index):
        self.log("val/loss", self.layer(batch[0]).square().mean())

    test_step = validation_step

    def predict_step(self, batch, batch_index):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock:
    """Time that moves by one second at every look."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


def run(tmp_path, every_seconds, epochs, module=None, what="fit", max_steps=-1):
    stream = io.StringIO()
    data = DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=4)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, max_epochs=epochs, max_steps=max_steps, num_sanity_val_steps=0,
        callbacks=[LineProgress(every_seconds, stream=stream)],
    )  # fmt: skip
    module = module or Model()
    if what == "fit":
        trainer.fit(module, data, data)
    else:
        getattr(trainer, what)(module, data)
    return stream.getvalue().splitlines()


def test_lines_name_epoch_losses_metrics_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.progress.time", Clock())
    lines = run(tmp_path, 0.0, 2)
    batch = next(line for line in lines if "batch 2/3" in line)
    assert re.fullmatch(
        r"epoch 1/2 \| batch 2/3 \| loss [\d.e-]+ \| 0:\d\d elapsed \| \d:\d\d left", batch
    )
    assert re.search(r"epoch 2/2 \| .*val/loss [\d.e-]+ \| .*0:00 left", lines[-1])
    assert "train/loss" in lines[-1]
    assert not any("gate/" in line for line in lines)


def test_lines_are_no_closer_than_asked(tmp_path):
    lines = run(tmp_path, 1000.0, 30)
    # the first moment, the end of the first epoch, the end of the last
    assert [line.split(" |")[0] for line in lines] == ["epoch 1/30", "epoch 1/30", "epoch 30/30"]


def test_runs_planned_in_steps_have_a_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.progress.time", Clock())
    lines = run(tmp_path, 0.0, -1, max_steps=4)
    assert re.search(r"epoch 1/\? \| batch 1/3 .* left", lines[0])
    assert all("left" in line for line in lines if line.startswith("epoch"))


def test_phase_is_named(tmp_path):
    module = Model()
    module.phase = "strong:2"
    lines = [line for line in run(tmp_path, 0.0, 1, module) if line.startswith("epoch")]
    assert lines
    assert all("| strong:2 |" in line for line in lines)


def test_validation_inside_training_has_no_clock_of_its_own(tmp_path):
    lines = [line for line in run(tmp_path, 0.0, 1) if line.startswith("validate")]
    assert lines == ["validate | batch 1/3", "validate | batch 2/3", "validate | batch 3/3"]


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_evaluation_reports_batches(tmp_path, what, capsys):
    lines = run(tmp_path, 0.0, 1, what=what)
    assert [line.split(" | ")[:2] for line in lines if line.startswith(what)] == [
        [what, f"batch {batch}/3"] for batch in (1, 2, 3)
    ]


def test_disabled_writes_nothing():
    stream = io.StringIO()
    progress = LineProgress(stream=stream)
    progress.disable()
    progress._write(["hidden"])
    progress.enable()
    progress._write(["shown"])
    assert stream.getvalue() == "shown\n"


def test_bar_on_a_terminal_and_lines_elsewhere():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert isinstance(progress_bar(stream=terminal), RichProgressBar)
    assert isinstance(progress_bar(stream=io.StringIO()), LineProgress)


def test_clock_format():
    assert [_clock(seconds) for seconds in (0, 59.6, 61, 3725)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:02:05",
    ]
