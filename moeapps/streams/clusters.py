"""Clusters of a sample of a stream, their number chosen by silhouette."""

from typing import Any, Self

import numpy as np

from moeapps.errors import UnknownNameError
from moeapps.streams.compiling import kernel

KINDS = ("kmeans", "gmm")
# Principal components of less variance are rounding.
LEAST_VARIANCE = 1e-9


class Clusters:
    r"""Mixture of Gaussians in a whitened space; k-means is the one with unit covariances.

    .. math:: c(x) = \arg\max_c \; b_c - \tfrac12 \lVert (u - \mu_c) A_c \rVert^2, \quad
        u = (x - \bar x)\, W

    where ``W`` standardises the columns and whitens their principal components.

    Args:
        centre: ``[D]`` :math:`\bar x`; also stands in for missing values.
        whitening: ``[D, U]`` ``W``.
        means: ``[C, U]``.
        roots: ``[C, U, U]`` ``A``, with :math:`A A^T` the inverse covariance.
        offsets: ``[C]`` ``b``: logarithms of weight and height.

    Example:
        >>> rows = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
        >>> clusters = Clusters.fit(rows, "kmeans", most=3, seed=0)
        >>> clusters.count, clusters.of(rows).tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
        (2, True)
    """

    def __init__(
        self,
        centre: np.ndarray,
        whitening: np.ndarray,
        means: np.ndarray,
        roots: np.ndarray,
        offsets: np.ndarray,
    ) -> None:
        self.centre, self.whitening = centre, whitening
        self.means, self.roots, self.offsets = means, roots, offsets

    @classmethod
    def fit(cls, sample: np.ndarray, kind: str, *, most: int, seed: int) -> Self:
        """The best of 2 to ``most`` clusters by mean silhouette; one if fewer than 3 rows differ.

        Args:
            sample: ``[N, D]``.
            kind: ``"kmeans"`` or ``"gmm"`` (full covariances).
            most: Largest number of clusters to try.
            seed: Of the starts of the clustering.
        """
        from sklearn.metrics import silhouette_score

        if kind not in KINDS:
            raise UnknownNameError("clustering", kind, KINDS)
        known = np.isfinite(sample)
        count = np.maximum(known.sum(0), 1)
        centre = np.where(known, sample, 0).sum(0) / count
        moved = np.where(known, sample - centre, 0)
        sd = np.sqrt((moved**2).sum(0) / count)
        scale = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
        _, singular, components = np.linalg.svd(moved * scale, full_matrices=False)
        variance = singular**2 / max(len(sample) - 1, 1)
        kept = variance > LEAST_VARIANCE  # the standardised columns have variance 1
        whitening = scale[:, None] * (components[kept].T / np.sqrt(variance[kept]))
        whitened = moved @ whitening
        different = len(np.unique(whitened, axis=0))
        best, model = -np.inf, None
        for k in range(2, min(most, different - 1) + 1):
            tried = _model(kind, k, seed)
            labels = tried.fit_predict(whitened)
            if len(np.unique(labels)) < 2:
                continue
            score = silhouette_score(whitened, labels)
            if score > best:
                best, model = score, tried
        if kind == "kmeans" or model is None:
            means = np.zeros_like(whitened[:1]) if model is None else model.cluster_centers_
            roots = np.tile(np.eye(means.shape[1]), (len(means), 1, 1))
            offsets = np.zeros(len(means))
        else:
            means, roots = model.means_, model.precisions_cholesky_
            heights = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
            offsets = np.log(model.weights_) + heights
        parts = (centre, whitening, means, roots, offsets)
        return cls(*map(np.ascontiguousarray, parts))

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.means)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Cluster of each row ``[N]``."""
        clusters = np.empty(len(rows), np.int64)
        _assign(rows, self.centre, self.whitening, self.means, self.roots, self.offsets, clusters)
        return clusters

    def grow(self, places: list[int]) -> None:
        """Leave out of account new columns that stand before these ones."""
        self.centre = np.insert(self.centre, places, 0.0)
        self.whitening = np.insert(self.whitening, places, 0.0, axis=0)

    def state(self) -> dict[str, np.ndarray]:
        """The arguments to make it again."""
        return dict(vars(self))


def _model(kind: str, k: int, seed: int) -> Any:
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    if kind == "kmeans":
        return KMeans(k, n_init=10, random_state=seed)
    return GaussianMixture(k, covariance_type="full", random_state=seed)


@kernel
def _assign(
    rows: np.ndarray,
    centre: np.ndarray,
    whitening: np.ndarray,
    means: np.ndarray,
    roots: np.ndarray,
    offsets: np.ndarray,
    clusters: np.ndarray,
) -> None:
    """Row by row, so that a row's cluster depends on nothing but the row."""
    width = whitening.shape[1]
    white = np.empty(width)
    for n in range(rows.shape[0]):
        white[:] = 0.0
        for j in range(rows.shape[1]):
            moved = rows[n, j] - centre[j]
            if np.isfinite(moved):
                for u in range(width):
                    white[u] += moved * whitening[j, u]
        best = -np.inf
        clusters[n] = 0
        for c in range(means.shape[0]):
            distance = 0.0
            for v in range(width):
                part = 0.0
                for u in range(width):
                    part += (white[u] - means[c, u]) * roots[c, u, v]
                distance += part * part
            score = offsets[c] - 0.5 * distance
            if score > best:
                best = score
                clusters[n] = c
