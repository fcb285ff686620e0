"""One distribution from a seen and a zero-shot expert, by the probability of each domain."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.zeroshot.experts import Array

How = Literal["adaptive", "none", "const", "hard"]
HOW = ("adaptive", "none", "const", "hard")


@dataclass(frozen=True)
class Smoothing:
    r"""What an expert says about its own domain, told how probable that domain is.

    With the expert's joint mass :math:`P(y)`, its sum :math:`P(D)` over the :math:`|D|` classes of
    the domain and the domain's probability :math:`g`:

    ============ ===========================================================
    how          :math:`q(y)`; the mixture then has :math:`g\, q(y)`
    ============ ===========================================================
    ``adaptive`` :math:`P(y) + (1 - g) / |D|`
    ``none``     :math:`P(y) / P(D)`
    ``const``    :math:`\gamma P(y) / P(D) + (1 - \gamma) / |D|`
    ``hard``     :math:`P(y) / P(D)`, and :math:`g` is 1 if above 1/2, else 0
    ============ ===========================================================

    Args:
        how: One of the four.
        gamma: Of ``const``.
        normalise: Divide the adaptive :math:`q` by its sum. The released form does not.

    Raises:
        UnknownNameError: There is no such smoothing.

    References:
        Atzmon, Chechik, *Adaptive Confidence Smoothing for Generalized Zero-Shot Learning*,
        CVPR 2019.

    Example:
        >>> Smoothing().mix(np.array([[0.2, 0.1]]), np.array([0.3]), np.array([0.4]), 2).round(3)
        array([[0.2 , 0.16]])
    """

    how: How = "adaptive"
    gamma: float = 1.0
    normalise: bool = False

    def __post_init__(self) -> None:
        """Check the words."""
        if self.how not in HOW:
            raise UnknownNameError("smoothing", self.how, HOW)
        if not 0 <= self.gamma <= 1:
            raise ArgumentError(f"gamma={self.gamma} is no share. Choose 0 to 1.")

    def mix(self, mass: Array, total: Array, domain: Array, size: int) -> Array:
        """The mixture's mass of some classes of a domain.

        Args:
            mass: :math:`P(y)`, ``[N, c]``.
            total: :math:`P(D)`, ``[N]``.
            domain: :math:`g`, ``[N]``.
            size: :math:`|D|`.
        """
        total, domain = total[:, None], domain[:, None]
        if self.how == "adaptive":
            q = mass + (1 - domain) / size
            mixed: Array = domain * (q / (total + 1 - domain) if self.normalise else q)
            return mixed
        # An expert without any mass on its domain says nothing about it.
        inside = np.where(total > 0, mass / np.where(total > 0, total, 1.0), 1 / size)
        if self.how == "const":
            inside = self.gamma * inside + (1 - self.gamma) / size
        if self.how == "hard":
            domain = (domain > 0.5).astype(float)
        mixed = domain * inside
        return mixed


@dataclass(frozen=True, eq=False)
class Contest:
    """The best class of each domain, between which the mixture decides.

    Every smoothing keeps the order within a domain, so no other class can win.

    Args:
        answers: The best seen and the best unseen class, ``[N, 2]``.
        mass: Their masses, ``[N, 2]``.
        total: Mass of each domain, ``[N, 2]``.
        sizes: Number of seen and of unseen classes.
    """

    answers: Array
    mass: Array
    total: Array
    sizes: tuple[int, int]

    @classmethod
    def between(cls, seen: Array, zero_shot: Array, is_seen: Array) -> "Contest":
        """From probabilities ``[N, S]`` and ``[N, C]``, and which of the ``C`` are seen."""
        columns = [np.flatnonzero(is_seen), np.flatnonzero(~is_seen)]
        masses = [seen, zero_shot[:, columns[1]]]
        best = [mass.argmax(1) for mass in masses]
        rows = np.arange(len(seen))
        return cls(
            np.stack([c[b] for c, b in zip(columns, best, strict=True)], 1),
            np.stack([mass[rows, b] for mass, b in zip(masses, best, strict=True)], 1),
            np.stack([mass.sum(1) for mass in masses], 1),
            (len(columns[0]), len(columns[1])),
        )

    def decide(self, unseen: Array, smoothing: Smoothing) -> Array:
        """Answers ``[N]`` where ``unseen [N]`` is the probability of the unseen domain."""
        standing = [
            smoothing.mix(self.mass[:, d : d + 1], self.total[:, d], domain, self.sizes[d])[:, 0]
            for d, domain in enumerate((1 - unseen, unseen))
        ]
        chosen: Array = np.where(standing[1] > standing[0], self.answers[:, 1], self.answers[:, 0])
        return chosen
