"""Accuracy and speed on drifting streams: our trees and ensembles, river's and CapyMOA's.

    MOEAPPS_DATA=DIR python benchmarks/streams.py [--streams led_a ...] [--models ...]
        [--limit 50000] [--slow-limit 3000] [--seeds 1] [--out DIR]

Everything runs in one process, test-then-train, and in turn: seed by seed, stream by stream, model
by model. A rate is instances per second of *CPU time of the whole process*, so that CapyMOA's Java
threads (its compiler and memory management) count, as numba's compiled loops do. Compiling ours is
not counted: every model first runs on a short warm-up stream. CapyMOA (needs Java) reads instances
that lie in Java's memory and runs in its own Java loop; it is left out where it is not installed.
river's models run on the first ``--slow-limit`` instances only, for their rate: accuracy over a
start of the stream compares with nothing.

Changes of concept are spread over ``--limit`` instances. Every run is one line of ``streams.jsonl``
and is not repeated, so an interrupted benchmark continues. Writes ``streams.json``, ``streams.md``.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from moeapps import streams
from moeapps.errors import DataNotFoundError
from moeapps.streams.datasets.stream import Stream
from runs import Runs

GENERATED = ("led_a", "led_g", "sea_a", "sea_g", "rbf_m", "rbf_f")
REAL = ("electricity", "weather")
STREAMS = (*GENERATED, *REAL)
WARM_UP = 5_000
REFERENCE = "CapyMOA ARF-10"
RESULTS = Path(__file__).parent / "results"

# Runs a new model over a stream; returns how many it predicted right and the CPU seconds.
Run = Callable[[Stream, int], tuple[int, float]]


def through_arrays(make: Callable[..., Any], stream: Stream, seed: int) -> tuple[int, float]:
    """One of our models in its compiled loop."""
    model = make(nominal_attributes=stream.nominal, seed=seed)
    classes = np.arange(len(stream.class_names))
    X, y = stream.X, stream.y
    start = time.process_time()
    predicted = model.prequential(X, y, classes=classes)
    seconds = time.process_time() - start
    return int((predicted == y).sum()), seconds


def through_dicts(make: Callable[..., Any], stream: Stream, seed: int) -> tuple[int, float]:
    """Any river classifier, one dict at a time."""
    model = make(seed=seed)
    pairs = list(stream)
    right = 0
    start = time.process_time()
    for x, y in pairs:
        right += model.predict_one(x) == y
        model.learn_one(x, y)
    return right, time.process_time() - start


def through_java(
    name: str, settings: dict[str, float], stream: Stream, seed: int
) -> tuple[int, float]:
    """One of MOA's classifiers in its Java loop."""
    import capymoa.classifier
    from capymoa.evaluation import prequential_evaluation

    moa = moa_stream(stream)
    learner = getattr(capymoa.classifier, name)
    model = learner(schema=moa.get_schema(), random_seed=seed + 1, **settings)
    start = time.process_time()
    result = prequential_evaluation(moa, model, window_size=1_000)
    seconds = time.process_time() - start
    return round(result.cumulative.accuracy() / 100 * len(stream)), seconds


def moa_stream(stream: Stream) -> Any:
    """The same instances in Java's memory, made before the clock starts."""
    import jpype
    from capymoa.stream import MOAStream, Schema
    from com.yahoo.labs.samoa.instances import DenseInstance, Instances
    from moa.streams import CachedInstancesStream

    categories = {stream.feature_names[j]: list(names) for j, names in stream.values.items()}
    categories["class"] = [str(c) for c in range(len(stream.class_names))]
    features = [*stream.feature_names, "class"]
    schema = Schema.from_custom(features, "class", categories, stream.name)
    instances = Instances(schema.get_moa_header(), len(stream))
    for row in np.column_stack([stream.X, stream.y]):
        instance = DenseInstance(1.0, jpype.JArray(jpype.JDouble)(row))
        instance.setDataset(schema.get_moa_header())
        instances.add(instance)
    moa = MOAStream(schema=schema)
    moa.moa_stream = CachedInstancesStream(instances)
    return moa


def models() -> dict[str, tuple[Run, bool]]:
    """Name -> how to run it, and whether it is so slow that a start of the stream must do."""
    from river.forest import ARFClassifier
    from river.tree import HoeffdingTreeClassifier

    def tree(seed: int, nominal_attributes: Any = None, delta: float = 1e-7) -> Any:
        return streams.HoeffdingTree(delta=delta, nominal_attributes=nominal_attributes)

    def rivers_tree(seed: int) -> Any:
        return HoeffdingTreeClassifier()

    balanced = partial(streams.RoutedBagging, "balanced")
    ten = {"ensemble_size": 10}
    return {
        # Our trees take delta 1e-7 by default, CapyMOA's 1e-3: both are run with both.
        "HoeffdingTree": (partial(through_arrays, tree), False),
        "HoeffdingTree, delta 1e-3": (
            partial(through_arrays, partial(tree, delta=1e-3)), False
        ),
        "DriftMoE published": (partial(through_arrays, streams.DriftMoE.published), False),
        "RoutedBagging fast": (
            partial(through_arrays, partial(streams.RoutedBagging, "fast")), False
        ),
        "RoutedBagging balanced": (partial(through_arrays, balanced), False),
        "RoutedBagging accurate": (
            partial(through_arrays, partial(streams.RoutedBagging, "accurate")), False
        ),
        "RoutedBagging of 100": (
            partial(through_arrays, partial(streams.RoutedBagging, num_experts=100)), False
        ),
        "HoeffdingTree, dicts": (partial(through_dicts, tree), True),
        "RoutedBagging balanced, dicts": (partial(through_dicts, balanced), True),
        "river HoeffdingTree": (partial(through_dicts, rivers_tree), True),
        "river ARF-10": (partial(through_dicts, ARFClassifier), True),
        "CapyMOA HoeffdingTree": (partial(through_java, "HoeffdingTree", {}), False),
        "CapyMOA HoeffdingTree, delta 1e-7": (
            partial(through_java, "HoeffdingTree", {"confidence": 1e-7}), False
        ),
        REFERENCE: (partial(through_java, "AdaptiveRandomForestClassifier", ten), False),
        "CapyMOA LB-10": (partial(through_java, "LeveragingBagging", ten), False),
        "CapyMOA SRP-10": (partial(through_java, "StreamingRandomPatches", ten), False),
    }  # fmt: skip


def load(name: str, limit: int, seed: int) -> Stream | None:
    """``limit`` instances with all changes of concept, or of a real stream; None if not here."""
    if name in GENERATED:
        return streams.load(name, limit=limit, length=limit, seed=seed)
    try:
        return streams.load(name, limit=limit)
    except DataNotFoundError as error:
        print(f"{name} is left out. {error}")
        return None


class StreamRuns(Runs):
    """The runs that are done, and the way to do more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, itemgetter("stream", "model", "limit", "seed"))

    def do(self, run: Run, stream: str, model: str, *, limit: int, seed: int) -> None:
        """Do a run, unless it is done."""
        row: dict[str, Any] = {"stream": stream, "model": model, "limit": limit, "seed": seed}
        if self.key(row) in self.rows:
            return
        data, warm_up = load(stream, limit, seed), load(stream, min(limit, WARM_UP), seed + 1000)
        if data is None or warm_up is None:
            return
        data.X  # noqa: B018 - a generator makes its rows when they are first asked for
        run(warm_up, seed)
        right, seconds = run(data, seed)
        row |= {
            "instances": len(data),
            "accuracy": right / len(data),
            "cpu_seconds": seconds,
            "rate": len(data) / seconds,
        }
        self.add(
            row,
            f"{stream:12} seed {seed} {model:30}{100 * row['accuracy']:7.2f} % "
            f"{row['rate']:12,.0f} /s",
        )

    def table(self, limits: tuple[int, int]) -> dict[str, dict[str, dict[str, float]]]:
        """Model -> stream -> numbers over the seeds, of the runs of these limits."""
        cells: dict[str, dict[str, list[dict[str, Any]]]] = {}
        slow = {name for name, (_, is_slow) in models().items() if is_slow}
        for row in self.rows.values():
            if row["limit"] == limits[row["model"] in slow]:
                cells.setdefault(row["model"], {}).setdefault(row["stream"], []).append(row)
        return {
            model: {stream: numbers(rows) for stream, rows in cells[model].items()}
            for model in models()
            if model in cells
        }


def numbers(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the runs of one model on one stream say together."""
    accuracies = [row["accuracy"] for row in rows]
    return {
        "accuracy": statistics.fmean(accuracies),
        "spread": statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
        "rate": statistics.median(row["rate"] for row in rows),
        "seeds": len(rows),
    }


def render(
    table: dict[str, dict[str, dict[str, float]]], *, limits: tuple[int, int], out: Path = RESULTS
) -> str:
    """The tables and the reading."""
    names = [n for n in STREAMS if any(n in cells for cells in table.values())]
    slow = {name for name, (_, is_slow) in models().items() if is_slow}
    fast = [model for model in table if model not in slow]
    whole = list(table) if limits[0] == limits[1] else fast  # who saw all instances
    reference = table.get(REFERENCE, {})

    def accuracy(model: str, name: str) -> str:
        cell = table[model][name]
        spread = f" ± {100 * cell['spread']:.2f}" if cell["spread"] else ""
        return f"{100 * cell['accuracy']:.2f}{spread}"

    def mean_accuracy(model: str) -> str:
        return f"{100 * statistics.fmean(c['accuracy'] for c in table[model].values()):.2f}"

    def rate(model: str, name: str) -> str:
        return f"{table[model][name]['rate']:,.0f}"

    def ratio(model: str, name: str) -> float:
        return table[model][name]["rate"] / reference[name]["rate"]

    def mean_ratio(model: str) -> str:
        return f"{statistics.geometric_mean(ratio(model, n) for n in names):.1f}"

    def lines(
        title: str,
        shown: list[str],
        cell: Callable[[str, str], str],
        mean: Callable[[str], str] | None = None,
    ) -> list[str]:
        heads = [*names, "mean"] if mean else names
        text = [f"## {title}", "", f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for model in shown:
            cells = [cell(model, n) if n in table[model] else "" for n in names]
            if mean:
                cells.append(mean(model) if all(cells) else "")
            text.append(f"| {model} | {' | '.join(cells)} |")
        return [*text, ""] if shown else []

    seeds = int(min(cell["seeds"] for cells in table.values() for cell in cells.values()))
    text = [
        f"# Drifting streams: {limits[0]:,} instances",
        "",
        "Test-then-train, one process, in turn, one numba thread; "
        f"{seeds} seed{'s' * (seeds > 1)}. Accuracy:",
        "mean ± standard deviation (recorded streams and single trees have nothing random). Rates:",
        "medians of instances per second of CPU time of the whole process: CapyMOA's Java threads",
        "(compiler, memory management) are counted. Compiling numba kernels is not, and every",
        f"model ran {WARM_UP:,} instances first. CapyMOA reads instances that lie in Java's memory",
        "in its own Java loop, with its default settings but ten learners. Single trees compare at",
        "equal delta only: ours take 1e-7 where nothing is said, CapyMOA's 1e-3.",
        "",
        *lines("Accuracy in percent", whole, accuracy, mean_accuracy),
        *lines("Instances per CPU second", fast, rate),
        *lines(
            f"Through dicts: the first {limits[1]:,} instances per CPU second",
            [model for model in table if model in slow],
            rate,
        ),
    ]
    if set(reference) == set(names):
        title = f"Rate divided by that of {REFERENCE} (mean: geometric)"
        text += lines(title, fast, lambda model, name: f"{ratio(model, name):.1f}", mean_ratio)
    command = f"python benchmarks/streams.py --limit {limits[0]} --slow-limit {limits[1]}"
    command += f" --seeds {seeds}"
    if set(names) != set(STREAMS):
        command += f" --streams {' '.join(names)}"
    if len(table) <= 4:  # else the models that are installed
        command += " --models " + " ".join(f'"{model}"' for model in table)
    if out != RESULTS:
        command += f" --out {out}"
    return "\n".join([*text, f"Command: `MOEAPPS_DATA=DIR {command}`", ""])


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = models()
    java = importlib.util.find_spec("capymoa") is not None
    runnable = [model for model in known if java or not model.startswith("CapyMOA")]
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--models", nargs="+", choices=runnable, default=runnable)
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--slow-limit", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = StreamRuns(arguments.out / "streams.jsonl")
    limits = arguments.limit, arguments.slow_limit
    for seed in range(arguments.seeds):
        for stream in arguments.streams:
            for model in arguments.models:
                run, slow = known[model]
                runs.do(run, stream, model, limit=limits[slow], seed=seed)
    table = runs.table(limits)
    (arguments.out / "streams.json").write_text(json.dumps(table, indent=1) + "\n")
    text = render(table, limits=limits, out=arguments.out)
    (arguments.out / "streams.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
