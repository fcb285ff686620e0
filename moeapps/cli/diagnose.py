"""``moeapps diagnose RUN``: what the experts and gates of a ranking run do, and what is wrong."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.errors import ConfigError

if TYPE_CHECKING:
    from moeapps.recsys.diagnostics import Diagnosis

_COLUMNS = {
    "zero_frac_max": "zeros", "dead": "dead", "std_ratio": "std ratio",
    "gate_entropy": "entropy", "mean_gate_entropy": "mean gate", "max_weight": "favourite",
    "saturation": "over 0.95", "hhi": "HHI", "grad_share": "gradient",
}  # fmt: skip


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "diagnose", help="look for collapsed, degraded and idle experts in a run",
        description="Look at every level of experts on one pass over the validation part.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN", help="run folder, or a checkpoint file")
    parser.add_argument(
        "--out", metavar="DIR", help="where figures and diagnosis.json go [diagnosis/ in the run]"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print tables and findings, write figures and numbers."""
    from moeapps.cli.build import quiet
    from moeapps.cli.console import console
    from moeapps.cli.evaluate import find_checkpoint, rebuild
    from moeapps.recsys.diagnostics import diagnose
    from moeapps.recsys.figures import diagnosis_figures
    from moeapps.recsys.modules import MultiTaskRanker
    from moeapps.training.checkpoints import load_checkpoint

    folder, file = find_checkpoint(options.folder)
    out = Path(options.out or (folder.path if folder else file.parent) / "diagnosis")
    checkpoint = load_checkpoint(file)
    with quiet():
        built = rebuild(file)
        module: Any = built.model
        if not isinstance(module, MultiTaskRanker):
            raise ConfigError(
                f"{file} is a run of {type(module).__name__}. moeapps diagnose looks into ranking "
                "models: give a run of MultiTaskRanker."
            )
        module.hparams.update(checkpoint.get("hyper_parameters", {}))
        module.assemble()
        module.load_state_dict(checkpoint["state_dict"])
        built.data.setup("validate")
        state = checkpoint.get(type(built.data).__qualname__)
        if state:  # ids as the run had them
            built.data.load_state_dict(state)
        network: Any = module.model
        found = diagnose(network, built.data.val_dataloader(), criterion=module.criterion)
    show(found)
    if found.levels:
        try:
            write(found, out)
        except OSError as error:
            raise ConfigError(f"Cannot write in {out} ({error}). Choose --out DIR.") from error
        figures = ", ".join(f"{name}.png" for name in diagnosis_figures(found))
        console().print(f"\n{out}: {figures}, diagnosis.json", markup=False)
    return 0


def show(diagnosis: "Diagnosis") -> None:
    """Print a table of numbers and, level by level, what is wrong or that nothing is."""
    from rich.table import Table

    from moeapps.cli.console import console
    from moeapps.recsys.problems import ADVICE, findings

    out = console()
    if not diagnosis.levels:
        out.print("This model has no gates: there is nothing to diagnose.")
        return
    table = Table(
        title=f"Levels, {diagnosis.rows:,} validation rows", title_justify="left", box=None,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("level")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for level in diagnosis.levels:
        summary = level.summary()
        table.add_row(level.name, *(f"{summary[name]:.2f}" for name in _COLUMNS))
    out.print(table)
    found = findings(diagnosis)
    for level in diagnosis.levels:
        own = [finding for finding in found if finding.level == level.name]
        out.print(f"\n{level.name}: " + ("" if own else "nothing is wrong"), markup=False)
        for finding in own:
            out.print(f"  {finding.kind}: {finding.what}", markup=False)
    for kind in dict.fromkeys(finding.kind for finding in found):
        out.print(f"\n{kind}: {ADVICE[kind]}", markup=False)


def write(diagnosis: "Diagnosis", folder: Path) -> None:
    """Write the figures and ``diagnosis.json``."""
    from moeapps.data.integrity import atomic_write
    from moeapps.recsys.figures import diagnosis_figures
    from moeapps.training.report import png

    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in diagnosis_figures(diagnosis).items():
        with atomic_write(folder / f"{name}.png") as file:
            file.write(png(figure))
    with atomic_write(folder / "diagnosis.json") as file:
        file.write(json.dumps(diagnosis.to_dict(), indent=1, allow_nan=False).encode())
