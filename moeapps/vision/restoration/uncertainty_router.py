"""Router scores under Monte-Carlo dropout: several passes, and what their spread says."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError

Mode = Literal["mean", "temper", "whiten"]
MODES = ("mean", "temper", "whiten")


class UncertaintyRouter(nn.Module):
    r"""A linear score whose input is dropped out several times.

    With :math:`z_m = W\,\mathrm{drop}_p(x) + b` for :math:`m = 1..M`, mean :math:`\bar z` and
    variance :math:`s^2` over the passes, the logits are

    .. math::
        \text{mean: } \log \tfrac1M \textstyle\sum_m \mathrm{softmax}(z_m) \qquad
        \text{temper: } \bar z \big/ \sqrt{1 + \tfrac{\pi}{8} s^2} \qquad
        \text{whiten: } \check r / \|\check r\|_2,\;
        \check r = (\Sigma + \lambda I)^{-1}(\mathrm{softmax}(Wx + b) - \mu)

    where :math:`\mu, \Sigma` are mean and covariance of the probabilities of the passes and
    :math:`\lambda = 10^{-3}\,\mathrm{tr}\,\Sigma / N + 10^{-6}`. It is a score for a
    :class:`~moeapps.gating.Gate`, whose softmax or top-k makes weights of the logits: in mode
    ``"mean"`` exactly the mean probabilities, made to sum to 1 over those chosen.

    Args:
        dim: ``D``.
        num_experts: ``N``.
        p: Probability that an entry of the input is dropped. With 0 this is a plain linear router.
        samples: ``M``, passes in training.
        mode: What becomes of the passes. ``"whiten"`` is experimental.
        eval_samples: Passes in eval mode; 0 for one pass without dropout, which is deterministic.

    Attributes:
        uncertainty: Mean over the rows of the last sampled call of the variance of the
            probabilities, averaged over experts; a scalar for logging, not saved.

    Shape:
        - x ``[*L, D]``; logits ``[*L, N]``; the same variance per row ``[*L]`` in
          ``extra["variance"]`` of the routing

    Raises:
        ArgumentError: For a number that cannot be, or an unknown mode.

    Notes:
        Departures from the paper: it takes ``whiten`` without a ridge, which has no inverse unless
        there are more passes than experts, and routes by the signed vector itself; here the gate
        makes a distribution of it. ``mean`` and ``temper`` are ours.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> from moeapps.gating import Gate, topk
        >>> gate = Gate(UncertaintyRouter(16, 4, p=0.2), topk(2))
        >>> routing = gate(torch.randn(3, 16))
        >>> routing.weights.shape, routing.extra["variance"].shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    uncertainty: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        p: float = 0.1,
        samples: int = 5,
        mode: Mode = "mean",
        eval_samples: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= p < 1 or samples < 1 or eval_samples < 0:
            raise ArgumentError(
                f"p={p}, samples={samples}, eval_samples={eval_samples} make no sample. "
                "Choose 0 <= p < 1, samples >= 1 and eval_samples >= 0."
            )
        if mode not in MODES:
            raise ArgumentError(f"mode={mode!r} is unknown. Choose one of {', '.join(MODES)}.")
        self.linear = nn.Linear(dim, num_experts)
        self.p, self.samples, self.mode, self.eval_samples = p, samples, mode, eval_samples
        self.register_buffer("uncertainty", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the variance per row where passes were drawn."""
        samples = self.samples if self.training else self.eval_samples
        if self.p == 0 or samples == 0:
            return self.linear(x)
        passes = self.linear(F.dropout(x.expand(samples, *x.shape), self.p))  # [M, *L, N]
        probs = passes.softmax(-1)
        variance = probs.detach().var(0, unbiased=False).mean(-1)
        with torch.no_grad():
            self.uncertainty.copy_(variance.mean())
        return self._logits(x, passes, probs), {"variance": variance}

    def _logits(self, x: Tensor, passes: Tensor, probs: Tensor) -> Tensor:
        if self.mode == "mean":
            return passes.log_softmax(-1).logsumexp(0) - math.log(passes.shape[0])
        if self.mode == "temper":
            spread = passes.var(0, unbiased=False)
            return passes.mean(0) / (1 + math.pi / 8 * spread).sqrt()
        centre = probs.mean(0)
        return F.normalize(whitened(self.linear(x).softmax(-1) - centre, probs - centre), dim=-1)

    def extra_repr(self) -> str:
        """The options, for printing."""
        return f"p={self.p}, samples={self.samples}, mode={self.mode!r}"


def whitened(v: Tensor, spread: Tensor) -> Tensor:
    r"""``(S'S/M + lambda I)^{-1} v`` without the matrix of experts, by Woodbury's identity.

    .. math:: (S^\top S / M + \lambda I)^{-1} v
        = \big(v - S^\top (M \lambda I + S S^\top)^{-1} S v\big) / \lambda

    Args:
        v: ``[*L, N]``.
        spread: ``S``, centred passes ``[M, *L, N]``.
    """
    s = spread.movedim(0, -2)  # [*L, M, N]
    samples, num_experts = s.shape[-2:]
    trace = s.square().sum((-1, -2), keepdim=True) / samples
    ridge = 1e-3 * trace / num_experts + 1e-6
    identity = torch.eye(samples, dtype=s.dtype, device=s.device)
    gram = s @ s.transpose(-1, -2) + samples * ridge * identity
    inside = torch.linalg.solve(gram, s @ v.unsqueeze(-1))
    return ((v.unsqueeze(-1) - s.transpose(-1, -2) @ inside) / ridge).squeeze(-1)
