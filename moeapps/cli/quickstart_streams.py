"""The quickstart's part on streams: models that learn online, on real and on drifting data."""

from collections.abc import Callable

import numpy as np

from moeapps.cli.quickstart import Part, Row
from moeapps.cli.stream_models import build
from moeapps.cli.stream_report import figures
from moeapps.cli.stream_results import Results
from moeapps.streams.compiling import announce, compile_all
from moeapps.streams.datasets import load
from moeapps.streams.evaluation import Evaluation
from moeapps.streams.figures import CAPTIONS
from moeapps.streams.metrics import accuracy
from moeapps.training.report import Picture, Section

MODELS = {
    "HoeffdingTree": "hoeffding_tree",
    "DriftMoE": "driftmoe",
    "RoutedBagging": "routed_bagging",
    "ARF of river, 10 trees": "arf",
}
OURS = ("RoutedBagging", "DriftMoE")
REAL = ("phishing", "image_segments")
DRIFTING = "agrawal_a"
LENGTH, WINDOW = 12_000, 500

_ABOUT = (
    "Every model sees every instance once: it answers, is scored, then learns the right answer. "
    "Nothing is trained beforehand. `phishing` (1,250 web pages) and `image_segments` (2,310 "
    "patches of photographs, 7 classes) are real and come with river; they are short and do not "
    f"drift. `{DRIFTING}` is made: a bank's rule for granting loans changes three times in "
    f"{LENGTH:,} instances, and a model that does not notice goes on applying the old rule. "
    "A HoeffdingTree is one tree that grows. DriftMoE is twelve such trees and a network that "
    "learns which of them to ask. RoutedBagging adds detectors that replace trees which have "
    "become worse, and lets the trees vote. ARF, the adaptive random forest, is the usual choice "
    "for such data, here as river has it."
)


def run(*, seeds: int, fast: bool, say: Callable[[str], None]) -> Part:
    """Run every model over every stream, once.

    Args:
        seeds: Not used: a stream is thousands of tests, and river's forest takes its time.
        fast: Short streams, to see whether everything runs.
        say: Where a line of progress goes.
    """
    announce()
    compile_all()  # or the first of the models would pay for it in the table
    results = {name: _run(name, fast, say) for name in (*REAL, DRIFTING)}
    rows = [_row(model, results) for model in MODELS]
    length = int(results[DRIFTING].facts["length"])
    part = Part(
        f"Streams: two real ones, and {DRIFTING} (synthetic) whose concept changes",
        rows,
        _reading(rows, results[DRIFTING], fast),
        header=(
            "model", *(f"{name}, %" for name in (*REAL, DRIFTING)), "instances / CPU s",
        ),
        cells=[_cells(row, results) for row in rows],
        synthetic=False,
    )  # fmt: skip
    drawn = figures(results[DRIFTING])
    part.sections = [
        Section("What the streams are", text=_ABOUT),
        Section(
            f"How the models take the changes of {DRIFTING}",
            pictures=tuple(
                Picture(f"streams_{name}", figure, CAPTIONS[name.partition("_")[0]])
                for name, figure in drawn.items()
            ),
        ),
    ]
    part.facts = {"datasets": [*REAL, DRIFTING], "length": length, "window": WINDOW}
    return part


def _run(name: str, fast: bool, say: Callable[[str], None]) -> Results:
    """All models side by side on one stream."""
    length = 1_500 if fast else LENGTH
    if name == DRIFTING:
        stream = load(name, limit=length, length=length)
    else:
        stream = load(name, limit=300 if fast else None)
    models = {
        title: build(short, seed=0, nominal=stream.nominal) for title, short in MODELS.items()
    }
    evaluation = Evaluation(models, stream, window=100 if fast else WINDOW)

    def tell(now: Evaluation) -> None:
        if now.done % (4 * WINDOW) == 0 or now.done == len(stream):
            scores = (
                f"{title} {float(accuracy(record.windows().summed())):.1%}"
                for title, record in now.records.items()
            )
            say(f"streams  {name} {now.done:,}/{len(stream):,}  {', '.join(scores)}")

    evaluation.run(tell)
    results = Results([*MODELS])
    results.add(0, evaluation, complete=True)
    return results


def _row(model: str, results: dict[str, Results]) -> Row:
    """Scores over the streams, in order; seconds of CPU."""
    records = [found.records[model, 0] for found in results.values()]
    return Row(
        model,
        tuple(float(accuracy(record.windows().summed())) for record in records),
        tuple(record.seconds for record in records),
    )


def _cells(row: Row, results: dict[str, Results]) -> tuple[str, ...]:
    instances = sum(int(found.facts["length"]) for found in results.values())
    scores = (f"{100 * score:.1f}" for score in row.scores)
    return (row.model, *scores, f"{instances / sum(row.seconds):,.0f}")


def _reading(rows: list[Row], drifting: Results, fast: bool) -> str:
    """What the numbers say, computed from them."""
    if fast:
        return "A trial run: the numbers mean nothing."
    by_name = {row.model: row for row in rows}
    ours = max(OURS, key=lambda name: by_name[name].scores[-1])
    forest = by_name["ARF of river, 10 trees"]
    gain = 100 * (by_name[ours].scores[-1] - forest.scores[-1])
    rate = sum(forest.seconds) / sum(by_name[ours].seconds)
    text = (
        f"On {DRIFTING}, {ours} is {gain:+.1f} points against river's forest and takes "
        f"1/{rate:.0f} of its CPU time over all streams."
    )
    behind = [
        name
        for place, name in enumerate(REAL)
        if max(by_name[model].scores[place] for model in OURS) < forest.scores[place]
    ]
    if behind:
        text += f" On {' and '.join(behind)} river's forest is ahead of both mixtures."
    recovered = np.isfinite(drifting.recovery(ours)).sum()
    return f"{text} {ours} recovered from {recovered} of {len(drifting.drifts)} changes."
