"""The run folder: what a training run leaves on disk, and nothing else.

``config.yaml``, ``environment.txt``, ``metrics.csv``, ``checkpoints/{last,best}.ckpt``,
``results.npz`` (arrays of the test), ``report.json``, ``report.md``, ``report.html``, ``figures/``.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moeapps.data.integrity import atomic_write
from moeapps.errors import RunFolderError

PACKAGES = (
    "moeapps", "torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "scipy", "matplotlib",
    "rich", "safetensors", "torch-geometric", "numba", "river", "pandas", "torchvision", "timm",
)  # fmt: skip


class RunFolder:
    """Paths of one run and the ways to write them.

    Args:
        path: An existing folder; :meth:`create` makes a new one and :meth:`open` checks an old one.

    Notes:
        none

    Example:
        >>> import tempfile
        >>> run = RunFolder.create(tempfile.mkdtemp(), "graphs", "mowst_gcn_cora")
        >>> run.path.parent.name
        'mowst_gcn_cora'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.results_file = self.path / "results.npz"
        self.report_file = self.path / "report.json"
        self.figures = self.path / "figures"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"

    @classmethod
    def create(cls, root: str | Path, domain: str, name: str) -> "RunFolder":
        """Make ``root/domain/name/<time>``; runs started in the same second get a number.

        Raises:
            RunFolderError: The folder cannot be made or written.
        """
        parent = Path(root) / domain / name
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(1000):
                path = parent / (stamp if attempt == 0 else f"{stamp}_{attempt + 1}")
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    continue
        except OSError as error:
            raise RunFolderError(
                f"Cannot make a run folder in {parent} ({error.strerror}). It must be a folder you "
                "may write. Choose another with --runs DIR."
            ) from error
        run = cls(path)
        run.check_writable()
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """A folder that holds a run.

        Raises:
            RunFolderError: There is no such folder, or it holds no ``config.yaml``.
        """
        run = cls(path)
        if not run.config_file.is_file():
            missing = "has no config.yaml" if run.path.is_dir() else "does not exist"
            raise RunFolderError(
                f"{run.path} is not a run folder: it {missing}. Expected the folder that "
                f"'moeapps fit' or 'moeapps stream' printed.{_recent(run.path)}"
            )
        return run

    def check_writable(self) -> None:
        """Raise :class:`RunFolderError` unless files can be written here."""
        probe = self.path / ".write_test"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise RunFolderError(
                f"Cannot write in the run folder {self.path} ({error.strerror}). Make it writable "
                "or choose another with --runs DIR."
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in one step."""
        with atomic_write(self.path / name) as file:
            file.write(text.encode())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.yaml``."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self.write_text("config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """The mapping in ``config.yaml``."""
        try:
            config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{self.config_file} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.config_file} is damaged: it holds no 'key: value' lines.")
        return config

    def write_environment(self) -> None:
        """Write ``environment.txt``."""
        self.write_text("environment.txt", environment_text())

    def write_report(self, facts: Mapping[str, Any]) -> None:
        """Write ``report.json``."""
        self.write_text("report.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")

    def read_report(self) -> dict[str, Any]:
        """The facts in ``report.json``; empty if the run never wrote it."""
        try:
            return dict(json.loads(self.report_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise RunFolderError(f"{self.report_file} cannot be read: {error}") from error

    def write_results(self, results: Mapping[str, np.ndarray]) -> None:
        """Write ``results.npz``: arrays from which every figure can be drawn again."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in results.items()}
        np.savez_compressed(buffer, **arrays)
        with atomic_write(self.results_file) as file:
            file.write(buffer.getvalue())

    def read_results(self) -> dict[str, np.ndarray]:
        """The arrays in ``results.npz``; empty if the run was never tested."""
        if not self.results_file.is_file():
            return {}
        try:
            with np.load(self.results_file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:  # a damaged archive raises almost anything
            raise RunFolderError(
                f"{self.results_file} is damaged ({error}). Make it again with: moeapps test "
                f"--ckpt {self.path}"
            ) from error

    def read_metrics(self) -> dict[str, np.ndarray]:
        """Columns of ``metrics.csv`` as float arrays; NaN where a row has no value."""
        return read_metrics(self.metrics_file)


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of a metrics file as float arrays; NaN where a row has no value.

    A line cut short by a kill is left out.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        return {}
    if not rows:
        return {}
    header, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {
        name: np.array([float(row[i]) if row[i] else np.nan for row in body], dtype=float)
        for i, name in enumerate(header)
    }


def environment_text() -> str:
    """Versions and machine facts that explain a number, one per line."""
    lines = [
        f"python {platform.python_version()}",
        f"system {platform.system()} {platform.machine()}",
        f"cpus {os.cpu_count()}",
    ]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None:
        lines.append(f"torch threads {torch.get_num_threads()}")
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        lines.append(f"cuda device {cuda}")
    return "\n".join(lines) + "\n"


def _recent(path: Path) -> str:
    """Runs near ``path``, newest first, for a person who mistyped."""
    for root in (path, path.parent, Path("runs")):
        if root.is_dir():
            found = sorted(root.glob("**/config.yaml"), key=lambda p: -p.stat().st_mtime)[:3]
            if found:
                return " Recent runs: " + ", ".join(str(p.parent) for p in found) + "."
    return ""
