"""The router of DriftMoE on torch and the shared gating core."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.gating.losses import bce_correct
from moeapps.gating.selections import topk
from moeapps.streams.router import FIRST, SECOND, Batch, Router


class TorchRouter(Router):
    """`Router` whose scores, choice, loss and step are torch's; the weights share its memory.

    Same arguments, same start, same state: what one router saved the other can restore.

    Notes:
        Much slower than the compiled router. It scores one row at a time, as a product of many rows
        may differ from that of one in the last bit, and then a model would not predict the same
        through all of its interfaces.

    Example:
        >>> rows = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, 1.0]])
        >>> router, same = TorchRouter(2, 0, 3, seed=1), Router(2, 0, 3, seed=1)
        >>> bool(np.allclose(router.logits(rows), same.logits(rows)))
        True
    """

    def choose(self, logits: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best experts of each row, best first, ``[N, k]``."""
        indices = topk(torch.from_numpy(logits), k, score="identity").indices
        assert indices is not None
        return indices.numpy()

    def _score(self, rows: Batch) -> None:
        layers = [torch.from_numpy(part) for part in self.weights]
        x, h1, h2, z, _ = (torch.from_numpy(part) for part in rows)
        with torch.inference_mode():
            for n in range(len(x)):
                h1[n] = _hidden(x[n], *layers[:2])
                h2[n] = _hidden(h1[n], *layers[2:4])
                z[n] = h2[n] @ layers[4] + layers[5]

    def _step(self) -> None:
        layers = [torch.from_numpy(part).requires_grad_() for part in self.weights]
        h1 = _hidden(torch.from_numpy(self.batch.x), *layers[:2])
        if self.dropout:
            h1 = h1 * torch.from_numpy(self._kept())
        logits = _hidden(h1, *layers[2:4]) @ layers[4] + layers[5]
        bce_correct(logits, torch.from_numpy(self.batch.m)).backward()
        adam = torch.optim.Adam(layers, self.lr)
        moments = (self._layers(self.parameters[row]) for row in (FIRST, SECOND))
        for layer, first, second in zip(layers, *moments, strict=True):
            adam.state[layer] = {
                "step": torch.tensor(float(self.steps)),
                "exp_avg": torch.from_numpy(first),
                "exp_avg_sq": torch.from_numpy(second),
            }
        adam.step()
        self.steps += 1


def _hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(x @ weight + bias)
