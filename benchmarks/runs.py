"""Finished runs of a benchmark, one JSON line each: what is there is not repeated."""

import json
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any


class Runs:
    """The runs in a file, to which more can be added.

    Args:
        path: ``.jsonl`` file, made with the first run. A line that a kill cut short counts as not
            run.
        key: What makes a run the same run, from its entries; mostly an
            :class:`operator.itemgetter`.

    Attributes:
        rows: The runs by key, in the order they were made.
    """

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Hashable]) -> None:
        self.path, self.key = path, key
        self.rows: dict[Any, dict[str, Any]] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.rows[key(row)] = row
        if text and not text.endswith("\n"):  # the next run must not continue a broken line
            with path.open("a") as file:
                file.write("\n")

    def add(self, row: dict[str, Any], told: str) -> dict[str, Any]:
        """Keep a run, and tell of it."""
        self.rows[self.key(row)] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {told}", flush=True)
        return row
