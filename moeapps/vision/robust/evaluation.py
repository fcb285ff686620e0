"""Accuracy under attacks: the worst case of every image, and how many routes changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.robust.attacks import Attack, frozen


@dataclass(frozen=True)
class RobustReport:
    """What a network got right, image by image.

    Args:
        correct: By attack, and ``"clean"``: bool ``[N]``.
        flipped: By attack: bool ``[N]``, the image took another route than its clean one.
    """

    correct: dict[str, Tensor]
    flipped: dict[str, Tensor]

    def accuracy(self, name: str = "clean") -> float:
        """Share of images that are right under one attack."""
        return float(self._of(name).double().mean())

    def worst(self, names: Iterable[str] | None = None) -> float:
        """Share of images that are right under every one of some attacks; of all by default."""
        chosen = [self._of(name) for name in (self.correct if names is None else names)]
        return float(torch.stack(chosen).all(0).double().mean())

    def flips(self, name: str) -> float:
        """Share of images that took another route under an attack."""
        return float(self.flipped[name].double().mean())

    @property
    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Attack, accuracy and share of the routes that changed, in words; the worst case last."""
        shares = [
            (name, self.accuracy(name), f"{self.flips(name):.1%}" if name in self.flipped else "-")
            for name in self.correct
        ]
        worst = ("worst case of each image", self.worst(), "-")
        return tuple((name, f"{share:.1%}", flips) for name, share, flips in (*shares, worst))

    def table(self) -> str:
        """All numbers as a Markdown table."""
        lines = ["| attack | accuracy | routes changed |", "|---|---|---|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows as arrays, for a file; :meth:`from_arrays` reads them."""
        kinds = {"attack_correct": self.correct, "attack_flipped": self.flipped}
        return {f"{kind}/{n}": v.numpy() for kind, of in kinds.items() for n, v in of.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RobustReport":
        """From what :meth:`arrays` gave, among other arrays.

        Example:
            >>> report = RobustReport({"clean": torch.tensor([True, False])}, {})
            >>> RobustReport.from_arrays(report.arrays()).accuracy()
            0.5
        """
        found: dict[str, dict[str, Tensor]] = {"attack_correct": {}, "attack_flipped": {}}
        for key, rows in arrays.items():
            kind, _, name = key.partition("/")
            if kind in found:
                found[kind][name] = torch.from_numpy(np.asarray(rows, bool))
        return cls(found["attack_correct"], found["attack_flipped"])

    def _of(self, name: str) -> Tensor:
        if name not in self.correct:
            raise UnknownNameError("attack of this report", name, self.correct)
        return self.correct[name]


def evaluate_robustness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> RobustReport:
    """Run every attack on every image, and note what stays right.

    Args:
        model: Network with the calls of :class:`~moeapps.vision.robust.advmoe.AdvMoE`.
        images: ``[N, C, H, W]``, 0 to 1.
        labels: ``[N]``.
        attacks: By name; see :mod:`moeapps.vision.robust.suites`.
        batch_size: Images at once.
        seed: Of all random starts.

    Raises:
        ArgumentError: There are no images, not as many labels, or a label that is no class.

    Example:
        >>> from moeapps.vision.robust.attacks import PGD
        >>> from moeapps.vision.robust.dense_cnn import DenseCNN
        >>> model = DenseCNN(10, backbone="small_cnn", in_channels=1)
        >>> images = torch.rand(4, 1, 8, 8)
        >>> report = evaluate_robustness(model, images, torch.arange(4), {"pgd": PGD(0.1, 2)})
        >>> report.worst() <= report.accuracy("pgd") <= report.accuracy()
        True
    """
    if not len(images) or len(images) != len(labels):
        raise ArgumentError(f"{len(images)} images and {len(labels)} labels. Pass one for each.")
    parts = [
        _evaluate_batch(model, x, y, attacks, seed + number)
        for number, (x, y) in enumerate(
            zip(images.split(batch_size), labels.split(batch_size), strict=True)
        )
    ]
    return join(parts)


def join(parts: Sequence[RobustReport]) -> RobustReport:
    """One report of several batches."""
    correct = {name: torch.cat([p.correct[name] for p in parts]) for name in parts[0].correct}
    flipped = {name: torch.cat([p.flipped[name] for p in parts]) for name in parts[0].flipped}
    return RobustReport(correct, flipped)


def _evaluate_batch(
    model: nn.Module, images: Tensor, labels: Tensor, attacks: Mapping[str, Attack], seed: int
) -> RobustReport:
    correct, routes = {}, {}
    with frozen(model), torch.no_grad():
        classes = model(images[:1]).shape[-1]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ArgumentError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; the network has "
            f"classes 0 to {classes - 1}. Test it on the data it was built for."
        )
    moved = {"clean": images}
    moved |= {name: attack(model, images, labels, seed=seed) for name, attack in attacks.items()}
    with frozen(model), torch.no_grad():
        for name, x in moved.items():
            logits, scores = model(x, return_scores=True)
            correct[name] = (logits.argmax(-1) == labels).cpu()
            if scores.shape[1]:
                routes[name] = scores.argmax(-1).cpu()
    clean = routes.pop("clean", None)
    flipped = {} if clean is None else {n: (r != clean).any(1) for n, r in routes.items()}
    return RobustReport(correct, flipped)
