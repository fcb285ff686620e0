"""Test on one copy, train the others: prequential cross-validation."""

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.streams.classifier import StreamClassifier


def kfold_prequential(
    model: StreamClassifier,
    X: np.ndarray,  # noqa: N803
    y: np.ndarray,
    *,
    k: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Each instance is answered by one of ``k`` copies, drawn at random, and trains the others.

    Args:
        model: Copied, with seeds ``seed``, ``seed + 1``... if it takes a seed; not changed.
        X: ``[N, d]``.
        y: ``[N]`` labels.
        k: Number of copies.
        seed: Of the draws and of the first copy.

    Returns:
        ``[N]`` answers of all copies together, for one evaluator. A copy that knows no label yet
        gives the first of ``y``.

    References:
        Bifet et al., *Efficient online evaluation of big data stream classifiers*, KDD 2015.
        https://doi.org/10.1145/2783258.2783372

    Example:
        >>> from moeapps.streams import HoeffdingTree, datasets
        >>> stream = datasets.load("sea_a", limit=2_000, seed=1)
        >>> answers = kfold_prequential(HoeffdingTree(), stream.X, stream.y, k=3)
        >>> bool((answers == stream.y).mean() > 0.8)
        True
    """
    if k < 2:
        raise ArgumentError(
            f"k={k} leaves no copy to train. Expected at least 2; the paper has 10."
        )
    answers = np.array(y)
    answers[:] = answers[:1]
    drawn = np.random.default_rng(seed).integers(k, size=len(answers))
    for fold in range(k):
        copy = model.clone({"seed": seed + fold} if "seed" in model._get_params() else {})
        start, taught = 0, False
        for test in [*np.flatnonzero(drawn == fold), len(answers)]:
            if start < test:
                copy.partial_fit(X[start:test], y[start:test])
                taught = True
            if taught and test < len(answers):
                answers[test] = copy.predict(X[test : test + 1])[0]
            start = test + 1
    return answers
