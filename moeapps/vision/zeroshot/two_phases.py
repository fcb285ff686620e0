"""What the methods of generalised zero-shot classification share: learning and judging."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.vision.zeroshot.experts import Array
from moeapps.vision.zeroshot.metrics import Scores, ausuc, score
from moeapps.vision.zeroshot.protocol import Phase, check_attributes, check_images, phases


class TwoPhases(ABC):
    """Tuned with some seen classes in the place of unseen ones, then learned from all images."""

    _tuned = True
    _phase: Phase | None = None
    _width = 0

    def fit(
        self,
        features: Array,
        labels: Array,
        attributes: Array,
        *,
        held_out: Sequence[int] | Array,
        seen_share: float = 0.2,
        seed: int = 0,
    ) -> Self:
        """Tune with ``held_out`` as unseen, then learn from all images.

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
        self._width = features.shape[1]
        for phase in (tuning, last) if self._tuned else (last,):
            x, y = features[phase.train], phase.places(labels[phase.train])
            self._learn(x, y, attributes[phase.classes])
            self._phase = phase
            if phase is tuning:
                self._tune(features[tuning.val], tuning.places(labels[tuning.val]))
        return self

    @abstractmethod
    def _learn(self, features: Array, places: Array, attributes: Array) -> None:
        """Fit the experts to the images of a phase."""

    @abstractmethod
    def _tune(self, features: Array, places: Array) -> None:
        """Choose the numbers that weigh seen against unseen classes."""

    @abstractmethod
    def _ask(self, features: Array) -> Any:
        """What the experts say about images."""

    @abstractmethod
    def _decide(self, said: Any) -> Array:
        """Labels ``[N]``, of what the experts said."""

    @abstractmethod
    def _sweep(self, said: Any, labels: Array) -> list[Scores]:
        """Scores from all images seen to all unseen."""

    def predict(self, features: Array) -> Array:
        """Labels ``[N]``, seen or unseen."""
        return self._decide(self._ask(features))

    def _known(self, features: Array) -> tuple[Array, Phase]:
        """Images that fit those learned from, and the phase."""
        if self._phase is None:
            name = type(self).__name__
            raise ArgumentError(f"This {name} has not learned anything. Call fit first.")
        return check_images(features, width=self._width), self._phase

    def score(self, features: Array, labels: Array) -> Scores:
        """Accuracy on test images of seen and of unseen classes."""
        answers = self.predict(features)
        return self._judge(answers, self._truth(labels, len(answers)))

    def curve(self, features: Array, labels: Array) -> tuple[Array, Array]:
        """Accuracy on seen and on unseen classes, from all images seen to all unseen."""
        said = self._ask(features)
        return self._curve(said, self._truth(labels, len(features)))

    def _curve(self, said: Any, labels: Array) -> tuple[Array, Array]:
        scores = self._sweep(said, labels)
        return np.array([s.seen for s in scores]), np.array([s.unseen for s in scores])

    def report(self, features: Array, labels: Array) -> dict[str, float]:
        """Accuracies, harmonic mean, AUSUC and, of a gate, its quality on a test set."""
        said = self._ask(features)
        labels = self._truth(labels, len(features))
        scores = self._judge(self._decide(said), labels)
        area = ausuc(*self._curve(said, labels))
        return {**scores.numbers(), "ausuc": area, **self._gate_quality(said, labels)}

    def _gate_quality(self, said: Any, labels: Array) -> dict[str, float]:
        return {}

    def _truth(self, labels: Array, images: int) -> Array:
        """Labels of that many test images."""
        assert self._phase is not None
        labels, classes = np.asarray(labels), len(self._phase.classes)
        if labels.shape != (images,):
            raise ArgumentError(f"{images} rows of features and labels {list(labels.shape)}.")
        if not 0 <= labels.min() <= labels.max() < classes:
            raise ArgumentError(
                f"labels reach from {labels.min()} to {labels.max()}, but there are attributes of "
                f"{classes} classes. Labels are rows of the attributes."
            )
        return labels

    def _judge(self, answers: Array, labels: Array) -> Scores:
        assert self._phase is not None
        return score(labels, answers, *self._phase.groups)
