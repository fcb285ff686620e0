"""Counting by density experts: whether gates learn, and whether mixtures help on real annotations.

    python benchmarks/counting.py --suite gating [--seeds 5]
    python benchmarks/counting.py --suite cells [--splits 10] [--steps 3000] [--only NAME ...]
    python benchmarks/counting.py --suite cells --stage choose --steps 600 --only NAME ...

``cells`` needs the VGG cells in ``$MOEAPPS_DATA/counting/cells``. Each run is kept in
``counting.jsonl`` and not repeated; every call writes the page of what is there.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import counting_cells
import counting_gating
from runs import Runs


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run the same."""
    if row["suite"] == "gating":
        return "gating", row["seed"]
    return "cells", row["stage"], row["name"], row["split"], row["steps"]


def gating(runs: Runs, seeds: int) -> None:
    """One run per seed, on the same crowds."""
    if all(("gating", seed) in runs.rows for seed in range(seeds)):
        return
    train = counting_gating.crowds(counting_gating.TRAIN, 1000)
    test = counting_gating.crowds(counting_gating.TEST, 2000)
    for seed in range(seeds):
        if ("gating", seed) not in runs.rows:
            row = counting_gating.run(seed, train, test)
            kinds = ("best expert", "flat", "hierarchical")
            runs.add(row, f"gating {seed}: {[f'{row[k]:.2f}' for k in kinds]}")


def cells(runs: Runs, given: argparse.Namespace) -> None:
    """One run per split and variant, all variants of a split before the next."""
    for split in range(given.splits):
        for name in given.only or counting_cells.SHOWN:
            if ("cells", given.stage, name, split, given.steps) not in runs.rows:
                row = counting_cells.run(name, split, given.steps, given.stage)
                told = f"MAE {row['mae']:.2f}, bias {row['bias']:+.2f}, {row['cpu_seconds']} s"
                runs.add(row, f"cells {given.stage} {split} {name}: {told}")


def render(rows: dict[Any, dict[str, Any]]) -> str:
    """The page."""
    of = {suite: [r for r in rows.values() if r["suite"] == suite] for suite in ("gating", "cells")}
    lines = ["# Counting by density experts", ""]
    if of["gating"]:
        lines += ["## Density-gating benchmark", "", *(counting_gating.__doc__ or "").splitlines()]
        lines += ["", *counting_gating.page(of["gating"])]
        lines += ["Command: `python benchmarks/counting.py --suite gating`", ""]
    if of["cells"]:
        lines += ["## VGG cells", "", *(counting_cells.__doc__ or "").splitlines(), ""]
        lines += counting_cells.page(of["cells"])
        lines += ["Command: `python benchmarks/counting.py --suite cells`", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("gating", "cells"), required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stage", choices=("choose", "test"), default="test")
    parser.add_argument("--only", nargs="*", choices=list(counting_cells.VARIANTS))
    parser.add_argument("--render", action="store_true", help="write the page of what is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(given.out / "counting.jsonl", key)
    if not given.render:
        gating(runs, given.seeds) if given.suite == "gating" else cells(runs, given)
    (given.out / "counting.md").write_text(render(runs.rows))


if __name__ == "__main__":
    main()
