"""Memory and speed over ten million instances of the drifting LED stream.

    python benchmarks/streams_memory.py [--millions 10] [--models ...]

The stream is made in chunks and forgotten, so what grows is the model. Resident memory is that of
the whole process after each million; the first includes compiled code. Writes
``results/streams_memory.md``.
"""

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moeapps import streams

RESULT = Path(__file__).parent / "results" / "streams_memory.md"
MILLION, CHUNK = 1_000_000, 50_000
MODELS: dict[str, Callable[[], Any]] = {
    "HoeffdingTree": streams.HoeffdingTree,
    "DriftMoE published": lambda: streams.DriftMoE(seed=0),
    "RoutedBagging fast": lambda: streams.RoutedBagging(preset="fast", seed=0),
}


def resident() -> float:
    """MiB of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> int:
    """Run the models one after another and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    # Concepts change at the quarters of the whole length.
    whole = options.millions * MILLION
    stream = streams.load("led_a", limit=whole, length=whole, seed=0)
    lines = []
    for name in options.models:
        model = MODELS[name]()
        memory, right, seen, start = [], 0, 0, time.process_time()
        for X, y in stream.chunks(CHUNK):
            predicted = model.prequential(X, y, classes=np.arange(10))
            right, seen = right + int((predicted == y).sum()), seen + len(y)
            if seen % MILLION == 0:
                memory.append(resident())
                print(f"{name}: {seen // MILLION} million, {memory[-1]:.0f} MiB", flush=True)
        seconds = time.process_time() - start
        lines.append(
            f"| {name} | {100 * right / seen:.2f} | {seconds:.0f} | "
            + " | ".join(f"{memory[at - 1]:.0f}" for at in marks(options.millions))
            + " |"
        )
        del model
        gc.collect()
    heads = " | ".join(f"MiB after {at} M" for at in marks(options.millions))
    RESULT.write_text(
        f"# Memory over {options.millions} million instances of `led_a`\n\n"
        "Resident memory of the whole process, the models one after another.\n\n"
        f"| | accuracy, % | CPU s | {heads} |\n"
        f"|---|---|---|{'---|' * len(marks(options.millions))}\n" + "\n".join(lines) + "\n\n"
        f"Command: `python benchmarks/streams_memory.py --millions {options.millions}`\n"
    )
    return 0


def marks(millions: int) -> list[int]:
    """The first, the middle and the last million."""
    return sorted({1, (millions + 1) // 2, millions})


if __name__ == "__main__":
    raise SystemExit(main())
