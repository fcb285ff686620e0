"""The quickstart's part on images: two single networks and two mixtures on long-tailed digits."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure

from moeapps.cli.build import quiet
from moeapps.cli.quickstart import Part, Row, mean_spread
from moeapps.training.report import Picture, Section
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.figures import CAPTIONS, figures
from moeapps.vision.longtail.modules import LongTailClassifier

EPOCHS = 20
# The wide net has as many weights as the mixtures of three experts.
_WIDE = {"backbone_args": {"widths": [16, 42, 84]}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Cross-entropy": ("cross_entropy", _WIDE),
    "Balanced Softmax": ("balanced_softmax", _WIDE),
    "RIDE": ("ride", {"drw_epoch": 16}),
    "MDCS": ("mdcs", {}),
}
MIXTURES = ("RIDE", "MDCS")
SINGLE = "Balanced Softmax"
DRAWN = ("groups", "disagreement", "engagement")

_ABOUT = (
    "Handwritten digits of 8 x 8 pixels (UCI, in scikit-learn): 100 training images of the digit "
    "0, falling to 5 of the digit 9, 335 in all; 50 test images of each. Every class weighs the "
    "same in the **balanced accuracy**; **few** is the mean over the digits with less than 15 "
    "training images. All four networks have about 125,000 weights and see the images {epochs} "
    "times in the same order with the same learning rates; MDCS sees two views of each. RIDE and "
    "MDCS have three experts on one trunk. Splits, order and weights are drawn anew for each seed."
)


class Trained(NamedTuple):
    """What one training gave."""

    seconds: float
    metrics: dict[str, float]
    drawn: dict[str, Figure]


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Train every model once per seed; split, order and model take the same seed.

    Args:
        seeds: How often.
        fast: Two epochs, to see whether everything runs.
        say: Where a line of progress goes.
    """
    found: dict[str, list[Trained]] = {name: [] for name in MODELS}
    for seed in range(seeds):
        for index, name in enumerate(MODELS, seed * len(MODELS) + 1):
            one = _train(name, seed, 2 if fast else EPOCHS, draw=seed == 0 and name in MIXTURES)
            found[name].append(one)
            say(
                f"vision {index}/{seeds * len(MODELS)}  seed {seed}  {name}: balanced accuracy "
                f"{one.metrics['test/balanced_accuracy']:.1%}, few "
                f"{one.metrics['test/accuracy/few']:.1%} in {one.seconds:.1f} s"
            )
    rows = [
        Row(name, _each(trained, "test/balanced_accuracy"), tuple(one.seconds for one in trained))
        for name, trained in found.items()
    ]
    part = Part(
        "Images: long-tailed handwritten digits (digits-LT)",
        rows,
        _reading(rows, found, fast),
        header=(
            "model", "balanced accuracy, %", "many, %", "few, %", "calibration error, %",
            "time per training, s",
        ),
        cells=[
            (
                row.model,
                mean_spread(row.scores, scale=100),
                *(
                    mean_spread(_each(found[row.model], f"test/{key}"), scale=100)
                    for key in ("accuracy/many", "accuracy/few", "ece")
                ),
                mean_spread(row.seconds),
            )
            for row in rows
        ],
        synthetic=False,
        seeds=seeds,
    )  # fmt: skip
    part.sections = [
        Section("What the digits are", text=_ABOUT.format(epochs=2 if fast else EPOCHS)),
        Section(
            "What the experts do, seed 0",
            pictures=tuple(
                Picture(
                    f"{key}_{name.lower()}", found[name][0].drawn[key], f"{name}. {CAPTIONS[key]}"
                )
                for key in DRAWN
                for name in MIXTURES
            ),
        ),
    ]
    part.facts = {
        "dataset": "digits-lt", "epochs": 2 if fast else EPOCHS, "seeds": list(range(seeds)),
        "by": {name: [one.metrics for one in trained] for name, trained in found.items()},
    }  # fmt: skip
    return part


def _train(name: str, seed: int, epochs: int, *, draw: bool) -> Trained:
    """Train and test one model."""
    torch.manual_seed(seed)
    data = LongTailData("digits-lt", dataset_args={"seed": seed}, batch_size=32, seed=seed)
    model, arguments = MODELS[name]
    module = LongTailClassifier(
        model, model_args={"backbone": "resnet8", **arguments}, milestones=[16, 18],
        warmup_epochs=1, many=50, few=15,
    )  # fmt: skip
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0,
        )  # fmt: skip
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - began
        (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    drawn = figures(module.results(), {}) if draw else {}
    return Trained(seconds, {key: float(value) for key, value in metrics.items()}, drawn)


def _each(trained: list[Trained], key: str) -> tuple[float, ...]:
    return tuple(one.metrics[key] for one in trained)


def _reading(rows: list[Row], found: dict[str, list[Trained]], fast: bool) -> str:
    """What the numbers say, in a sentence per comparison; nothing that they do not."""
    if fast:
        return "A trial run of two epochs: it shows that everything works, not how well."
    by_name = {row.model: row for row in rows}

    def gap(name: str, other: str) -> str:
        ours, theirs = by_name[name], by_name[other]
        gaps = [a - b for a, b in zip(ours.scores, theirs.scores, strict=True)]
        few = statistics.fmean(_each(found[name], "test/accuracy/few")) - statistics.fmean(
            _each(found[other], "test/accuracy/few")
        )
        times = statistics.fmean(ours.seconds) / statistics.fmean(theirs.seconds)
        wins = sum(one > 0 for one in gaps)
        return (
            f"{100 * statistics.fmean(gaps):+.1f} points of balanced accuracy ({100 * few:+.1f} on "
            f"the classes with few images), ahead on {wins} of {len(gaps)} seeds, in {times:.1f} "
            "times the time"
        )

    lines = [f"{SINGLE} against Cross-entropy: {gap(SINGLE, 'Cross-entropy')}."]
    lines += [f"{name} against {SINGLE}: {gap(name, SINGLE)}." for name in MIXTURES]
    best = max(by_name, key=lambda name: statistics.fmean(by_name[name].scores))
    if best not in MIXTURES:
        lines.append(
            f"No mixture beats {best} of the same size on these digits: with ten classes and 335 "
            "images a prior in the loss does most of the work."
        )
    return " ".join(lines)
