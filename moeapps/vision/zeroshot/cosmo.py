"""COSMO: a gate between a seen expert and a zero-shot expert, with adaptive smoothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.experts import ESZSL, Array, SeenExpert, ZeroShotExpert
from moeapps.vision.zeroshot.gate import ConfidenceGate
from moeapps.vision.zeroshot.metrics import Scores, gate_quality
from moeapps.vision.zeroshot.protocol import Phase
from moeapps.vision.zeroshot.smoothing import Contest, How, Smoothing
from moeapps.vision.zeroshot.two_phases import TwoPhases

if TYPE_CHECKING:
    from moeapps.gating import Routing

TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
_THRESHOLDS = np.linspace(-2.5, 2.5, 51)
_GAMMAS = np.linspace(0.05, 1.0, 20)


class COSMO(TwoPhases):
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

    def _learn(self, features: Array, places: Array, attributes: Array) -> None:
        self.seen_expert.fit(features, places)
        self.zero_shot_expert.fit(features, places, attributes)

    def _ask(self, features: Array) -> "_Opinions":
        features, phase = self._known(features)
        zero_shot = self.zero_shot_expert.predict_proba(features)
        if zero_shot.shape != (len(features), len(phase.classes)):
            raise ArgumentError(
                f"The zero-shot expert gave {list(zero_shot.shape)}, expected a probability for "
                f"each of {len(phase.classes)} classes."
            )
        return _Opinions(self.seen_expert.predict_proba(features), zero_shot, phase)

    def _tune(self, features: Array, places: Array) -> None:
        found = self._ask(features)
        is_seen = found.phase.seen[places]
        kept = np.arange(len(places)) % 3 == 0
        if any(part.all() or not part.any() for part in (is_seen[kept], is_seen[~kept])):
            raise ArgumentError(
                f"{is_seen.sum()} images of seen and {(~is_seen).sum()} of held-out classes are "
                "too few to learn the gate and to judge it. Raise seen_share, or hold out more."
            )
        self.gate.fit(found.unseen_mass[~kept], found.seen[~kept], is_seen[~kept])
        gate = self._gate(found)
        quality = gate_quality(gate[kept], is_seen[kept])
        contest = found.contest()

        def harmonic(threshold: float, sharpness: float, smoothing: Smoothing) -> float:
            answers = contest.decide(_unseen(gate, threshold, sharpness), smoothing)
            return self._judge(answers, places).harmonic

        best = max(
            (harmonic(threshold, sharpness, smoothing), threshold, sharpness, smoothing.gamma)
            for smoothing in self._variants()
            for sharpness in (self.temperatures if self.smoothing.how != "hard" else (1.0,))
            for threshold in _THRESHOLDS
        )
        sharpness, smoothing = best[2], replace(self.smoothing, gamma=best[3])
        step = _THRESHOLDS[1] - _THRESHOLDS[0]
        around = np.linspace(best[1] - step, best[1] + step, 100)
        finer = max((harmonic(threshold, sharpness, smoothing), threshold) for threshold in around)
        self.threshold = float(max(finer, best[:2])[1])
        self.sharpness, self.smoothing = float(sharpness), smoothing
        self.validation = {"harmonic": max(finer[0], best[0]), **quality}

    def _variants(self) -> list[Smoothing]:
        if self.smoothing.how != "const":
            return [self.smoothing]
        return [replace(self.smoothing, gamma=float(gamma)) for gamma in _GAMMAS]

    # -------------------------------------------------------------------------------- prediction

    def seen_probability(self, features: Array) -> Array:
        """The gate's :math:`g`, before threshold and sharpness, ``[N]``."""
        return self._gate(self._ask(features))

    def route(self, features: Array) -> "Routing":
        r"""The decision on the two experts, ``[N, 2]``: weight :math:`1 - g_U` and :math:`g_U`."""
        import torch

        from moeapps.gating import Routing

        unseen = _unseen(self.seen_probability(features), self.threshold, self.sharpness)
        weights = torch.from_numpy(np.stack([1 - unseen, unseen], 1))
        return Routing(weights, 2, probs=weights)

    def predict_proba(self, features: Array) -> Array:
        """The mixture ``[N, C]``; it sums to 1 without or with normalised smoothing."""
        found = self._ask(features)
        unseen = _unseen(self._gate(found), self.threshold, self.sharpness)
        mixed = np.empty_like(found.zero_shot)
        for columns, mass, domain in zip(
            found.phase.groups, (found.seen, found.unseen_mass), (1 - unseen, unseen), strict=True
        ):
            mixed[:, columns] = self.smoothing.mix(mass, mass.sum(1), domain, len(columns))
        return mixed

    def _decide(self, said: "_Opinions") -> Array:
        unseen = _unseen(self._gate(said), self.threshold, self.sharpness)
        return said.contest().decide(unseen, self.smoothing)

    def _sweep(self, said: "_Opinions", labels: Array) -> list[Scores]:
        contest, gate = said.contest(), self._gate(said)
        far = self.sharpness * np.geomspace(1e-3, 40, 200)
        return [
            self._judge(contest.decide(_unseen(gate, t, self.sharpness), self.smoothing), labels)
            for t in np.concatenate([-far[::-1], np.linspace(0, 1, 401), 1 + far])
        ]

    def _gate_quality(self, said: "_Opinions", labels: Array) -> dict[str, float]:
        return gate_quality(self._gate(said), np.isin(labels, said.phase.groups[0]))

    def _gate(self, said: "_Opinions") -> Array:
        return self.gate(said.unseen_mass, said.seen)


@dataclass(frozen=True, eq=False)
class _Opinions:
    """What both experts say about images: ``seen [N, S]``, ``zero_shot [N, C]``."""

    seen: Array
    zero_shot: Array
    phase: Phase

    @property
    def unseen_mass(self) -> Array:
        """What the zero-shot expert gives to the unseen classes, ``[N, U]``."""
        found: Array = self.zero_shot[:, ~self.phase.seen]
        return found

    def contest(self) -> Contest:
        """The best seen class against the best unseen one."""
        return Contest.between(self.seen, self.zero_shot, self.phase.seen)


def _unseen(gate: Array, threshold: float, sharpness: float) -> Array:
    """Probability of the unseen domain."""
    away = np.clip((gate - threshold) / sharpness, -700, 700)
    found: Array = 1 / (1 + np.exp(away))
    return found
