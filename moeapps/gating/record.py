"""Collect the routings of nested layers without keeping anything on the modules."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from moeapps.errors import GateError, UnknownNameError
from moeapps.gating.balance import recomputing
from moeapps.gating.losses import LOSSES
from moeapps.gating.routing import Routing
from moeapps.gating.stats import routing_stats
from moeapps.kernels.scoped import Scoped

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


class Record:
    """The routings of one ``with record(model)`` block."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(m): _plain(name) or type(m).__name__ for name, m in model.named_modules()}
        self._reports: list[tuple[nn.Module, Routing]] = []
        self._grad = torch.is_grad_enabled()

    @property
    def routings(self) -> dict[str, list[Routing]]:
        """Routings by layer name, in the order of the calls; a layer called twice has two."""
        found: dict[str, list[Routing]] = {}
        for module, routing in self._reports:
            name = self._names.get(id(module))
            if name is not None:  # a layer of another model that ran inside the block
                found.setdefault(name, []).append(routing)
        return found

    def loss(self, weights: Mapping[str | Callable[[Routing], Tensor], float]) -> Tensor:
        r"""Weighted sum of auxiliary losses over all recorded routings.

        .. math:: \sum_{\text{routings}\ r}\ \sum_l \lambda_l\, \mathrm{loss}_l(r)

        Args:
            weights: Coefficient of each loss; a loss is a name from ``gating.losses.LOSSES`` or a
                function of one routing.

        Returns:
            A float32 scalar (float64 for float64 routings); 0 if ``weights`` is empty.

        Raises:
            UnknownNameError: There is no loss of that name.
            GateError: Nothing was recorded.
        """
        losses = {_loss(loss): weight for loss, weight in weights.items()}
        routings = [routing for layer in self.routings.values() for routing in layer]
        if losses and not routings:
            raise GateError(
                "No routing was recorded, so there is nothing to balance. Run the recorded model "
                "inside `with record(model)`, and check that it holds MoE layers."
            )
        terms = [weight * loss(routing) for routing in routings for loss, weight in losses.items()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def stats(self) -> dict[str, dict[str, Tensor]]:
        """Gate statistics by layer name, the mean over a layer's calls."""
        found = {}
        for name, routings in self.routings.items():
            each = [routing_stats(routing) for routing in routings]
            found[name] = {key: torch.stack([s[key] for s in each]).mean(0) for key in each[0]}
        return found


_RECORDS: Scoped[tuple[Record, ...]] = Scoped("moeapps_records", ())


@contextmanager
def record(model: nn.Module) -> Iterator[Record]:
    """Record what every routed layer of ``model`` decides inside the block.

    Args:
        model: Any module; layers are named as in ``model.named_modules()``.

    Yields:
        The record; it can be read inside the block and after it.

    Notes:
        Works compiled (``fullgraph=True``), nested, and under non-reentrant activation
        checkpointing, whose recomputation is not recorded again. Reentrant checkpointing raises: it
        would lose the gradient of the auxiliary losses. Checkpointing inside a compiled model needs
        ``torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True``.

    Example:
        >>> from moeapps.gating import Gate, MoE, StackedMLP
        >>> model = nn.Sequential(MoE(Gate.topk(8, 4, 2), StackedMLP(4, 8, 16, 8)))
        >>> with record(model) as rec:
        ...     y = model(torch.randn(5, 8))
        >>> rec.routings["0"][0].indices.shape
        torch.Size([5, 2])
        >>> rec.loss({"balance": 1e-2}).requires_grad
        True
    """
    rec = Record(model)
    with _RECORDS.set((*_RECORDS.get(), rec)):
        yield rec


def report_routing(module: nn.Module, routing: Routing) -> None:
    """Tell the open records what ``module`` decided; does nothing when there are none.

    Call it in the ``forward`` of any module that routes by itself.
    """
    records = _RECORDS.get()
    if not records or recomputing():
        return
    for rec in records:
        if not torch.compiler.is_compiling():
            _refuse_reentrant(rec)
        rec._reports.append((module, routing))


def _refuse_reentrant(rec: Record) -> None:
    """Reentrant checkpointing runs the first forward without gradient; find it on the stack."""
    if not rec._grad or torch.is_grad_enabled():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise GateError(
                "A routing was recorded under reentrant activation checkpointing, which loses the "
                "gradient of the auxiliary losses. Call checkpoint(..., use_reentrant=False)."
            )
        frame = frame.f_back


def _loss(loss: str | Callable[[Routing], Tensor]) -> Callable[[Routing], Tensor]:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise UnknownNameError("auxiliary loss", loss, LOSSES)
    return LOSSES[loss]


def _plain(name: str) -> str:
    """The name without what compilation and checkpoint wrappers put in between."""
    for wrapper in _WRAPPERS:
        name = f"{name}.".replace(wrapper, "").removesuffix(".")
    return name
