"""What to make of the experts' logits at inference: means, priors, evidence.

An aggregator is called with all logits ``[B, K, C]`` (and features ``[B, K, D]``) and gives ``[B,
C]``. An expert whose logits for an image are not finite is left out for that image; if no expert
is left, that image's output is NaN. The weights are reported as a dense routing ``[B, K]``.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import Constant, Routing, combine, dempster, report_routing, softmax
from moeapps.vision.longtail.evidence import Conflict, log_engagement
from moeapps.vision.longtail.losses import log_prior

Branch = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class Aggregator(nn.Module):
    """Base: a softmax over the scores of the experts that answered, and what to mix with it."""

    skips = False
    """Whether `run` may leave branches out."""

    def score(self, logits: Tensor) -> Tensor:
        """Unnormalised log-weight of every expert, ``[B, K]``; all alike by default."""
        return logits.new_zeros(logits.shape[:2], dtype=torch.float32)

    def mix(self, logits: Tensor, routing: Routing) -> Tensor:
        """The output ``[B, C]``; the weighted sum of logits by default."""
        return combine(logits, routing)

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Aggregate ``[B, K, C]`` to ``[B, C]``."""
        routing = softmax(torch.where(answered(logits), self.score(logits), -math.inf))
        report_routing(self, routing)
        some = (routing.weights > 0).any(-1, keepdim=True)
        return torch.where(some, self.mix(logits, routing), math.nan)

    def run(self, hidden: Tensor, branch: Branch, num_experts: int) -> Tensor:
        """Call ``branch(k, hidden)`` for every expert and aggregate what they give."""
        outputs = [branch(k, hidden) for k in range(num_experts)]
        logits, features = zip(*outputs, strict=True)
        output: Tensor = self(torch.stack(logits, 1), torch.stack(features, 1))
        return output


class MeanLogits(Aggregator):
    r"""The mean of the logits: :math:`\frac{1}{K} \sum_k z_k`.

    Example:
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0], [4.0, 2.0]]]))
        tensor([[3., 1.]])
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0], [float("nan"), 2.0]]]))
        tensor([[2., 0.]])
    """


class MeanProb(Aggregator):
    r"""The mean of the probabilities, as logarithms: :math:`\log \frac{1}{K} \sum_k p_k`.

    Example:
        >>> MeanProb()(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()).exp()
        tensor([[0.3750, 0.6250]])
    """

    def mix(self, logits: Tensor, routing: Routing) -> Tensor:
        """Logarithm of the weighted mean of the softmaxes."""
        weights = routing.weights.unsqueeze(-1)
        parts = F.log_softmax(logits, -1) + weights.log()
        return torch.where(weights > 0, parts, -math.inf).logsumexp(1)


class WeightedLogits(Aggregator):
    r"""A weighted sum with the same weights for all images: :math:`\sum_k w_k z_k`.

    Args:
        weights: One positive number per expert; they are made to sum to 1.

    Notes:
        The weights are the softmax of a parameter, which SADE learns at test time.

    References:
        Zhang et al., *Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed
        Recognition*, NeurIPS 2022.

    Example:
        >>> WeightedLogits([1, 3]).weights.detach()
        tensor([0.2500, 0.7500])
    """

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        super().__init__()
        given = torch.as_tensor(weights, dtype=torch.float32)
        if given.ndim != 1 or not len(given) or not bool((given > 0).all()):
            raise ArgumentError(
                f"weights={given.tolist()}; expected one positive number per expert. A tiny one "
                "leaves an expert out."
            )
        self.gate = Constant(len(given))
        with torch.no_grad():
            self.gate.weight.copy_((given / given.sum()).log())

    @property
    def weights(self) -> Tensor:
        """``[K]``, sums to 1."""
        return self.gate.weight.softmax(0)

    def score(self, logits: Tensor) -> Tensor:
        """The parameter, for every image."""
        score: Tensor = self.gate(logits[..., 0])
        return score


class PriorCorrected(Aggregator):
    r"""Another aggregator's output, moved to a known class prior of the test data.

    .. math:: z + \log q - (1 - \bar\lambda) \log \pi

    Args:
        inner: What is corrected.
        class_counts: Of training, ``[C]``: the prior ``pi``.
        test_prior: ``q [C]``, positive; uniform without.
        lam: Mean lambda of the experts' logit adjustment in training: 0 for cross-entropy, 1 for
            Balanced Softmax and BalPoE. Post-hoc adjustment of cross-entropy by :math:`\tau \log
            \pi` is ``lam = 1 - tau``.

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021; Hong et al.,
        *Disentangling Label Distribution for Long-tailed Visual Recognition*, CVPR 2021.

    Example:
        >>> corrected = PriorCorrected(MeanLogits(), [8, 2])
        >>> corrected(torch.tensor([[[0.8, 0.2]]]).log()).softmax(-1)  # no more than the prior
        tensor([[0.5000, 0.5000]])
    """

    shift: Tensor

    def __init__(
        self,
        inner: Aggregator,
        class_counts: Sequence[int] | Tensor,
        *,
        test_prior: Sequence[float] | Tensor | None = None,
        lam: float = 0.0,
    ) -> None:
        super().__init__()
        self.inner = inner
        prior = log_prior(torch.as_tensor(class_counts))
        q = torch.ones_like(prior) if test_prior is None else torch.as_tensor(test_prior)
        q = q.to(torch.float32)
        if q.shape != prior.shape or not bool((q > 0).all()):
            raise ArgumentError(
                f"test_prior is {list(q.shape)} with smallest entry {float(q.min()):g}; expected "
                f"[{len(prior)}], all positive. Leave classes out of the result instead of "
                "giving them no mass."
            )
        self.register_buffer("shift", (q / q.sum()).log() - (1 - lam) * prior)

    @property
    def skips(self) -> bool:  # type: ignore[override]
        """As the inner aggregator."""
        return self.inner.skips

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """The inner output, shifted."""
        output: Tensor = self.inner(logits, features) + self.shift
        return output

    def run(self, hidden: Tensor, branch: Branch, num_experts: int) -> Tensor:
        """The inner output, shifted."""
        return self.inner.run(hidden, branch, num_experts) + self.shift


class Dempster(Aggregator):
    """Dempster's rule on the experts' evidence, as log-probabilities.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022.

    Example:
        >>> output = Dempster()(torch.tensor([[[9.0, 0.0], [0.0, 0.0]]]))
        >>> output.exp().round(decimals=2)
        tensor([[1., 0.]])
    """

    def mix(self, logits: Tensor, routing: Routing) -> Tensor:
        """Joint belief plus an equal share of the doubt; in float64, where doubt is not 0 yet."""
        return dempster(logits.double(), routing).log().to(logits.dtype)


class TLCSoft(Aggregator):
    r"""Experts weighted by how much doubt the experts before them left.

    .. math:: \sum_k q_k z_k, \qquad q = \mathrm{softmax}_k(w_k / \eta)

    with the engagement :math:`w_k` of :func:`moeapps.vision.longtail.evidence.log_engagement`.

    Args:
        eta: 0.2 for CIFAR, 0.5 for ImageNet.
        batch_normalised: As released: the softmax runs over the batch, not over the experts, so an
            image's logits depend on the other images. For comparisons only.
        conflict: With whom an expert can be in conflict, see `log_engagement`.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022.

    Example:
        >>> z = torch.tensor([[[6.0, 2.0], [1.0, 1.0]]]).log()  # w = 1, 0.2
        >>> TLCSoft(eta=0.8)(z)  # q = 0.7311, 0.2689
        tensor([[1.3099, 0.5067]])
    """

    def __init__(
        self, eta: float = 0.2, *, batch_normalised: bool = False, conflict: Conflict = "released"
    ) -> None:
        super().__init__()
        self.eta, self.batch_normalised, self.conflict = eta, batch_normalised, conflict

    def score(self, logits: Tensor) -> Tensor:
        """Engagement over eta; an expert that did not answer has no evidence."""
        evidence = heard(logits, NO_EVIDENCE)
        return log_engagement(evidence, self.conflict)[..., :-1].exp() / self.eta

    def mix(self, logits: Tensor, routing: Routing) -> Tensor:
        """The weighted sum; with ``batch_normalised`` by the released weights."""
        if not self.batch_normalised:
            return combine(logits, routing)
        assert routing.logits is not None
        return combine(logits, Routing(routing.logits.softmax(0), routing.num_experts))


NO_EVIDENCE = -1e4
"""A logit whose exponential is 0, but whose gradient is not NaN."""


def answered(logits: Tensor) -> Tensor:
    """Which experts gave only finite logits, bool ``[B, K]``."""
    # Zero times NaN or infinity is NaN. isfinite().all() takes ten times as long on a CPU, and an
    # early exit asks after every expert.
    return (logits.detach() * 0).sum(-1) == 0


def heard(logits: Tensor, otherwise: float) -> Tensor:
    """Logits, but one number for every class of an expert that did not answer."""
    return torch.where(answered(logits).unsqueeze(-1), logits, otherwise)
