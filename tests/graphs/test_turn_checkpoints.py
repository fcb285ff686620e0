"""Checkpoints of training by turns: whole or refused, exact resume, interrupts."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning.pytorch as pl
import pytest
from turn_training import SMALL, every_epoch, same, tiny, train, trainer

from moeapps.errors import CheckpointError
from moeapps.graphs import MowstClassifier, NodeClassifier

# ---------------------------------------------------------------------------------- checkpoints


def test_checkpoint_alone_rebuilds_the_best_model(tmp_path):
    module = MowstClassifier("gcn", gate="learned+features", **SMALL)
    run = train(module)
    run.save_checkpoint(tmp_path / "end.ckpt")
    loaded = MowstClassifier.load_from_checkpoint(tmp_path / "end.ckpt")
    assert loaded.hparams.in_channels == 32
    assert same(module.state_dict(), loaded.state_dict())
    (numbers,) = trainer().validate(loaded, datamodule=tiny(), verbose=False)
    assert numbers["val/acc_expected"] == pytest.approx(module.schedule.best, abs=1e-6)


def test_checkpoint_from_inside_a_turn_is_tested_with_its_best_weights(tmp_path):
    module = MowstClassifier("gcn", **{**SMALL, "epochs": 8, "patience": 8})
    train(module, None, tmp_path, every_epoch(tmp_path))
    inside = MowstClassifier.load_from_checkpoint(tmp_path / "epoch=14.ckpt")
    assert inside.schedule.phase == "weak:1"
    (numbers,) = trainer().validate(inside, datamodule=tiny(), verbose=False)
    assert numbers["val/acc_expected"] == pytest.approx(inside.schedule.turn.best, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"joint": True}], ids=["turns", "joint"])
def test_resume_from_any_epoch_is_exact(tmp_path, options):
    def make():
        return MowstClassifier("gcn", **SMALL, **options)

    whole = make()
    train(whole, None, tmp_path, every_epoch(tmp_path))
    for epoch in range(1, whole.schedule.total_epochs - 1, 6):
        resumed = make()
        train(resumed, seed=99, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()
        assert same(whole.state_dict(), resumed.state_dict())


def test_resume_of_a_finished_training_ends_at_once(tmp_path):
    module = MowstClassifier("gcn", **SMALL)
    run = train(module)
    run.save_checkpoint(tmp_path / "end.ckpt")
    again = MowstClassifier("gcn", **SMALL)
    train(again, ckpt_path=tmp_path / "end.ckpt")
    assert same(module.state_dict(), again.state_dict())
    assert again.schedule.total_epochs == module.schedule.total_epochs


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {folder!r})
    import lightning.pytorch as pl
    from moeapps.graphs import MowstClassifier
    from turn_training import SMALL, every_epoch, train

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 15:
                os.kill(os.getpid(), signal.SIGKILL)

    train(MowstClassifier("gcn", **SMALL), None, {out!r}, every_epoch({out!r}), Kill())
"""


def test_run_killed_inside_a_turn_resumes_exactly(tmp_path):
    code = textwrap.dedent(KILLED).format(folder=str(Path(__file__).parent), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    whole, resumed = MowstClassifier("gcn", **SMALL), MowstClassifier("gcn", **SMALL)
    train(whole)
    train(resumed, seed=5, ckpt_path=tmp_path / "epoch=14.ckpt")
    assert same(whole.state_dict(), resumed.state_dict())


def test_cut_checkpoint_is_refused_and_nothing_is_loaded(tmp_path):
    module = MowstClassifier("gcn", **SMALL)
    train(module).save_checkpoint(tmp_path / "end.ckpt")
    whole = (tmp_path / "end.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    fresh = MowstClassifier("gcn", in_channels=32, out_channels=5, **SMALL)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match="cut"):
        trainer().fit(fresh, datamodule=tiny(), ckpt_path=tmp_path / "cut.ckpt")
    assert same(before, fresh.state_dict())


def test_checkpoint_of_another_kind_is_refused(tmp_path):
    train(NodeClassifier("gcn", epochs=2)).save_checkpoint(tmp_path / "gcn.ckpt")
    with pytest.raises(CheckpointError):
        train(MowstClassifier("gcn", **SMALL), ckpt_path=tmp_path / "gcn.ckpt")


# ----------------------------------------------------------------------------------- interrupts


def test_interrupt_leaves_the_best_weights():
    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 16:
                raise KeyboardInterrupt

    module = MowstClassifier("gcn", **{**SMALL, "epochs": 8, "patience": 8})
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            train(module, None, None, Interrupt())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert module.schedule.phase == "strong:1"
    measured = module.measure("done", module.outputs("done", None))
    assert float(measured["acc_expected"]) == pytest.approx(module.schedule.best, abs=1e-6)
    trainer().test(module, datamodule=tiny(), verbose=False)
