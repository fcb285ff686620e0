"""One model per key of a stream, on Ray's workers; a killed worker costs no prediction.

    python examples/streams_ray.py    (needs "pip install ray"; no files; half a minute on a CPU)

Ray: its actors keep models in memory, it repeats the call that a dead one was at, and pip installs
all of it. Flink's Python API needs Java; Beam's local runners lose their state with the process.
Call n starts from the models that call n - 1 saved, so no row counts twice.
"""

import os
import tempfile
from pathlib import Path

import ray

from moeapps.streams import HoeffdingTree, load


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Shard:
    """The models of some keys."""

    def __init__(self, folder: str) -> None:
        self.folder, self.next, self.models = Path(folder), 0, {}

    def process(self, n: int, rows: list[tuple]) -> tuple[int, dict]:
        """Predict the rows of chunk n, then learn them, one by one."""
        if self.next != n:  # a new process, or one whose answer got lost
            files = {int(f.stem.split("-")[0]): f for f in self.folder.glob(f"*-{n}.npz")}
            self.models = {key: HoeffdingTree.load(file) for key, file in files.items()}
        predicted = {}
        for t, key, x, y in rows:
            model = self.models.setdefault(key, HoeffdingTree(grace_period=50))
            predicted[t] = model.predict_one(x)
            model.learn_one(x, y)
        for key, model in self.models.items():
            model.save(self.folder / f"{key}-{n + 1}.npz")  # whole or not at all
            (self.folder / f"{key}-{n - 1}.npz").unlink(missing_ok=True)
        self.next = n + 1
        return os.getpid(), predicted


def main(folder: str, *, keys: int = 6, kill: tuple[int, ...] = (3, 7)) -> tuple[dict, set]:
    """Predictions by row, and all workers; the first is killed while it is at some chunks."""
    rows = [(t, t % keys, x, y) for t, (x, y) in enumerate(load("sea_a", limit=5000))]
    shards = [Shard.remote(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
    predicted, pids, workers = {}, [], set()
    for n in range(10):
        even, odd = rows[500 * n :][:500:2], rows[500 * n :][1:500:2]  # keys
        calls = [shards[0].process.remote(n, even), shards[1].process.remote(n, odd)]
        if n in kill:
            os.kill(pids[0], 9)
        pids, answers = zip(*ray.get(calls), strict=True)
        predicted, workers = predicted | answers[0] | answers[1], workers | {*pids}
    return predicted, workers


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"{len(main(folder)[1])} workers, two of them killed, predicted all rows")
