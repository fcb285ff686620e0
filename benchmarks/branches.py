"""Time of three experts against one ResNet-32, and of an early exit against all experts.

    python benchmarks/branches.py            # all lines that have not run yet
    python benchmarks/branches.py --quick    # a tiny line of each kind

``forward``  three branches over one, images of 32 pixels, 100 classes: as trained, with BatchNorm
             folded, and with the experts as groups of the convolutions (``fuse_for_inference``).
             ``ratio`` is over the single network as trained, ``like`` over the one folded likewise.
``exit``     all three experts one by one against an early exit that calls ``mean_experts`` of them
             per image. Which images go on is drawn at random, so this is the cost of skipping
             alone; what it does to accuracy is in ``longtail.py``. ``ratio`` is over all experts
             run alike, ``best`` over the fastest way to run them all.

Sides take turns in one process; time is the CPU time of the one thread, the median over turns.
Lines are appended to ``branches.jsonl`` and not repeated; the table is ``branches.md``.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.early_exit import Sequential
from runs import Runs

RESULTS = Path(__file__).parent / "results"
FORMS = ("trained", "folded", "grouped")
MEAN_EXPERTS = (1.25, 1.5, 1.75, 2.0)


def model(num_experts: int, reduce_width: bool) -> LongTailModel:
    """A network with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    made = LongTailModel(100, num_experts=num_experts, reduce_width=reduce_width).train()
    with torch.no_grad():
        made(torch.randn(8, 3, 32, 32))
    return made.eval()


def form(made: LongTailModel, name: str) -> LongTailModel:
    """The network as trained, folded or grouped."""
    return made if name == "trained" else made.fuse_for_inference(grouped=name == "grouped")


def times(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each side, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(taken.values()))) < 5:
        for name, run in sides.items():
            start = time.thread_time()
            run()
            taken[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(each) for name, each in taken.items()}


class Draw:
    """A rule under which the share ``more`` of the images asks for another expert."""

    def __init__(self, mean_experts: float) -> None:
        self.more = (-1 + (1 + 4 * (mean_experts - 1)) ** 0.5) / 2  # p + p * p = mean - 1
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Draw for every active image."""
        return torch.rand(len(logits), generator=self.generator) < self.more


def forward_lines(batch: int, seconds: float) -> list[dict[str, Any]]:
    """Three experts over one."""
    images = torch.randn(batch, 3, 32, 32)
    networks = {
        "single": model(1, False),
        "reduced": model(3, True),
        "full": model(3, False),
    }
    sides = {
        (name, kind): form(network, kind)
        for name, network in networks.items()
        for kind in FORMS
        if (name, kind) != ("single", "grouped")
    }
    with torch.inference_mode():
        took = times({str(side): partial(m, images) for side, m in sides.items()}, seconds)
    single = {kind: took[str(("single", kind))] for kind in FORMS[:2]}
    return [
        {
            "kind": "forward",
            "width": name,
            "form": kind,
            "batch": batch,
            "ms": took[str((name, kind))],
            "ratio": took[str((name, kind))] / single["trained"],
            "like": took[str((name, kind))] / single["trained" if kind == "trained" else "folded"],
        }
        for name, kind in sides
    ]


def exit_lines(batch: int, seconds: float) -> list[dict[str, Any]]:
    """An early exit over all experts, at given numbers of experts per image."""
    count = max(1, 32 // batch)  # single images differ: time many
    images = torch.randn(count, batch, 3, 32, 32)
    trained = model(3, True)
    every = {kind: form(trained, kind) for kind in FORMS}

    def leaving(mean: float, kind: str) -> LongTailModel:
        made = form(trained, kind)
        made = made if kind != "trained" else model(3, True)
        made.aggregate = Sequential(Draw(mean))
        return made

    def each(network: LongTailModel) -> list[Tensor]:
        return [network(image) for image in images]

    sides: dict[str, Callable[[], Any]] = {
        kind: partial(each, network) for kind, network in every.items()
    }
    for mean in MEAN_EXPERTS:
        for kind in FORMS[:2]:
            sides[f"{kind} {mean}"] = partial(each, leaving(mean, kind))
    with torch.inference_mode():
        took = {name: ms / count for name, ms in times(sides, seconds).items()}
    best = min(took[kind] for kind in FORMS)
    return [
        {
            "kind": "exit",
            "form": kind,
            "batch": batch,
            "mean_experts": mean,
            "ms": took[f"{kind} {mean}"],
            "ratio": took[f"{kind} {mean}"] / took[kind],
            "best": took[f"{kind} {mean}"] / best,
        }
        for mean in MEAN_EXPERTS
        for kind in FORMS[:2]
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    text = [
        "# Branches\n",
        "`python benchmarks/branches.py`: CPU time on one thread, ResNet-32, 100 classes.\n",
        "## Three experts over one network\n",
        "Published three-expert networks are of reduced width: 1.57 times the multiply-adds of a "
        "single one. Served by `fuse_for_inference()` (*grouped*) they stay below 1.7 times its "
        "time at batch 1 and 128, over the single one as trained and over one folded alike; one "
        "after another, as trained, they do not.\n",
        "| branches | form | batch | ms | over the single, as trained | over the single, alike |",
        "|---|---|---|---|---|---|",
    ]
    for row in (r for r in rows if r["kind"] == "forward"):
        cells = f"{row['ms']:.2f} | {row['ratio']:.2f} | {row['like']:.2f}"
        text.append(f"| {row['width']} | {row['form']} | {row['batch']} | {cells} |")
    text += [
        "\n## Early exit over all three experts (reduced width)\n",
        "| form | batch | experts per image | ms | over all, alike | over all, fastest form |",
        "|---|---|---|---|---|---|",
    ]
    for row in (r for r in rows if r["kind"] == "exit"):
        cells = f"{row['ms']:.2f} | {row['ratio']:.2f} | {row['best']:.2f}"
        text.append(f"| {row['form']} | {row['batch']} | {row['mean_experts']} | {cells} |")
    return "\n".join(text) + f"\n\n{rows[0]['machine']}\n"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny line of each kind, not kept")
    parser.add_argument("--seconds", type=float, default=20.0, help="per kind and batch size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        for line in (*forward_lines(2, 0.0), *exit_lines(2, 0.0)):
            print(line)
        return
    runs = Runs(
        RESULTS / "branches.jsonl",
        lambda row: (
            *itemgetter("kind", "form", "batch")(row),
            row.get("width"),
            row.get("mean_experts"),
        ),
    )
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    for kind, lines in (("forward", forward_lines), ("exit", exit_lines)):
        for batch in (1, 8, 128):
            if any(r["kind"] == kind and r["batch"] == batch for r in runs.rows.values()):
                continue
            for row in lines(batch, options.seconds):
                told = " ".join(f"{name}={value}" for name, value in row.items())
                runs.add({**row, "machine": machine}, told)
    (RESULTS / "branches.md").write_text(table([*runs.rows.values()]))


if __name__ == "__main__":
    main()
