"""Tables of ``recsys.py``: what has run, with spread, expectations and what is missing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SPEC = {  # mean AUC and GAUC of the reference runs, five seeds (three for plain conflict)
    "conflict": {
        "HoME": (0.8257, 0.7923), "MMoE*": (0.8053, 0.7709), "SharedBottom*": (0.8093, 0.7756),
        "PLE*": (0.8000, 0.7630), "MMoE3*": (0.7952, 0.7590), "SharedBottom1*": (0.7873, 0.7485),
        "MMoE": (0.7422, 0.7076), "PLE": (0.7195, 0.6836),
    },
    "mixed": {
        "HoME": (0.7629, 0.7329), "MMoE*": (0.7557, 0.7266), "SharedBottom*": (0.7517, 0.7240),
        "PLE*": (0.7483, 0.7170), "MMoE3*": (0.7411, 0.7121), "SharedBottom1*": (0.7255, 0.6947),
        "MMoE": (0.7045, 0.6797), "PLE": (0.6777, 0.6493), "MMoE3": (0.6740, 0.6465),
        "SharedBottom1": (0.6498, 0.6146),
    },
}  # fmt: skip
# Setting, one model, another, and by how much the first should be better in mean AUC.
DIFFERENCES = (
    ("conflict", "HoME", "PLE*", 0.015),
    ("conflict", "HoME", "MMoE*", 0.012),
    ("conflict", "HoME", "SharedBottom*", 0.010),
    ("conflict", "HoME", "HoME without mask", 0.0),
    ("conflict", "HoME", "HoME without norm", 0.02),
    ("conflict", "PLE*", "PLE", 0.03),
    ("conflict", "MMoE*", "MMoE", 0.02),
    ("mixed", "PLE*", "MMoE3*", 0.0),
    ("mixed", "MMoE3*", "SharedBottom1*", 0.0),
)
# Model, quantity of the last level, whether it should be at least (or at most) the number.
HEALTH = (
    ("PLE", "max_weight", True, 0.8), ("PLE", "saturation", True, 0.5),
    ("PLE", "dead", True, 0.2), ("PLE", "hhi", True, 3.0), ("PLE", "std_ratio", True, 2.0),
    ("HoME", "max_weight", False, 0.7), ("HoME", "dead", False, 0.0),
    ("HoME", "hhi", False, 2.0), ("HoME", "std_ratio", False, 1.5),
)  # fmt: skip
SHOWN = ("zero_frac_max", "dead", "std_ratio", "gate_entropy", "max_weight", "saturation", "hhi",
         "grad_share")  # fmt: skip
TWO_TASK = {  # test MSE of the reference runs, by cosine of the tasks
    "1.0": {"SharedBottom": 0.144, "OMoE": 0.117, "MMoE": 0.102},
    "0.5": {"SharedBottom": 0.127, "OMoE": 0.175, "MMoE": 0.126},
    "0.0": {"SharedBottom": 0.124, "OMoE": 0.180, "MMoE": 0.151},
}
MADE = ["*Reference*: what other code gave with this recipe, on other draws.", ""]
Rows = dict[int, dict[str, Any]]


def render(suite: str, runs: Any, seeds: int) -> str:
    """The report of a suite as Markdown."""
    write = {"short_video": _short_video, "two_task": _two_task, "census": _census}[suite]
    lines = [*write(runs, seeds), "## Missing runs", ""]
    for setting in runs.suite.settings:
        missing = runs.missing(setting, seeds)
        listed = [f"{model} (seeds {_list(without)})" for model, without in missing.items()]
        lines.append(f"- {setting}: {'; '.join(listed) or 'none'}")
    return "\n".join([*lines, ""])


def paired(ours: Rows, theirs: Rows, value: Callable[[dict[str, Any]], float]) -> tuple[Any, ...]:
    """Mean difference over the seeds of both, its standard error, and the number of seeds."""
    common = sorted(set(ours) & set(theirs))
    if not common:
        return float("nan"), float("nan"), 0
    each = np.array([value(ours[seed]) - value(theirs[seed]) for seed in common])
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return float(each.mean()), float(error), len(each)


def verdict(mean: float, error: float, better: str = "better", worse: str = "worse") -> str:
    """A difference that is not more than twice its standard error is none."""
    if not np.isfinite(error):
        return "one seed" if np.isfinite(mean) else "not run"
    if abs(mean) <= 2 * error:
        return "no clear difference"
    return better if mean > 0 else worse


def _auc(row: dict[str, Any]) -> float:
    return float(row["test"]["auc_mean"])


def _short_video(runs: Any, seeds: int) -> list[str]:
    lines = [
        "# Short-video log: nine tasks in two groups", "",
        "One pass, Adam 2e-3, batch 1024, a log and weights of its own for each seed. Mean test",
        "AUC and GAUC over nine tasks, mean +- standard deviation over seeds. *HoME minus it* is",
        "the mean difference on the same seeds +- its standard error; better means more than",
        "twice that. `*`: BatchNorm and SiLU in the experts. A 3 or 1 behind the name: as many",
        "experts as PLE's gates see, or one; all others have HoME's number of weights as nearly",
        "as whole experts allow, embeddings not counted (STEM has ten tables per feature).",
        "Not in the table: AITM (its tasks are steps of one path), ESMM (two tasks), APEM-style",
        "(features of one width).", "", *MADE,
    ]  # fmt: skip
    for setting in _present(runs):
        lines += _accuracy_table(runs, setting, "HoME", SPEC[setting])
        lines += [*_reading(runs, setting, "HoME", f"HoME against others, {setting}"), ""]
    lines += ["## Expected differences in mean AUC", "",
              "| Data | better | than | by at least | found | seeds | holds |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for setting, one, other, least in DIFFERENCES:
        mean, error, count = paired(runs.of(setting, one), runs.of(setting, other), _auc)
        holds = "not run" if not count else "yes" if mean >= least else "**no**"
        lines.append(
            f"| {setting} | {one} | {other} | {least} | {_signed(mean, error)} | {count} | "
            f"{holds} |"
        )
    lines += ["", "## Expected state of the last level", "",
              "| Data | model | quantity | expected | found | seeds | holds |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for setting in runs.suite.settings:
        for model, quantity, least, limit in HEALTH:
            values = _level(list(runs.of(setting, model).values()), -1, quantity)
            found = float(np.mean(values)) if values else float("nan")
            good = found >= limit if least else found <= limit
            lines.append(
                f"| {setting} | {model} | {quantity} | {'>=' if least else '<='} {limit} | "
                f"{_number(found)} | {len(values)} | "
                f"{'not run' if not values else 'yes' if good else '**no**'} |"
            )
    lines.append("")
    for setting in _present(runs):
        lines += _diagnostics_table(runs, setting)
    return [*lines, "Command: `python benchmarks/recsys.py --suite short_video`", ""]


def _accuracy_table(
    runs: Any, setting: str, base: str, spec: dict[str, tuple[float, float]]
) -> list[str]:
    ours = runs.of(setting, base)
    lines = [
        f"## {setting}", "",
        f"| Model | size | weights | AUC | GAUC | seeds | {base} minus it | {base} is | "
        "CPU s | reference AUC / GAUC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for model in runs.suite.entries:
        rows = runs.of(setting, model)
        if not rows:
            continue
        one = next(iter(rows.values()))
        mean, error, _ = paired(ours, rows, _auc)
        cells = [
            model, str(one["size"]), f"{one['weights']:,}",
            _spread([_auc(row) for row in rows.values()]),
            _spread([row["test"]["gauc_mean"] for row in rows.values()]), str(len(rows)),
            *(["", ""] if model == base else [_signed(mean, error), verdict(mean, error)]),
            f"{np.mean([row['cpu_seconds'] for row in rows.values()]):.0f}",
            "{:.4f} / {:.4f}".format(*spec[model]) if model in spec else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _present(runs: Any) -> list[str]:
    """Settings of which something has run."""
    have = {key[0] for key in runs.rows}
    return [setting for setting in runs.suite.settings if setting in have]


def _reading(runs: Any, setting: str, base: str, title: str) -> list[str]:
    """What the paired differences allow to say."""
    said: dict[str, list[str]] = {}
    for model in runs.suite.entries:
        if model != base:
            mean, error, _ = paired(runs.of(setting, base), runs.of(setting, model), _auc)
            told = f"{model} ({mean:+.4f})" if np.isfinite(mean) else model
            said.setdefault(verdict(mean, error), []).append(told)
    words = ("better", "no clear difference", "worse", "one seed", "not run")
    lines = [f"- {title}, {word}: {', '.join(said[word])}." for word in words if word in said]
    return [*lines, "- Few seeds are a weak test, and of this many pairs a few differ by chance."]


def _diagnostics_table(runs: Any, setting: str) -> list[str]:
    lines = [
        f"## Experts and gates, {setting}", "",
        "Means over seeds, on validation rows. Findings: number of seeds with each.", "",
        "| Model | level | " + " | ".join(SHOWN) + " | findings |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]  # fmt: skip
    for model in runs.suite.entries:
        rows = list(runs.of(setting, model).values())
        for number, level in enumerate(rows[0]["levels"] if rows else []):
            cells = [model, level["level"]]
            for quantity in SHOWN:
                values = _level(rows, number, quantity)
                cells.append(_number(float(np.mean(values))) if values else "-")
            kinds = [
                kind for row in rows for name, kind in (f.split(": ") for f in row["findings"])
                if name == level["level"]
            ]  # fmt: skip
            told = [f"{kind} ({kinds.count(kind)})" for kind in sorted(set(kinds))]
            lines.append("| " + " | ".join([*cells, ", ".join(told) or "none"]) + " |")
    return [*lines, ""]


def _two_task(runs: Any, seeds: int) -> list[str]:
    lines = [
        "# Two regressions whose relation is a dial", "",
        "Mean test MSE of both tasks (targets have variance 1), mean +- standard deviation over",
        "seeds: 10,000 rows, 3,000 steps of Adam 1e-3 with cosine decay, batch 128, the last",
        "weights. The models are those of the MMoE paper: 8 experts of 16 units, towers of 8,",
        "SharedBottom of 113 units.", "", *MADE,
        "| Cosine | Model | weights | MSE | reference | seeds | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for setting in runs.suite.settings:
        for model in runs.suite.entries:
            rows = list(runs.of(setting, model).values())
            if rows:
                lines.append(
                    f"| {setting} | {model} | {rows[0]['weights']:,} | "
                    f"{_spread([_mse(row) for row in rows])} | {TWO_TASK[setting][model]} | "
                    f"{len(rows)} | {np.mean([row['cpu_seconds'] for row in rows]):.0f} |"
                )
    lines += ["", "## Expected", "",
              "| larger MSE | smaller MSE | difference | seeds | holds | reading |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for larger, smaller in (
        (("0.5", "OMoE"), ("0.5", "MMoE")), (("0.0", "OMoE"), ("0.0", "MMoE")),
        (("0.5", "OMoE"), ("1.0", "OMoE")), (("0.0", "OMoE"), ("0.5", "OMoE")),
    ):  # fmt: skip
        mean, error, count = paired(runs.of(*larger), runs.of(*smaller), _mse)
        holds = "not run" if not count else "yes" if mean > 0 else "**no**"
        said = verdict(mean, error, "clearly larger", "clearly smaller")
        names = [f"{model} at {setting}" for setting, model in (larger, smaller)]
        cells = [*names, _signed(mean, error), str(count), holds, said]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "Command: `python benchmarks/recsys.py --suite two_task`", ""]


def _mse(row: dict[str, Any]) -> float:
    return float((row["test"]["mse/y1"] + row["test"]["mse/y2"]) / 2)


def _census(runs: Any, seeds: int) -> list[str]:
    grid = " and ".join(f"{lr:g}" for lr in runs.suite.grid)
    lines = [
        "# Census-Income (KDD): income and marital status", "",
        "The whole set: 199,523 training rows, the test file halved into validation and test,",
        "stratified on income. Embeddings of 4, batch 1024, at most 8 epochs, stopped after two",
        "validations without a better mean AUC; test AUC of the best weights, mean +- standard",
        f"deviation over seeds. Every row of the table had the learning rates {grid}, chosen on",
        "the validation rows with seed 0, and HoME's number of weights as nearly as one whole",
        "number allows. `*`: BatchNorm and SiLU in the experts, as HoME has. *Minus*",
        "*SharedBottom*: mean AUC on the same seeds +- its standard error.", "",
        "Published, other budgets: income 0.94 and marital 0.99 (MMoE paper, best runs).", "",
        "| Model | lr | size | weights | income AUC | marital AUC | mean AUC | seeds | "
        "minus SharedBottom | reading | steps | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    setting = runs.suite.settings[0]
    for model in runs.suite.entries:
        rows = runs.of(setting, model)
        if not rows:
            continue
        every = list(rows.values())
        mean, error, _ = paired(rows, runs.of(setting, "SharedBottom"), _auc)
        is_base = model == "SharedBottom"
        cells = [
            model, f"{every[0]['lr']:g}", str(every[0]["size"]), f"{every[0]['weights']:,}",
            *(_spread([row["test"][f"auc/{t}"] for row in every]) for t in ("income", "marital")),
            _spread([_auc(row) for row in every]), str(len(every)),
            *(["", ""] if is_base else [_signed(mean, error), verdict(mean, error)]),
            f"{np.mean([row['steps'] for row in every]):.0f}",
            f"{np.mean([row['cpu_seconds'] for row in every]):.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    reading = _reading(runs, setting, "SharedBottom", "SharedBottom against others")
    lines += ["", *reading, "", *_diagnostics_table(runs, setting)]
    return [*lines, "Command: `MOEAPPS_DATA=DIR python benchmarks/recsys.py --suite census`", ""]


def _level(rows: Sequence[dict[str, Any]], number: int, quantity: str) -> list[float]:
    """A quantity of a level in every run where it is defined."""
    values = [row["levels"][number].get(quantity) for row in rows if row["levels"]]
    return [value for value in values if value is not None and np.isfinite(value)]


def _spread(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} +- {np.std(values, ddof=1):.4f}"


def _signed(mean: float, error: float) -> str:
    if not np.isfinite(mean):
        return "-"
    return f"{mean:+.4f}" + (f" +- {error:.4f}" if np.isfinite(error) else "")


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
