"""Accuracy of the ranking models: made-up short videos, two related regressions, Census-Income.

    python benchmarks/recsys.py --suite short_video [--settings conflict mixed] [--seeds 5]
    python benchmarks/recsys.py --suite two_task
    MOEAPPS_DATA=DIR python benchmarks/recsys.py --suite census
    python benchmarks/recsys.py --suite short_video --render     # tables of what is there

In the short-video and census suites every model has as many weights as HoME, embeddings not
counted, as nearly as one whole number (experts, or units of a layer) allows; ``*`` gives its
experts HoME's BatchNorm and SiLU. In the census suite every model gets the same learning rates,
and the validation rows choose. Every run is one line of ``recsys_<suite>.jsonl``; a run that is
there is not repeated, so an interrupted benchmark continues. Test rows choose nothing.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from moeapps.recsys import MultiTaskRanker, RankingData, short_video_log, two_task_regression
from moeapps.recsys.diagnostics import diagnose
from moeapps.recsys.problems import findings
from moeapps.recsys.scoring import Collector, task_metrics
from moeapps.registry import create_model
from runs import Runs

RESULTS = Path(__file__).parent / "results"
DIAGNOSED_BATCHES = 8
STAR = {"norm": "batch", "act": "silu"}


@dataclass(frozen=True)
class Entry:
    """A model whose size is one whole number.

    Args:
        model: Registered name.
        arguments: Of the model of size ``n``.
        size: The number; None for the one that comes nearest to the budget.
    """

    model: str
    arguments: Callable[[int], dict[str, Any]]
    size: int | None = None


@dataclass(frozen=True)
class Suite:
    """Data, models and training of one benchmark.

    Args:
        settings: Names of the variants of the data.
        entries: The rows of the table, the most wanted first.
        load: Data of a setting and a seed; ``quick`` for a few rows.
        training: Options of :func:`train`.
        grid: Learning rates, of which validation chooses on the first seed.
        budget: The entry whose number of weights the others get.
    """

    settings: tuple[str, ...]
    entries: dict[str, Entry]
    load: Callable[[str, int, bool], RankingData]
    training: dict[str, Any]
    grid: tuple[float, ...]
    budget: str | None = None


# ------------------------------------------------------------------------------------ short videos


def short_video_entries() -> dict[str, Entry]:
    """All models: equal weights, and MMoE and SharedBottom with PLE's experts per gate."""
    experts, levels, tower = [48, 16], [[48, 16], [16]], {"tower_dims": [16]}
    home = {"expert_dims": levels, "rank": 8, **tower}
    plain = {
        "PLE": Entry("ple", lambda n: {"expert_dims": levels, "num_shared": n, **tower}, 2),
        "MMoE": Entry("mmoe", lambda n: {"num_experts": n, "expert_dims": experts, **tower}),
        "SharedBottom": Entry("shared_bottom", lambda n: {"bottom_dims": [n, 32], **tower}),
        "MMoE3": Entry("mmoe", lambda n: {"num_experts": n, "expert_dims": experts, **tower}, 3),
        "SharedBottom1": Entry("shared_bottom", lambda n: {"bottom_dims": experts, **tower}, 1),
        "AdaTT": Entry("adatt", lambda n: {"expert_dims": levels, "num_shared": n, **tower}),
        "STEM": Entry(
            "stem",
            lambda n: {
                "expert_dims": [experts], "num_shared": n, "gate": {"hidden": [16]}, **tower,
            },
        ),
        "OMoE": Entry("omoe", lambda n: {"num_experts": n, "expert_dims": experts, **tower}),
        "SMES-style": Entry("smes", lambda n: {"num_experts": n, "expert_dims": experts, **tower}),
        "SNR": Entry("snr", lambda n: {"num_subnets": n, "subnet_dims": [[48], [16]], **tower}),
        "PEPNet": Entry(
            "pepnet",
            lambda n: {
                "domain": ["tab"], "person": ["user", "item", "author"], "expert_dims": [n, 16],
                "gate_hidden": 16,
            },
        ),
    }  # fmt: skip
    starred = {f"{name}*": with_norm(entry) for name, entry in plain.items()}
    switched = {
        f"HoME without {what}": Entry("home", lambda n, off=off: {"num_meta": n, **home, **off})
        for what, off in {
            "mask": {"hierarchy": False},
            "norm": {"norm_act": False},
            "self gates": {"self_gate": False},
            "feature gates": {"feature_gate_1": False, "feature_gate_2": False},
            "feature gates of level 1": {"feature_gate_1": False},
            "feature gates of level 2": {"feature_gate_2": False},
        }.items()
    }
    everything = {
        "HoME": Entry("home", lambda n: {"num_meta": n, **home}, 3), **switched, **starred, **plain,
    }  # fmt: skip
    first = ["HoME", "PLE*", "MMoE*", "SharedBottom*", "PLE", "MMoE", *list(switched)[:4]]
    return {name: everything[name] for name in dict.fromkeys([*first, *everything])}


def with_norm(entry: Entry) -> Entry:
    """The entry with BatchNorm and SiLU in its experts."""
    return Entry(entry.model, lambda n: {**entry.arguments(n), **STAR}, entry.size)


def short_videos(setting: str, seed: int, quick: bool) -> RankingData:
    """Another log for each seed."""
    sizes = {"rows": 2_000, "val_rows": 500, "test_rows": 1_000} if quick else {"val_rows": 10_000}
    tables = short_video_log(setting, seed=seed, **sizes)
    return RankingData.from_tables(tables, batch_size=256 if quick else 1024, seed=seed)


# -------------------------------------------------------------------------------- two regressions


def two_task_entries() -> dict[str, Entry]:
    """The three models of the MMoE paper's study."""
    experts = {"num_experts": 8, "expert_dims": [16], "tower_dims": [8]}
    return {
        "SharedBottom": Entry(
            "shared_bottom", lambda n: {"bottom_dims": [n], "tower_dims": [8]}, 113
        ),
        "OMoE": Entry("omoe", lambda n: experts, 8),
        "MMoE": Entry("mmoe", lambda n: experts, 8),
    }


def two_tasks(setting: str, seed: int, quick: bool) -> RankingData:
    """Another draw for each seed."""
    sizes = {"rows": 500, "val_rows": 100, "test_rows": 500} if quick else {"val_rows": 100}
    tables = two_task_regression(float(setting), seed=seed, **sizes)
    return RankingData.from_tables(tables, batch_size=128, seed=seed)


# ----------------------------------------------------------------------------------------- census


def census_entries() -> dict[str, Entry]:
    """The seven models, as published and with HoME's normalisation."""
    experts, levels, tower = [64, 32], [[64, 32], [32]], {"tower_dims": [32]}
    three = {"expert_dims": levels, **tower}
    home = Entry("home", lambda n: {"num_meta": n, "expert_dims": levels, **tower}, 3)
    plain = {
        "SharedBottom": Entry("shared_bottom", lambda n: {"bottom_dims": [n, 32], **tower}),
        "MMoE": Entry("mmoe", lambda n: {"num_experts": n, "expert_dims": experts, **tower}),
        "PLE": Entry("ple", lambda n: {"num_specific": 3, "num_shared": n, **three}),
        # Neither task is a step towards the other, so no calibrator.
        "AITM": Entry("aitm", lambda n: {"expert_dims": [n, 64, 32], "calibrator": 0.0}),
        "AdaTT": Entry("adatt", lambda n: {"num_native": 3, "num_shared": n, **three}),
        "STEM": Entry(
            "stem",
            lambda n: {
                "num_specific": 3, "num_shared": n, "expert_dims": [experts],
                "gate": {"hidden": [32]}, **tower,
            },
        ),
    }  # fmt: skip
    starred = {f"{name}*": with_norm(entry) for name, entry in plain.items()}
    return {"HoME": home, **plain, **starred}


def census(setting: str, seed: int, quick: bool) -> RankingData:
    """The same rows for each seed, in another order."""
    name = "census-income-sample" if quick else "census-income"
    return RankingData(name, split=setting, batch_size=1024, seed=seed)


SUITES = {
    "short_video": Suite(
        ("conflict", "mixed"), short_video_entries(), short_videos,
        {"epochs": 1}, (2e-3,), "HoME",
    ),
    "two_task": Suite(
        ("1.0", "0.5", "0.0"), two_task_entries(), two_tasks,
        {"steps": 3_000, "schedule": "cosine"}, (1e-3,),
    ),
    "census": Suite(
        ("income-marital",), census_entries(), census,
        {"epochs": 8, "patience": 2}, (1e-3, 3e-3), "HoME",
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------------- running


def count_weights(entry: Entry, size: int, data: RankingData) -> int:
    """Parameters without the embeddings."""
    network = create_model(
        entry.model, schema=data.schema, tasks=data.tasks, **entry.arguments(size)
    )
    tables = sum(p.numel() for p in network.embedding_parameters())
    return sum(p.numel() for p in network.parameters()) - tables


def nearest_size(entry: Entry, budget: int, data: RankingData) -> int:
    """The size whose number of weights is nearest to the budget; weights grow with the size."""
    low, high = 1, 2048
    if entry.model == "smes":
        low = 4  # as many as a row chooses
    while high - low > 1:
        middle = (low + high) // 2
        if count_weights(entry, middle, data) <= budget:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda n: abs(count_weights(entry, n, data) - budget))


def train(
    data: RankingData,
    model: str,
    arguments: dict[str, Any],
    *,
    lr: float,
    seed: int,
    epochs: int = -1,
    steps: int = -1,
    schedule: str = "constant",
    patience: int | None = None,
) -> tuple[MultiTaskRanker, int]:
    """Fit without logs and checkpoints; the module, with its best weights if it validates.

    Args:
        data: Set up.
        model: Registered name.
        arguments: Of the model.
        lr: Of Adam, for everything.
        seed: Of weights.
        epochs: At most; -1 for no limit.
        steps: At most; -1 for no limit.
        schedule: Of the learning rate.
        patience: Validations without a better mean AUC that end the training; None trains to the
            end without validation.

    Returns:
        The module and its number of steps.
    """
    module = MultiTaskRanker(
        model, model_args=arguments, lr=lr, schedule=schedule, patience=patience
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        validates = {} if patience else {"limit_val_batches": 0}
        trainer = pl.Trainer(
            barebones=True, accelerator="cpu", devices=1, max_epochs=epochs, max_steps=steps,
            **validates,
        )  # fmt: skip
        torch.manual_seed(seed)
        trainer.fit(module, datamodule=data)
    return module, trainer.global_step


def judge(module: MultiTaskRanker, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
    """Metrics of all tasks on a split."""
    model = module.model
    assert model is not None
    model.eval()
    rows = Collector()
    with torch.no_grad():
        for batch in batches:
            rows.add(model(batch), batch)
        found = rows.finish()
        predictions = model.to_predictions(found["logits"]).numpy()
    group = found["group"].numpy() if "group" in found else None
    logits, labels = found["logits"].numpy(), found["labels"].numpy()
    return task_metrics(model.tasks, logits, predictions, labels, group)


def inside(module: MultiTaskRanker, data: RankingData) -> dict[str, Any]:
    """What experts and gates do on validation rows."""
    assert module.model is not None
    found = diagnose(module.model, islice(data.val_dataloader(), DIAGNOSED_BATCHES))
    return {
        "levels": [{"level": level.name, **level.summary()} for level in found.levels],
        "findings": sorted({f"{one.level}: {one.kind}" for one in findings(found)}),
    }


class RankingRuns(Runs):
    """The runs of a suite that are done, and the way to do more."""

    def __init__(self, suite: str, folder: Path, *, quick: bool = False) -> None:
        self.suite, self.quick = SUITES[suite], quick
        self.data = lru_cache(maxsize=1)(self._data)
        super().__init__(
            folder / f"recsys_{suite}{'_quick' if quick else ''}.jsonl",
            itemgetter("setting", "model", "lr", "seed"),
        )

    def _data(self, setting: str, seed: int) -> RankingData:
        data = self.suite.load(setting, seed, self.quick)
        data.setup()
        return data

    def get(self, setting: str, model: str, *, lr: float, seed: int) -> dict[str, Any]:
        """A run, from the file or trained now."""
        row: dict[str, Any] = {"setting": setting, "model": model, "lr": lr, "seed": seed}
        if self.key(row) in self.rows:
            return self.rows[self.key(row)]
        data, entry = self.data(setting, seed), self.suite.entries[model]
        size = entry.size
        if size is None:
            reference = self.suite.entries[str(self.suite.budget)]
            budget = count_weights(reference, reference.size or 1, data)
            size = nearest_size(entry, budget, data)
        training = dict(self.suite.training)
        if self.quick:
            training |= {"steps": 20}
        start = time.process_time()
        module, steps = train(
            data, entry.model, entry.arguments(size), lr=lr, seed=seed, **training
        )
        row |= {
            "size": size,
            "weights": count_weights(entry, size, data),
            "steps": steps,
            "cpu_seconds": round(time.process_time() - start, 2),
            "val": judge(module, data.val_dataloader()),
            "test": judge(module, data.test_dataloader()),
            **inside(module, data),
        }
        row = rounded(row)
        score = row["test"].get("auc_mean", {k: v for k, v in row["test"].items() if "mse" in k})
        return self.add(
            row,
            f"{setting} {model} lr {lr} seed {seed}: {score} "
            f"({steps} steps, {row['cpu_seconds']} s)",
        )

    def chosen(self, setting: str, model: str) -> float | None:
        """The learning rate that validation chooses; None while not all have run on seed 0."""
        tried = [self.rows.get((setting, model, lr, 0)) for lr in self.suite.grid]
        known = [row for row in tried if row is not None]
        if len(known) < len(self.suite.grid):
            return None
        best: float = max(known, key=lambda row: row["val"].get("auc_mean", 0.0))["lr"]
        return best

    def of(self, setting: str, model: str) -> dict[int, dict[str, Any]]:
        """The runs of a row of the table, by seed."""
        lr = self.chosen(setting, model)
        return {
            row["seed"]: row
            for key, row in sorted(self.rows.items(), key=lambda item: str(item[0]))
            if key[:3] == (setting, model, lr)
        }

    def fill(self, settings: list[str], models: list[str], seeds: int) -> Iterator[None]:
        """Do what is missing, one run after another, the first seeds first."""
        for setting, seed, model in product(settings, range(seeds), models):
            for lr in self.suite.grid if seed == 0 else [self.chosen(setting, model)]:
                if (setting, model, lr, seed) not in self.rows:
                    assert lr is not None
                    yield
                    self.get(setting, model, lr=lr, seed=seed)

    def missing(self, setting: str, seeds: int) -> dict[str, list[int]]:
        """Seeds that have not run, by model."""
        found = {
            model: [seed for seed in range(seeds) if seed not in self.of(setting, model)]
            for model in self.suite.entries
        }
        return {model: without for model, without in found.items() if without}


def rounded(value: Any) -> Any:
    """Nested plain values with five digits behind the point; None for what is not finite."""
    if isinstance(value, dict):
        return {key: inner if key == "lr" else rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 5) if abs(value) < float("inf") else None
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write the tables."""
    from recsys_tables import render

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--settings", nargs="+", help="variants of the data; all by default")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="rows; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run later")
    parser.add_argument("--render", action="store_true", help="run nothing, write the tables")
    parser.add_argument("--quick", action="store_true", help="tiny runs, for a smoke test")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = RankingRuns(options.suite, options.output, quick=options.quick)
    settings = options.settings or list(runs.suite.settings)
    models = options.models or list(runs.suite.entries)
    end = time.monotonic() + 60 * options.minutes
    if not options.render:
        for _ in runs.fill(settings, models, options.seeds):
            if time.monotonic() > end:
                break
    runs.path.with_suffix(".md").write_text(render(options.suite, runs, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
