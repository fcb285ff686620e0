"""``moeapps predict --input DIR`` of a vision run: pictures and a table, with a progress bar."""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from moeapps.cli.console import console, messages
from moeapps.cli.evaluate import trained_module
from moeapps.cli.main import Interrupted
from moeapps.data.integrity import file_digest
from moeapps.errors import DataNotFoundError
from moeapps.vision.folder_predictions import SKIPPED, predict_folder
from moeapps.vision.photo_tasks import photo_task

SOME_LEFT_OUT = 1
EVERY = 5.0  # seconds between two lines


def predict_photos(checkpoint: Path, options: argparse.Namespace, usual: Path) -> int:
    """Answer for the photos, into ``usual`` where no folder is given; 1 if one was left out."""
    source = Path(options.input)
    if not source.exists():
        raise DataNotFoundError(
            f"--input {source} is not there. Expected a photo or a folder of photos."
        )
    target = Path(options.output or usual)
    module, data = trained_module(checkpoint, config=options.config)
    if torch.cuda.is_available():
        module = module.to("cuda")
    task = photo_task(module, data, tile=options.tile)
    run = f"{file_digest(checkpoint)} tile={options.tile}"
    with _Progress() as progress, warnings.catch_warnings():
        warnings.showwarning = progress.warn  # of memory; one line each, above the bar
        try:
            outcome = predict_folder(task, source, target, run=run, say=progress.show)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"interrupted. What is finished is in {target}\n"
                "the same command goes on where it stopped"
            ) from stop
    text = f"{outcome.done:,} photos {task.name}"
    if outcome.kept:
        text += f", {outcome.kept:,} were there already"
    console().print(f"{text}: {outcome.table}", markup=False)
    if not outcome.skipped:
        return 0
    messages().print(
        f"{len(outcome.skipped):,} photos were left out, see {target / SKIPPED}", markup=False
    )
    return SOME_LEFT_OUT


class _Progress:
    """A bar on a terminal, now and then a line elsewhere; problems are said at once."""

    def __init__(self) -> None:
        self._out = messages()
        self._bar: Any = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "_Progress":
        if self._out.is_terminal:
            from rich.progress import MofNCompleteColumn, Progress

            self._bar = Progress(
                *Progress.get_default_columns(), MofNCompleteColumn(), console=self._out,
                transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("photos", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, problem: str | None) -> None:
        if problem is not None:
            self._out.print(f"left out: {problem}", markup=False)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._said >= EVERY:
            self._said = now
            left = (now - self._began) * (total - done) / done
            self._out.print(f"photo {done:,}/{total:,} | {left:.0f} s left", markup=False)

    def warn(self, message: Any, *_: Any, **__: Any) -> None:
        self._out.print(f"note: {message}", markup=False)
