"""Your own log in Parquet files, larger than memory, and your own training loop.

python examples/recsys_own_files.py    (writes small files first; seconds on a CPU)
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch

from moeapps import recsys
from moeapps.recsys.metrics import auc

SCHEMA = recsys.FeatureSchema(  # the sizes of the vocabularies are found in the training files
    [recsys.Categorical("city", 1, 8), recsys.MultiHot("tags", 1, 8), recsys.Dense("price")]
)
TASKS = [recsys.Task("click"), recsys.Task("buy", sample_mask="click")]


def write(path: Path, rows: int, seed: int) -> None:
    """A log whose labels depend on all three columns."""
    rng = np.random.default_rng(seed)
    city, price = rng.integers(0, 50, rows), rng.normal(3, 1, rows)
    tags = [rng.integers(0, 20, rng.integers(0, 4)).tolist() for _ in range(rows)]
    taste = np.sin(city) + 0.03 * np.array([sum(row) for row in tags]) - 0.3 * price
    click = rng.logistic(size=rows) < 2 * taste
    buy = click & (rng.logistic(size=rows) < 2 * np.cos(city))
    columns = {"city": city, "tags": tags, "price": price, "click": click, "buy": buy}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2_000)


def main(rows: int = 30_000) -> list[float]:
    """Train one epoch and return the test AUC of each task."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "train.parquet", Path(folder) / "test.parquet"]
        for seed, (path, count) in enumerate(zip(paths, (rows, rows // 3), strict=True)):
            write(path, count, seed)
        train, test = map(recsys.Blocks, paths)
        encoder = recsys.Encoder.fit(train, SCHEMA)  # one pass, block by block
        model = recsys.MMoE(encoder.schema, TASKS, num_experts=4, expert_dims=[32])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for batch in recsys.StreamingLoader(train, encoder, TASKS, batch_size=256, shuffle=True):
            logits, labels = (x[batch["mask"]] for x in (model(batch), batch["labels"]))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        found = list(recsys.StreamingLoader(test, encoder, TASKS))
        logits = torch.cat([model(batch).detach() for batch in found])
        labels = torch.cat([torch.where(b["mask"], b["labels"], torch.nan) for b in found])
    return [auc(labels[:, t], logits[:, t]) for t in range(len(TASKS))]  # NaN labels do not count


if __name__ == "__main__":
    print("test AUC of click, and of buy after a click:", main())
