"""ExpertCustomization: a frozen global expert, a small local one, and a gate between them."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import Gate, Routing, hard, report_routing
from moeapps.vision.specialists.cost import count_macs, count_weights

LOCAL = 1
"""The local expert's number; the global one is 0."""
_PROJECTED, _HIDDEN = 8, 16


class DoubtScore(nn.Module):
    r"""Whether the local expert should answer, from how sure the global one is.

    .. math:: s = \mathrm{MLP}\big([\max p,\ p_{(1)} - p_{(2)},\ H(p),\ P f]\big), \qquad
        l = [0,\ s - \mathrm{logit}(t)]

    with the global expert's probabilities :math:`p` and features :math:`f`, a learned 8-wide
    projection :math:`P`, 16 hidden units and the threshold :math:`t`.

    Args:
        in_features: Width of the features.
        num_classes: Of the global expert.

    Shape:
        - x ``[B, D + C]``: features, then the global expert's logits; logits ``[B, 2]``
    """

    threshold: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.project = nn.Linear(in_features, _PROJECTED, bias=False)
        self.network = nn.Sequential(
            nn.Linear(_PROJECTED + 3, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))

    def doubt(self, x: Tensor) -> Tensor:
        """Logit ``s`` of the local expert being needed, before the threshold, ``[B]``."""
        features, logits = x.split([x.shape[-1] - self.num_classes, self.num_classes], -1)
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        best = p.topk(2, -1).values
        entropy = -(p * log_p).sum(-1)
        sure = torch.stack([best[:, 0], best[:, 0] - best[:, 1], entropy], -1)
        projected = self.project((features - self.mean) / self.std)
        found: Tensor = self.network(torch.cat([sure, projected], -1)).squeeze(-1)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of global and local expert."""
        local = self.doubt(x) - torch.logit(self.threshold, eps=1e-6)
        return torch.stack([torch.zeros_like(local), local], -1)


class ExpertCustomization(nn.Module):
    r"""A network made fit for one user, without changing or retraining it.

    .. math:: y(x) = \begin{cases} \mathrm{LE}(f) & \mathrm{GN}(f, \mathrm{GE}(x)) > t \\
        \mathrm{GE}(x) & \text{else} \end{cases}

    The local expert LE reads the features :math:`f` that the global expert GE makes just before
    its last linear layer, so both cost little more than GE alone. Learn LE and gate with
    :func:`~moeapps.vision.specialists.personalisation.personalise`.

    Args:
        global_expert: Any classifier with a linear layer; it is frozen and stays in eval mode.
        head: Name of the layer whose input is the features; by default the last linear layer.
        budget: Weights of LE and gate, as a share of GE's.
        hidden: Units of LE's hidden layer; None takes as many as the budget allows, at most 64, and
            no hidden layer at all if not even 4 fit.

    Shape:
        - images ``[B, ...]`` -> logits ``[B, C]``

    Raises:
        ArgumentError: There is no such linear layer, or the budget is too small.

    Notes:
        The published abstract fixes no more than three networks and their roles: this is a design
        of ours. Only images sent to LE are computed there. Logits of GE and LE are not on one
        scale; only their order within an image means something.

    References:
        Zhang, Davoodi, Hu, arXiv 1811.00056.

    Example:
        >>> from moeapps.gating import record
        >>> from moeapps.vision.specialists.lenet import LeNet5
        >>> model = ExpertCustomization(LeNet5(10))
        >>> with record(model) as rec:
        ...     logits = model(torch.rand(3, 1, 28, 28))
        >>> logits.shape, rec.routings["ExpertCustomization"][0].num_experts
        (torch.Size([3, 10]), 2)
        >>> model.overhead()["weights"] <= 0.05
        True
    """

    def __init__(
        self,
        global_expert: nn.Module,
        *,
        head: str | None = None,
        budget: float = 0.05,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.global_expert = global_expert.requires_grad_(False)
        self._head, layer = _find_head(global_expert, head)
        width, classes = layer.in_features, layer.out_features
        if classes < 2:
            raise ArgumentError(f"the layer {self._head!r} has {classes} output, expected classes.")
        self.num_classes = classes
        score = DoubtScore(width, classes)
        self.gate = Gate(score, hard())
        allowed = int(budget * count_weights(global_expert)) - count_weights(score)
        self.local_expert = _local_expert(width, classes, allowed, hidden)
        self.global_expert.eval()

    def train(self, mode: bool = True) -> "ExpertCustomization":
        """The global expert stays in eval mode."""
        super().train(mode)
        self.global_expert.eval()
        return self

    @property
    def score(self) -> DoubtScore:
        """What the gate reads."""
        assert isinstance(self.gate.score, DoubtScore)
        return self.gate.score

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, D]`` and logits ``[B, C]`` of the global expert, without gradient."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0])

        handle = self.global_expert.get_submodule(self._head).register_forward_pre_hook(keep)
        try:
            with torch.no_grad():
                logits = self.global_expert(images)
        finally:
            handle.remove()
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or len(seen) != 1:
            raise ArgumentError(
                f"the global expert gave {list(logits.shape)} and ran its layer {self._head!r} "
                f"{len(seen)} times; expected [B, {self.num_classes}] and once. Pass head=NAME."
            )
        return seen[0], logits

    def route(self, features: Tensor, logits: Tensor) -> Routing:
        """Which expert answers, ``indices [B, 1]``: 0 the global, 1 the local one."""
        routing: Routing = self.gate(torch.cat([features, logits], -1))
        return routing

    def forward(self, images: Tensor) -> Tensor:
        """Logits of whichever expert the gate chose."""
        features, logits = self.look(images)
        routing = self.route(features, logits)
        report_routing(self, routing)
        assert routing.indices is not None
        rows = (routing.indices[:, 0] == LOCAL).nonzero().squeeze(1)
        if len(rows):
            local = self.local_expert(features.index_select(0, rows)).to(logits.dtype)
            whole = local.isfinite().all(-1, keepdim=True)  # else the global expert's word stands
            logits = logits.index_copy(0, rows, torch.where(whole, local, logits[rows]))
        return logits

    def overhead(self, images: Tensor | None = None) -> dict[str, float]:
        """Local expert and gate as a share of the global expert.

        Args:
            images: A batch to count multiply-adds with; where every image goes to the local
                expert, the dearest case.

        Returns:
            ``weights``, and ``macs`` if there are images.
        """
        added = count_weights(self.local_expert) + count_weights(self.gate)
        found = {"weights": added / count_weights(self.global_expert)}
        if images is not None:
            features, logits = self.look(images)
            extra = count_macs(self.local_expert, features)
            extra += count_macs(self.score, torch.cat([features, logits], -1))
            found["macs"] = extra / count_macs(self.global_expert, images)
        return found


def _find_head(network: nn.Module, name: str | None) -> tuple[str, nn.Linear]:
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and n}
    if not linear:
        raise ArgumentError("the global expert has no linear layer to take features before.")
    chosen = name if name is not None else list(linear)[-1]
    if chosen not in linear:
        raise ArgumentError(f"head={chosen!r} is no linear layer. Choose of {', '.join(linear)}.")
    return chosen, linear[chosen]


def _local_expert(width: int, classes: int, allowed: int, hidden: int | None) -> nn.Sequential:
    """As large as allowed: with a hidden layer if at least 4 units fit, else linear."""
    if hidden is None:
        fits = (allowed - classes) // (width + 1 + classes)
        hidden = min(64, fits) if fits >= 4 else 0
    layers: list[nn.Module] = [nn.LayerNorm(width, elementwise_affine=False)]
    if hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    else:
        layers += [nn.Linear(width, classes)]
    expert = nn.Sequential(*layers)
    if count_weights(expert) > allowed:
        raise ArgumentError(
            f"a local expert with hidden={hidden} has {count_weights(expert)} weights, but the "
            f"budget leaves {allowed} of the global expert's. Raise budget or lower hidden."
        )
    return expert


Expert = Literal["global", "local", "mixture", "oracle"]


@torch.no_grad()
def accuracies(model: ExpertCustomization, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of each expert, of the mixture and of the best choice, and the share routed.

    Returns:
        ``global``, ``local``, ``mixture``, ``oracle`` (right where one of the two is) and
        ``routed``, the share that the local expert answered.
    """
    features, logits = model.look(images)
    routing = model.route(features, logits)
    assert routing.indices is not None
    local = routing.indices[:, 0] == LOCAL
    right = logits.argmax(-1) == labels
    right_local = model.local_expert(features).argmax(-1) == labels
    found = {
        "global": right,
        "local": right_local,
        "mixture": torch.where(local, right_local, right),
        "oracle": right | right_local,
        "routed": local,
    }
    return {name: float(values.double().mean()) for name, values in found.items()}


def local_loss(logits: Tensor, labels: Tensor, global_wrong: Tensor, kappa: float) -> Tensor:
    r"""Cross-entropy in which images that the global expert gets wrong count more.

    .. math:: L = \frac{\sum_i w_i\, \mathrm{CE}_i}{\sum_i w_i}, \qquad
        w_i = 1 + \kappa\, [\mathrm{GE}\text{ wrong}]

    Example:
        >>> local_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([True, False]), 4.0)
        tensor(0.6931)
    """
    weights = 1 + kappa * global_wrong.to(logits.dtype)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum()


def gate_targets(
    global_right: Tensor, local_right: Tensor, generic: Tensor
) -> tuple[Tensor, Tensor]:
    """What the gate should say, and which images teach it something.

    Args:
        global_right: bool ``[B]``.
        local_right: bool ``[B]``.
        generic: bool ``[B]``, whether an image is a generic one and not the user's.

    Returns:
        1 where only the local expert is right, else 0; and which images count. One that both get
        wrong never does. A user's image that both get right does not either, as any answer of the
        gate is right; a generic one says: leave it to the global expert.

    Example:
        >>> right, local = torch.tensor([True, False, True]), torch.tensor([True, True, False])
        >>> gate_targets(right, local, generic=torch.tensor([False, False, False]))
        (tensor([0., 1., 0.]), tensor([False,  True,  True]))
    """
    counts = (global_right ^ local_right) | (generic & global_right)
    return (local_right & ~global_right).float(), counts
