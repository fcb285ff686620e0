"""Seen or unseen: a gate on the confidence of two experts."""

from typing import Literal

import numpy as np

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.zeroshot.experts import Array, softmax

GateKind = Literal["confidence", "seen_confidence", "max_prob"]
_KINDS = ("confidence", "seen_confidence", "max_prob")


def tempered(probs: Array, temperature: float) -> Array:
    """``softmax(log(probs) / temperature)`` along the last axis."""
    return softmax(np.log(np.maximum(probs, 1e-300)) / temperature)


def confidences(probs: Array, top_k: int) -> Array:
    """The ``top_k`` largest of every row, in descending order; zeros where there are fewer.

    Example:
        >>> confidences(np.array([[0.1, 0.6, 0.3]]), 2)
        array([[0.6, 0.3]])
    """
    found: Array = -np.sort(-probs, axis=1)[:, :top_k]
    missing = top_k - found.shape[1]
    return np.pad(found, ((0, 0), (0, missing))) if missing > 0 else found


class ConfidenceGate:
    r"""Probability that an image is of a seen class.

    A logistic regression on the ``top_k`` largest unseen-class probabilities of the zero-shot
    expert, and those of the seen expert at a temperature. Sorted and of fixed length, they do not
    depend on which classes there are, so the gate serves others than it was trained with.

    Args:
        kind: ``"confidence"``; ``"seen_confidence"`` without the zero-shot expert; ``"max_prob"``:
            the largest probability of the seen expert, without training.
        top_k: Confidences per expert.
        temperature: Of the seen expert.
        balanced: Give seen and unseen images equal weight in training.

    Raises:
        UnknownNameError: There is no gate of that kind.

    References:
        Atzmon, Chechik, *Adaptive Confidence Smoothing for Generalized Zero-Shot Learning*,
        CVPR 2019.
    """

    def __init__(
        self,
        kind: GateKind = "confidence",
        *,
        top_k: int = 5,
        temperature: float = 3.0,
        balanced: bool = False,
    ) -> None:
        if kind not in _KINDS:
            raise UnknownNameError("gate", kind, _KINDS)
        if top_k < 1 or temperature <= 0:
            raise ArgumentError(
                f"top_k={top_k}, temperature={temperature}: expected at least 1, and above 0."
            )
        self.kind, self.top_k, self.temperature = kind, top_k, temperature
        self.balanced = balanced

    def inputs(self, zero_shot: Array, seen: Array) -> Array:
        """What the regression reads.

        Args:
            zero_shot: Probabilities of the unseen classes by the zero-shot expert, ``[N, U]``.
            seen: Of the seen classes by the seen expert, ``[N, S]``.
        """
        of_seen = confidences(tempered(seen, self.temperature), self.top_k)
        if self.kind == "seen_confidence":
            return of_seen
        return np.concatenate([confidences(zero_shot, self.top_k), of_seen], 1)

    def fit(self, zero_shot: Array, seen: Array, is_seen: Array) -> "ConfidenceGate":
        """Learn from images of seen classes and of held-out ones."""
        from sklearn.linear_model import LogisticRegression

        if self.kind != "max_prob":
            self._model = LogisticRegression(
                C=1.0, max_iter=2000, class_weight="balanced" if self.balanced else None
            ).fit(self.inputs(zero_shot, seen), is_seen)
        return self

    def __call__(self, zero_shot: Array, seen: Array) -> Array:
        """Probability (for ``max_prob`` a score) of being seen, ``[N]``."""
        if self.kind == "max_prob":
            highest: Array = tempered(seen, self.temperature).max(1)
            return highest
        found: Array = self._model.predict_proba(self.inputs(zero_shot, seen))[:, 1]
        return found
