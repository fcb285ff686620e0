"""Training by turns on neighbour batches, in one process and in two."""

import subprocess
import sys
import textwrap
from pathlib import Path

import lightning.pytorch as pl
import pytest
from turn_training import SMALL, every_epoch, neighbour_data, same, train

from moeapps.graphs import MowstClassifier, NodeClassifier

# -------------------------------------------------------------------------------------- batches


class Batches(pl.Callback):
    """Remembers which phases saw edges."""

    def __init__(self):
        self.edges = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        kind = pl_module.schedule.kind
        self.edges.setdefault(kind, set()).add(batch.get("edge_index") is not None)


def test_neighbour_batches_train_and_weak_turns_sample_nothing():
    batches = Batches()
    module = MowstClassifier("gcn", pretrain="both", **SMALL)
    train(module, neighbour_data(), None, batches)
    assert batches.edges == {
        "pretrain_weak": {False},
        "pretrain_strong": {True},
        "weak": {False},
        "strong": {True},
    }
    assert module.schedule.best > 0.4


def test_neighbour_training_resumes_exactly(tmp_path):
    whole = MowstClassifier("gcn", draw_by_confidence=True, **SMALL)
    train(whole, neighbour_data(), tmp_path, every_epoch(tmp_path))
    for epoch in (3, 8, 15):
        resumed = MowstClassifier("gcn", draw_by_confidence=True, **SMALL)
        train(resumed, neighbour_data(), seed=9, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(whole.state_dict(), resumed.state_dict())


def test_single_networks_train_on_neighbour_batches():
    for network, edges in (("mlp", False), ("graphsage", True)):
        batches = Batches()
        train(NodeClassifier(network, epochs=2), neighbour_data(), None, batches)
        assert batches.edges == {"train": {edges}}


PARALLEL = """
    import sys
    sys.path.insert(0, {folder!r})
    import lightning.pytorch as pl, torch
    from moeapps.graphs import MowstClassifier
    from turn_training import SMALL, neighbour_data

    class Compare(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
            others = pl_module.all_gather(mine)
            assert torch.equal(others[0], others[1])
            phases = [None, None]
            torch.distributed.all_gather_object(phases, pl_module.schedule.phase)
            assert phases[0] == phases[1]

    if __name__ == "__main__":
        torch.manual_seed(0)
        module = MowstClassifier("gcn", **{{**SMALL, "epochs": 3, "rounds": 1}})
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true",
            max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Compare()],
        )
        trainer.fit(module, datamodule=neighbour_data())
        assert module.schedule.phase == "done"
        print("done")
"""


@pytest.mark.slow
def test_two_processes_take_the_same_turns(tmp_path):
    script = tmp_path / "parallel.py"
    script.write_text(textwrap.dedent(PARALLEL).format(folder=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.count(b"done") == 2
