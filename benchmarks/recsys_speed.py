"""Speed of the ranking models on one CPU thread, against torch-rechub and deepctr-torch.

    python benchmarks/recsys_speed.py                       # all lines that have not run yet
    python benchmarks/recsys_speed.py --only step serve     # some kinds of lines
    python benchmarks/recsys_speed.py --quick               # a tiny line of each kind

A line times two sides in turn, again and again, in one process, and gives the ratio of the medians.
Time is the CPU time of the one thread, which a busy machine lengthens least. Layers are matched: 26
categorical features of 1000 ids and 13 numbers; BatchNorm in experts and towers; a linear gate,
with BatchNorm as torch-rechub always has it, or without bias and norm as in deepctr-torch; two
levels of PLE. Each library uses its own data layout and its default Adam.

``step``   zero the gradients, forward, losses, backward, optimiser; ``model`` is the same without
           the optimiser
``serve``  probabilities of a small batch, twice: ``serve eager`` is the model of
           ``fuse_for_inference()`` in torch, ``serve onnx`` the file that ``moeapps export`` writes
           of it, in onnxruntime (the extra ``onnx``); the peers have their model in torch; fifty
           answers in a row, as of a server that has one model
``epoch``  loader, steps and validation metrics, by each library's own trainer
``loader`` shuffled batches of 4096 from columns in memory
``gauc``   a million rows of 50,000 users
``tables`` lookup, backward and update of 2.6 million rows of 16: row-wise Adagrad or dense Adam
``home``   a step of HoME over one of PLE with as many weights, both ours

Lines are appended to ``recsys_speed.jsonl`` and not repeated.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recsys_sides import MODELS, SIZES, Timed, epoch, grouped_auc, home, loader, serve, step, tables

RESULTS = Path(__file__).parent / "results"
PEERS = {"torch-rechub": "torch_rechub", "deepctr-torch": "deepctr_torch"}
KINDS = ("step", "serve", "epoch", "loader", "gauc", "tables", "home")
ORDER = (
    "step", "model", "serve eager", "serve onnx", "epoch", "loader", "gauc", "tables", "home",
)  # fmt: skip


def lines(quick: bool) -> list[tuple[str, dict[str, Any], Callable[[], Any], float | None]]:
    """Kind, what identifies the line, how to build it, and the ratio it should reach."""
    found: list[tuple[str, dict[str, Any], Callable[[], Any], float | None]] = []
    sizes = ["small"] if quick else list(SIZES)
    for size in sizes:
        for model in MODELS[: 1 if quick else None]:
            shape = {"model": model, "size": size}
            for peer in PEERS:
                for rows in [32] if quick else [256, 4096]:
                    bar = 1.6 if rows == 256 and size != "large" else 0.95
                    line = {"peer": peer, **shape, "batch": rows}
                    found.append(("step", line, lambda a=line: step(*_of(a)), bar))
                for rows in [1] if quick else [1, 16]:
                    line = {"peer": peer, **shape, "batch": rows}
                    found.append(
                        ("serve", line, lambda a=line: serve(*_of(a)), 10.0 if rows == 1 else 3.0)
                    )
            for batch_size in [64] if quick else [256, 4096]:
                line = {"peer": "torch-rechub", **shape, "batch": batch_size}
                count = 128 if quick else 16_384
                found.append(
                    ("epoch", line, lambda a=line, n=count: epoch(*_of(a)[1:3], n, a["batch"]), 2.0)
                )
    counts = (8192, 256) if quick else (400_000, 20_000)
    for peer in PEERS:
        found.append(("loader", {"peer": peer}, lambda p=peer: loader(p, *counts), 20.0))
    users = 400 if quick else 1_000_000
    found.append(("gauc", {"peer": "torch-rechub"}, lambda: grouped_auc(users), 100.0))
    found.append(("tables", {"peer": "dense Adam"}, lambda: tables(50 if quick else 100_000), 10.0))
    for rows in [32] if quick else [256, 1024, 4096]:
        line = {"peer": "PLE", "batch": rows}
        found.append(("home", line, lambda n=rows: home(n), None))
    return found


def _of(line: dict[str, Any]) -> tuple[str, str, str, int]:
    return line["peer"], line["model"], line["size"], line["batch"]


def timed(run: Timed) -> float:
    """CPU seconds of a call, per row where it says how many it handled."""
    start = time.thread_time()
    count = run()
    seconds = time.thread_time() - start
    return seconds / count if isinstance(count, int) else seconds


def measure(pair: tuple[Timed, Timed], seconds: float) -> tuple[float, float]:
    """Medians of two sides, timed in turn for about so many seconds after a warm-up."""
    first = [timed(run) for run in pair]
    if max(first) > 2 * seconds:
        return first[0], first[1]
    start = time.thread_time()
    for run in pair:
        timed(run)
    once = time.thread_time() - start
    if once > seconds:
        return first[0], first[1]
    repeats = min(50, max(3, int(seconds / once)))
    times = [[timed(run) for run in pair] for _ in range(repeats)]
    ours, theirs = zip(*times, strict=True)
    return statistics.median(ours), statistics.median(theirs)


class Products(TorchDispatchMode):
    """Adds up the CPU seconds in products of matrices, which any implementation has to form."""

    kinds = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
    seconds = 0.0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, with a look at the clock."""
        start = time.thread_time()
        result = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in self.kinds:
            self.seconds += time.thread_time() - start
        return result


def products(run: Timed) -> float:
    """CPU seconds of a call in products of matrices."""
    with Products() as counted:
        run()
    return counted.seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of a line")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--quick", action="store_true", help="tiny lines, for a smoke test")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"recsys_speed{'_quick' if options.quick else ''}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {_key(row["kind"].split()[0], row["line"]) for row in done}
    for kind, line, build, bar in [] if options.render else lines(options.quick):
        if kind not in options.only or _key(kind, line) in known:
            continue
        needs = PEERS.get(line["peer"])
        if needs is not None and importlib.util.find_spec(needs) is None:
            continue
        torch.manual_seed(0)
        fresh = []
        for name, pair in build().items():
            ours, theirs = measure(pair, 0.05 if options.quick else options.seconds)
            row = {
                "kind": name, "line": line, "ours_ms": 1e3 * ours, "peer_ms": 1e3 * theirs,
                "ratio": theirs / ours, "bar": None if name == "model" else bar,
                "torch": torch.__version__, "load": round(os.getloadavg()[0], 1),
            }  # fmt: skip
            if kind == "epoch":
                row["products_ms"] = [1e3 * products(run) for run in pair]
            fresh.append(row)
            print(f"{time.strftime('%H:%M:%S')} {name} {line}: {row['ratio']:.2f}", flush=True)
        done += fresh
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in fresh)
    path.with_suffix(".md").write_text(render(done, options.quick))
    return 0


def _key(kind: str, line: dict[str, Any]) -> str:
    return json.dumps([kind, line], sort_keys=True)


def holds(row: dict[str, Any]) -> str:
    """Whether a line reaches its ratio; HoME should cost at most 1.4 of PLE."""
    if row["kind"] == "home":
        return "yes" if 1 / row["ratio"] <= 1.4 else "**no**"
    if row["bar"] is None:
        return ""
    return "yes" if row["ratio"] >= row["bar"] else "**no**"


def render(rows: list[dict[str, Any]], quick: bool) -> str:
    """The table as Markdown."""
    text = [
        "# Ranking models on one CPU thread", "",
        f"{_processor()}; Python {platform.python_version()}, torch "
        f"{rows[0]['torch'] if rows else torch.__version__}. Medians of CPU time, sides timed in",
        "turn. *Ratio* is the peer's time over ours; for `home` it is the time of HoME over that",
        "of PLE, which should be 1.4 at most. `model` is `step` without the optimiser and has no",
        "bar of its own. `serve eager` is our model of `fuse_for_inference()` in torch; `serve",
        "onnx` is the file that `moeapps export --format onnx` writes of it, in onnxruntime on one",
        "thread; the peer is its own model in torch, in both; a turn is fifty answers, as of a",
        "server that has one model, and times are per answer. Times of `loader` are per row.", "",
        "| kind | against | model | size | batch | ours ms | peer ms | ratio | bar | holds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda row: ORDER.index(row["kind"])):
        line, is_home = row["line"], row["kind"] == "home"
        ratio = 1 / row["ratio"] if is_home else row["ratio"]
        bar = "<= 1.4" if is_home else "" if row["bar"] is None else f">= {row['bar']:g}"
        shape = [str(line.get(name, "")) for name in ("peer", "model", "size", "batch")]
        cells = [
            row["kind"], *shape, f"{row['ours_ms']:.4g}", f"{row['peer_ms']:.4g}", f"{ratio:.2f}",
            bar, holds(row),
        ]  # fmt: skip
        text.append("| " + " | ".join(cells) + " |")
    text += _bounds([row for row in rows if "products_ms" in row])
    have = {_key(row["kind"].split()[0], row["line"]) for row in rows}
    missing = [
        " ".join(map(str, [kind, *line.values()]))
        for kind, line, _, _ in lines(quick)
        if _key(kind, line) not in have
    ]
    loads = [row["load"] for row in rows] or [0.0]
    text += [
        "", f"Load of the machine while measuring: {min(loads)} to {max(loads)}.", "",
        f"Missing lines: {len(missing)}{': ' if missing else '.'}{'; '.join(missing)}", "",
        "Command: `python benchmarks/recsys_speed.py`", "",
    ]  # fmt: skip
    return "\n".join(text)


def _bounds(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    text = [
        "", "## What bounds an epoch", "",
        "Milliseconds of an epoch in products of matrices, which both sides form alike and in the",
        "same library. *Bound* is the ratio that no time for anything else would give: the peer's",
        "epoch over our products.", "",
        "| model | size | batch | our products | share of our epoch | peer's products | bound |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        ours, theirs = row["products_ms"]
        shape = [str(row["line"][name]) for name in ("model", "size", "batch")]
        share, bound = f"{ours / row['ours_ms']:.0%}", f"{row['peer_ms'] / ours:.2f}"
        cells = [*shape, f"{ours:.4g}", share, f"{theirs:.4g}", bound]
        text.append("| " + " | ".join(cells) + " |")
    return text


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.exists() else []:
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
