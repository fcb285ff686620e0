"""Accuracy of the methods for long tails, at equal budget and schedule: five seeds, paired.

    python benchmarks/longtail.py --suite pair_digits [--settings short long] [--seeds 5]
    MOEAPPS_DATA=DIR python benchmarks/longtail.py --suite cifar10_lt [--epochs 12]
    MOEAPPS_DATA=DIR python benchmarks/longtail.py --suite engagement
    python benchmarks/longtail.py --suite pair_digits --render   # tables of what is there

All methods of a suite see the same images in the same order for the same number of epochs, with
the same rates; MDCS sees two views of each image, and so twice as many. The last weights are
judged, nothing is chosen on test images. Every run is one line of ``longtail_<suite>.jsonl``; a
run that is there is not repeated, so an interrupted benchmark continues.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.longtail.metrics import balanced_accuracy, group_accuracy
from moeapps.vision.longtail.modules import LongTailClassifier
from moeapps.vision.longtail.scoring import Predictions, expert_scores, scores
from runs import Runs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        model: Registered name.
        arguments: Of the model, besides those of the suite.
        training: Of the module, besides those of the suite.
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


SMALL = {"reduce_width": True}
BRANCHES = {"num_experts": 3, **SMALL}
WIDE = {"backbone_args": {"widths": [16, 42, 84]}}
TLC = {**BRANCHES, "backbone_args": {"shared_stages": 1}}  # shares what the others share
MIXED = {"mixup_alpha": 0.4}

# As many weights with three experts as with one wide network ("w").
PAIR_DIGITS = {
    "CE": Entry("cross_entropy"),
    "BS 1": Entry("balanced_softmax"),
    "BS w": Entry("balanced_softmax", WIDE),
    "BS 3": Entry("balanced_softmax", BRANCHES),
    "LDAM-DRW 1": Entry("ldam"),
    "LDAM-DRW w": Entry("ldam", WIDE),
    "RIDE 3": Entry("ride"),
    "SADE 3": Entry("sade"),
    "BalPoE 3": Entry("balpoe", SMALL, MIXED),
    "MDCS 3": Entry("mdcs"),
    "TLC 3": Entry("tlc", TLC),
    "BalPoE 3, no mixup": Entry("balpoe", SMALL),
    # Why: what a part of a method does.
    "LDAM-DRW 3": Entry("ldam", BRANCHES),
    "TLC 3, all images engage": Entry("tlc", {**TLC, "engage_above": 0.0}),
    "MDCS 3, no consistency": Entry("mdcs", {"consistency": 0.0}),
    "BS 3, two views": Entry("mdcs", {"consistency": 0.0, "lam": [1.0, 1.0, 1.0]}),
}
CIFAR = {
    "CE": Entry("cross_entropy"),
    "Balanced Softmax": Entry("balanced_softmax"),
    "LDAM-DRW": Entry("ldam"),
    "RIDE": Entry("ride"),
    "SADE": Entry("sade"),
    "BalPoE": Entry("balpoe", SMALL, MIXED),
    "MDCS": Entry("mdcs"),
    "TLC": Entry("tlc", TLC, {"weight_decay": 2e-4}),
}


@dataclass(frozen=True)
class Suite:
    """Data and training of one benchmark.

    Args:
        entries: Rows by name.
        load: Data of a seed; ``quick`` for a few images.
        arguments: Of all models.
        training: Of all modules.
        epochs: By setting.
    """

    entries: dict[str, Entry]
    load: Callable[[int, bool], LongTailData]
    arguments: dict[str, Any]
    training: dict[str, Any]
    epochs: dict[str, int]


def pair_digits(seed: int, quick: bool) -> LongTailData:
    """Other digits, another order of the classes and other pairs for each seed."""
    return LongTailData("pair-digits-lt", batch_size=64, dataset_args={"seed": seed}, seed=seed)


def cifar10(seed: int, quick: bool) -> LongTailData:
    """The same images for each seed, in another order."""
    more = {"largest": 500} if quick else {}
    return LongTailData("cifar10-lt", imbalance=100, batch_size=128, seed=seed, dataset_args=more)


SUITES = {
    "pair_digits": Suite(
        PAIR_DIGITS, pair_digits, {"backbone": "resnet8"}, {"many": 20, "few": 5},
        {"short": 25, "long": 60},
    ),
    "cifar10_lt": Suite(CIFAR, cifar10, {"backbone": "resnet8"}, {}, {}),
}  # fmt: skip


def schedule(epochs: int) -> dict[str, Any]:
    """The shape of the published schedules in fewer epochs: drops after 80 % and 90 %."""
    drops = [round(0.8 * epochs), round(0.9 * epochs)]
    return {"milestones": drops, "gamma": 0.1, "warmup_epochs": max(1, round(epochs / 40))}


def make_module(suite: Suite, entry: Entry, epochs: int, **more: Any) -> LongTailClassifier:
    """An entry's module; class weights come with the first drop of the rate."""
    rates = schedule(epochs)
    arguments = {**suite.arguments, **more, **entry.arguments}
    if entry.model in ("ldam", "ride", "tlc"):
        arguments["drw_epoch"] = rates["milestones"][0]
    training = {**rates, **suite.training, **entry.training}
    return LongTailClassifier(entry.model, model_args=arguments, **training)


def train(module: LongTailClassifier, data: LongTailData, epochs: int, seed: int) -> float:
    """Fit without logs, checkpoints and validation; the seconds it took."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        trainer = pl.Trainer(
            barebones=True, accelerator="auto", devices=1, max_epochs=epochs, limit_val_batches=0
        )
        torch.manual_seed(seed)
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
    return time.perf_counter() - began


def judge(module: LongTailClassifier, data: LongTailData) -> dict[str, float]:
    """All numbers of the test split, and for one expert those after post-hoc adjustment."""
    model, rows = module.model.eval(), Predictions()
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in data.test_dataloader():
            output, aux = model(batch["image"].to(device), return_aux=True)
            used = torch.full_like(batch["label"], model.num_experts)
            rows.add(output=output, target=batch["label"], logits=aux["logits"], used=used)
    rows = rows.finish()
    limits = {name: module.hparams[name] for name in ("many", "few")}
    found = {**scores(rows, model, **limits), **expert_scores(rows, model)}
    if module.hparams["model"] == "cross_entropy":
        target, counts = rows["target"], model.counts.cpu()
        moved = (rows["output"] - model.log_prior.cpu()).argmax(-1)
        found["post_hoc"] = balanced_accuracy(moved, target, model.num_classes)
        groups = group_accuracy(moved, target, counts, **limits)
        found |= {f"post_hoc/{name}": value for name, value in groups.items()}
    return found


class LongTailRuns(Runs):
    """The runs of a suite that are done, and the way to do more."""

    def __init__(self, name: str, folder: Path, *, quick: bool = False) -> None:
        self.suite, self.quick = SUITES[name], quick
        self.data = lru_cache(maxsize=1)(self._data)
        super().__init__(
            folder / f"longtail_{name}{'_quick' if quick else ''}.jsonl",
            itemgetter("setting", "model", "seed"),
        )

    def _data(self, seed: int) -> LongTailData:
        data = self.suite.load(seed, self.quick)
        data.setup()
        return data

    def get(self, setting: str, name: str, seed: int, epochs: int, **more: Any) -> dict[str, Any]:
        """A run, from the file or trained now."""
        row: dict[str, Any] = {"setting": setting, "model": name, "seed": seed}
        if self.key(row) in self.rows:
            return self.rows[self.key(row)]
        data = self.data(seed)
        data.views = None
        module = make_module(self.suite, self.suite.entries[name], epochs, **more)
        seconds = train(module, data, epochs, seed)
        found = judge(module, data)
        weights = sum(p.numel() for p in module.model.parameters())
        row |= {"epochs": epochs, "weights": weights, "seconds": round(seconds, 1)}
        row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        row["test"] = {key: round(value, 5) for key, value in found.items() if value == value}
        told = f"{setting} {name} seed {seed}: {found['balanced_accuracy']:.3f} ({seconds:.0f} s)"
        return self.add(row, told)

    def fill(
        self, settings: dict[str, int], names: list[str], seeds: int, **more: Any
    ) -> Iterator[dict[str, Any]]:
        """Runs that are missing, one after another: all models of a seed before the next."""
        for setting, epochs in settings.items():
            for seed in range(seeds):
                for name in names:
                    yield self.get(setting, name, seed, epochs, **more)

    def of(self, setting: str, name: str) -> dict[int, dict[str, Any]]:
        """Runs of a model by seed."""
        return {
            seed: row
            for (one, model, seed), row in sorted(self.rows.items())
            if (one, model) == (setting, name)
        }


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=[*SUITES, "engagement"], required=True)
    parser.add_argument("--settings", nargs="+", help="pair_digits: short, long [both]")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="rows; all by default")
    parser.add_argument("--seeds", type=int, help="[5; 3 for cifar10_lt]")
    parser.add_argument("--epochs", type=int, default=12, help="of cifar10_lt [12]")
    parser.add_argument("--backbone", default="resnet8", help="of cifar10_lt [resnet8]")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run later")
    parser.add_argument("--render", action="store_true", help="run nothing, write the tables")
    parser.add_argument("--quick", action="store_true", help="two epochs, for a smoke test")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    from longtail_tables import render

    if options.suite == "engagement":
        from longtail_engagement import measure

        measure(options.output, quick=options.quick, render_only=options.render)
    else:
        runs = LongTailRuns(options.suite, options.output, quick=options.quick)
        settings, more = dict(runs.suite.epochs), {}
        if options.suite == "cifar10_lt":
            settings = {f"{options.backbone}, {options.epochs} epochs": options.epochs}
            more = {"backbone": options.backbone}
        if options.settings:
            settings = {name: settings[name] for name in options.settings}
        if options.quick:
            settings = dict.fromkeys(settings, 2)
        seeds = options.seeds or (5 if options.suite == "pair_digits" else 3)
        names = options.models or list(runs.suite.entries)
        end = time.monotonic() + 60 * options.minutes
        if not options.render:
            for _ in runs.fill(settings, names, seeds, **more):
                if time.monotonic() > end:
                    break
    (options.output / "longtail.md").write_text(render(options.output, quick=options.quick))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
