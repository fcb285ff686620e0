"""The quickstart's part on graphs: Mowst, its two experts alone, and GraphSAGE on MixedCSBM."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from moeapps.cli.build import quiet
from moeapps.cli.quickstart import Part, Row
from moeapps.graphs.datamodules import NodeData
from moeapps.graphs.figures import CAPTIONS, figures
from moeapps.graphs.modules import MowstClassifier, NodeClassifier
from moeapps.training.metrics_log import MetricsLog
from moeapps.training.report import Picture, Section, Table
from moeapps.training.runs import read_metrics

MODELS: dict[str, Callable[..., pl.LightningModule]] = {
    "MLP (weak)": lambda **a: NodeClassifier("mlp", **a),
    "GCN (strong)": lambda **a: NodeClassifier("gcn", **a),
    "GraphSAGE": lambda **a: NodeClassifier("graphsage", **a),
    "Mowst-GCN": lambda **a: MowstClassifier("gcn", "mlp", pretrain="both", **a),
}
MIXTURE = "Mowst-GCN"

_ABOUT = (
    "MixedCSBM draws a graph with two kinds of nodes. **Feature nodes** carry their class in their "
    "own features, and their neighbours say nothing. **Structure nodes** carry almost nothing "
    "themselves, and most of their neighbours share their class. An MLP can only solve the first "
    "kind, a GCN blurs it. Mowst asks per node how sure its weak expert, an MLP, is, and sends the "
    "node to it or to its strong expert, a GCN. The rows MLP and GCN are these two trained alone."
)


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Train every model once per seed; graph, split and model take the same seed.

    Args:
        seeds: How often.
        fast: Tiny graph and few epochs, to see whether everything runs.
        say: Where a line of progress goes.
    """
    size, short = ("tiny", {"epochs": 8, "patience": 4}) if fast else ("default", {})
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    shown: dict[str, Any] = {}
    total = seeds * len(MODELS)
    for seed in range(seeds):
        for index, (name, make) in enumerate(MODELS.items()):
            with quiet():
                found, results, metrics = _train(make, size, seed, **short)
            scores[name].append(found)
            done = seed * len(MODELS) + index + 1
            say(
                f"graphs {done}/{total}  seed {seed}  {name}: {found['score']:.1%} on the test "
                f"nodes in {found['seconds']:.1f} s{_time_left(scores, seeds)}"
            )
            if seed == 0 and name == MIXTURE:
                shown = figures(results, metrics)
    rows = [
        Row(
            name,
            tuple(one["score"] for one in found),
            tuple(one["seconds"] for one in found),
            tuple(one["weak_share"] for one in found if "weak_share" in one),
        )
        for name, found in scores.items()
    ]
    part = Part(
        f"Graphs: node classification on MixedCSBM ({size}, synthetic)", rows,
        _reading(rows, fast), seeds=seeds,
    )  # fmt: skip
    order = ("confidence_homophily", "accuracy_confidence", "curves_turns", "confidence_histogram")
    part.sections = [
        Section("What the data is", text=_ABOUT),
        Section("Where each model is right", text=_KINDS, table=_by_kind(scores)),
        Section(
            f"Inside {MIXTURE}, seed 0",
            pictures=tuple(Picture(key, shown[key], CAPTIONS[key]) for key in order),
        ),
    ]
    part.facts = {"dataset": "mixed-csbm", "size": size, "seeds": list(range(seeds)), "by": scores}
    return part


def _time_left(scores: dict[str, list[dict[str, float]]], seeds: int) -> str:
    """What is left, once every model's time is known from a seed."""
    if not all(scores.values()) or all(len(found) == seeds for found in scores.values()):
        return ""
    left = sum(
        (seeds - len(found)) * statistics.fmean(one["seconds"] for one in found)
        for found in scores.values()
    )
    return f"  (about {left:.0f} s left)"


_KINDS = (
    "Test accuracy in per cent on the two kinds of nodes, and the mean confidence that the gate "
    "gives them (seed mean). No model is told the kinds."
)


def _train(
    make: Callable[..., pl.LightningModule], size: str, seed: int, **short: int
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train and test one model; numbers, arrays of the test, logged metrics."""
    pl.seed_everything(seed, verbose=False)
    data = NodeData("mixed-csbm", dataset_args={"size": size, "seed": seed})
    module = make(hidden_channels=64, num_layers=2, dropout=0.3, lr=0.01, **short)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder) / "metrics.csv")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=-1, logger=log, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            log_every_n_steps=1, default_root_dir=folder,
        )  # fmt: skip
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - began
        metrics = read_metrics(log.path)
        trainer.test(module, datamodule=data, verbose=False)
        results = module.results()  # type: ignore[operator]
    test = results["test_mask"].astype(bool)
    right = results["mixture_correct" if "confidence" in results else "correct"][test]
    feature = results["kind"][test] == 1
    found = {
        "score": float(right.mean()),
        "seconds": seconds,
        "epochs": float(trainer.current_epoch),
        "feature": float(right[feature].mean()),
        "structure": float(right[~feature].mean()),
    }
    if "confidence" in results:
        c = results["confidence"][test]
        found["weak_share"] = float((c > module.hparams["threshold"]).mean())
        found["c_feature"], found["c_structure"] = (
            float(c[feature].mean()),
            float(c[~feature].mean()),
        )
        found["expected"] = float(trainer.callback_metrics["test/acc_expected"])
    return found, results, metrics


def _by_kind(scores: dict[str, list[dict[str, float]]]) -> Table:
    def mean(found: list[dict[str, float]], key: str, form: str) -> str:
        return form.format(statistics.fmean(one[key] for one in found)) if key in found[0] else "-"

    rows = tuple(
        (
            name,
            mean(found, "feature", "{:.1%}").rstrip("%"),
            mean(found, "structure", "{:.1%}").rstrip("%"),
            mean(found, "c_feature", "{:.2f}"),
            mean(found, "c_structure", "{:.2f}"),
        )
        for name, found in scores.items()
    )
    header = (
        "model", "feature nodes, %", "structure nodes, %", "c on feature nodes",
        "c on structure nodes",
    )  # fmt: skip
    return Table(header, rows)


def _reading(rows: list[Row], fast: bool) -> str:
    """What the numbers say, in a sentence per comparison; nothing that they do not."""
    if fast:
        return "A trial run on tiny data: it shows that everything works, not how well."
    by_name = {row.model: row for row in rows}
    mixture = by_name[MIXTURE]

    def gap(name: str) -> str:
        gaps = [a - b for a, b in zip(mixture.scores, by_name[name].scores, strict=True)]
        points = 100 * statistics.fmean(gaps)
        wins = sum(one > 0 for one in gaps)
        return f"{points:+.1f} points against {name}, ahead on {wins} of {len(gaps)} seeds"

    singles = [name for name in by_name if name != MIXTURE]
    text = f"{MIXTURE}: " + "; ".join(gap(name) for name in singles) + "."
    sage = statistics.fmean(by_name["GraphSAGE"].scores)
    own = statistics.fmean(mixture.scores)
    if sage >= own - 0.005:
        text += (
            " GraphSAGE keeps a node's own features apart from its neighbours' and solves this "
            "task alone: a mixture helps where the single network cannot do both."
        )
    return text
