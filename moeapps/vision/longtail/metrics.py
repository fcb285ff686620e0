r"""Accuracy by class frequency, calibration and diversity of experts.

Letters: ``N`` images, ``K`` experts, ``C`` classes; ``n_j`` training images of class ``j``. What is
undefined (a class without test images, an empty group) is NaN, never 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError

GROUPS = ("many", "medium", "few")


def called(output: Tensor) -> Tensor:
    """The class of the largest entry, ``[..., C] -> [...]``; -1, never right, where one is NaN.

    Example:
        >>> called(torch.tensor([[0.1, 0.9], [float("nan"), 0.0]]))
        tensor([ 1, -1])
    """
    return torch.where(output.isnan().any(-1), -1, output.argmax(-1))


def per_class_accuracy(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Share of each class's images that are right, ``[C]``; NaN for a class without images.

    Args:
        predicted: Classes ``[N]``.
        target: Classes ``[N]``.
        num_classes: ``C``.

    Example:
        >>> per_class_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
        tensor([1.0000, 0.5000,    nan])
    """
    right = torch.bincount(target[predicted == target], minlength=num_classes)
    return right / torch.bincount(target, minlength=num_classes)


def balanced_accuracy(predicted: Tensor, target: Tensor, num_classes: int) -> float:
    """Mean of the per-class accuracies of the classes that have images.

    Example:
        >>> balanced_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
        0.75
    """
    return float(per_class_accuracy(predicted, target, num_classes).nanmean())


def class_groups(class_counts: Tensor, *, many: float = 100, few: float = 20) -> dict[str, Tensor]:
    """Which classes have many, medium and few training images, bool ``[C]`` each.

    Args:
        class_counts: ``n_j``, ``[C]``.
        many: More than this are many.
        few: Less than this are few.

    Raises:
        ArgumentError: The thresholds cross.

    Example:
        >>> groups = class_groups(torch.tensor([101, 100, 20, 19]))
        >>> [name for j in range(4) for name in groups if groups[name][j]]
        ['many', 'medium', 'medium', 'few']
    """
    if few > many + 1:
        raise ArgumentError(f"few={few} and many={many} overlap. Choose few no larger than many.")
    counts = torch.as_tensor(class_counts)
    return {
        "many": counts > many,
        "medium": (counts <= many) & (counts >= few),
        "few": counts < few,
    }


def group_accuracy(
    predicted: Tensor,
    target: Tensor,
    class_counts: Tensor,
    *,
    many: float = 100,
    few: float = 20,
) -> dict[str, float]:
    """Mean of the per-class accuracies of each group; NaN for a group without classes.

    Args:
        predicted: Classes ``[N]``.
        target: Classes ``[N]``.
        class_counts: Training images of every class ``[C]``.
        many: More than this are many; 100 for the published sets, 20 for PairDigits-LT.
        few: Less than this are few; 20, or 5 for PairDigits-LT.

    Example:
        >>> group_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([500, 9]))
        {'many': 1.0, 'medium': nan, 'few': 0.5}
    """
    accuracies = per_class_accuracy(predicted, target, len(class_counts))
    groups = class_groups(class_counts, many=many, few=few)
    return {name: float(accuracies[of.to(target.device)].nanmean()) for name, of in groups.items()}


def calibration_error(probabilities: Tensor, target: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error in equal bins of the largest probability.

    Args:
        probabilities: ``[N, C]``.
        target: Classes ``[N]``.
        bins: 10 or 15 in the literature.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> round(calibration_error(p, torch.tensor([0, 1]), bins=10), 4)  # (0.1 + 0.8) / 2
        0.45
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    found = multiclass_calibration_error(
        probabilities.float(), target, probabilities.shape[-1], n_bins=bins, norm="l1"
    )
    return float(found)


def reliability(probabilities: Tensor, target: Tensor, *, bins: int = 15) -> Tensor:
    """Mean confidence, accuracy and share of the images in each bin of confidence, ``[bins, 3]``.

    NaN where a bin has no image. Images whose probabilities are NaN are left out.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> reliability(p, torch.tensor([0, 1]), bins=2)
        tensor([[   nan,    nan, 0.0000],
                [0.8500, 0.5000, 1.0000]])
    """
    confidence, predicted = probabilities.float().max(-1)
    confidence, predicted, target = (
        v[~confidence.isnan()] for v in (confidence, predicted, target)
    )
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    size = torch.bincount(place, minlength=bins)
    right = (predicted == target).float()
    means = [torch.bincount(place, weights=w, minlength=bins) / size for w in (confidence, right)]
    return torch.stack([*means, size / max(len(target), 1)], 1).float()


def disagreement(logits: Tensor) -> Tensor:
    """Share of the images that two experts call differently, ``[K, K]``.

    Images to which one of the two gave NaN do not count; NaN where none is left.

    Args:
        logits: ``[N, K, C]``.

    Example:
        >>> disagreement(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]))
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    predicted = called(logits)
    one, other = predicted.unsqueeze(1), predicted.unsqueeze(2)
    both = (one >= 0) & (other >= 0)
    return ((one != other) & both).sum(0) / both.sum(0)


def pairwise_kl(logits: Tensor) -> Tensor:
    r"""Mean divergence between two experts' predictions, ``[K, K]``.

    .. math:: D_{kl} = \frac{1}{N} \sum_i \mathrm{KL}(p_{ik} \| p_{il})

    Example:
        >>> pairwise_kl(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]))
        tensor([[0.0000, 0.4338],
                [0.3278, 0.0000]])
    """
    logs = F.log_softmax(logits.float(), -1)
    own = (logs.exp() * logs).sum(-1).mean(0)
    cross = torch.einsum("nkc,nlc->kl", logs.exp(), logs) / len(logits)
    return (own.unsqueeze(1) - cross).clamp(min=0)


def mean_off_diagonal(pairs: Tensor) -> float:
    """Mean over the pairs of different experts that are not NaN; NaN for a single expert.

    Example:
        >>> mean_off_diagonal(torch.tensor([[0.0, 2.0], [4.0, 0.0]]))
        3.0
    """
    return float(pairs[~torch.eye(len(pairs), dtype=torch.bool)].nanmean())
