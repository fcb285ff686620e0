"""Learn the local expert and the gate of one user, on the device."""

import copy
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.specialists.expert_customization import (
    ExpertCustomization,
    gate_targets,
    local_loss,
)

_GATE_DECAY = 0.3
"""Strong, for a few dozen images tell the gate where the local expert is needed."""


@dataclass(frozen=True)
class Personalised:
    """What :func:`personalise` chose, on images that it did not train with.

    Args:
        threshold: Of the gate.
        user_before: Accuracy of the global expert on the user's held-out images.
        user_after: Of the mixture.
        generic_before: Accuracy of the global expert on the held-out replay images.
        generic_after: Of the mixture.
    """

    threshold: float
    user_before: float
    user_after: float
    generic_before: float
    generic_after: float


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the global expert makes of images: all that the small networks need."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        return self.logits.argmax(-1) == self.labels

    @property
    def inputs(self) -> Tensor:
        return torch.cat([self.features, self.logits], -1)

    def take(self, rows: Tensor) -> "_Seen":
        return _Seen(self.features[rows], self.logits[rows], self.labels[rows])


def personalise(
    model: ExpertCustomization,
    images: Tensor,
    labels: Tensor,
    replay: tuple[Tensor, Tensor],
    *,
    kappa: float = 4.0,
    val_share: float = 0.3,
    max_generic_loss: float = 0.002,
    folds: int = 3,
    steps: int = 200,
    lr: float = 0.01,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> Personalised:
    """Fit local expert and gate to a user's labelled images; called again, they learn on.

    1. The user's and the replay images are split; the held-out parts choose the threshold only.
    2. Copies of the local expert, each learning from all folds but one, answer the fold left out:
       the gate must know where the local expert is right on images it has not learned by heart.
    3. The gate learns from those answers and from replay images, the local expert from all folds.
    4. The threshold with the best accuracy on the user's held-out images is taken among those that
       cost at most ``max_generic_loss`` of the generic accuracy.

    Args:
        model: To be changed in place; its global expert stays as it is.
        images: Of the user, ``[B, ...]``.
        labels: ``[B]``.
        replay: Generic images and labels, at least as many as the user's, so that the gate leaves
            to the global expert what is not the user's.
        kappa: Extra weight of images that the global expert gets wrong.
        val_share: Share of both sets that is held out.
        max_generic_loss: Allowed loss of generic accuracy.
        folds: Parts for the gate's answers.
        steps: Of Adam, on whole sets: features are computed once.
        lr: Learning rate.
        weight_decay: Of the local expert, decoupled.
        seed: Of the splits.

    Raises:
        ArgumentError: Too few images, too little replay, or features that are not finite.

    Notes:
        All of this is our design; the paper's abstract leaves it open.

    Example:
        >>> from moeapps.vision.specialists.lenet import LeNet5
        >>> model = ExpertCustomization(LeNet5(3, image_size=8), budget=0.1)
        >>> images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
        >>> found = personalise(model, images, labels, (images, labels), steps=5)
        >>> found.generic_after >= found.generic_before - 0.002
        True
    """
    _check(model, images, labels, *replay, val_share, folds)
    generator = torch.Generator().manual_seed(seed)
    (user, user_val), (generic, generic_val) = (
        _split(_see(model, x, y), val_share, generator) for x, y in ((images, labels), replay)
    )
    fit_local = functools.partial(
        _fit_local, kappa=kappa, steps=steps, lr=lr, weight_decay=weight_decay
    )
    order = torch.randperm(len(user.labels), generator=generator).to(user.labels.device)
    unseen_right = torch.zeros_like(user.right)
    replay_answers = []
    for fold in range(folds):
        left_out = order[fold::folds]
        rest = order[torch.isin(order, left_out, invert=True)]
        expert = copy.deepcopy(model.local_expert)
        fit_local(expert, user.take(rest))
        with torch.no_grad():
            answers = expert(user.features[left_out]).argmax(-1)
            unseen_right[left_out] = answers == user.labels[left_out]
            replay_answers.append(expert(generic.features))
    fit_local(model.local_expert, user)
    with torch.no_grad():
        replay_right = torch.stack(replay_answers).mean(0).argmax(-1) == generic.labels
    _fit_gate(model, user, unseen_right, generic, replay_right, steps=steps, lr=lr)
    return _choose_threshold(model, user_val, generic_val, max_generic_loss)


def _see(model: ExpertCustomization, images: Tensor, labels: Tensor) -> _Seen:
    features, logits = model.look(images)
    if not bool(features.isfinite().all() & logits.isfinite().all()):
        raise ArgumentError(
            "the global expert's features or logits are NaN or infinite. Look for NaN in the "
            "images."
        )
    return _Seen(features, logits, labels)


def _split(seen: _Seen, share: float, generator: torch.Generator) -> tuple[_Seen, _Seen]:
    order = torch.randperm(len(seen.labels), generator=generator).to(seen.labels.device)
    held = max(1, round(share * len(order)))
    return seen.take(order[held:]), seen.take(order[:held])


def _fit_local(
    expert: nn.Module, seen: _Seen, *, kappa: float, steps: int, lr: float, weight_decay: float
) -> None:
    optimizer = torch.optim.AdamW(expert.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        loss = local_loss(expert(seen.features), seen.labels, ~seen.right, kappa)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _fit_gate(
    model: ExpertCustomization,
    user: _Seen,
    user_local_right: Tensor,
    generic: _Seen,
    generic_local_right: Tensor,
    *,
    steps: int,
    lr: float,
) -> None:
    score = model.score
    inputs = torch.cat([user.inputs, generic.inputs])
    features = torch.cat([user.features, generic.features])
    score.mean.copy_(features.mean(0))
    score.std.copy_(features.std(0).clamp_min(1e-3))
    is_generic = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    is_generic[len(user.labels) :] = True
    target, counted = gate_targets(
        torch.cat([user.right, generic.right]),
        torch.cat([user_local_right, generic_local_right]),
        is_generic,
    )
    # Each half counts the same, however much replay there is.
    weight = torch.cat([
        torch.full_like(part.labels, 1, dtype=target.dtype) / len(part.labels)
        for part in (user, generic)
    ]) * counted  # fmt: skip
    optimizer = torch.optim.AdamW(score.parameters(), lr=lr, weight_decay=_GATE_DECAY)
    for _ in range(steps):
        losses = F.binary_cross_entropy_with_logits(score.doubt(inputs), target, reduction="none")
        loss = (weight * losses).sum() / weight.sum().clamp_min(1e-12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _choose_threshold(
    model: ExpertCustomization, user: _Seen, generic: _Seen, max_loss: float
) -> Personalised:
    chances = {}
    for name, part in (("user", user), ("generic", generic)):
        local = model.local_expert(part.features).argmax(-1) == part.labels
        chances[name] = (model.score.doubt(part.inputs).sigmoid(), local, part.right)

    def accuracy(name: str, threshold: float) -> float:
        chance, local, right = chances[name]
        return float(torch.where(chance > threshold, local, right).double().mean())

    candidates = torch.cat([chance for chance, _, _ in chances.values()]).unique()
    lowest = [0.5 * float(candidates[0])]
    middles = ((candidates[1:] + candidates[:-1]) / 2).tolist()
    never = [1.0]  # nobody goes to the local expert: generic accuracy cannot fall
    before = {name: accuracy(name, 1.0) for name in chances}
    allowed = [
        threshold
        for threshold in [*lowest, *middles, *never]
        if accuracy("generic", threshold) >= before["generic"] - max_loss - 1e-9
    ]
    best = max(allowed, key=lambda threshold: (accuracy("user", threshold), threshold))
    best = min(max(best, 1e-5), 1 - 1e-5)
    model.score.threshold.fill_(best)
    return Personalised(
        best, before["user"], accuracy("user", best), before["generic"], accuracy("generic", best)
    )


def _check(
    model: ExpertCustomization,
    images: Tensor,
    labels: Tensor,
    replay_images: Tensor,
    replay_labels: Tensor,
    val_share: float,
    folds: int,
) -> None:
    for what, x, y in (
        ("the user's", images, labels), ("replay", replay_images, replay_labels)
    ):  # fmt: skip
        if len(x) != len(y) or y.ndim != 1:
            raise ArgumentError(f"{what} images and labels: {list(x.shape)} and {list(y.shape)}.")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < model.num_classes:
            raise ArgumentError(
                f"{what} labels reach from {int(y.min())} to {int(y.max())}; the global expert "
                f"knows classes 0 to {model.num_classes - 1}."
            )
    if not 0 < val_share < 1 or folds < 2:
        raise ArgumentError(
            f"val_share={val_share}, folds={folds}: expected a share, and at least 2 folds."
        )
    held = max(1, round(val_share * len(images)))
    if len(images) - held < folds:
        raise ArgumentError(
            f"{len(images)} images of the user are too few for {folds} folds and "
            f"val_share={val_share}. Collect more."
        )
    if len(replay_images) < len(images):
        raise ArgumentError(
            f"{len(replay_images)} replay images for {len(images)} of the user. Give at least as "
            "many, or the gate sends generic images to the local expert."
        )
