"""Noise for gates, in training only.

A perturbation may act before the score (:meth:`Perturbation.around`), after it
(:meth:`Perturbation.forward`), or both. Each takes a ``generator``; give None under activation
checkpointing, which restores only torch's own random state.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError

Scored = tuple[Tensor, dict[str, Tensor]]


class Perturbation(nn.Module):
    """Base of all perturbations: changes nothing."""

    def around(
        self, score: Callable[[Tensor], Scored], x: Tensor, generator: Generator | None
    ) -> Scored:
        """Run the score; override to change its input or to run it more than once."""
        return score(x)

    def forward(self, logits: Tensor, x: Tensor, generator: Generator | None = None) -> Scored:
        """Change the logits ``[*L, E]`` of the input ``x``; also gives tensors for ``extra``."""
        return logits, {}


class Gaussian(Perturbation):
    r"""Noise of one size: :math:`l + \mathrm{std} \cdot \epsilon`.

    Args:
        std: Standard deviation; ``1 / E`` by default.

    Notes:
        Departures from the paper: none.

    References:
        Riquelme et al., *Scaling Vision with Sparse Mixture of Experts*, NeurIPS 2021.

    Example:
        >>> logits, extra = Gaussian()(torch.zeros(3, 4), torch.zeros(3, 8))
        >>> extra["sigma"][0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, std: float | None = None) -> None:
        super().__init__()
        if std is not None and std < 0:
            raise ArgumentError(f"std={std} is negative. Choose std >= 0, or None for 1 / E.")
        self.std = std

    def forward(self, logits: Tensor, x: Tensor, generator: Generator | None = None) -> Scored:
        """Add the noise."""
        std = 1 / logits.shape[-1] if self.std is None else self.std
        noisy = logits + std * _normal(logits, generator)
        return noisy, {"noisy_logits": noisy, "sigma": torch.full_like(logits, std)}


class Learned(Perturbation):
    r"""Noise whose size is learned: :math:`l + \epsilon\,(\mathrm{softplus}(x W_n) + 0.01)`.

    Args:
        in_features: ``D``.
        num_experts: ``E``.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]``

    Notes:
        ``W_n`` starts at 0. ``extra["sigma"]`` holds the size, for the load loss.

    References:
        Shazeer et al., *Outrageously Large Neural Networks*, ICLR 2017.

    Example:
        >>> logits, extra = Learned(8, 4)(torch.zeros(3, 4), torch.zeros(3, 8))
        >>> extra["sigma"][0].detach()
        tensor([0.7031, 0.7031, 0.7031, 0.7031])
    """

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, in_features))

    def forward(self, logits: Tensor, x: Tensor, generator: Generator | None = None) -> Scored:
        """Add the noise."""
        sigma = F.softplus(F.linear(x, self.weight)) + 0.01
        noisy = logits + _normal(logits, generator) * sigma
        return noisy, {"noisy_logits": noisy, "sigma": sigma}


class Jitter(Perturbation):
    r"""Noise on the input of the score: :math:`x \cdot U[1 - \epsilon, 1 + \epsilon]`.

    Args:
        eps: Half width of the factor.

    Notes:
        ``routing.logits`` are those of the changed input: the score runs once.

    References:
        Fedus et al., *Switch Transformers*, JMLR 2022.

    Example:
        >>> logits, _ = Jitter().around(lambda x: (x, {}), torch.ones(2), None)
        >>> bool(((logits - 1).abs() <= 0.01).all())
        True
    """

    def __init__(self, eps: float = 0.01) -> None:
        super().__init__()
        if not 0 <= eps < 1:
            raise ArgumentError(f"eps={eps} may flip the sign of the input. Choose 0 <= eps < 1.")
        self.eps = eps

    def around(
        self, score: Callable[[Tensor], Scored], x: Tensor, generator: Generator | None
    ) -> Scored:
        """Score the changed input."""
        return score(x * (1 - self.eps + 2 * self.eps * _uniform(x, generator)))


class Gumbel(Perturbation):
    r"""Gumbel noise: :math:`l - \mathrm{scale} \cdot \log(-\log U)`.

    Args:
        scale: Size of the noise.

    Notes:
        The largest of ``l + Gumbel`` is a draw from ``softmax(l)``.

    Example:
        >>> Gumbel(0.0)(torch.ones(1, 3), torch.zeros(1, 8))[0]
        tensor([[1., 1., 1.]])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor, x: Tensor, generator: Generator | None = None) -> Scored:
        """Add the noise."""
        uniform = _uniform(logits, generator).clamp_min(torch.finfo(logits.dtype).tiny)
        noisy = logits - self.scale * uniform.log().neg().log()
        return noisy, {"noisy_logits": noisy}


class GateDropout(Perturbation):
    """Drop experts of a row with probability ``p`` and renormalise over the rest.

    Args:
        p: Probability of a drop.

    Notes:
        Dropped logits become minus infinity, so the softmax renormalises. A row that would lose
        every expert keeps all.

    References:
        Zhao et al., *Recommending What Video to Watch Next*, RecSys 2019.

    Example:
        >>> logits, _ = GateDropout(0.5)(torch.zeros(64, 4), torch.zeros(64, 8))
        >>> bool((logits.softmax(-1).sum(-1) == 1).all())
        True
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ArgumentError(f"p={p} is no drop probability. Choose 0 <= p < 1.")
        self.p = p

    def forward(self, logits: Tensor, x: Tensor, generator: Generator | None = None) -> Scored:
        """Drop experts."""
        drop = _uniform(logits, generator) < self.p
        # An expert that is masked already cannot be the one that is left.
        spared = (~drop & (logits != -math.inf)).any(-1, keepdim=True)
        return logits.masked_fill(drop & spared, -math.inf), {}


class MonteCarlo(Perturbation):
    r"""Mean of several stochastic passes of the score; their covariance goes to ``extra``.

    Each pass drops entries of the score's input. A score with dropout of its own adds to that.

    Args:
        passes: ``M``.
        dropout: Probability that an entry of the input is dropped.

    Shape:
        - ``extra["covariance"]`` ``[*L, E, E]``, over the passes, divided by ``M``

    Notes:
        Dropping the input, so that any score becomes stochastic, is our choice. The passes are
        averaged in training only.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-Aware Feature-Wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> logits, extra = MonteCarlo(4).around(lambda x: (x, {}), torch.ones(2, 3), None)
        >>> logits.shape, extra["covariance"].shape
        (torch.Size([2, 3]), torch.Size([2, 3, 3]))
    """

    def __init__(self, passes: int, dropout: float = 0.1) -> None:
        super().__init__()
        if passes < 1 or not 0 <= dropout < 1:
            raise ArgumentError(
                f"passes={passes}, dropout={dropout} make no sample. "
                "Choose passes >= 1 and 0 <= dropout < 1."
            )
        self.passes, self.dropout = passes, dropout

    def around(
        self, score: Callable[[Tensor], Scored], x: Tensor, generator: Generator | None
    ) -> Scored:
        """Score the input several times."""
        passes: list[Tensor] = []
        extra: dict[str, Tensor] = {}
        for _ in range(self.passes):
            kept = _uniform(x, generator) >= self.dropout
            logits, extra = score(torch.where(kept, x / (1 - self.dropout), 0))
            passes.append(logits)
        stacked = torch.stack(passes)
        mean = stacked.mean(0)
        spread = stacked - mean
        covariance = torch.einsum("m...i,m...j->...ij", spread, spread) / self.passes
        return mean, {**extra, "covariance": covariance}


def _normal(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.empty_like(like).normal_(generator=generator)  # torch.randn does not compile


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.empty_like(like).uniform_(generator=generator)
