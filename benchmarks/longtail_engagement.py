"""What several experts cost at inference, and what an early exit saves at equal accuracy.

Times are processor times of one thread: every measurement takes turns with what it is compared
with, and the median counts.
"""

import statistics
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from longtail import SUITES, make_module, train
from moeapps import gating
from moeapps.registry import create_model
from moeapps.vision.longtail.aggregate import Aggregator
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.early_exit import Doubt, MaxProb, Sequential
from moeapps.vision.longtail.expert_assignment import balanced_batches, fit_expert_assignment
from runs import Runs

PROBABILITIES = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
DOUBTS = [0.3, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10]
MODELS: dict[str, tuple[Any, list[float]]] = {
    "RIDE 3": (MaxProb, PROBABILITIES),
    "MDCS 3": (MaxProb, PROBABILITIES),
    "TLC 3": (Doubt, DOUBTS),
}
BATCH = 500


def median_times(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each call, in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            found[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(times) for name, times in found.items()}


def branch_cost(runs: Runs, *, quick: bool) -> None:
    """Forward of ResNet-32 with three narrower branches against a single one."""
    for batch in (128, 1):
        row = {"kind": "cost", "model": "resnet32", "seed": 0, "batch": batch}
        if runs.key(row) in runs.rows:
            continue
        counts = [10] * 100
        nets = {
            name: create_model(model, num_classes=100, class_counts=counts, **more)
            for name, model, more in (
                ("single", "balanced_softmax", {}),
                ("three", "ride", {}),
                ("three, full width", "ride", {"reduce_width": False}),
            )
        }
        images = torch.randn(batch, 3, 32, 32)
        calls = {
            name: _forward(net.eval().to(memory_format=torch.channels_last), images)
            for name, net in nets.items()
        }
        times = median_times(calls, 2 if quick else 15 if batch > 1 else 60)
        row["milliseconds"] = {name: round(one, 2) for name, one in times.items()}
        runs.add(row, f"cost at batch {batch}: {times['three'] / times['single']:.2f}x")


class FixedShares(torch.nn.Module):
    """Let the first rows of a batch go on, as many as a trained early exit let.

    Args:
        shares: Of the batch that asks the second expert, the third, and so on.
        batch: Images of the batch.
    """

    def __init__(self, shares: tuple[float, ...], batch: int) -> None:
        super().__init__()
        self.counts = [round(share * batch) for share in shares]

    def forward(self, logits: torch.Tensor, features: Any = None) -> torch.Tensor:
        """Which of the active images need another expert."""
        return torch.arange(len(logits)) < self.counts[logits.shape[1] - 1]


def skipping_cost(runs: Runs, *, quick: bool) -> None:
    """Forward of a whole ResNet-32 with three branches against fixed shares of its images."""
    for batch in (128, 16):
        row: dict[str, Any] = {"kind": "skip", "model": "resnet32", "seed": 0, "batch": batch}
        if runs.key(row) in runs.rows:
            continue
        net = create_model("ride", num_classes=100, class_counts=[10] * 100).eval()
        net = net.to(memory_format=torch.channels_last)
        images, whole = torch.randn(batch, 3, 32, 32), net.aggregate

        def timed(aggregate: Aggregator, net: Any = net, images: Any = images) -> Any:
            def call() -> None:
                net.aggregate = aggregate
                with torch.inference_mode():
                    net(images)

            return call

        calls = {"whole": timed(whole)}
        for more, most in ((0.0, 0.0), (0.2, 0.1), (0.4, 0.2), (0.5, 0.35), (0.75, 0.5), (1, 1)):
            experts = f"{1 + more + most:.2f}"
            calls[experts] = timed(Sequential(FixedShares((more, most), batch), whole))
        times = median_times(calls, 2 if quick else 15 if batch > 16 else 40)
        row["time"] = {key: round(one / times["whole"], 4) for key, one in times.items()}
        runs.add(row, f"skipping at batch {batch}: {row['time']}")


def _forward(net: LongTailModel, images: torch.Tensor) -> Callable[[], Any]:
    def call() -> None:
        with torch.inference_mode():
            net(images)

    return call


def early_exit(runs: Runs, name: str, seed: int, *, quick: bool) -> None:
    """Train a model, choose the exit on validation images, time it on the test images."""
    row: dict[str, Any] = {"kind": "exit", "model": name, "seed": seed, "batch": BATCH}
    if runs.key(row) in runs.rows:
        return
    suite = SUITES["pair_digits"]
    data = suite.load(seed, quick)
    epochs = 2 if quick else suite.epochs["long"]
    module = make_module(suite, suite.entries[name], epochs)
    train(module, data, epochs, seed)
    model, whole = module.model.eval().cpu(), module.model.aggregate
    rule, thresholds = MODELS[name]
    exits = {f"{rule.__name__} {at:g}": Sequential(rule(at), whole) for at in thresholds}
    if name == "RIDE 3":
        labels = torch.from_numpy(data.splits.train.labels)
        rows = balanced_batches(labels, batch_size=128, epochs=20, seed=seed)
        pairs = (data.train_rows(chosen) for chosen in rows)
        exits["expert assignment"] = fit_expert_assignment(model, pairs, num_steps=len(rows))
    row["whole"] = {part: accuracy(model, whole, data, part)[0] for part in ("val", "test")}
    row["exits"] = []
    images = torch.cat([batch["image"] for batch in data.test_dataloader()])

    def timed(aggregate: Aggregator) -> Callable[[], Any]:
        def call() -> None:
            model.aggregate = aggregate
            with torch.inference_mode():
                for part in images.split(BATCH):
                    model(part)

        return call

    calls = {"whole": timed(whole), **{key: timed(one) for key, one in exits.items()}}
    times = median_times(calls, 1 if quick else 7)
    for key, one in exits.items():
        val, _ = accuracy(model, one, data, "val")
        test, used = accuracy(model, one, data, "test")
        row["exits"].append(
            {
                "exit": key, "val": val, "test": test, "experts": round(used, 4),
                "time": round(times[key] / times["whole"], 4),
            }
        )  # fmt: skip
    row["milliseconds"] = round(times["whole"], 2)
    best = chosen_exit(row)
    runs.add(row, f"{name} seed {seed}: {best['exit']}, {best['time']:.2f}x the time")


def accuracy(
    model: LongTailModel, aggregate: Aggregator, data: LongTailData, part: str
) -> tuple[float, float]:
    """Accuracy with an aggregator on a part of the data, and the mean number of experts."""
    model.aggregate = aggregate
    right, used, count = 0, 0.0, 0
    loader = data.val_dataloader() if part == "val" else data.test_dataloader()
    with torch.inference_mode():
        for batch in loader:
            with gating.record(model) as recording:
                output = model(batch["image"])
            (*_, routing) = (calls[-1] for calls in recording.routings.values() if calls)
            right += int((output.argmax(-1) == batch["label"]).sum())
            used += float((routing.weights > 0).sum())
            count += len(output)
    return round(right / count, 5), used / count


def chosen_exit(row: dict[str, Any], loss: float = 0.0) -> dict[str, Any]:
    """The exit with the fewest experts that loses no more accuracy on the validation images."""
    as_good = [one for one in row["exits"] if one["val"] >= row["whole"]["val"] - loss - 1e-9]
    found: dict[str, Any] = min(as_good or row["exits"], key=itemgetter("experts"))
    return found


def engagement_runs(folder: Path, *, quick: bool = False) -> Runs:
    """The measurements that are done."""
    name = f"longtail_engagement{'_quick' if quick else ''}.jsonl"
    return Runs(folder / name, itemgetter("kind", "model", "seed", "batch"))


def measure(
    folder: Path, *, seeds: int = 3, quick: bool = False, render_only: bool = False
) -> None:
    """Measure what is missing."""
    runs = engagement_runs(folder, quick=quick)
    if render_only:
        return
    branch_cost(runs, quick=quick)
    skipping_cost(runs, quick=quick)
    for seed in range(1 if quick else seeds):
        for name in MODELS:
            early_exit(runs, name, seed, quick=quick)
