"""The compiled kernels of streams: are they on disk yet, and how to put them there.

numba compiles a kernel at its first call and keeps it on disk, beside the source or, if that
cannot be written, in the user's cache. The first call after an installation or upgrade is slow.
"""

import functools
import logging
from pathlib import Path

from numba import njit

# Decorators of kernels. Division by zero gives infinity as in numpy: the error path that Python's
# rule needs would keep numba from dropping its counts of references to arrays, which cost more
# than the arithmetic. A small kernel that takes a whole forest is inlined for the same reason.
kernel = njit(cache=True, error_model="numpy")
inlined = njit(cache=True, error_model="numpy", forceinline=True)


def is_compiled() -> bool:
    """Whether the kernels of the trees, on which everything else stands, are on disk.

    Example:
        >>> is_compiled() in (True, False)
        True
    """
    from moeapps.streams import forest

    source = Path(str(forest.__file__))
    kernels = list(Path(str(forest.learn.stats.cache_path)).glob(f"{source.stem}.learn-*.nbi"))
    return any(kernel.stat().st_mtime >= source.stat().st_mtime for kernel in kernels)


@functools.cache
def announce() -> None:
    """Say through the log, once, that the call just made will take a while because it compiles."""
    if not is_compiled():
        logging.getLogger(__name__).warning(
            "moeapps.streams compiles its kernels: this takes a minute or two, once per "
            "installation. To do it beforehand run: moeapps doctor --compile"
        )


def compile_all() -> None:
    """Compile every kernel now, by running each classifier and generator for a moment."""
    from moeapps.streams.datasets import GENERATORS, load
    from moeapps.streams.driftmoe import DriftMoE
    from moeapps.streams.hoeffding_tree import HoeffdingTree
    from moeapps.streams.routed_bagging import RoutedBagging

    streams = [load(name, limit=1_000, length=1_000) for name in GENERATORS]
    stream = next(s for s in streams if s.name == "agrawal_a")
    for model in (
        HoeffdingTree(nominal_attributes=stream.nominal),
        DriftMoE(nominal_attributes=stream.nominal, seed=0),
        DriftMoE("task", nominal_attributes=stream.nominal, seed=0),
        RoutedBagging(nominal_attributes=stream.nominal, seed=0),
    ):
        model.prequential(stream.X, stream.y)
        model.prequential(stream.X, stream.y, delay=10)
        for x, y in list(stream)[:50]:
            model.predict_one(x)
            model.learn_one(x, y)
    for other in streams:
        other.rows(0, 10)
