"""Random numbers that belong to a place, not to an order: one draw per (seed, stream, t).

An ensemble that works expert by expert must give every expert the draws it would have had instance
by instance. So nothing here keeps a state: a draw is a hash of the numbers that name it.
"""

import numpy as np

from moeapps.streams.compiling import kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@kernel
def mix(z: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: a bijection of 64 bits in which every bit depends on all."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@kernel
def uniform(seed: int, stream: int, t: int) -> float:
    r"""Draw ``t`` of a stream of :math:`U[0, 1)`: splitmix64 started at a hash of seed and stream.

    Args:
        seed: Names the model; another purpose in one model takes another seed.
        stream: Names the user of the draws, for example the expert.
        t: Position in the stream, for example the instance.

    References:
        Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014.
        https://doi.org/10.1145/2660193.2660195

    Example:
        >>> round(uniform(7, 0, 0), 4), uniform(7, 0, 0) == uniform(7, 0, 0)
        (0.6094, True)
    """
    start = mix(mix(np.uint64(seed) + _GOLDEN) + _GOLDEN * np.uint64(stream + 1))
    return (mix(start + _GOLDEN * np.uint64(t + 1)) >> np.uint64(11)) * 2.0**-53


@kernel
def poisson(rate: float, draw: float) -> int:
    r"""The Poisson(rate) count at a uniform ``draw``, by inversion of the distribution function.

    Sums :math:`e^{-\lambda}\lambda^k/k!` until the draw is passed; meant for rates up to a few
    tens, where that takes about ``rate`` steps.

    Example:
        >>> poisson(6.0, 0.5), poisson(0.0, 0.5)
        (6, 0)
    """
    term = np.exp(-rate)
    total = term
    count = 0
    while draw >= total and term > 0.0:
        count += 1
        term *= rate / count
        total += term
    return count
