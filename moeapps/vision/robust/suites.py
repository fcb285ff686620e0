"""Sets of attacks: the fixed ones, those that follow the router, and a library's AutoAttack."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import MissingExtraError
from moeapps.vision.robust.apgd import APGD
from moeapps.vision.robust.attacks import PGD, Attack, check_pixels, frozen

ADAPTIVE = ("detached", "soft", "forced", "undecided")
"""Names of the attacks that follow a router; all others take the network as it is."""


def fixed_attacks(epsilon: float = 8 / 255, steps: int = 20) -> dict[str, Attack]:
    """Attacks that treat the mixture as any network, and one on the router alone.

    Args:
        epsilon: Largest change of a pixel.
        steps: Gradient steps of each start.

    Returns:
        ``pgd`` (cross-entropy, two starts), ``margin``, ``router`` (only the routers' decision,
        then classify), ``joint`` (cross-entropy and router) and ``apgd``.

    Example:
        >>> list(fixed_attacks())
        ['pgd', 'margin', 'router', 'joint', 'apgd']
    """
    return {
        "pgd": PGD(epsilon, steps),
        "margin": PGD(epsilon, steps, goal="margin"),
        "router": PGD(epsilon, steps, goal="router"),
        "joint": PGD(epsilon, steps, goal="joint", restarts=1),
        "apgd": APGD(epsilon, steps),
    }


def adaptive_attacks(
    epsilon: float = 8 / 255, steps: int = 20, *, num_experts: int = 2, fallback: bool = False
) -> dict[str, Attack]:
    """Attacks on router and pathway together.

    Args:
        epsilon: Largest change of a pixel.
        steps: Gradient steps of each start.
        num_experts: Of the network; each is tried twice.
        fallback: The network has one, so an attack tries to stay undecided too.

    Returns:
        ``detached``: no gradient through the scores, which may mislead; ``soft``: the gradient of
        all pathways weighted by the softmax of the scores; ``forced``: for each expert in turn,
        be wrong behind it and drive the router there. ``undecided`` with a fallback.

    Example:
        >>> list(adaptive_attacks())
        ['detached', 'soft', 'forced']
    """
    found: dict[str, Attack] = {
        "detached": PGD(epsilon, steps, goal="margin", route="detached", restarts=1),
        "soft": PGD(epsilon, steps, goal="margin", route="soft"),
        "forced": PGD(epsilon, steps, goal="forced", restarts=2 * max(num_experts, 2)),
    }
    if fallback and num_experts > 1:
        found["undecided"] = PGD(epsilon, steps, goal="undecided")
    return found


def torchattacks() -> Any:
    """The optional package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("torchattacks")
    except ModuleNotFoundError as error:
        if error.name != "torchattacks":
            raise
        command = "pip install --no-deps torchattacks"
        raise MissingExtraError("vision", "torchattacks", command) from error


@dataclass(frozen=True)
class AutoAttack:
    """APGD-CE, APGD-T, FAB-T and Square of the optional package torchattacks.

    Args:
        epsilon: Largest change of a pixel.
        num_classes: Classes of the network.

    Raises:
        MissingExtraError: torchattacks is not installed.

    Notes:
        torchattacks asks for an old ``requests`` that it does not use, so it is no part of the
        extra ``vision``. Square and FAB follow no router.

    References:
        Croce & Hein, *Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        Parameter-free Attacks*, ICML 2020.
    """

    epsilon: float = 8 / 255
    num_classes: int = 10

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        """Attack every image."""
        library = torchattacks()
        check_pixels(images)
        with frozen(model), torch.random.fork_rng():  # the library seeds all generators
            attack = library.AutoAttack(
                model, norm="Linf", eps=self.epsilon, n_classes=self.num_classes, seed=seed
            )
            found: Tensor = attack(images.clone(), labels.clone()).detach()
        return found
