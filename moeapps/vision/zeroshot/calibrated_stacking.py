"""Calibrated stacking: one zero-shot expert whose seen classes are held back."""

from collections.abc import Sequence

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.experts import ESZSL, Array, ZeroShotExpert
from moeapps.vision.zeroshot.metrics import Scores, ausuc, score
from moeapps.vision.zeroshot.protocol import Phase, check_attributes, check_images, phases


class CalibratedStacking:
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
        self._phase: Phase | None = None

    def fit(
        self,
        features: Array,
        labels: Array,
        attributes: Array,
        *,
        held_out: Sequence[int] | Array,
        seen_share: float = 0.2,
        seed: int = 0,
    ) -> "CalibratedStacking":
        """As :meth:`COSMO.fit`."""
        labels = np.asarray(labels, np.int64)
        features = check_images(features, labels)
        attributes = check_attributes(attributes, labels)
        tuning, last = phases(labels, len(attributes), [*held_out], seen_share, seed)
        if self._tuned:
            self._learn(tuning, features, labels, attributes)
            self._tune(features[tuning.val], tuning.places(labels[tuning.val]))
        self._learn(last, features, labels, attributes)
        return self

    def _learn(self, phase: Phase, features: Array, labels: Array, attributes: Array) -> None:
        x, y = features[phase.train], phase.places(labels[phase.train])
        self.expert.fit(x, y, attributes[phase.classes])
        self._phase = phase

    def _tune(self, features: Array, places: Array) -> None:
        points = self._points(features, places)
        self.gamma = max(points, key=lambda point: point[1].harmonic)[0]

    def _points(self, features: Array, places: Array) -> list[tuple[float, Scores]]:
        """Both accuracies for 201 values, between which all decisions change."""
        scores, phase = self._scores(features)
        lead = scores[:, phase.seen].max(1) - scores[:, ~phase.seen].max(1)
        values = np.quantile(lead, np.linspace(0, 1, 199))
        groups = np.flatnonzero(phase.seen), np.flatnonzero(~phase.seen)
        found = []
        for gamma in (values[0] - 1e-6, *values, values[-1] + 1e-6):
            answers = (scores - gamma * phase.seen).argmax(1)
            found.append((float(gamma), score(places, answers, *groups)))
        return found

    def _scores(self, features: Array) -> tuple[Array, Phase]:
        if self._phase is None:
            raise ArgumentError("This CalibratedStacking has not learned anything. Call fit first.")
        return self.expert.predict_proba(check_images(features)), self._phase

    def predict(self, features: Array) -> Array:
        """Labels ``[N]``, seen or unseen."""
        scores, phase = self._scores(features)
        found: Array = (scores - self.gamma * phase.seen).argmax(1)
        return found

    def report(self, features: Array, labels: Array) -> dict[str, float]:
        """Accuracies, harmonic mean and AUSUC on a test set."""
        answers = self.predict(features)
        assert self._phase is not None
        groups = np.flatnonzero(self._phase.seen), np.flatnonzero(~self._phase.seen)
        scores = score(labels, answers, *groups)
        curve = [point for _, point in self._points(features, np.asarray(labels))]
        return {
            "seen": scores.seen,
            "unseen": scores.unseen,
            "harmonic": scores.harmonic,
            "ausuc": ausuc([s.seen for s in curve], [s.unseen for s in curve]),
        }
