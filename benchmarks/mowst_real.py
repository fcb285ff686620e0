"""Real graphs, standard splits: each GNN alone, under Mowst and under Mowst*, equally tuned.

    MOEAPPS_DATA=DIR python benchmarks/mowst_real.py [--datasets ...] [--models ...]
        [--seeds 5] [--trials 4] [--threads 1]

Every row of the table gets the same number of trials from one small grid (learning rate, dropout).
A trial trains on the first split; the best by *validation* metric is then trained on the other
splits (Cora and CiteSeer have one public split: there a seed changes the weights only). Test nodes
choose nothing. Every run is one line of ``mowst_real.jsonl``; a run that is there is not repeated,
so an interrupted benchmark continues. Writes ``mowst_real.json`` and ``mowst_real.md``.
"""

import argparse
import json
import time
import warnings
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeapps.graphs import MowstClassifier, NodeClassifier, NodeData
from moeapps.graphs.fitting import fit
from moeapps.graphs.turn_module import TurnModule
from runs import Runs

DATASETS = ("cora", "citeseer", "minesweeper", "tolokers", "actor")
MODELS = ("gcn", "graphsage", "gin", "gat", "h2gcn", "gin_skip")
VARIANTS = ("alone", "mowst", "mowst*")
ONE_SPLIT = ("cora", "citeseer")
# Bags of words and one-hot features are mostly zeros; the sparse product is exact and faster.
SPARSE = ("cora", "citeseer", "actor")
# One order for all, so that equal trial counts are equal settings too.
GRID = (
    {"lr": 0.01, "dropout": 0.3},
    {"lr": 0.01, "dropout": 0.6},
    {"lr": 0.003, "dropout": 0.3},
    {"lr": 0.003, "dropout": 0.6},
)


def build(model: str, variant: str, setting: dict[str, float]) -> TurnModule:
    """The untrained module of one trial."""
    if variant == "alone":
        # As long as it improves: a mixture trains its strong expert in many turns.
        return NodeClassifier(model, epochs=1000, **setting)
    return MowstClassifier(model, joint=variant == "mowst*", lr_pretrain=setting["lr"], **setting)


class GraphRuns(Runs):
    """The runs that are done, and the way to do more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, itemgetter("dataset", "model", "variant", "trial", "seed"))

    def get(
        self, dataset: str, model: str, variant: str, *, trial: int, seed: int
    ) -> dict[str, Any]:
        """A run, from the file or trained now."""
        row: dict[str, Any] = {
            "dataset": dataset, "model": model, "variant": variant, "trial": trial, "seed": seed,
        }  # fmt: skip
        if self.key(row) in self.rows:
            return self.rows[self.key(row)]
        split = None if dataset in ONE_SPLIT else seed
        data = NodeData(dataset, split=split, sparse=dataset in SPARSE)
        module = build(model, variant, GRID[trial])
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measures = fit(module, data, seed=seed)
        metric = "acc" if data.metric == "accuracy" else data.metric
        row |= {
            "metric": metric,
            "val": measures[f"val/{metric}"],
            "test": measures[f"test/{metric}"],
            "c_mean": measures.get("test/c_mean"),
            "acc_expected": measures.get("test/acc_expected"),
            "epochs": module.schedule.total_epochs,
            "cpu_seconds": time.process_time() - start,
        }
        return self.add(
            row,
            f"{dataset} {variant} {model} trial {trial} seed {seed}: "
            f"test {100 * row['test']:.1f} ({row['epochs']} epochs, {row['cpu_seconds']:.0f} s)",
        )


def entry(
    runs: GraphRuns, dataset: str, model: str, variant: str, *, trials: int, seeds: int
) -> Any:
    """One line of the table: tune on the first split, then all splits."""
    tried = [runs.get(dataset, model, variant, trial=trial, seed=0) for trial in range(trials)]
    best = max(range(trials), key=lambda trial: tried[trial]["val"])
    chosen = [tried[best]] + [
        runs.get(dataset, model, variant, trial=best, seed=seed) for seed in range(1, seeds)
    ]
    return {
        "dataset": dataset,
        "model": model,
        "variant": variant,
        "metric": chosen[0]["metric"],
        "setting": GRID[best],
        "test": [row["test"] for row in chosen],
        "c_mean": None if chosen[0]["c_mean"] is None else float(
            np.mean([row["c_mean"] for row in chosen])
        ),
        "epochs": float(np.mean([row["epochs"] for row in chosen])),
        "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in chosen])),
        "search_seconds": float(sum(row["cpu_seconds"] for row in tried)),
    }  # fmt: skip


def gain(entry: dict[str, Any], base: dict[str, Any]) -> tuple[float, float]:
    """Mean paired difference over splits in points, and its standard error."""
    difference = 100 * (np.array(entry["test"]) - np.array(base["test"]))
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()), float(error)


def verdict(mean: float, error: float) -> str:
    """A gain that is not twice its standard error is none."""
    if abs(mean) <= 2 * error:
        return "no clear difference"
    return "better" if mean > 0 else "worse"


def render(entries: list[dict[str, Any]], *, seeds: int, trials: int) -> str:
    """The tables and the reading."""
    lines = [
        f"# Real graphs: {seeds} seeds or splits, {trials} trials per row",
        "",
        "Test metric in percent (accuracy; ROC-AUC for Minesweeper and Tolokers), mean +- standard",
        "deviation. *gain* is the mean difference to the same GNN alone on the same splits +- its",
        "standard error. All rows: hidden 64, 2 layers, AdamW, weight decay 5e-4, and the same",
        f"{trials} (learning rate, dropout) settings, chosen on the validation nodes of the first",
        "split. Mowst reports its default prediction (hard) for accuracy and the soft mixture for",
        "ROC-AUC; Mowst* mixes probabilities. CPU s is one training on one thread.",
        "",
    ]
    reading = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in entries):
        own = [entry for entry in entries if entry["dataset"] == dataset]
        alone = {entry["model"]: entry for entry in own if entry["variant"] == "alone"}
        lines += [
            f"## {dataset} ({'accuracy' if own[0]['metric'] == 'acc' else 'ROC-AUC'})",
            "",
            "| Model | test | gain | reading | mean c | epochs | CPU s | chosen |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for entry in own:
            test = 100 * np.array(entry["test"])
            spread = test.std(ddof=1) if len(test) > 1 else 0.0
            cells = [
                entry["model"] if entry["variant"] == "alone"
                else f"{entry['variant'].capitalize()} ({entry['model']})",
                f"{test.mean():.1f} +- {spread:.1f}",
            ]  # fmt: skip
            if entry["variant"] == "alone":
                cells += ["", ""]
            else:
                mean, error = gain(entry, alone[entry["model"]])
                cells += [f"{mean:+.1f} +- {error:.1f}", verdict(mean, error)]
                reading.append((dataset, entry, mean, verdict(mean, error), alone))
            setting = entry["setting"]
            cells += [
                "" if entry["c_mean"] is None else f"{entry['c_mean']:.2f}",
                f"{entry['epochs']:.0f}",
                f"{entry['cpu_seconds']:.1f}",
                f"lr {setting['lr']}, dropout {setting['dropout']}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Reading", ""]
    for variant in ("mowst", "mowst*"):
        mine = [item for item in reading if item[1]["variant"] == variant]
        for word in ("better", "no clear difference", "worse"):
            cases = [
                f"{dataset}/{entry['model']} ({mean:+.1f})"
                for dataset, entry, mean, said, _ in mine
                if said == word
            ]
            if cases:
                lines.append(
                    f"- {variant.capitalize()} against the GNN alone, {word}: {', '.join(cases)}."
                )
    above = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in entries):
        own = [entry for entry in entries if entry["dataset"] == dataset]
        best = max(own, key=lambda entry: np.mean(entry["test"]))
        name = (
            best["model"] if best["variant"] == "alone" else f"{best['variant']} ({best['model']})"
        )
        above.append(f"{dataset}: {name} {100 * np.mean(best['test']):.1f}")
    lines += [
        f"- Best row per set: {'; '.join(above)}.",
        "- Better or worse means that the mean gain is more than twice its standard error. With",
        "  five splits that is a weak test; with this many rows a few such cases arise by chance.",
        "- Cora and CiteSeer have one split, so their spread is that of the seeds only.",
        "",
        "Command: `MOEAPPS_DATA=DIR python benchmarks/mowst_real.py`",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["gcn", "graphsage", "gin"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, choices=range(1, len(GRID) + 1), default=len(GRID))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = GraphRuns(arguments.out / "mowst_real.jsonl")
    budget = {"trials": arguments.trials, "seeds": arguments.seeds}
    for dataset in arguments.datasets:
        entry(runs, dataset, "mlp", "alone", **budget)
        for model in arguments.models:
            for variant in VARIANTS:
                entry(runs, dataset, model, variant, **budget)
        entries = tabulate(runs, **budget)
        text = render(entries, **budget)
        (arguments.out / "mowst_real.json").write_text(json.dumps(entries, indent=1) + "\n")
        (arguments.out / "mowst_real.md").write_text(text)
    print(text)


def tabulate(runs: GraphRuns, *, trials: int, seeds: int) -> list[dict[str, Any]]:
    """All rows of the table that are complete, also those of earlier invocations."""
    done = {key[:3] for key in runs.rows}
    entries = []
    for dataset in DATASETS:
        wanted = [("mlp", "alone"), *((model, variant) for model in MODELS for variant in VARIANTS)]
        for model, variant in wanted:
            keys = [key for key in runs.rows if key[:3] == (dataset, model, variant)]
            if (dataset, model, variant) in done and len(keys) >= trials + seeds - 1:
                entries.append(entry(runs, dataset, model, variant, trials=trials, seeds=seeds))
    return entries


if __name__ == "__main__":
    main()
