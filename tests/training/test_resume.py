"""A run that was killed and resumed ends bit for bit where an unbroken one does."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from moeapps.errors import CheckpointError
from moeapps.training import MetricsLog, RunFolder, RunKeeper, load_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
SCRIPT = Path(__file__).with_name("regression.py")
_spec = importlib.util.spec_from_file_location("regression", SCRIPT)
regression = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(regression)
EPOCHS = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return regression.fit(folder, EPOCHS).state_dict(), folder


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_the_same_seed_gives_the_same_weights(unbroken, tmp_path):
    assert_same(regression.fit(tmp_path, EPOCHS).state_dict(), unbroken[0])


@pytest.mark.parametrize("epoch", [0, 3])
def test_resume_is_exact_from_any_epoch(unbroken, tmp_path, epoch):
    checkpoint = unbroken[1] / f"epoch={epoch}.ckpt"
    # Nothing that was drawn before may matter.
    torch.rand(17)
    resumed = regression.fit(tmp_path, EPOCHS, checkpoint)
    assert_same(resumed.state_dict(), unbroken[0])


def test_resume_is_exact_from_a_checkpoint_written_after_validation(tmp_path):
    options = {"monitor": "val/loss", "save_on_train_epoch_end": False}
    straight = regression.fit(tmp_path / "a", EPOCHS, **options)
    resumed = regression.fit(tmp_path / "b", EPOCHS, tmp_path / "a" / "epoch=2.ckpt", **options)
    assert_same(resumed.state_dict(), straight.state_dict())


class CopyLast(pl.Callback):
    """Copy the run's last checkpoint in the middle of epoch 3, as a kill would leave it."""

    def __init__(self, run, path):
        self.run, self.path = run, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 3 and not self.path.exists():
            shutil.copy(self.run.last, self.path)


def test_resume_is_exact_from_what_a_run_keeper_writes(unbroken, tmp_path):
    path = tmp_path / "killed.ckpt"
    for checkpoint in (None, path):
        run = RunFolder.create(tmp_path, "test", "regression")
        keeper = RunKeeper(run, MetricsLog(run.metrics_file), config={}, every_seconds=0.0)
        copier = CopyLast(run, path)
        module = regression.fit(tmp_path, EPOCHS, checkpoint, keeper, copier)
        assert_same(module.state_dict(), unbroken[0])
    assert load_checkpoint(path)["epoch"] == 3


def test_resume_after_sigkill_is_exact(unbroken, tmp_path):
    with subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path), "100000"]) as run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "epoch=2.ckpt").exists():
            assert run.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        run.kill()
    resumed = regression.fit(tmp_path / "again", EPOCHS, tmp_path / "epoch=2.ckpt")
    assert_same(resumed.state_dict(), unbroken[0])


def test_checkpoint_alone_rebuilds_the_module(unbroken):
    path = unbroken[1] / f"epoch={EPOCHS - 1}.ckpt"
    checkpoint = load_checkpoint(path)
    rebuilt = regression.Regression(**checkpoint["hyper_parameters"])
    rebuilt.load_state_dict(checkpoint["state_dict"])
    assert_same(rebuilt.state_dict(), unbroken[0])


def test_a_checkpoint_of_another_model_changes_nothing(unbroken):
    state = load_checkpoint(unbroken[1] / "epoch=1.ckpt")["state_dict"]
    other = regression.Regression(hidden=5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another model than Regression"):
        other.load_state_dict(state)
    assert_same(other.state_dict(), before)


def test_fit_refuses_a_damaged_checkpoint(unbroken, tmp_path):
    whole = (unbroken[1] / "epoch=1.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        regression.fit(tmp_path, EPOCHS, cut)


def test_validating_a_checkpoint_does_not_touch_the_generators(unbroken, tmp_path):
    states = []
    for checkpoint in (None, str(unbroken[1] / "epoch=1.ckpt")):
        torch.manual_seed(11)
        regression.trainer(tmp_path, 1).validate(
            regression.Regression(), regression.loaders()[1], ckpt_path=checkpoint, verbose=False
        )
        # building the model and the loader drew the same in both rounds
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
