"""Experts of generalised zero-shot classification: one for classes with images, two for all."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError

Array = NDArray[Any]


class ZeroShotExpert(Protocol):
    """What answers among all classes, of which some have attributes only."""

    def fit(self, features: Array, labels: Array, attributes: Array) -> "ZeroShotExpert":
        """Learn from images ``[N, D]`` of some of the classes ``[C, A]``."""
        ...

    def predict_proba(self, features: Array) -> Array:
        """Probabilities ``[N, C]`` of all classes."""
        ...


class SeenExpert:
    """Multinomial logistic regression over the classes that have images.

    Args:
        inverse_penalty: Of the L2 penalty: scikit-learn's ``C``.
        max_iter: Of L-BFGS.

    Attributes:
        classes: Ascending labels of the columns, after :meth:`fit`.

    Example:
        >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
        >>> SeenExpert().fit(x, np.array([2, 2, 5, 5])).predict_proba(x).argmax(1)
        array([0, 0, 1, 1])
    """

    def __init__(self, inverse_penalty: float = 1.0, max_iter: int = 2000) -> None:
        self.inverse_penalty, self.max_iter = inverse_penalty, max_iter
        self.classes: Array = np.empty(0, np.int64)

    def fit(self, features: Array, labels: Array) -> "SeenExpert":
        """Learn from images of at least two classes."""
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(C=self.inverse_penalty, max_iter=self.max_iter)
        self._model.fit(features, labels)
        self.classes = self._model.classes_
        return self

    def predict_proba(self, features: Array) -> Array:
        """Probabilities of :attr:`classes`."""
        found: Array = self._model.predict_proba(features)
        return found


class ESZSL:
    r"""A bilinear map between features and attributes, in closed form.

    .. math:: V = (X^\top X + \gamma I)^{-1} X^\top Y S\, (S^\top S + \lambda I)^{-1},
        \qquad P(c \mid x) = \mathrm{softmax}_c\big(\beta\, \hat x^\top V \hat s_c\big)

    with standardised features :math:`\hat x`, attributes of unit length :math:`\hat s`, and
    :math:`Y = \pm 1`.

    Args:
        gamma: Ridge on features, times the number of images.
        lam: Ridge on attributes.
        sharpness: :math:`\beta`.

    Notes:
        The paper gives scores only; the softmax is ours. Learned without images of the unseen
        classes, the scores of those are lower: the gate has to make up for it.

    References:
        Romera-Paredes, Torr, *An Embarrassingly Simple Approach to Zero-Shot Learning*, ICML 2015.

    Example:
        >>> attributes = np.eye(3)
        >>> x = np.repeat(attributes[:2], 5, 0)
        >>> expert = ESZSL().fit(x, np.repeat([0, 1], 5), attributes)
        >>> expert.predict_proba(attributes[:1]).argmax(1)
        array([0])
    """

    def __init__(self, gamma: float = 0.1, lam: float = 1.0, sharpness: float = 5.0) -> None:
        self.gamma, self.lam, self.sharpness = gamma, lam, sharpness

    def fit(self, features: Array, labels: Array, attributes: Array) -> "ESZSL":
        """Solve for the map."""
        x = np.asarray(features, float)
        self._mean, self._scale = x.mean(0), x.std(0)
        self._scale[self._scale == 0] = 1.0
        x = (x - self._mean) / self._scale
        self._attributes = unit(attributes)
        seen = np.unique(labels)
        s = self._attributes[seen]
        y = np.where(np.asarray(labels)[:, None] == seen, 1.0, -1.0)
        left = x.T @ x + self.gamma * len(x) * np.eye(x.shape[1])
        right = s.T @ s + self.lam * np.eye(s.shape[1])
        self._map = np.linalg.solve(left, x.T @ y @ s) @ np.linalg.inv(right)
        return self

    def predict_proba(self, features: Array) -> Array:
        """Probabilities of all classes."""
        x = (features - self._mean) / self._scale
        return softmax(self.sharpness * (x @ self._map @ self._attributes.T))


class DAP:
    r"""Direct attribute prediction: a logistic regression per attribute.

    .. math:: \log P(c \mid x) = \sum_a \big[s_{ca} \log p_a(x) + (1 - s_{ca}) \log (1 - p_a(x))
        - s_{ca} \log \pi_a - (1 - s_{ca}) \log (1 - \pi_a)\big] + \text{const}

    with binary attributes :math:`s` and their share :math:`\pi_a` among the training classes.

    Args:
        inverse_penalty: Of the L2 penalty: scikit-learn's ``C``.
        threshold: An attribute above it counts as there; None takes its mean over all classes.

    Notes:
        An attribute that all training classes have, or none, is left out: nothing can be learned.
        The paper uses support vector machines with fitted probabilities.

    References:
        Lampert, Nickisch, Harmeling, *Attribute-Based Classification for Zero-Shot Visual Object
        Categorization*, TPAMI 2014.

    Example:
        >>> attributes = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> x = np.repeat(attributes[:2], 20, 0)
        >>> DAP().fit(x, np.repeat([0, 1], 20), attributes).predict_proba(x[:1]).argmax(1)
        array([0])
    """

    def __init__(self, inverse_penalty: float = 1.0, threshold: float | None = None) -> None:
        self.inverse_penalty, self.threshold = inverse_penalty, threshold

    def fit(self, features: Array, labels: Array, attributes: Array) -> "DAP":
        """Learn every attribute.

        Raises:
            ArgumentError: No attribute differs between the training classes.
        """
        from sklearn.linear_model import LogisticRegression

        cut = attributes.mean(0) if self.threshold is None else self.threshold
        binary = attributes > cut
        share = binary[np.unique(labels)].mean(0)
        learned = (share > 0) & (share < 1)
        if not learned.any():
            raise ArgumentError(
                "No attribute differs between the training classes, so none can be learned. "
                "Check the attributes and DAP's threshold."
            )
        self._binary, self._share = binary[:, learned].astype(float), share[learned]
        self._models = [
            LogisticRegression(C=self.inverse_penalty, max_iter=2000).fit(features, column)
            for column in binary[np.ix_(labels, np.flatnonzero(learned))].T
        ]
        return self

    def predict_proba(self, features: Array) -> Array:
        """Probabilities of all classes."""
        logits = np.stack([model.decision_function(features) for model in self._models], 1)
        prior = np.log(self._share) - np.log1p(-self._share)
        return softmax((logits - prior) @ self._binary.T)


def unit(rows: Array) -> Array:
    """Rows of length 1; zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows, float) / np.where(length == 0, 1.0, length)


def softmax(scores: Array) -> Array:
    """Probabilities along the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = raised / raised.sum(-1, keepdims=True)
    return found
