"""The quickstart's part on recommenders: four multi-task rankers on a made-up short-video log."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
from matplotlib.figure import Figure

from moeapps.cli.build import quiet
from moeapps.cli.quickstart import Part, Row, mean_spread
from moeapps.recsys.datamodules import RankingData
from moeapps.recsys.datasets.short_video import RATES, oracle_scores, short_video_log
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.diagnostics import diagnose
from moeapps.recsys.figures import CAPTIONS, diagnosis_figures
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.training.report import Picture, Section, Table

_SAME = {"norm": "batch", "act": "silu", "tower_dims": [16]}
# About 67,000 weights each, without embeddings; BatchNorm and SiLU in all experts.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SharedBottom": ("shared_bottom", {"bottom_dims": [505, 32], **_SAME}),
    "MMoE": ("mmoe", {"num_experts": 11, "expert_dims": [48, 16], **_SAME}),
    "PLE": ("ple", {"expert_dims": [[48, 16], [16]], **_SAME}),
    "HoME": ("home", {"expert_dims": [[48, 16], [16]], "rank": 8, "tower_dims": [16]}),
}
MIXTURE = "HoME"
DRAWN = ("HoME", "PLE")
PRESET = "conflict"
FULL = {"rows": 50_000, "val_rows": 4_000, "test_rows": 20_000}
FAST = {"rows": 3_000, "val_rows": 1_000, "test_rows": 2_000}

_ABOUT = (
    "The log is made: {rows:,} training impressions of short videos with nine labels each, in two "
    "groups. **Watch** labels (viewed, viewed long, watched to the end, clicked) are frequent, "
    "**interaction** labels (like, collect, follow, comment, forward) are rare. What makes a user "
    "watch says nothing about what makes the user interact, so a network that shares too much "
    "learns the frequent group at the cost of the rare one. HoME's experts know which group they "
    "serve. All four models have the same number of weights and the same experts (BatchNorm and "
    "SiLU), see the log once and differ in who shares what. Since the log is made, the best score "
    "any model could reach is known: AUC {auc:.1%}, GAUC {gauc:.1%} (seed mean)."
)
_TASKS = "Test AUC of each task in per cent (seed mean), and the share of positives."


class Trained(NamedTuple):
    """What one training gave."""

    seconds: float
    metrics: dict[str, float]
    gates: Figure | None


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Train every model once per seed; log, order and model take the same seed.

    Args:
        seeds: How often.
        fast: A small log, to see whether everything runs.
        say: Where a line of progress goes.
    """
    size = FAST if fast else FULL
    found: dict[str, list[Trained]] = {name: [] for name in MODELS}
    best: list[dict[str, float]] = []
    for seed in range(seeds):
        tables = short_video_log(PRESET, seed=seed, **size)
        best.append(oracle_scores(tables))
        for index, name in enumerate(MODELS, seed * len(MODELS) + 1):
            one = _train(name, tables, seed, draw=seed == 0 and name in DRAWN)
            found[name].append(one)
            say(
                f"recsys {index}/{seeds * len(MODELS)}  seed {seed}  {name}: "
                f"AUC {one.metrics['test/auc_mean']:.1%}, GAUC {one.metrics['test/gauc_mean']:.1%} "
                f"in {one.seconds:.1f} s"
            )
    rows = [
        Row(name, _each(trained, "test/auc_mean"), tuple(one.seconds for one in trained))
        for name, trained in found.items()
    ]
    part = Part(
        f"Recommenders: nine tasks of the short-video log ({PRESET}, synthetic)",
        rows,
        _reading(rows, fast),
        header=("model", "mean AUC, %", "mean GAUC, %", "time per training, s"),
        cells=[
            (
                row.model,
                mean_spread(row.scores, scale=100),
                mean_spread(_each(found[row.model], "test/gauc_mean"), scale=100),
                mean_spread(row.seconds),
            )
            for row in rows
        ],
        seeds=seeds,
    )
    reached = {key: statistics.fmean(one[key] for one in best) for key in ("auc", "gauc")}
    part.sections = [
        Section("What the log is", text=_ABOUT.format(rows=size["rows"], **reached)),
        Section("Task by task", text=_TASKS, table=_by_task(found)),
        Section(
            "Who uses which expert, seed 0",
            pictures=tuple(
                Picture(f"gates_{name.lower()}", figure, f"{name}. {CAPTIONS['gates']}")
                for name in DRAWN
                if (figure := found[name][0].gates) is not None
            ),
        ),
    ]
    part.facts = {
        "dataset": "short-video", "preset": PRESET, **size, "seeds": list(range(seeds)),
        "oracle": best,
        "by": {name: [one.metrics for one in trained] for name, trained in found.items()},
    }  # fmt: skip
    return part


def _train(name: str, tables: Tables, seed: int, *, draw: bool) -> Trained:
    """Train and test one model."""
    pl.seed_everything(seed, verbose=False)
    data = RankingData.from_tables(tables, batch_size=512, seed=seed)
    model, arguments = MODELS[name]
    module = MultiTaskRanker(model, model_args=arguments, lr=3e-3)
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - began
        (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    assert module.model is not None
    figure = None
    if draw:
        figure = diagnosis_figures(diagnose(module.model, data.val_dataloader()))["gates"]
    return Trained(seconds, {key: float(value) for key, value in metrics.items()}, figure)


def _each(trained: list[Trained], key: str) -> tuple[float, ...]:
    return tuple(one.metrics[key] for one in trained)


def _by_task(found: dict[str, list[Trained]]) -> Table:
    rows = tuple(
        (
            task,
            group,
            f"{100 * rate:g}",
            *(
                f"{100 * statistics.fmean(_each(trained, f'test/auc/{task}')):.1f}"
                for trained in found.values()
            ),
        )
        for group, rates in RATES.items()
        for task, rate in rates.items()
    )
    return Table(("task", "group", "positives, %", *found), rows)


def _reading(rows: list[Row], fast: bool) -> str:
    """What the numbers say, in a sentence per comparison; nothing that they do not."""
    if fast:
        return "A trial run on tiny data: it shows that everything works, not how well."
    by_name = {row.model: row for row in rows}
    mixture = by_name[MIXTURE]

    def gap(name: str) -> str:
        other = by_name[name]
        gaps = [a - b for a, b in zip(mixture.scores, other.scores, strict=True)]
        wins = sum(one > 0 for one in gaps)
        times = statistics.fmean(mixture.seconds) / statistics.fmean(other.seconds)
        return (
            f"{100 * statistics.fmean(gaps):+.1f} points of AUC against {name}, ahead on {wins} of "
            f"{len(gaps)} seeds, in {times:.1f} times the time"
        )

    others = [name for name in by_name if name != MIXTURE]
    text = f"{MIXTURE}: " + "; ".join(gap(name) for name in others) + "."
    means = {name: statistics.fmean(by_name[name].scores) for name in others}
    if means["PLE"] < means["MMoE"]:
        text += (
            " PLE is behind MMoE here: with a budget of weights split over nine tasks, each of its "
            "gates chooses among few experts."
        )
    return text
