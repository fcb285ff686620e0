"""Mowst and Mowst*: a weak and a strong expert per node, mixed by the weak one's confidence."""

import inspect
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Confidence, Gate, Routing, combine, report_routing, softmax
from moeapps.graphs.models.mowst_gates import confidence_gate
from moeapps.registry import create_model

MIXES = ("prob", "logit")
PREDICT_MODES = ("soft", "hard", "sample")


class MowstOutput(NamedTuple):
    """What :class:`Mowst` computed for ``V`` nodes and ``n`` classes.

    Args:
        prediction: Logits ``[V, n]`` of the soft mixture: its softmax is the mixture's
            distribution, its cross-entropy is the Mowst* loss.
        weak_logits: ``[V, n]``.
        strong_logits: ``[V, n]``.
        routing: Dense, weights ``[V, 2]`` = ``[c, 1 - c]``.
    """

    prediction: Tensor
    weak_logits: Tensor
    strong_logits: Tensor
    routing: Routing


def full_precision(logits: Tensor) -> Tensor:
    """Raise half-precision logits to float32; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def reads_graph(expert: nn.Module) -> bool:
    """Whether an expert's ``forward`` takes an ``edge_index``."""
    return "edge_index" in inspect.signature(expert.forward).parameters


def dispersion(logits: Tensor) -> Tensor:
    r"""How far a prediction is from uniform, in two numbers, each from 0 (uniform) to 1 (one-hot).

    With :math:`p = \mathrm{softmax}(z)` over n classes:

    .. math::
        D_1 = \frac{n^2}{n-1}\,\mathrm{Var}(p), \qquad D_2 = 1 - \frac{H(p)}{\ln n}

    The input are **logits**. Probabilities passed by mistake go through softmax twice and come out
    almost uniform: a one-hot vector of 7 would score 0.039 and 0.047 instead of 1.

    Shape:
        - input ``[*L, n]``
        - output ``[*L, 2]``, at least float32

    Raises:
        ArgumentError: With fewer than two classes.

    Example:
        >>> dispersion(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1e4, 0.0]]))
        tensor([[0., 0.],
                [1., 1.]])
    """
    n = logits.size(-1)
    if n < 2:
        raise ArgumentError(
            f"dispersion got logits of {n} class(es); it compares classes, so it needs 2 or more. "
            "Give a binary head two logits."
        )
    log_p = F.log_softmax(full_precision(logits), dim=-1)
    p = log_p.exp()
    variance = (n * p.square().sum(-1) - 1) / (n - 1)  # the mean of p is 1 / n
    negentropy = 1 + (p * log_p).sum(-1) / math.log(n)
    return torch.stack([variance, negentropy], -1).clamp(0, 1)


def log_mixture(weak_logits: Tensor, strong_logits: Tensor, routing: Routing) -> Tensor:
    r"""Log-probabilities of :math:`c\,p + (1-c)\,q`, from log-weights and log-probabilities.

    Shape:
        - logits ``[V, n]``
        - output ``[V, n]``
    """
    assert routing.logits is not None  # Confidence always gives them
    log_c = F.log_softmax(routing.logits, dim=-1)
    log_p = F.log_softmax(full_precision(weak_logits), dim=-1)
    log_q = F.log_softmax(full_precision(strong_logits), dim=-1)
    return torch.logaddexp(log_c[..., :1] + log_p, log_c[..., 1:] + log_q)


def mix_losses(weak_loss: Tensor, strong_loss: Tensor, routing: Routing) -> Tensor:
    r"""Mean of :math:`c_v\,\ell^\text{weak}_v + (1-c_v)\,\ell^\text{strong}_v`, a scalar.

    Shape:
        - losses ``[V]``
        - output scalar; 0 for no node
    """
    losses = torch.stack([weak_loss, strong_loss], -1).unsqueeze(-1)
    return combine(losses, routing).sum() / max(1, len(weak_loss))


def mowst_loss(weak_logits: Tensor, strong_logits: Tensor, routing: Routing, y: Tensor) -> Tensor:
    r"""Mean of :math:`c_v\,\mathrm{CE}(p_v) + (1-c_v)\,\mathrm{CE}(q_v)`.

    Shape:
        - logits ``[V, n]``, labels ``[V]``
        - output scalar
    """
    return mix_losses(
        F.cross_entropy(full_precision(weak_logits), y, reduction="none"),
        F.cross_entropy(full_precision(strong_logits), y, reduction="none"),
        routing,
    )


class Mowst(nn.Module):
    r"""Mixture of a weak and a strong expert, mixed by the weak expert's confidence.

    The weak expert sees a node's own features and gives :math:`p_v`; the strong expert sees the
    graph and gives :math:`q_v`. The confidence :math:`c_v \in [0, 1]` is a function of the
    dispersion of :math:`p_v`:

    .. math:: c_v = G(D(p_v)), \qquad
       L_\text{Mowst} = \frac1{|T|}\sum_{v\in T} c_v\,\mathrm{CE}(p_v) + (1-c_v)\,\mathrm{CE}(q_v),
       \qquad
       L_{\text{Mowst}^*} = \frac1{|T|}\sum_{v\in T} \mathrm{CE}(c_v p_v + (1-c_v) q_v)

    Mowst trains its experts in turn, Mowst* (``joint=True``) trains everything at once. Turns and
    caches live in :mod:`moeapps.graphs.turns`; this module is one forward pass and its losses.

    Args:
        weak: Any module ``forward(x)``, or ``forward(x, edge_index, edge_weight=None)``.
        strong: Likewise; an expert gets the graph if its ``forward`` has an ``edge_index``.
        out_channels: Classes, at least 2.
        joint: Mowst* when true. Decides the loss and the default ``predict_mode``.
        gate: ``"learned"``, ``"learned+features"``, ``"hyper"``, ``"power"``, or a module from
            evidence ``[V, 2]`` to the logit of ``c``, ``[V]``.
        in_channels: Width of ``x``, for the gates that read it.
        gate_hidden: Hidden width of a learned gate.
        gate_layers: Layers of a learned gate.
        gate_dropout: Dropout of a learned gate.
        monotone: A learned gate that never falls when a dispersion grows.
        power: Exponent of the ``"power"`` gate.
        detach_dispersion: Whether the gradient stops at the dispersion, so that the weak expert
            learns from its own loss only.
        mix: What Mowst* mixes, ``"prob"`` or ``"logit"``, in training and in prediction alike.
        predict_mode: ``"soft"``, ``"hard"`` or ``"sample"``; by default soft if joint, else hard.
        threshold: Confidence above which ``"hard"`` takes the weak expert.

    Shape:
        - ``x [V, d]``, ``edge_index [2, M]`` or what the strong expert takes
        - output logits ``[V, n]`` of the soft mixture, or :class:`MowstOutput`

    Notes:
        The paper mixes probabilities; its released code trains Mowst* on mixed logits and tests on
        mixed probabilities. Here one ``mix`` serves both.
        The released code cuts the gradient at the dispersion, which the paper's analysis keeps;
        ``detach_dispersion`` chooses.
        The gate is not forced to 0 at the uniform prediction, as in the released code.

    References:
        Zeng et al., *Mixture of Weak and Strong Experts on Graphs*, ICLR 2024.
        https://arxiv.org/abs/2311.05185

    Example:
        >>> from torch_geometric.nn.models import GCN
        >>> model = Mowst(nn.Linear(8, 3), GCN(8, 16, 2, 3), out_channels=3)
        >>> x, edge_index = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 0, 3]])
        >>> out = model.eval()(x, edge_index, return_routing=True)
        >>> tuple(out.prediction.shape), tuple(out.routing.weights.shape)
        ((5, 3), (5, 2))
    """

    def __init__(
        self,
        weak: nn.Module,
        strong: nn.Module,
        *,
        out_channels: int,
        joint: bool = False,
        gate: str | nn.Module = "learned",
        in_channels: int | None = None,
        gate_hidden: int = 64,
        gate_layers: int = 2,
        gate_dropout: float = 0.3,
        monotone: bool = False,
        power: float = 1.0,
        detach_dispersion: bool = True,
        mix: Literal["prob", "logit"] = "prob",
        predict_mode: Literal["soft", "hard", "sample"] | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if out_channels < 2:
            raise ArgumentError(
                f"out_channels={out_channels} leaves nothing to be confident about. "
                "Give the data two classes or more."
            )
        if mix not in MIXES:
            raise UnknownNameError("mix", mix, MIXES)
        if predict_mode is None:
            predict_mode = "soft" if joint else "hard"
        if predict_mode not in PREDICT_MODES:
            raise UnknownNameError("predict_mode", predict_mode, PREDICT_MODES)
        if isinstance(gate, str):
            gate = confidence_gate(
                gate,
                in_channels=in_channels,
                hidden_channels=gate_hidden,
                num_layers=gate_layers,
                dropout=gate_dropout,
                monotone=monotone,
                power=power,
            )
        self.weak = weak
        self.strong = strong
        self.gate = Gate(Confidence(gate), softmax)
        self.gate_uses_features = bool(getattr(gate, "uses_features", False))
        self.out_channels = out_channels
        self.joint = joint
        self.detach_dispersion = detach_dispersion
        self.mix = mix
        self.predict_mode = predict_mode
        self.threshold = threshold

    def reset_parameters(self) -> None:
        """Draw new parameters for both experts and the gate."""
        for part in (self.weak, self.strong, *self.gate.modules()):
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()

    def route(self, weak_logits: Tensor, x: Tensor | None = None) -> Routing:
        """Turn the weak expert's logits into the routing ``[c, 1 - c]``.

        Args:
            weak_logits: ``[V, n]`` logits, not probabilities.
            x: ``[V, d]``, read only by gates that use features.
        """
        evidence = dispersion(weak_logits.detach() if self.detach_dispersion else weak_logits)
        if self.gate_uses_features:
            assert x is not None
            dense = x if x.layout == torch.strided else x.to_dense()
            evidence = torch.cat([evidence, dense.to(evidence.dtype)], -1)
        routing = self.gate(evidence)
        report_routing(self, routing)
        return routing

    def mixture(self, weak_logits: Tensor, strong_logits: Tensor, routing: Routing) -> Tensor:
        """Give the soft mixture's logits ``[V, n]``: log-probabilities, or mixed logits."""
        if self.mix == "prob":
            return log_mixture(weak_logits, strong_logits, routing)
        return combine(torch.stack([weak_logits, strong_logits], -2), routing)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        *,
        return_routing: bool = False,
        **graph_arguments: Any,
    ) -> Tensor | MowstOutput:
        """Evaluate both experts on every node.

        Args:
            x: Node features ``[V, d]``.
            edge_index: The graph, in any form the strong expert takes.
            edge_weight: Weights ``[M]`` of the edges.
            return_routing: Whether to return a :class:`MowstOutput`.
            **graph_arguments: Passed on to the experts that read the graph.
        """
        graph = (x, edge_index) if edge_weight is None else (x, edge_index, edge_weight)
        weak_logits, strong_logits = (
            expert(*graph, **graph_arguments) if reads_graph(expert) else expert(x)
            for expert in (self.weak, self.strong)
        )
        for name, logits in (("weak", weak_logits), ("strong", strong_logits)):
            if logits.shape[-1] != self.out_channels:
                raise ArgumentError(
                    f"The {name} expert gave {logits.shape[-1]} logits per node, expected "
                    f"out_channels={self.out_channels}. Build both experts with that width."
                )
        routing = self.route(weak_logits, x)
        prediction = self.mixture(weak_logits, strong_logits, routing)
        if not return_routing:
            return prediction
        return MowstOutput(prediction, weak_logits, strong_logits, routing)

    def loss(self, output: MowstOutput, y: Tensor) -> Tensor:
        """Give the Mowst* loss if ``joint``, else the Mowst loss; mean over the output's nodes."""
        if self.joint:
            return F.cross_entropy(full_precision(output.prediction), y)
        return mowst_loss(output.weak_logits, output.strong_logits, output.routing, y)

    def predict(
        self,
        output: MowstOutput,
        mode: str | None = None,
        *,
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Class of each node, ``[V]``.

        Args:
            output: What ``forward(..., return_routing=True)`` gave.
            mode: ``"soft"``: the mixture's most likely class. ``"hard"``: the weak expert's where
                ``c > threshold``, else the strong one's. ``"sample"``: the weak expert's with
                probability ``c``. By default the model's ``predict_mode``.
            threshold: For ``"hard"``; by default the model's.
            generator: Random numbers of ``"sample"``, which needs one.
        """
        mode = self.predict_mode if mode is None else mode
        if mode == "soft":
            return output.prediction.argmax(-1)
        trust = self.trust(output.routing, mode, threshold=threshold, generator=generator)
        return torch.where(trust, output.weak_logits.argmax(-1), output.strong_logits.argmax(-1))

    def trust(
        self,
        routing: Routing,
        mode: str,
        *,
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Which nodes ask the weak expert, bool ``[V]``, in mode ``"hard"`` or ``"sample"``."""
        if mode not in PREDICT_MODES:
            raise UnknownNameError("predict_mode", mode, PREDICT_MODES)
        c = routing.weights[..., 0]
        if mode == "hard":
            return c > (self.threshold if threshold is None else threshold)
        if generator is None:
            raise ArgumentError("predict_mode='sample' draws at random. Pass generator=.")
        u = torch.rand(c.shape, generator=generator, dtype=c.dtype, device=generator.device)
        return u.to(c.device) < c


def mowst(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    strong: str = "gcn",
    weak: str = "mlp",
    *,
    dropout: float = 0.3,
    gate_hidden: int | None = None,
    gate_layers: int | None = None,
    weak_arguments: dict[str, Any] | None = None,
    strong_arguments: dict[str, Any] | None = None,
    **mixture: Any,
) -> Mowst:
    """Build a :class:`Mowst` over two registered experts of the same width and depth.

    Args:
        in_channels: Width of the node features.
        hidden_channels: Hidden width of both experts and, unless given, of the gate.
        num_layers: Depth of both experts and, unless given, of the gate.
        out_channels: Classes.
        strong: Registered name of the strong expert.
        weak: Registered name of the weak expert.
        dropout: Dropout of both experts.
        gate_hidden: Hidden width of the gate.
        gate_layers: Layers of the gate.
        weak_arguments: More arguments of the weak expert; they win over the shared ones.
        strong_arguments: More arguments of the strong expert, for example ``{"heads": 4}``.
        **mixture: Arguments of :class:`Mowst`.

    Example:
        >>> model = mowst(8, 16, 2, 3, strong="graphsage", gate="power")
        >>> model.joint, model.predict_mode
        (False, 'hard')
    """
    shared = {
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "num_layers": num_layers,
        "out_channels": out_channels,
        "dropout": dropout,
    }
    return Mowst(
        create_model(weak, **{**shared, **(weak_arguments or {})}),
        create_model(strong, **{**shared, **(strong_arguments or {})}),
        out_channels=out_channels,
        in_channels=in_channels,
        gate_hidden=hidden_channels if gate_hidden is None else gate_hidden,
        gate_layers=num_layers if gate_layers is None else gate_layers,
        **mixture,
    )
