"""Parts of a ranking run's report besides the figures: what is wrong inside, and latency."""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.recsys.diagnostics import Diagnosis
from moeapps.recsys.problems import ADVICE, THRESHOLDS, findings
from moeapps.training.report import Section, Table


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """The sections for which the run has data.

    Args:
        results: Arrays of ``results.npz``.
    """
    found = []
    if "diagnosis" in results:
        diagnosis = Diagnosis.from_dict(json.loads(str(results["diagnosis"])))
        if diagnosis.levels:
            found.append(_health(diagnosis))
    if "latency" in results:
        rows = tuple((f"{int(size):,}", f"{ms:.3f}") for size, ms in results["latency"].tolist())
        text = (
            "Median time of one prediction on the CPU of this machine, normalisation folded into "
            "the weights."
        )
        found.append(Section("Latency", text=text, table=Table(("rows", "milliseconds"), rows)))
    return found


def _health(diagnosis: Diagnosis) -> Section:
    header = ("number", *(level.name for level in diagnosis.levels), "healthy")
    columns = [level.summary() for level in diagnosis.levels]
    rows = tuple(
        (name, *(f"{column[name]:.2f}" for column in columns), limit.healthy)
        for name, limit in THRESHOLDS.items()
    )
    lines = [f"- {f.level}, {f.kind}: {f.what}." for f in findings(diagnosis)]
    kinds = dict.fromkeys(f.kind for f in findings(diagnosis))
    text = "\n".join([*lines, "", *(f"{kind}: {ADVICE[kind]}" for kind in kinds)])
    return Section("Experts and gates", text=text if lines else "Nothing is wrong.",
                   table=Table(header, rows))  # fmt: skip
