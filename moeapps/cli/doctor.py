"""``moeapps doctor``: what is installed, what is missing, what to type. Imports no torch."""

import argparse
import importlib.metadata as metadata
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moeapps.data.home import data_home

# Versions of these packages that were published by an attacker.
MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and whether it is fine, worth a look or bad."""

    subject: str
    found: str
    level: str = "ok"


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor", help="check this installation and say what to type", allow_abbrev=False
    )
    parser.add_argument("--runs", metavar="DIR", default="runs", help="where runs go [runs]")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the kernels of streams now",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; exit code 2 if something is bad."""
    from rich.table import Table

    from moeapps.cli.console import console

    findings = [
        *python(), *packages(), *extras(), *machine(), *kernels(options.compile), *data(),
        *folders(options.runs),
    ]  # fmt: skip
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[bold red]BAD[/]"}
    from rich.markup import escape

    for finding in findings:
        table.add_row(marks[finding.level], escape(finding.subject), escape(finding.found))
    console().print(table)
    return 2 if any(finding.level == "bad" for finding in findings) else 0


def python() -> Iterator[Finding]:
    """The interpreter."""
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")


def requirements() -> list[tuple[str, str, str | None]]:
    """Name, version bounds and extra of everything moeapps can use, from its own metadata."""
    try:
        lines = metadata.requires("moeapps") or []
    except metadata.PackageNotFoundError:
        lines = _from_project_file()
    found = []
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?", line)
        if match is None or match[1] == "moeapps":
            continue
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", match[3] or "")
        found.append((match[1], match[2].strip(), extra[1] if extra else None))
    return found


def _from_project_file() -> list[str]:
    """The same from ``pyproject.toml``, for a source folder that is not installed."""
    import tomllib

    file = Path(__file__).parents[2] / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, needed in project["optional-dependencies"].items():
        lines += [f'{line}; extra == "{extra}"' for line in needed]
    return lines


def packages() -> Iterator[Finding]:
    """Required packages and their versions."""
    for name, bounds, extra in requirements():
        if extra is not None:
            continue
        version = _version(name)
        if version is None:
            yield Finding(name, f'missing; run: pip install "{name}{bounds}"', "bad")
        elif not _fits(version, bounds):
            advice = f'{version}, needs {bounds}; run: pip install --upgrade "{name}{bounds}"'
            yield Finding(name, advice, "bad")
        else:
            yield Finding(name, version)
    for name, versions in MALICIOUS.items():
        if _version(name) in versions:
            yield Finding(
                name,
                f"{_version(name)} is a MALICIOUS release. Run: pip uninstall {name}; "
                'pip install "lightning>=2.6,!=2.6.2,!=2.6.3". Then change every password and key '
                "that this machine could reach.",
                "bad",
            )


def extras() -> Iterator[Finding]:
    """Optional packages, per extra."""
    groups: dict[str, list[str]] = {}
    for name, _, extra in requirements():
        if extra is not None and extra not in ("all", "dev"):
            groups.setdefault(extra, []).append(name)
    for extra, names in groups.items():
        missing = [name for name in names if _version(name) is None]
        subject = f"moeapps[{extra}]"
        if missing:
            advice = f'missing: {", ".join(missing)}; run: pip install "moeapps[{extra}]"'
            yield Finding(subject, advice, "note")
        else:
            yield Finding(subject, ", ".join(f"{name} {_version(name)}" for name in names))
    if _version("tensorboard") is None:
        yield Finding("tensorboard", "not installed (optional); run: pip install tensorboard")


def machine() -> Iterator[Finding]:
    """CPU, threads and CUDA, from the system's own files."""
    cpus = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus
    yield Finding("cpu", f"{_cpu_name()}, {cpus} cores, {usable} usable")
    set_threads = os.environ.get("OMP_NUM_THREADS")
    note = f"OMP_NUM_THREADS={set_threads}" if set_threads else "OMP_NUM_THREADS unset: all cores"
    yield Finding("threads", note)
    driver = Path("/proc/driver/nvidia/version")
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    build = _version("torch") or ""
    if not driver.exists():
        yield Finding("cuda", "no NVIDIA driver; training uses the CPU")
        return
    names = [
        line.partition(":")[2].strip()
        for card in cards
        for line in card.read_text().splitlines()
        if line.startswith("Model")
    ]
    if build.endswith("+cpu"):
        advice = f"{', '.join(names) or 'driver found'}, but torch {build} has no CUDA"
        yield Finding("cuda", f"{advice}; see https://pytorch.org/get-started", "note")
    else:
        yield Finding(
            "cuda", f"{', '.join(names) or 'driver found, no card listed'}; torch {build}"
        )


def kernels(compile_now: bool = False) -> Iterator[Finding]:
    """Whether the kernels of streams are compiled."""
    if _version("numba") is None or _version("river") is None:
        return
    from moeapps.streams.compiling import compile_all, is_compiled

    if compile_now:
        began = time.monotonic()
        compile_all()
        yield Finding("stream kernels", f"compiled in {time.monotonic() - began:.0f} s")
    elif is_compiled():
        yield Finding("stream kernels", "compiled")
    else:
        advice = "not compiled yet: the first use takes a minute or two, or run: "
        yield Finding("stream kernels", f"{advice}moeapps doctor --compile", "note")


def data() -> Iterator[Finding]:
    """Where data is looked for, and what is there."""
    home = data_home()
    origin = "MOEAPPS_DATA" if os.environ.get("MOEAPPS_DATA") else "default; set MOEAPPS_DATA"
    there = "" if home.is_dir() else ", does not exist yet"
    yield Finding("data home", f"{home} ({origin}){there}")
    present, absent = _data_sets()
    yield Finding("data sets", f"present: {', '.join(present) or 'none'}")
    if absent:
        yield Finding("", f"not here: {', '.join(absent)}; see: moeapps data list")
    offline = os.environ.get("MOEAPPS_OFFLINE", "")
    state = "on: nothing is downloaded" if offline not in ("", "0") else "off"
    yield Finding("offline switch", f"MOEAPPS_OFFLINE {state}")


def _data_sets() -> tuple[list[str], list[str]]:
    """Names of the sets whose files are there, and of the others. Nothing is read."""
    from moeapps.cli.data import cards

    present: list[str] = []
    absent: list[str] = []
    for card in cards():
        files = [data_home() / file.path for file in card.files if not file.optional]
        (present if all(file.is_file() for file in files) else absent).append(card.name)
    return present, absent


def folders(runs: str) -> Iterator[Finding]:
    """Whether runs and data can be written."""
    for subject, folder in (("run folder", Path(runs)), ("data cache", data_home())):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            level = "bad" if subject == "run folder" else "note"
            yield Finding(subject, f"{folder}: cannot write in {place} ({error.strerror})", level)
        else:
            yield Finding(subject, f"{folder} can be written")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    """Whether a version meets bounds such as ``>=2.6,!=2.6.2``; only these two signs are used."""
    have = _numbers(version)
    for bound in filter(None, (part.strip() for part in bounds.split(","))):
        match = re.match(r"(>=|!=)\s*(.+)", bound)
        if match is None:
            continue
        want = _numbers(match[2])
        width = max(len(have), len(want))
        left, right = (part + (0,) * (width - len(part)) for part in (have, want))
        if left < right if match[1] == ">=" else left == right:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
