"""The quickstart's part on counting: one density head and HMoDE on rendered crowds."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
from matplotlib.figure import Figure

from moeapps.cli.build import quiet
from moeapps.cli.quickstart import Part, Row, mean_spread
from moeapps.training.report import Picture, Section
from moeapps.vision.counting.datamodules import CountingData
from moeapps.vision.counting.figures import CAPTIONS, figures
from moeapps.vision.counting.modules import CrowdCounter

EPOCHS = 8
FIRST_SEED = 10  # those before chose the settings
SIZES = {"train": 48, "val": 1, "test": 40, "size": 64}
_ENCODER = {"backbone": "plain", "strides": [2, 4, 8], "norm": True}
_GATES = {"slim": True, "gate_widths": [16], "second_widths": [16], "attention_widths": [16]}
# The single head's decoder is wider, so that both have about 189,000 weights.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Single density": ("single_density", {**_ENCODER, "decoder_width": 10}),
    "HMoDE": ("hmode", {**_ENCODER, **_GATES, "decoder_width": 8}),
}
BASELINE, MIXTURE, GUESS = "Single density", "HMoDE", "(mean count)"
DRAWN = ("densities", "experts", "gates")

_ABOUT = (
    "Crowds are **rendered** on canvases of {size} x {size} pixels, with the exact centre of every "
    "head: people on a plane that runs to a horizon, so that far heads are small and many. "
    "{train} images are learnt from, {test} others are counted, with {mean:.0f} people in the "
    "mean. Both counters add up a map of densities; HMoDE mixes the maps of three scales by two "
    "levels of gates. Both have about as many weights ({ours:,} and {theirs:,}) and see the images "
    "{epochs} times in the same order. **MAE** is the mean error of a count; **GAME(1)** adds up "
    "the errors of the four quarters of an image, so that people counted in the wrong place do not "
    "make up for others. What always says the mean count of the training images is the measure "
    "to beat. Crowds, order and weights are drawn anew for each seed; "
    "the settings were chosen on other seeds."
)


class Trained(NamedTuple):
    """What one training gave."""

    seconds: float
    metrics: dict[str, float]
    guess: dict[str, float]
    weights: int
    drawn: dict[str, Figure]


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Train both counters once per seed; crowds, order and network take the same seed.

    Args:
        seeds: How often.
        fast: One epoch, to see whether everything runs.
        say: Where a line of progress goes.
    """
    found: dict[str, list[Trained]] = {name: [] for name in MODELS}
    used = range(FIRST_SEED, FIRST_SEED + seeds)
    for done, seed in enumerate(used):
        for index, name in enumerate(MODELS, done * len(MODELS) + 1):
            draw = done == 0 and name == MIXTURE
            one = train(name, seed, 1 if fast else EPOCHS, draw=draw)
            found[name].append(one)
            say(
                f"counting {index}/{seeds * len(MODELS)}  seed {seed}  {name}: "
                f"MAE {one.metrics['test/mae']:.2f} in {one.seconds:.1f} s"
            )
    rows = [
        Row(name, _each(trained, "mae"), tuple(one.seconds for one in trained))
        for name, trained in found.items()
    ]
    guesses = [one.guess for one in found[BASELINE]]
    part = Part(
        "Counting: rendered crowds (synthetic)",
        rows,
        reading(rows, [guess["mae"] for guess in guesses], fast),
        header=("model", "weights", "MAE", "RMSE", "GAME(1)", "time per training, s"),
        cells=[
            (
                GUESS, "-",
                *(mean_spread(tuple(g[k] for g in guesses), digits=2) for k in ("mae", "rmse")),
                "-", "-",
            ),
            *(_cells(name, found[name]) for name in MODELS),
        ],
        seeds=seeds,
    )  # fmt: skip
    about = _ABOUT.format(
        **SIZES, mean=statistics.fmean(g["mean"] for g in guesses), epochs=1 if fast else EPOCHS,
        ours=found[MIXTURE][0].weights, theirs=found[BASELINE][0].weights,
    )  # fmt: skip
    drawn = found[MIXTURE][0].drawn
    part.sections = [
        Section("What the crowds are", text=about),
        Section(
            f"What HMoDE sees, seed {FIRST_SEED}",
            pictures=tuple(Picture(f"{key}_hmode", drawn[key], CAPTIONS[key]) for key in DRAWN),
        ),
    ]
    part.facts = {
        "dataset": "rendered-crowds", **SIZES, "seeds": [*used], "guess": guesses,
        "epochs": 1 if fast else EPOCHS,
        "by": {name: [one.metrics for one in trained] for name, trained in found.items()},
    }  # fmt: skip
    return part


def train(name: str, seed: int, epochs: int, *, draw: bool = False) -> Trained:
    """Train and test one counter."""
    pl.seed_everything(seed, verbose=False)
    data = CountingData(
        dataset_args={**SIZES, "seed": seed}, batch_size=8, sigma=2.0, val_share=0, seed=seed
    )
    model, arguments = MODELS[name]
    module = CrowdCounter(model, model_args=arguments, lr=4e-3, cosine=True)
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
    true = np.asarray(data.part("test").counts, dtype=float)
    gaps = true - np.asarray(data.part("train").counts, dtype=float).mean()
    guess = {
        "mae": float(np.abs(gaps).mean()), "rmse": float(np.sqrt((gaps**2).mean())),
        "mean": float(true.mean()),
    }  # fmt: skip
    drawn = figures(module.results(), {}) if draw else {}
    weights = sum(parameter.numel() for parameter in module.model.parameters())
    numbers = {key: float(value) for key, value in metrics.items()}
    return Trained(seconds, numbers, guess, weights, drawn)


def _each(trained: list[Trained], key: str) -> tuple[float, ...]:
    return tuple(one.metrics[f"test/{key}"] for one in trained)


def _cells(name: str, trained: list[Trained]) -> tuple[str, ...]:
    return (
        name,
        f"{trained[0].weights:,}",
        *(mean_spread(_each(trained, key), digits=2) for key in ("mae", "rmse", "game/1")),
        mean_spread(tuple(one.seconds for one in trained)),
    )


def reading(rows: list[Row], guesses: list[float], fast: bool) -> str:
    """What the numbers say; nothing that they do not. Smaller errors are better."""
    if fast:
        return "A trial run of one epoch: it shows that everything works, not how well."
    by_name = {row.model: row for row in rows}
    ours, theirs = by_name[MIXTURE], by_name[BASELINE]
    wins = sum(a < b for a, b in zip(ours.scores, theirs.scores, strict=True))
    mean, other = statistics.fmean(ours.scores), statistics.fmean(theirs.scores)
    times = statistics.fmean(ours.seconds) / statistics.fmean(theirs.seconds)
    text = (
        f"{MIXTURE}: {mean / other:.2f} times the error of {BASELINE} with about as many weights, "
        f"ahead on {wins} of {len(ours.scores)} seeds, in {times:.1f} times the time; "
        f"{mean / statistics.fmean(guesses):.2f} times that of always saying the mean count."
    )
    if mean >= statistics.fmean(guesses):
        text += " That is no better than a guess: nothing was learnt that tells images apart."
    if wins == 0:
        text += " The mixture does not pay off here."
    elif wins < len(ours.scores):
        text += " The seeds do not agree on which is better."
    return text
