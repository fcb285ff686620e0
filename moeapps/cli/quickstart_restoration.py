"""The quickstart's part on bad weather: a plain transformer and MoFME on bundled photographs."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
from matplotlib.figure import Figure

from moeapps.cli.build import quiet
from moeapps.cli.quickstart import Part, Row, mean_spread
from moeapps.training.report import Picture, Section
from moeapps.vision.restoration.datamodules import RestorationData
from moeapps.vision.restoration.figures import CAPTIONS, figures
from moeapps.vision.restoration.modules import ImageRestorer

EPOCHS = 6
FIRST_SEED = 10  # those before chose the settings
WEATHER = ("haze", "rain", "snow")
_FRAME = {
    "embed_dim": 48, "depth": 1, "patch_size": 4, "num_heads": 3, "head_dim": 16, "dropout": 0.0,
    "head_channels": 4, "tail_channels": [8, 8], "residual_learning": True,
}  # fmt: skip
# The plain network's hidden layer is so wide that both have 60,471 weights.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Plain ViT": ("restoration_vit", {"hidden_dim": 388}),
    "MoFME": ("mofme", {"num_experts": 4, "star": False}),
}
BASELINE, MIXTURE, INPUT = "Plain ViT", "MoFME", "(as degraded)"
DRAWN = ("before_after", "weather_gates")

_ABOUT = (
    "Eight photographs that come with scikit-image, scikit-learn and matplotlib, made small, under "
    "made **haze, rain and snow**. Crops of their left parts are learnt from, their right 30 per "
    "cent are restored whole, so both show the same scenes: nothing here says how well a network "
    "does on new photographs. Both networks have {weights:,} weights and see the same crops in the "
    "same order {epochs} times; they are far too small and too little trained for good pictures. "
    "**PSNR** is the mean over the images of each one's own, in dB; three more halve the squared "
    "error. Weather, order and weights are drawn anew for each seed; "
    "the settings were chosen on other seeds, but on the same photographs."
)


class Trained(NamedTuple):
    """What one training gave."""

    seconds: float
    metrics: dict[str, float]
    before: dict[str, float]
    weights: int
    drawn: dict[str, Figure]


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Train both networks once per seed; weather, order and network take the same seed.

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
                f"restoration {index}/{seeds * len(MODELS)}  seed {seed}  {name}: "
                f"{one.metrics['test/psnr']:.2f} dB from {one.before['psnr']:.2f} in "
                f"{one.seconds:.1f} s"
            )
    rows = [
        Row(name, _each(trained, "psnr"), tuple(one.seconds for one in trained))
        for name, trained in found.items()
    ]
    part = Part(
        f"Restoration: {', '.join(WEATHER)} over bundled photographs (made weather)",
        rows,
        reading(rows, [one.before["psnr"] for one in found[BASELINE]], fast),
        header=(
            "model", "weights", "PSNR, dB", *(f"{name}, dB" for name in WEATHER), "SSIM",
            "time per training, s",
        ),
        cells=[_before(found[BASELINE]), *(_cells(name, found[name]) for name in MODELS)],
        seeds=seeds,
    )  # fmt: skip
    weights = found[MIXTURE][0].weights
    drawn = found[MIXTURE][0].drawn
    part.sections = [
        Section(
            "What the photographs are",
            text=_ABOUT.format(weights=weights, epochs=1 if fast else EPOCHS),
        ),
        Section(
            f"What MoFME makes of them, seed {FIRST_SEED}",
            pictures=tuple(Picture(key, drawn[key], CAPTIONS[key]) for key in DRAWN),
        ),
    ]
    part.facts = {
        "dataset": "bundled-photos", "weather": list(WEATHER), "seeds": [*used],
        "epochs": 1 if fast else EPOCHS,
        "input": [one.before for one in found[BASELINE]],
        "by": {name: [one.metrics for one in trained] for name, trained in found.items()},
    }  # fmt: skip
    return part


def train(name: str, seed: int, epochs: int, *, draw: bool = False) -> Trained:
    """Train and test one network."""
    pl.seed_everything(seed, verbose=False)
    data = RestorationData(
        weather=list(WEATHER), dataset_args={"variants": 2, "short_side": 96, "seed": seed},
        crop=32, crops_per_image=4, val_share=0, seed=seed,
    )  # fmt: skip
    model, arguments = MODELS[name]
    module = ImageRestorer(
        model, model_args={**_FRAME, **arguments}, lr=4e-3, warmup_epochs=1, beta=0.1
    )
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
    results = module.results()
    before = {"ssim": float(results["restoration/input_ssim"].mean())}
    before["psnr"] = float(results["restoration/input_psnr"].mean())
    for number, task in enumerate(results["restoration/tasks"]):
        of_task = results["restoration/task"] == number
        before[f"psnr/{task}"] = float(results["restoration/input_psnr"][of_task].mean())
    drawn = figures(results, {}) if draw else {}
    weights = sum(parameter.numel() for parameter in module.model.parameters())
    numbers = {key: float(value) for key, value in metrics.items()}
    return Trained(seconds, numbers, before, weights, drawn)


def _each(trained: list[Trained], key: str) -> tuple[float, ...]:
    return tuple(one.metrics[f"test/{key}"] for one in trained)


def _cells(name: str, trained: list[Trained]) -> tuple[str, ...]:
    keys = ("psnr", *(f"psnr/{kind}" for kind in WEATHER))
    return (
        name,
        f"{trained[0].weights:,}",
        *(mean_spread(_each(trained, key), digits=2) for key in keys),
        mean_spread(_each(trained, "ssim"), digits=3),
        mean_spread(tuple(one.seconds for one in trained)),
    )


def _before(trained: list[Trained]) -> tuple[str, ...]:
    """What the networks get."""
    keys = ("psnr", *(f"psnr/{kind}" for kind in WEATHER))
    values = (mean_spread(tuple(one.before[k] for one in trained), digits=2) for k in keys)
    return INPUT, "-", *values, mean_spread(tuple(o.before["ssim"] for o in trained), digits=3), "-"


def reading(rows: list[Row], before: list[float], fast: bool) -> str:
    """What the numbers say; nothing that they do not."""
    if fast:
        return "A trial run of one epoch: it shows that everything works, not how well."
    by_name = {row.model: row for row in rows}
    ours, theirs = by_name[MIXTURE], by_name[BASELINE]
    gaps = [a - b for a, b in zip(ours.scores, theirs.scores, strict=True)]
    wins = sum(gap > 0 for gap in gaps)
    times = statistics.fmean(ours.seconds) / statistics.fmean(theirs.seconds)
    gained = statistics.fmean(ours.scores) - statistics.fmean(before)
    text = (
        f"{MIXTURE}: {gained:+.2f} dB against the degraded photographs; "
        f"{statistics.fmean(gaps):+.2f} dB against {BASELINE} with as many weights, ahead on "
        f"{wins} of {len(gaps)} seeds, in {times:.1f} times the time."
    )
    if gained <= 0:
        text += " The photographs were better before: nothing was learnt."
    if wins == 0:
        text += " The mixture does not pay off here."
    elif wins < len(gaps):
        text += " The seeds do not agree on which is better."
    return text
