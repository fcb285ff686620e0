"""Evidential outputs: doubt of experts, who is engaged with an image, and the evidence penalty."""

import math
from typing import Literal

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.combine import join_opinions, opinions

Conflict = Literal["released", "combined"]


def log_engagement(logits: Tensor, conflict: Conflict = "released") -> Tensor:
    r"""How much the experts before the k-th leave to it, as logarithms.

    .. math:: w_1 = 1, \qquad w_{k+1} = w_k\, \frac{u_k}{1 - Q_k}, \qquad Q_1 = 0

    with the doubt :math:`u_k` of expert k. :math:`Q_k` is its conflict with expert k - 1
    (``"released"``), or with the joint opinion of all experts before it (``"combined"``), which
    makes :math:`w_{k+1}` the doubt of the joint opinion of the first k experts.

    Args:
        logits: Of every expert; evidence is their exponential.
        conflict: With whom an expert can be in conflict.

    Shape:
        - ``[*L, K, C]`` -> ``[*L, K + 1]``; the last entry is the doubt of all experts together

    Raises:
        ArgumentError: An unknown ``conflict``, or no axis of experts.

    Notes:
        For the weights of up to three experts both forms agree; the text of the paper describes the
        joint opinion, its program compares neighbours. An expert whose logits are not finite has no
        opinion.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022.

    Example:
        >>> z = torch.tensor([[[6.0, 2.0], [1.0, 1.0]]]).log()  # evidence of two experts
        >>> [round(float(w), 4) for w in log_engagement(z)[0].exp()]  # u = 0.2, u = 0.5
        [1.0, 0.2, 0.125]
    """
    if conflict not in ("released", "combined"):
        raise ArgumentError(
            f"conflict={conflict!r}. Expected 'released' (with the expert before) or 'combined' "
            "(with the joint opinion of all before). Choose one of them."
        )
    if logits.dim() < 2:
        raise ArgumentError(
            f"log_engagement got logits {list(logits.shape)}; expected [..., experts, classes]. "
            "Keep the axis of the experts."
        )
    silent = ~logits.logsumexp(-1, keepdim=True).isfinite()
    logits = torch.where(silent, -1e30, logits)  # no evidence: doubt 1, no conflict with anybody
    beliefs, doubts = (part.unbind(-2) for part in opinions(logits))
    weights = [torch.zeros_like(doubts[0]), doubts[0]]
    before = beliefs[0], doubts[0]
    for now in zip(beliefs[1:], doubts[1:], strict=True):
        *joint, agreement = join_opinions(*before, *now)
        weights.append(weights[-1] + now[1] - agreement)
        before = now if conflict == "released" else (joint[0], joint[1])
    return torch.cat(weights, -1)


def log_uncertainty(logits: Tensor, conflict: Conflict = "released") -> Tensor:
    r"""Score for finding errors and foreign images: log doubt of all experts together.

    Shape:
        - ``[*L, K, C]`` -> ``[*L]``; the larger, the less certain

    Notes:
        The released program ranks by :math:`w_{K+1}` itself, which underflows for certain images
        and then ties; the logarithm ranks the same and does not tie.

    Example:
        >>> log_uncertainty(torch.zeros(1, 1, 4)).exp()  # four pieces of evidence, four classes
        tensor([0.5000])
    """
    return log_engagement(logits, conflict)[..., -1]


def evidential_kl(log_evidence: Tensor, target: Tensor) -> Tensor:
    r"""Divergence of the evidence for wrong classes from having none.

    .. math::
        \mathrm{KL}(\mathrm{Dir}(\tilde\alpha) \,\|\, \mathrm{Dir}(1)) =
        \ln\Gamma(\tilde S) - \ln\Gamma(C) - \sum_j \ln\Gamma(\tilde\alpha_j)
        + \sum_j (\tilde\alpha_j - 1)(\psi(\tilde\alpha_j) - \psi(\tilde S))

    with :math:`\tilde\alpha_j = e_j + 1`, but 1 for the label, and :math:`\tilde S = \sum_j
    \tilde\alpha_j`.

    Args:
        log_evidence: Logarithm of the evidence, the (margin-corrected) logits.
        target: Labels, int64.

    Shape:
        - ``[*L, C]``, ``[*L]`` -> ``[*L]``, float32 or more

    Notes:
        Computed in float64 whatever comes in: with scale 30 the evidence reaches 1e13, where
        :math:`\ln\Gamma` in float32 swallows the whole divergence.

    References:
        Sensoy et al., *Evidential Deep Learning to Quantify Classification Uncertainty*, NeurIPS
        2018; Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022.

    Example:
        >>> evidence = torch.tensor([[5.0, 1.0]])  # label 0: Dir(1, 2) from the flat Dir(1, 1)
        >>> round(float(evidential_kl(evidence.log(), torch.tensor([0]))), 4)  # ln 2 - 1/2
        0.1931
    """
    num_classes = log_evidence.shape[-1]
    wrong = torch.ones_like(log_evidence, dtype=torch.float64)
    wrong = wrong.scatter(-1, target.unsqueeze(-1), 0)
    excess = wrong * log_evidence.double().exp()  # alpha - 1
    alpha, total = excess + 1, excess.sum(-1) + num_classes
    divergence = (
        total.lgamma()
        - math.lgamma(num_classes)
        - alpha.lgamma().sum(-1)
        + (excess * (alpha.digamma() - total.digamma().unsqueeze(-1))).sum(-1)
    )
    return divergence.to(torch.promote_types(log_evidence.dtype, torch.float32))
