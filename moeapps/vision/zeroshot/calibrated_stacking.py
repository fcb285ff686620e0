"""Calibrated stacking: one zero-shot expert whose seen classes are held back."""

import numpy as np

from moeapps.vision.zeroshot.experts import ESZSL, Array, ZeroShotExpert
from moeapps.vision.zeroshot.metrics import Scores
from moeapps.vision.zeroshot.two_phases import TwoPhases


class CalibratedStacking(TwoPhases):
    r"""Subtract one number from the scores of all seen classes.

    .. math:: \hat y = \arg\max_y\, P(y \mid x) - \gamma\, [y \in S]

    Args:
        expert: Answers among all classes; :class:`~moeapps.vision.zeroshot.experts.ESZSL` if None.
        gamma: The number; None has it chosen on held-out classes, 0 is the expert alone.

    Notes:
        The same two phases as :class:`~moeapps.vision.zeroshot.cosmo.COSMO`.

    References:
        Chao et al., *An Empirical Study and Analysis of Generalized Zero-Shot Learning*, ECCV 2016.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> attributes, labels = rng.random((8, 5)), np.arange(160) % 8
        >>> x = attributes[labels] @ rng.standard_normal((5, 6))
        >>> seen = labels < 6
        >>> model = CalibratedStacking().fit(x[seen], labels[seen], attributes, held_out=[4, 5])
        >>> model.predict(x).shape
        (160,)
    """

    def __init__(self, expert: ZeroShotExpert | None = None, *, gamma: float | None = None) -> None:
        self.expert = expert or ESZSL()
        self._tuned, self.gamma = gamma is None, gamma or 0.0

    def _learn(self, features: Array, places: Array, attributes: Array) -> None:
        self.expert.fit(features, places, attributes)

    def _tune(self, features: Array, places: Array) -> None:
        said = self._ask(features)
        points = zip(self._sweep(said, places), self._gammas(said), strict=True)
        self.gamma = max(points, key=lambda point: point[0].harmonic)[1]

    def _ask(self, features: Array) -> Array:
        features, _ = self._known(features)
        return self.expert.predict_proba(features)

    def _decide(self, said: Array) -> Array:
        return self._less(said, self.gamma)

    def _less(self, said: Array, gamma: float) -> Array:
        assert self._phase is not None
        found: Array = (said - gamma * self._phase.seen).argmax(1)
        return found

    def _gammas(self, said: Array) -> list[float]:
        """201 numbers, from all images seen to all unseen."""
        assert self._phase is not None
        seen = self._phase.seen
        lead = said[:, seen].max(1) - said[:, ~seen].max(1)
        values = np.quantile(lead, np.linspace(0, 1, 199))
        return [float(values[0] - 1e-6), *map(float, values), float(values[-1] + 1e-6)]

    def _sweep(self, said: Array, labels: Array) -> list[Scores]:
        return [self._judge(self._less(said, gamma), labels) for gamma in self._gammas(said)]
