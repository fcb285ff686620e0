import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from moeapps.training import AtomicCheckpointIO, MetricsLog, RunFolder, RunKeeper, load_checkpoint
from moeapps.training.keeper import CONFIG_KEY

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
NAN = float("nan")


class Counter(pl.LightningModule):
    """Its one weight is the epoch's number; its validation score is what the test says."""

    monitor = "val/score"

    def __init__(self, scores, stop_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.scores = scores
        self.stop_at = stop_at

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.stop_at:
            raise KeyboardInterrupt
        with torch.no_grad():
            self.weight.fill_(float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        self.log(self.monitor, self.scores[self.current_epoch])

    def configure_optimizers(self):
        return None


def train(folder, module, *, every_seconds=0.0, resume=None, **arguments):
    run = RunFolder(folder)
    keeper = RunKeeper(
        run, MetricsLog(run.metrics_file), config={"schema": 1}, every_seconds=every_seconds
    )
    loader = DataLoader(TensorDataset(torch.zeros(1)), batch_size=1)
    trainer = pl.Trainer(
        max_epochs=len(module.scores), callbacks=[keeper], logger=[keeper.metrics_log],
        plugins=[AtomicCheckpointIO()], accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        default_root_dir=folder, **arguments,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return run, keeper


def best_epoch(run) -> int:
    checkpoint = load_checkpoint(run.best)
    assert checkpoint["epoch"] == int(checkpoint["state_dict"]["weight"])
    assert checkpoint[CONFIG_KEY] == {"schema": 1}
    assert "optimizer_states" not in checkpoint
    return checkpoint["epoch"]


@pytest.mark.parametrize(
    ("mode", "scores", "epoch"),
    [
        ("max", [0.1, 0.7, 0.3, 0.7], 1),
        ("min", [0.5, 0.2, 0.3, 0.9], 1),
        ("max", [NAN, 0.2, NAN, 0.1], 1),
    ],
)
def test_best_weights_are_the_first_with_the_best_score(tmp_path, mode, scores, epoch):
    module = Counter(scores)
    module.monitor_mode = mode
    run, keeper = train(tmp_path, module)
    assert best_epoch(run) == epoch
    assert keeper.best_facts(module) == {
        "monitor": "val/score", "score": pytest.approx(scores[epoch]), "epoch": epoch,
        "last": False,
    }  # fmt: skip


def test_nothing_is_written_between_two_due_times(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.keeper.FIRST_SECONDS", 1000.0)
    writes = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO, "save_checkpoint",
        lambda self, checkpoint, path, **more: (
            writes.append(path.name), save(self, checkpoint, path, **more)
        ),
    )  # fmt: skip
    train(tmp_path, Counter([0.1 * i for i in range(8)]), every_seconds=1000.0)
    assert writes == ["last.ckpt", "best.ckpt"]


def test_first_checkpoint_comes_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.keeper.FIRST_SECONDS", 0.0)
    with pytest.raises(SystemExit):
        train(tmp_path, Counter([0.1] * 4, stop_at=3), every_seconds=1000.0)
    assert load_checkpoint(RunFolder(tmp_path).last)["epoch"] == 1


def test_interrupt_writes_the_best_weights_that_were_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.training.keeper.FIRST_SECONDS", 1000.0)
    with pytest.raises(SystemExit):
        train(tmp_path, Counter([0.1, 0.9, 0.2, 0.3], stop_at=3), every_seconds=1000.0)
    assert best_epoch(RunFolder(tmp_path)) == 1


def test_resumed_run_remembers_a_best_from_before(tmp_path):
    scores = [0.1, 0.9, 0.2, 0.3, 0.4]
    with pytest.raises(SystemExit):
        train(tmp_path, Counter(scores, stop_at=3))
    run = RunFolder(tmp_path)
    run.best.unlink()
    train(tmp_path, Counter(scores), resume=run.last)
    assert best_epoch(run) == 1
    assert list(run.read_metrics()["epoch"]) == [0, 1, 2, 3, 4]


def test_trial_run_writes_no_checkpoint(tmp_path):
    train(tmp_path, Counter([0.1]), fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()
