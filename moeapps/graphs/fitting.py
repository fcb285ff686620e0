"""Train a node classifier in one call, without logs, checkpoints or progress bars."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import lightning.pytorch as pl
import torch

from moeapps.graphs.datamodules import NodeData
from moeapps.graphs.turn_module import TurnModule


def fit(
    module: TurnModule, data: NodeData, *, seed: int = 0, accelerator: str = "cpu"
) -> dict[str, float]:
    """Train to the end and judge the best weights, for benchmarks and searches.

    The same steps as a full run, by a bare Lightning trainer: the overhead is about a millisecond
    per epoch. Global random numbers are as before afterwards.

    Args:
        module: Not trained before.
        data: The graph.
        seed: Of initial weights and dropout.
        accelerator: Lightning's name of the device.

    Returns:
        ``val/...`` and ``test/...`` measures of the best weights, with ``val/score``.

    Example:
        >>> from moeapps.graphs import NodeClassifier, NodeData
        >>> data = NodeData("mixed-csbm", dataset_args={"size": "tiny"})
        >>> measures = fit(NodeClassifier("mlp", epochs=2), data)
        >>> sorted(measures)
        ['test/acc', 'test/loss', 'val/acc', 'val/loss', 'val/score']
    """
    with _quiet(), torch.random.fork_rng():
        trainer = pl.Trainer(barebones=True, max_epochs=-1, accelerator=accelerator, devices=1)
        torch.manual_seed(seed)
        trainer.fit(module, datamodule=data)
    everything = module.all_outputs()
    assert module.graph is not None
    measures = {}
    for split in ("val", "test"):
        picked = everything.pick(module.graph.rows[split])
        for name, value in module.measure("done", picked).items():
            measures[f"{split}/{name}"] = float(value)
    del measures["test/score"]
    return measures


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says at every start; a search starts hundreds of times."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)
