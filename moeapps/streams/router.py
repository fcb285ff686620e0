r"""The neural router of DriftMoE in numpy and numba: which experts will be right about a row?

Letters: ``N`` rows, ``B`` rows of a mini-batch, ``D`` inputs, ``H`` hidden units, ``K`` experts.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from moeapps.errors import ArgumentError
from moeapps.streams.compiling import kernel
from moeapps.streams.random_draws import uniform

# Standardised inputs further out than this carry no more information than this.
MAX_ZSCORE = 10.0
# Raw inputs are cut here, so that float32 products stay finite.
MAX_RAW = 1e6
# Moments below this move no weight; as denormal numbers they would slow every step down.
TINY = np.float32(1e-30)
BETA1, BETA2, EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)

# Rows of `Router.scaler`, per input.
COUNT, MEAN, SQUARES = range(3)
# Rows of `Router.parameters`.
WEIGHTS, FIRST, SECOND = range(3)


class Layers(NamedTuple):
    """Weights and biases of the three layers, or anything of the same shapes."""

    w1: np.ndarray  # [D, H]
    b1: np.ndarray
    w2: np.ndarray  # [H, H/2]
    b2: np.ndarray
    w3: np.ndarray  # [H/2, K]
    b3: np.ndarray


class Batch(NamedTuple):
    """What the rows of a mini-batch leave for its step."""

    x: np.ndarray  # [B, D]
    h1: np.ndarray  # [B, H]
    h2: np.ndarray  # [B, H/2]
    z: np.ndarray  # [B, K] logits
    m: np.ndarray  # [B, K] targets


class Router:
    r"""MLP that tells experts that will be right from those that will be wrong, trained online.

    .. math::
        z = W_3\,\mathrm{relu}(W_2\,\mathrm{relu}(W_1 x + b_1) + b_2) + b_3, \qquad
        L = \frac{1}{BK} \sum_{b,i} \mathrm{BCE}(\sigma(z_{b,i}), m_{b,i})

    One Adam step per full mini-batch; inside a mini-batch the weights are constant. With
    ``zscore`` the inputs are standardised by the mean and variance of the rows before them.
    ``weights`` are views: writing to them changes the router.

    Args:
        num_numeric: Numeric inputs.
        num_nominal: Nominal inputs, which follow and enter as their codes.
        num_outputs: ``K``.
        hidden: ``H``; the second hidden layer is half as wide.
        batch_size: ``B``.
        lr: Learning rate of Adam.
        dropout: Share of the first hidden layer that a step drops; logits never see it.
        zscore: Standardise inputs; otherwise they enter as they are.
        seed: Of the Xavier-uniform weights and of dropout.

    Shape:
        - rows ``[N, D]`` -> logits ``[N, K]``; targets ``[N, K]``

    Notes:
        Missing, infinite and constant inputs enter as 0. Standardised inputs are cut at 10 standard
        deviations, raw ones at a million. New inputs start with zero weights, so that they change
        nothing at first; new outputs start like the first ones.

    Example:
        >>> rows = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, 1.0]])
        >>> router = Router(2, 0, 3, batch_size=2, seed=1)
        >>> logits = router.take(rows[:2])
        >>> router.teach(np.array([[1, 0, 0], [0, 1, 0]]))
        >>> router.steps, router.room, router.logits(rows).shape
        (1, 2, (3, 3))
    """

    def __init__(
        self,
        num_numeric: int,
        num_nominal: int,
        num_outputs: int,
        *,
        hidden: int = 256,
        batch_size: int = 256,
        lr: float = 2e-3,
        dropout: float = 0.0,
        zscore: bool = True,
        seed: int = 0,
    ) -> None:
        if hidden < 2 or batch_size < 1:
            raise ArgumentError(
                f"hidden={hidden}, batch_size={batch_size} leave nothing to train. Expected at "
                "least 2 hidden units and 1 row; raise them."
            )
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout={dropout} is not in [0, 1). Choose 0 to drop nothing.")
        self.num_numeric, self.num_nominal = num_numeric, num_nominal
        self.num_outputs, self.hidden = num_outputs, hidden
        self.batch_size, self.lr, self.dropout = batch_size, lr, dropout
        self.zscore, self.seed = zscore, seed
        self.steps = 0
        self.filled = 0  # rows of the mini-batch that have their targets
        self.taken = 0  # rows after those that wait for theirs
        self.scaler = np.zeros((3, self.num_inputs))
        rng = np.random.default_rng(seed)
        start = Layers(
            w1=_xavier(rng, self.num_inputs, hidden),
            b1=np.zeros(hidden),
            w2=_xavier(rng, hidden, hidden // 2),
            b2=np.zeros(hidden // 2),
            w3=self._output_columns(0, num_outputs),
            b3=np.zeros(num_outputs),
        )
        self._pack([start])
        self._new_batch()

    @property
    def num_inputs(self) -> int:
        """``D``."""
        return self.num_numeric + self.num_nominal

    @property
    def room(self) -> int:
        """How many rows the mini-batch still takes."""
        return self.batch_size - self.filled

    def set_weights(self, weights: Layers) -> None:
        """Start from these weights (a warm start); Adam's memory is cleared."""
        for mine, given in zip(self.weights, weights, strict=True):
            if mine.shape != np.shape(given):
                raise ArgumentError(
                    f"Got weights of shape {np.shape(given)} for a layer of {mine.shape}. Give "
                    "the weights of a router of the same width, inputs and outputs."
                )
            mine[...] = given
        self.forget()

    def forget(self) -> None:
        """Clear Adam's memory, as if it were made anew."""
        self.parameters[FIRST:] = 0
        self.steps = 0

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Scores of rows that teach nothing."""
        scored = self._empty_batch(len(rows))
        standardise_rows(self.scaler, self.zscore, False, rows, scored.x)
        self._score(scored)
        return scored.z

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Scores of rows that enter the mini-batch; at most ``room`` of them, then `teach`."""
        taken = self._part(self.filled, self.filled + len(rows))
        standardise_rows(self.scaler, self.zscore, True, rows, taken.x)
        self._score(taken)
        self.taken = len(rows)
        return taken.z

    def choose(self, logits: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best experts of each row, best first, ``[N, k]``."""
        return top_k(logits, k)

    def teach(self, targets: np.ndarray) -> None:
        """Which experts were right, ``[N, K]``, for the rows taken last; may make a step."""
        self.batch.m[self.filled : self.filled + self.taken] = targets
        self.filled += self.taken
        self.taken = 0
        if self.filled == self.batch_size:
            self._step()
            self.filled = 0

    def _score(self, rows: Batch) -> None:
        _hidden(self.weights, rows.x, rows.h1, rows.h2, rows.z)

    def _step(self) -> None:
        layers, grads = self.weights, self._gradients
        x, h1, h2, z, m = self.batch
        if self.dropout:
            keep = self._kept()
            h1 = h1 * keep
            h2 = np.maximum(h1 @ layers.w2 + layers.b2, 0)
            z = h2 @ layers.w3 + layers.b3
        # sigmoid(z) = (1 + tanh(z/2)) / 2 never overflows
        d3 = ((1 + np.tanh(z / 2)) / 2 - m) / np.float32(z.size)
        d2 = d3 @ layers.w3.T
        d2 *= h2 > 0
        d1 = d2 @ layers.w2.T
        d1 *= keep * (h1 > 0) if self.dropout else h1 > 0
        for inputs, d, w, b in ((x, d1, grads[0], grads[1]), (h1, d2, *grads[2:4])):
            np.dot(inputs.T, d, out=w)
            d.sum(0, out=b)
        np.dot(h2.T, d3, out=grads.w3)
        d3.sum(0, out=grads.b3)
        self.steps += 1
        _adam(self.parameters, self._gradient, self.lr, self.steps)

    def _kept(self) -> np.ndarray:
        keep = np.empty_like(self.batch.h1)
        _drop(self.seed, self.steps, self.dropout, keep)
        return keep

    def grow(
        self, num_numeric: int, num_nominal: int, num_outputs: int, *, target: float = 0.0
    ) -> None:
        """Take more inputs, numeric ones before nominal ones, or more outputs.

        Args:
            num_numeric: The new number of numeric inputs.
            num_nominal: The new number of nominal inputs.
            num_outputs: The new ``K``.
            target: Of new outputs for rows already in the mini-batch.
        """
        numeric, nominal = num_numeric - self.num_numeric, num_nominal - self.num_nominal
        outputs = num_outputs - self.num_outputs
        if not (numeric or nominal or outputs):
            return
        places = [self.num_numeric] * numeric + [self.num_numeric + self.num_nominal] * nominal
        w3 = self._output_columns(self.num_outputs, outputs, total=num_outputs)
        grown = [
            layers._replace(
                w1=np.insert(layers.w1, places, 0, axis=0),
                w3=np.hstack([layers.w3, w3 if row == WEIGHTS else np.zeros_like(w3)]),
                b3=np.append(layers.b3, np.zeros(outputs)),
            )
            for row, layers in enumerate(map(self._layers, self.parameters))
        ]
        x = np.insert(self.batch.x[: self.filled], places, 0, axis=1)
        m = np.insert(self.batch.m[: self.filled], [self.num_outputs] * outputs, target, axis=1)
        self.scaler = np.insert(self.scaler, places, 0, axis=1)
        self.num_numeric, self.num_nominal = num_numeric, num_nominal
        self.num_outputs = num_outputs
        self._pack(grown)
        self._new_batch()
        self._refill(x, m)

    def state(self) -> dict[str, Any]:
        """Everything that a router built with the same arguments needs to go on from here."""
        return {
            "parameters": self.parameters,
            "scaler": self.scaler,
            "steps": self.steps,
            "x": self.batch.x[: self.filled],
            "m": self.batch.m[: self.filled],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.parameters[...] = state["parameters"]
        self.scaler[...] = state["scaler"]
        self.steps = int(state["steps"])
        self._refill(state["x"], state["m"])

    def __getstate__(self) -> dict[str, Any]:
        """Without working memory."""
        made = ("batch", "weights", "_gradient", "_gradients")
        kept = {k: v for k, v in vars(self).items() if k not in made}
        return kept | {"waiting": (self.batch.x[: self.filled], self.batch.m[: self.filled])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        waiting = state.pop("waiting")
        self.__dict__.update(state)
        self._view()
        self._new_batch()
        self._refill(*waiting)

    def _refill(self, x: np.ndarray, m: np.ndarray) -> None:
        self.filled = len(x)
        rows = self._part(0, self.filled)
        rows.x[...] = x
        rows.m[...] = m
        self._score(rows)

    def _pack(self, rows: list[Layers]) -> None:
        """Keep the weights and the moments (0 if not given) in one array each."""
        width = sum(part.size for part in rows[0])
        self.parameters = np.zeros((3, width), np.float32)
        for row, layers in zip(self.parameters, rows, strict=False):
            row[:] = np.concatenate([part.ravel() for part in layers])
        self._view()

    def _view(self) -> None:
        """Name the parts of the arrays that hold the weights and their gradient."""
        self._gradient = np.zeros_like(self.parameters[WEIGHTS])
        self._gradients = self._layers(self._gradient)
        self.weights = self._layers(self.parameters[WEIGHTS])

    def _layers(self, flat: np.ndarray) -> Layers:
        wide, half, outputs = self.hidden, self.hidden // 2, self.num_outputs
        shapes = ((self.num_inputs, wide), (wide,), (wide, half), (half,), (half, outputs))
        parts, start = [], 0
        for shape in (*shapes, (outputs,)):
            end = start + math.prod(shape)
            parts.append(flat[start:end].reshape(shape))
            start = end
        return Layers(*parts)

    def _empty_batch(self, rows: int) -> Batch:
        outputs = self.num_outputs
        widths = (self.num_inputs, self.hidden, self.hidden // 2, outputs, outputs)
        return Batch(*(np.empty((rows, width), np.float32) for width in widths))

    def _part(self, start: int, end: int) -> Batch:
        return Batch(*(part[start:end] for part in self.batch))

    def _new_batch(self) -> None:
        self.batch = self._empty_batch(self.batch_size)
        self.filled = 0

    def _output_columns(self, first: int, count: int, total: int | None = None) -> np.ndarray:
        """Weights of new outputs, each with draws of its own."""
        half = self.hidden // 2
        limit = np.sqrt(6 / (half + (total or count)))
        columns = [
            np.random.default_rng((self.seed, c)).uniform(-limit, limit, half)
            for c in range(first, first + count)
        ]
        return np.array(columns).reshape(count, half).T


def _xavier(rng: np.random.Generator, fan_in: int, fan_out: int) -> np.ndarray:
    limit = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_in, fan_out))


@kernel
def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Indices of the ``k`` largest of each row, best first; the lowest index wins a tie."""
    chosen = np.empty((logits.shape[0], k), np.int64)
    for n in range(logits.shape[0]):
        row = logits[n]
        filled = 0
        for i in range(row.shape[0]):
            place = filled
            while place > 0 and row[chosen[n, place - 1]] < row[i]:
                place -= 1
            if place < k:
                filled = min(filled + 1, k)
                for j in range(filled - 1, place, -1):
                    chosen[n, j] = chosen[n, j - 1]
                chosen[n, place] = i
    return chosen


@kernel
def standardise_rows(
    scaler: np.ndarray, zscore: bool, learn: bool, rows: np.ndarray, x: np.ndarray
) -> None:
    """Row by row; with ``learn`` the scaler sees each row after standardising it."""
    for n in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            x[n, j] = _standardise(scaler, zscore, j, rows[n, j])
            if learn and zscore and np.isfinite(rows[n, j]):
                scaler[COUNT, j] += 1
                distance = rows[n, j] - scaler[MEAN, j]
                scaler[MEAN, j] += distance / scaler[COUNT, j]
                scaler[SQUARES, j] += distance * (rows[n, j] - scaler[MEAN, j])


@kernel
def _standardise(scaler: np.ndarray, zscore: bool, j: int, value: float) -> float:
    if not np.isfinite(value):
        return 0.0
    if not zscore:
        return min(max(value, -MAX_RAW), MAX_RAW)
    if not scaler[SQUARES, j] > 0:
        return 0.0
    score = (value - scaler[MEAN, j]) / np.sqrt(scaler[SQUARES, j] / scaler[COUNT, j])
    return min(max(score, -MAX_ZSCORE), MAX_ZSCORE) if np.isfinite(score) else 0.0


@kernel
def _hidden(layers: Layers, x: np.ndarray, h1: np.ndarray, h2: np.ndarray, z: np.ndarray) -> None:
    """Row by row, so that a row's bits depend on nothing but the row."""
    used = np.empty(max(x.shape[1], h1.shape[1]), np.int64)
    for n in range(x.shape[0]):
        _linear(x[n], layers.w1, layers.b1, h1[n], used)
        _relu(h1[n])
        _linear(h1[n], layers.w2, layers.b2, h2[n], used)
        _relu(h2[n])
        _linear(h2[n], layers.w3, layers.b3, z[n], used)


@kernel
def _linear(x: np.ndarray, w: np.ndarray, b: np.ndarray, out: np.ndarray, used: np.ndarray) -> None:
    """``x @ w + b`` along the rows of ``w``; zeros (half of a relu's outputs) are skipped."""
    count = 0
    for i in range(x.shape[0]):
        used[count] = i
        count += x[i] != 0
    for j in range(out.shape[0]):
        out[j] = b[j]
    last = count - count % 4
    for i in range(0, last, 4):  # four at a time: `out` is read and written less often
        i0, i1, i2, i3 = used[i], used[i + 1], used[i + 2], used[i + 3]
        x0, x1, x2, x3 = x[i0], x[i1], x[i2], x[i3]
        w0, w1, w2, w3 = w[i0], w[i1], w[i2], w[i3]
        for j in range(out.shape[0]):
            out[j] = out[j] + x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
    for i in range(last, count):
        xi, wi = x[used[i]], w[used[i]]
        for j in range(out.shape[0]):
            out[j] += xi * wi[j]


@kernel
def _relu(a: np.ndarray) -> None:
    for j in range(a.shape[0]):
        a[j] = max(a[j], np.float32(0))


@kernel
def _drop(seed: int, step: int, rate: float, keep: np.ndarray) -> None:
    """0 where dropped, 1 / (1 - rate) elsewhere."""
    for b in range(keep.shape[0]):
        for j in range(keep.shape[1]):
            drawn = uniform(seed, b * keep.shape[1] + j, step)
            keep[b, j] = 0.0 if drawn < rate else 1 / (1 - rate)


@kernel
def _adam(parameters: np.ndarray, gradient: np.ndarray, lr: float, t: int) -> None:
    weights, first, second = parameters[WEIGHTS], parameters[FIRST], parameters[SECOND]
    size = np.float32(lr / (1 - 0.9**t))
    unbias = np.float32(1 / np.sqrt(1 - 0.999**t))
    one = np.float32(1)
    for i in range(weights.shape[0]):
        g = gradient[i]
        m = BETA1 * first[i] + (one - BETA1) * g
        v = BETA2 * second[i] + (one - BETA2) * g * g
        first[i] = m if abs(m) > TINY else np.float32(0)
        second[i] = v if v > TINY else np.float32(0)
        weights[i] -= size * m / (np.sqrt(v) * unbias + EPSILON)
