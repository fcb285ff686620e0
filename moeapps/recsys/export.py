"""A ranking model as a program that takes packed tensors and gives named predictions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from moeapps.recsys.batch import Batch
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema


class Scorer(nn.Module):
    """Predictions by task name from a packed batch, with normalisation folded away.

    Args:
        model: Trained; it is not changed.

    Shape:
        - a packed batch of ``B`` rows -> per task ``[B]``: probability, value or expected level
    """

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        model.inputs.store.require_whole("An export")
        self.model = model.fuse_for_inference()
        self.eval()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The predictions."""
        found = self.model.to_predictions(self.model(batch))
        return {name: found[:, t] for t, name in enumerate(self.model.task_names)}


def export_network(module: MultiTaskRanker) -> nn.Module:
    """What is exported of a run."""
    assert module.model is not None
    return Scorer(module.model)


def export_inputs(module: MultiTaskRanker) -> tuple[Callable[[int], tuple[Batch]], Any]:
    """Batches of different sizes, and which dimensions may vary: rows, and ids of each bag.

    Returns:
        A function from a whole number to the network's input, and the dynamic shapes.
    """
    assert module.model is not None
    schema = module.model.schema
    rows = Dim("rows", min=1)
    shapes: dict[str, Any] = {}
    if schema.categorical:
        shapes["cat"] = {0: rows}
    if schema.dense:
        shapes["dense"] = {0: rows}
    for number, bag in enumerate(schema.bags):
        ids = Dim(f"ids_{number}", min=0)
        shapes[f"bag/{bag.name}"] = {"values": {0: ids}, "offsets": {0: rows}}
    return lambda number: (random_batch(schema, 5 + 7 * number, seed=number),), (shapes,)


def random_batch(schema: FeatureSchema, rows: int, *, seed: int = 0) -> Batch:
    """A packed batch of random ids and numbers, without labels.

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> random_batch(FeatureSchema([Categorical("user", 9, 4)]), 3)["cat"].shape
        torch.Size([3, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    batch: Batch = {}
    if schema.categorical:
        columns = [
            torch.randint(feature.vocab_size, (rows,), generator=generator)
            for feature in schema.categorical
        ]
        batch["cat"] = torch.stack(columns, 1)
    if schema.dense:
        batch["dense"] = torch.randn(rows, schema.dense_width, generator=generator)
    for bag in schema.bags:
        lengths = torch.randint(4, (rows,), generator=generator)
        count = int(lengths.sum())
        batch[f"bag/{bag.name}"] = {
            "values": torch.randint(bag.vocab_size, (count,), generator=generator),
            "offsets": lengths.cumsum(0) - lengths,
        }
    return batch
