"""Losses and class weights that several methods for long tails share.

Letters: ``B`` images, ``K`` experts, ``C`` classes; ``n_j`` training images of class ``j``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_prior(class_counts: Tensor) -> Tensor:
    r"""Logarithm of the share of every class in training, ``[C]``: :math:`\log(n_j / N)`.

    Example:
        >>> log_prior(torch.tensor([3, 1])).exp()
        tensor([0.7500, 0.2500])
    """
    counts = class_counts.to(torch.float32)
    return counts.log() - counts.sum().log()


def logit_adjusted_cross_entropy(
    logits: Tensor, target: Tensor, log_prior: Tensor, lam: float = 1.0
) -> Tensor:
    r"""Cross-entropy after adding the training prior to the logits.

    .. math:: \mathrm{CE}(z + \lambda \log \pi,\ y)

    Trained so, ``z`` implies a test prior proportional to :math:`\pi^{1 - \lambda}`: 0 is plain
    cross-entropy, 1 Balanced Softmax (uniform), 2 and 3 favour the rare classes.

    Args:
        logits: ``[B, C]``.
        target: int64 ``[B]``.
        log_prior: ``[C]``; ``log(class_counts)`` gives the same.
        lam: Lambda.

    Notes:
        Departures from the papers: no epsilon inside the logarithm (it would shift the rarest
        classes).

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021; Ren et al., *Balanced
        Meta-Softmax*, NeurIPS 2020.

    Example:
        >>> prior = torch.tensor([0.75, 0.25]).log()
        >>> logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), prior).exp()
        tensor(4.)
    """
    return F.cross_entropy(logits + lam * log_prior, target)


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    r"""A margin per class, largest for the rarest.

    .. math:: m_j = m_{\max}\, n_j^{-1/4} / \max_i n_i^{-1/4}

    Example:
        >>> ldam_margins(torch.tensor([16, 1]))
        tensor([0.2500, 0.5000])
    """
    margins = class_counts.to(torch.float32) ** -0.25
    return max_margin * margins / margins.max()


def ldam_cross_entropy(
    logits: Tensor,
    target: Tensor,
    margins: Tensor,
    scale: float = 30.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy with a margin on the true class.

    .. math:: \mathrm{CE}(z - s\, m_y\, 1_y,\ y;\ w)

    Args:
        logits: ``[B, C]``, already multiplied by the classifier's scale ``s``.
        target: int64 ``[B]``.
        margins: ``[C]``, see `ldam_margins`.
        scale: ``s``: 30 for the cosine classifier, 1 for a linear one.
        weight: Of every class, ``[C]``; the mean divides by the sum of the targets' weights.

    References:
        Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*,
        NeurIPS 2019.

    Example:
        >>> logits, target = torch.tensor([[15.0, 0.0]]), torch.tensor([0])
        >>> ldam_cross_entropy(logits, target, torch.tensor([0.5, 0.5]))  # log(2)
        tensor(0.6931)
    """
    less = with_margins(logits, target, margins, scale)
    return F.cross_entropy(less, target, None if weight is None else weight.to(less.dtype))


def with_margins(logits: Tensor, target: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Logits ``[B, C]`` less ``scale`` times the margin at the true class."""
    true = F.one_hot(target, logits.shape[-1]).to(margins.dtype)
    return logits - scale * margins * true


def drw_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Class weights by effective number, for deferred re-weighting; they sum to ``C``.

    .. math:: w_j \propto (1 - \beta) / (1 - \beta^{n_j})

    References:
        Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019.

    Example:
        >>> drw_weights(torch.tensor([2, 1]), beta=0.5)  # 2/3 to 1
        tensor([0.8000, 1.2000])
    """
    counts = class_counts.to(torch.float64)
    weights = (1 - beta) / (1 - beta**counts)
    return (len(counts) * weights / weights.sum()).to(torch.float32)


def temperatures(class_counts: Tensor, epsilon: float = 0.05) -> Tensor:
    r"""Temperature of every class in the diversity term, ``[C]``; 1 for the most frequent.

    .. math:: T_j = a_j / \max_i a_i, \qquad a_j = C\, \pi_j\, \epsilon + 1 - \epsilon

    Example:
        >>> temperatures(torch.tensor([3, 1]), epsilon=0.5)  # a = 1.25, 0.75
        tensor([1.0000, 0.6000])
    """
    prior = log_prior(class_counts).exp()
    a = len(prior) * prior * epsilon + 1 - epsilon
    return a / a.max()


def diversity_kl(
    logits: Tensor, temperature: Tensor | float = 1.0, mean_logits: Tensor | None = None
) -> Tensor:
    r"""How far each expert's prediction is from that of the mean logits.

    .. math:: \bar T^2\ \mathrm{KL}\big(\mathrm{softmax}(\bar z / T)\ \|\
        \mathrm{softmax}(z_k / T)\big)

    Args:
        logits: ``[B, K, C]``.
        temperature: One number, or one per class ``[C]`` (the logits are divided class by class).
        mean_logits: What the experts are compared with, ``[B, C]``; their mean by default. No
            gradient flows into it.

    Returns:
        ``[B, K]``, one divergence per image and expert. ``.mean(0)`` is the "batchmean".

    Example:
        >>> z = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> diversity_kl(z)  # KL of (1/2, 1/2) from (0.88, 0.12)
        tensor([[0.4338, 0.4338]])
    """
    mean = (logits.mean(1) if mean_logits is None else mean_logits).detach()
    t = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    target = F.log_softmax(mean / t, -1).unsqueeze(1)
    divergence = target.exp() * (target - F.log_softmax(logits / t, -1))
    return t.mean() ** 2 * divergence.sum(-1)
