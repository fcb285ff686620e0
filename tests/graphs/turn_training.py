"""What the tests of training by turns share: small runs and a callback that watches them."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from moeapps.graphs import NodeData
from moeapps.training import AtomicCheckpointIO

SMALL = {"hidden_channels": 16, "epochs": 6, "patience": 4, "rounds": 2}


def tiny(**arguments):
    return NodeData("mixed-csbm", dataset_args={"size": "tiny"}, **arguments)


def trainer(folder=None, *callbacks, **options):
    options = {"max_epochs": -1, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        **options,
    )


def train(module, data=None, folder=None, *callbacks, seed=0, ckpt_path=None, **options):
    torch.manual_seed(seed)
    run = trainer(folder, *callbacks, **options)
    run.fit(module, datamodule=data or tiny(), ckpt_path=ckpt_path)
    return run


def every_epoch(folder):
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def neighbour_data(**arguments):
    return tiny(loader="neighbor", num_neighbors=[5, 5], batch_size=64, **arguments)


class Spy(pl.Callback):
    """Remembers phase, optimiser and log after every epoch."""

    def __init__(self):
        self.phases, self.optimizers, self.logged, self.steps = [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self._look(trainer)
        self.phases.append(pl_module.schedule.phase)
        self.optimizers.append(trainer.optimizers[0])
        state = next(iter(trainer.optimizers[0].state.values()), None)
        self.steps.append(0 if state is None else int(state["step"]))

    def on_train_end(self, trainer, pl_module):
        self._look(trainer)

    def _look(self, trainer):
        if self.phases:
            self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})
