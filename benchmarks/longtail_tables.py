"""Tables of the long-tail benchmark, beside the numbers of the design study and of the papers."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Design study, 2 to 5 seeds: balanced, many, medium, few.
STUDY: dict[str, dict[str, tuple[float, ...]]] = {
    "short": {
        "CE": (0.526, 0.869, 0.692, 0.147),
        "BS 1": (0.604, 0.806, 0.752, 0.337),
        "BS w": (0.618, 0.826, 0.738, 0.371),
        "BS 3": (0.628, 0.851, 0.801, 0.323),
        "LDAM-DRW 1": (0.630, 0.868, 0.812, 0.309),
        "LDAM-DRW w": (0.653, 0.872, 0.809, 0.368),
        "RIDE 3": (0.654, 0.897, 0.825, 0.339),
        "BalPoE 3": (0.621, 0.855, 0.790, 0.312),
        "MDCS 3": (0.574, 0.841, 0.779, 0.212),
        "TLC 3": (0.545, 0.875, 0.743, 0.148),
    },
    "long": {"BS 1": (0.694,), "MDCS 3": (0.74,), "BS 3": (0.764,)},
}
POST_HOC = {"short": 0.60}
# (what the study found, better, worse, margin within which two are level)
CLAIMS = {
    "short": (
        ("Balanced Softmax beats cross-entropy", "BS 1", "CE"),
        ("RIDE beats cross-entropy", "RIDE 3", "CE"),
        ("MDCS beats cross-entropy", "MDCS 3", "CE"),
        ("TLC beats cross-entropy", "TLC 3", "CE"),
        ("RIDE beats a single LDAM-DRW of its size (study: level)", "RIDE 3", "LDAM-DRW w"),
        ("three experts beat one net of their size, Balanced Softmax", "BS 3", "BS w"),
        ("three Balanced Softmax experts beat MDCS", "BS 3", "MDCS 3"),
        ("RIDE beats TLC", "RIDE 3", "TLC 3"),
        ("RIDE's diversity term helps", "RIDE 3", "LDAM-DRW 3"),
        ("TLC is better if all images engage all experts", "TLC 3, all images engage", "TLC 3"),
        ("MDCS is better without consistency", "MDCS 3, no consistency", "MDCS 3"),
        (
            "equal experts beat MDCS's leaning ones, on the same views",
            "BS 3, two views",
            "MDCS 3, no consistency",
        ),
        ("strong views cost accuracy", "BS 3", "BS 3, two views"),
    ),
    "long": (
        ("three Balanced Softmax experts beat MDCS", "BS 3", "MDCS 3"),
        ("MDCS beats a single Balanced Softmax", "MDCS 3", "BS 1"),
        ("RIDE beats a single LDAM-DRW of its size", "RIDE 3", "LDAM-DRW w"),
        ("RIDE beats TLC", "RIDE 3", "TLC 3"),
        ("MDCS beats RIDE", "MDCS 3", "RIDE 3"),
    ),
}
# CIFAR-10-LT, imbalance 100, published schedules.
PUBLISHED = {
    "SADE": "83.8 (project's readme; full width, lr 0.05)",
    "MDCS": "85.8 (recalled, to be confirmed; 400 epochs)",
    "CE": "-",
}
_HOW = """\
One test set per seed, the last weights, nothing chosen on test images. Mean and sample deviation
over the seeds. `w` is a single network as large as three narrower experts. **study** are the
numbers of the design study (its training schedule was not written down; 2 to 5 seeds).
"""
_SCHEDULE = """\
SGD with Nesterov momentum 0.9, rate 0.1, weight decay 5e-4; rate divided by 10 after 80 % and 90 %
of the epochs, warm-up in the first 2.5 %; class weights (DRW) from the first drop on. Everything
else as published. MDCS sees two views of each image and takes about twice the time per epoch.
"""


def render(folder: Path, *, quick: bool = False) -> str:
    """All tables for which there are runs."""
    from longtail import LongTailRuns
    from longtail_engagement import engagement_runs

    text = ["# Long-tailed classes", "", _HOW, _SCHEDULE]
    runs = LongTailRuns("pair_digits", folder, quick=quick)
    for setting in runs.suite.epochs:
        rows = {name: runs.of(setting, name) for name in runs.suite.entries}
        rows = {name: found for name, found in rows.items() if found}
        if rows:
            epochs = next(iter(next(iter(rows.values())).values()))["epochs"]
            text += [f"## PairDigits-LT, {setting}: {epochs} epochs", ""]
            text += [*_table(rows, STUDY[setting]), "", *_post_hoc(rows, setting), ""]
            text += [*_claims(rows, CLAIMS[setting]), ""]
    runs = LongTailRuns("cifar10_lt", folder, quick=quick)
    for setting in dict.fromkeys(key[0] for key in runs.rows):
        rows = {name: runs.of(setting, name) for name in runs.suite.entries}
        rows = {name: found for name, found in rows.items() if found}
        text += [f"## CIFAR-10-LT, imbalance 100: {setting}", "", *_table(rows, {}), ""]
        text += [
            f"- published for {name}: {said}" for name, said in PUBLISHED.items() if said > "-"
        ]
        text += [""]
    measured = engagement_runs(folder, quick=quick).rows.values()
    text += _engagement(list(measured))
    return "\n".join(text).rstrip() + "\n"


def mean_sd(values: Iterable[float], scale: float = 1.0, digits: int = 3) -> str:
    """``0.654 ± 0.010``; the mean alone for a single value."""
    values = [scale * value for value in values]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _numbers(found: dict[int, dict[str, Any]], name: str) -> list[float]:
    return [row["test"][name] for row in found.values() if name in row["test"]]


def _table(rows: dict[str, Any], study: dict[str, tuple[float, ...]]) -> list[str]:
    header = ["method", "weights", "seeds", "balanced"]
    header += ["study"] if study else []
    header += ["many", "medium", "few", "ECE", "error AUROC", "disagreement", "s / run"]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name, found in rows.items():
        first = next(iter(found.values()))
        cells = [name, f"{first['weights']:,}", str(len(found))]
        cells.append(mean_sd(_numbers(found, "balanced_accuracy")))
        if study:
            cells.append(f"{study[name][0]:.3f}" if name in study else "-")
        for place, group in enumerate(("many", "medium", "few"), 1):
            told = mean_sd(_numbers(found, f"accuracy/{group}"))
            if len(study.get(name, ())) > place:
                told += f" ({study[name][place]:.3f})"
            cells.append(told)
        cells += [
            mean_sd(_numbers(found, key))
            for key in ("ece", "failure/auroc", "experts/disagreement")
        ]
        cells.append(f"{statistics.median(row['seconds'] for row in found.values()):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _post_hoc(rows: dict[str, Any], setting: str) -> list[str]:
    moved = _numbers(rows.get("CE", {}), "post_hoc")
    if not moved:
        return []
    groups = ", ".join(
        f"{name} {mean_sd(_numbers(rows['CE'], f'post_hoc/{name}'))}"
        for name in ("many", "medium", "few")
    )
    study = f" (study {POST_HOC[setting]:.2f})" if setting in POST_HOC else ""
    return [f"CE after post-hoc logit adjustment: {mean_sd(moved)}{study}; {groups}."]


def _claims(rows: dict[str, Any], claims: tuple[tuple[str, str, str], ...]) -> list[str]:
    """Paired differences over the seeds that both have."""
    lines = ["| claim | difference, points | ahead on | holds |", "|---|---:|---:|---:|"]
    for text, better, worse in claims:
        if better not in rows or worse not in rows:
            continue
        both = sorted(rows[better].keys() & rows[worse].keys())
        gaps = [
            100 * (rows[better][s]["test"]["balanced_accuracy"]
                   - rows[worse][s]["test"]["balanced_accuracy"])
            for s in both
        ]  # fmt: skip
        wins = sum(gap > 0 for gap in gaps)
        spread = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")
        clear = abs(statistics.fmean(gaps)) > 2 * spread
        verdict = ("yes" if statistics.fmean(gaps) > 0 else "no") if clear else "not decided"
        lines.append(
            f"| {text} | {mean_sd(gaps, digits=1)} | {wins} of {len(gaps)} seeds | {verdict} |"
        )
    return [
        *lines,
        "",
        "Decided means that the mean difference is more than twice its standard error.",
    ]


def _engagement(rows: list[dict[str, Any]]) -> list[str]:
    from longtail_engagement import chosen_exit

    costs = [row for row in rows if row["kind"] == "cost"]
    exits = [row for row in rows if row["kind"] == "exit"]
    text: list[str] = []
    if costs:
        text += ["## What three experts cost", ""]
        text += ["Forward of ResNet-32 on the processor, one thread, against a single one.", ""]
        text += ["| batch | single, ms | three narrower branches | of full width |",
                 "|---|---:|---:|---:|"]  # fmt: skip
        for row in costs:
            ms = row["milliseconds"]
            text.append(
                f"| {row['batch']} | {ms['single']:.1f} | {ms['three'] / ms['single']:.2f}x | "
                f"{ms['three, full width'] / ms['single']:.2f}x |"
            )
        text.append("")
    for row in (row for row in rows if row["kind"] == "skip"):
        text += [
            f"Skipping in ResNet-32 with three narrower branches, batch {row['batch']}: time "
            "against that of all three, by the mean number of experts per image.",
            "",
        ]
        text += ["| " + " | ".join(row["time"]) + " |", "|---:" * len(row["time"]) + "|"]
        text += ["| " + " | ".join(f"{one:.2f}x" for one in row["time"].values()) + " |", ""]
    if exits:
        text += ["## Early exit at equal accuracy", ""]
        text += [
            "PairDigits-LT, 60 epochs. The exit is the one with the fewest experts that loses no "
            "accuracy, or at most 0.2 points, on the validation images; accuracy and processor "
            "time are those of the test images in batches of 500. These networks are so small that "
            "a layer's call costs as much as its arithmetic; the table above is of ResNet-32. "
            "No exit saves what the experts share: where one expert takes 0.59 of the time of "
            "three, as above, 1.75 experts take 0.74 at best.",
            "",
            "| model | seed | may lose | exit | experts per image | accuracy, all | with exit "
            "| time |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in exits:
            for loss in (0.0, 0.002):
                best = chosen_exit(row, loss)
                text.append(
                    f"| {row['model']} | {row['seed']} | {100 * loss:g} | {best['exit']} "
                    f"| {best['experts']:.2f} | {row['whole']['test']:.3f} | {best['test']:.3f} "
                    f"| {best['time']:.2f}x |"
                )
        text += ["", "### Accuracy and time against experts per image", ""]
        for name in dict.fromkeys(row["model"] for row in exits):
            first = next(row for row in exits if row["model"] == name)
            text += [f"{name}, seed {first['seed']} (all three: {first['whole']['test']:.3f}):", ""]
            text += ["| exit | experts | accuracy | time |", "|---|---:|---:|---:|"]
            text += [
                f"| {one['exit']} | {one['experts']:.2f} | {one['test']:.3f} | {one['time']:.2f}x |"
                for one in sorted(first["exits"], key=lambda one: float(one["experts"]))
            ]
            text.append("")
    return text
