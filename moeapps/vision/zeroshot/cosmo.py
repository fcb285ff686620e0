"""COSMO: a gate between a seen expert and a zero-shot expert, with adaptive smoothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.experts import ESZSL, Array, SeenExpert, ZeroShotExpert
from moeapps.vision.zeroshot.gate import ConfidenceGate
from moeapps.vision.zeroshot.metrics import Scores, ausuc, gate_quality, score
from moeapps.vision.zeroshot.protocol import Phase, check_attributes, check_images, phases
from moeapps.vision.zeroshot.smoothing import Contest, How, Smoothing

if TYPE_CHECKING:
    from moeapps.gating import Routing

TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
_THRESHOLDS = np.linspace(-2.5, 2.5, 51)
_GAMMAS = np.linspace(0.05, 1.0, 20)


class COSMO:
    r"""Two experts and a gate for images of seen and unseen classes.

    .. math:: p(y \mid x) = g_U\, q_U(y) + (1 - g_U)\, q_S(y), \qquad
        g_U = \sigma\big((\theta - g(x)) / T_c\big)

    with the gate's probability :math:`g` of being seen, and the experts smoothed as
    :class:`~moeapps.vision.zeroshot.smoothing.Smoothing` says. An expert that is asked about the
    other's images is overconfident; the less its domain is believed, the flatter it is made.

    Args:
        seen_expert: Answers among the classes with images; logistic regression if None.
        zero_shot_expert: Answers among all; :class:`~moeapps.vision.zeroshot.experts.ESZSL` if
            None.
        gate: :class:`~moeapps.vision.zeroshot.gate.ConfidenceGate` if None.
        smoothing: ``"adaptive"``, or an ablation: ``"none"``, ``"const"``, ``"hard"``.
        normalise: Make the smoothed experts' probabilities sum to 1.
        temperatures: Values of :math:`T_c` to choose from.

    Attributes:
        threshold: :math:`\theta`, chosen on held-out classes.
        sharpness: :math:`T_c`, likewise.
        validation: ``harmonic`` there, ``auroc`` and ``fpr95`` of the gate on images that it was
            not trained with.

    Notes:
        Departures from the paper: none in the formulas. As in the released code, the adaptive form
        adds to joint masses, so it does not sum to 1 unless ``normalise`` is set, and only the
        largest matters. Each third validation image is kept from the gate's training.

    References:
        Atzmon, Chechik, *Adaptive Confidence Smoothing for Generalized Zero-Shot Learning*,
        CVPR 2019.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> attributes = rng.random((12, 6))
        >>> labels = np.arange(360) % 12
        >>> x = attributes[labels] @ rng.standard_normal((6, 8)) + 0.1 * rng.standard_normal((360, 8))
        >>> seen = labels < 9
        >>> model = COSMO().fit(x[seen], labels[seen], attributes, held_out=[6, 7, 8])
        >>> model.score(x, labels).harmonic > 0.6
        True
    """  # noqa: E501

    def __init__(
        self,
        seen_expert: SeenExpert | None = None,
        zero_shot_expert: ZeroShotExpert | None = None,
        *,
        gate: ConfidenceGate | None = None,
        smoothing: How = "adaptive",
        normalise: bool = False,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> None:
        if not temperatures or min(temperatures) <= 0:
            raise ArgumentError(f"temperatures={list(temperatures)}: expected numbers above 0.")
        self.seen_expert = seen_expert or SeenExpert()
        self.zero_shot_expert = zero_shot_expert or ESZSL()
        self.gate = gate or ConfidenceGate()
        self.smoothing = Smoothing(smoothing, normalise=normalise)
        self.temperatures = tuple(temperatures)
        self.threshold, self.sharpness = 0.5, 1.0
        self.validation: dict[str, float] = {}
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
    ) -> "COSMO":
        """Tune gate and threshold with ``held_out`` as unseen, then learn from all images.

        Args:
            features: Of the images of seen classes, ``[N, D]``.
            labels: Rows of ``attributes``, ``[N]``.
            attributes: Of all classes, ``[C, A]``; those without an image are the unseen ones.
            held_out: Seen classes that play the unseen ones while tuning.
            seen_share: Share of the other classes' images to tune on.
            seed: Of the choice of those images.

        Raises:
            ArgumentError: Naming what does not fit.
        """
        labels = np.asarray(labels, np.int64)
        features = check_images(features, labels)
        attributes = check_attributes(attributes, labels)
        tuning, last = phases(labels, len(attributes), [*held_out], seen_share, seed)
        self._learn(tuning, features, labels, attributes)
        self._tune(features[tuning.val], labels[tuning.val])
        self._learn(last, features, labels, attributes)
        self._width = features.shape[1]
        return self

    def _learn(self, phase: Phase, features: Array, labels: Array, attributes: Array) -> None:
        x, y = features[phase.train], phase.places(labels[phase.train])
        self.seen_expert.fit(x, y)
        self.zero_shot_expert.fit(x, y, attributes[phase.classes])
        self._phase = phase

    def _experts(self, features: Array) -> tuple[Array, Array, Phase]:
        if self._phase is None:
            raise ArgumentError("This COSMO has not learned anything. Call fit first.")
        seen = self.seen_expert.predict_proba(features)
        zero_shot = self.zero_shot_expert.predict_proba(features)
        if zero_shot.shape != (len(features), len(self._phase.classes)):
            raise ArgumentError(
                f"The zero-shot expert gave {list(zero_shot.shape)}, expected a probability for "
                f"each of {len(self._phase.classes)} classes."
            )
        return seen, zero_shot, self._phase

    def _tune(self, features: Array, labels: Array) -> None:
        seen, zero_shot, phase = self._experts(features)
        places = phase.places(labels)
        is_seen = phase.seen[places]
        unseen_mass = zero_shot[:, ~phase.seen]
        kept = np.arange(len(labels)) % 3 == 0
        self.gate.fit(unseen_mass[~kept], seen[~kept], is_seen[~kept])
        gate = self.gate(unseen_mass, seen)
        quality = gate_quality(gate[kept], is_seen[kept])
        contest = Contest.between(seen, zero_shot, phase.seen)
        groups = np.flatnonzero(phase.seen), np.flatnonzero(~phase.seen)

        def harmonic(threshold: float, sharpness: float, smoothing: Smoothing) -> float:
            answers = contest.decide(_unseen(gate, threshold, sharpness), smoothing)
            return score(places, answers, *groups).harmonic

        best = max(
            (harmonic(threshold, sharpness, smoothing), threshold, sharpness, smoothing.gamma)
            for smoothing in self._variants()
            for sharpness in (self.temperatures if self.smoothing.how != "hard" else (1.0,))
            for threshold in _THRESHOLDS
        )
        sharpness, smoothing = best[2], replace(self.smoothing, gamma=best[3])
        step = _THRESHOLDS[1] - _THRESHOLDS[0]
        around = np.linspace(best[1] - step, best[1] + step, 100)
        found = max((harmonic(threshold, sharpness, smoothing), threshold) for threshold in around)
        self.threshold = float(max(found, best[:2])[1])
        self.sharpness, self.smoothing = float(sharpness), smoothing
        self.validation = {"harmonic": max(found[0], best[0]), **quality}

    def _variants(self) -> list[Smoothing]:
        if self.smoothing.how != "const":
            return [self.smoothing]
        return [replace(self.smoothing, gamma=float(gamma)) for gamma in _GAMMAS]

    # -------------------------------------------------------------------------------- prediction

    def seen_probability(self, features: Array) -> Array:
        """The gate's :math:`g`, before threshold and sharpness, ``[N]``."""
        seen, zero_shot, phase = self._experts(check_images(features, width=self._given_width))
        return self.gate(zero_shot[:, ~phase.seen], seen)

    def route(self, features: Array) -> "Routing":
        r"""The decision on the two experts, ``[N, 2]``: weight :math:`1 - g_U` and :math:`g_U`."""
        import torch

        from moeapps.gating import Routing

        unseen = _unseen(self.seen_probability(features), self.threshold, self.sharpness)
        weights = torch.from_numpy(np.stack([1 - unseen, unseen], 1))
        return Routing(weights, 2, probs=weights)

    def predict_proba(self, features: Array) -> Array:
        """The mixture ``[N, C]``; it sums to 1 without or with normalised smoothing."""
        seen, zero_shot, phase = self._experts(check_images(features, width=self._given_width))
        gate = self.gate(zero_shot[:, ~phase.seen], seen)
        unseen = _unseen(gate, self.threshold, self.sharpness)
        mixed = np.empty_like(zero_shot)
        for columns, mass, domain in (
            (phase.seen, seen, 1 - unseen),
            (~phase.seen, zero_shot[:, ~phase.seen], unseen),
        ):
            mixed[:, columns] = self.smoothing.mix(mass, mass.sum(1), domain, int(columns.sum()))
        return mixed

    def predict(self, features: Array) -> Array:
        """Labels ``[N]``, seen or unseen."""
        found: Array = self.predict_proba(features).argmax(1)
        return found

    def score(self, features: Array, labels: Array) -> Scores:
        """Accuracy on test images of seen and of unseen classes."""
        return score(labels, self.predict(features), *self._groups())

    def curve(self, features: Array, labels: Array) -> tuple[Array, Array]:
        r"""Seen and unseen accuracy while :math:`\theta` goes from one end to the other."""
        seen, zero_shot, phase = self._experts(check_images(features, width=self._given_width))
        gate = self.gate(zero_shot[:, ~phase.seen], seen)
        contest = Contest.between(seen, zero_shot, phase.seen)
        far = self.sharpness * np.geomspace(1e-3, 40, 200)
        sweep = np.concatenate([-far[::-1], np.linspace(0, 1, 401), 1 + far])
        scores = [
            score(labels, contest.decide(_unseen(gate, t, self.sharpness), self.smoothing),
                  *self._groups())
            for t in sweep
        ]  # fmt: skip
        return np.array([s.seen for s in scores]), np.array([s.unseen for s in scores])

    def report(self, features: Array, labels: Array) -> dict[str, float]:
        """Accuracies, harmonic mean, AUSUC, and the gate's quality on a test set."""
        scores = self.score(features, labels)
        is_seen = np.isin(labels, self._groups()[0])
        return {
            "seen": scores.seen,
            "unseen": scores.unseen,
            "harmonic": scores.harmonic,
            "ausuc": ausuc(*self.curve(features, labels)),
            **gate_quality(self.seen_probability(features), is_seen),
        }

    def _groups(self) -> tuple[Any, Any]:
        if self._phase is None:
            raise ArgumentError("This COSMO has not learned anything. Call fit first.")
        return np.flatnonzero(self._phase.seen), np.flatnonzero(~self._phase.seen)

    @property
    def _given_width(self) -> int:
        self._groups()
        return self._width


def _unseen(gate: Array, threshold: float, sharpness: float) -> Array:
    """Probability of the unseen domain."""
    away = np.clip((gate - threshold) / sharpness, -700, 700)
    found: Array = 1 / (1 + np.exp(away))
    return found
