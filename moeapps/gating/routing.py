"""What a gate decided: which expert serves which row, and with what weight.

Letters: ``*L`` any leading shape of rows, ``B`` groups, ``N`` rows, ``E`` experts, ``K`` chosen per
row, ``C`` capacity, ``S`` slots per expert, ``T`` gates per row.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from moeapps.errors import ArgumentError, GateError

Layout = Literal["dense", "token", "expert", "slot"]


@dataclass(frozen=True, eq=False)
class Routing:
    r"""The decision of a gate, in one of four layouts.

    Every mixture is :math:`y = \mathrm{Combine} \cdot f_{1..E} \cdot \mathrm{Dispatch} \cdot x`; a
    routing holds the two matrices.

    ======== ======================= ============================== ==================
    layout   who chooses             weights                        indices
    ======== ======================= ============================== ==================
    dense    nobody, all experts mix ``[*L, E]`` or ``[*L, T, E]``  none
    token    the row                 ``[*L, K]``                    experts ``[*L, K]``
    expert   the expert              ``[B, E, C]``                  rows ``[B, E, C]``
    slot     both, softly            combine ``[B, N, E, S]``       none
    ======== ======================= ============================== ==================

    Args:
        weights: Combine weights, float32 (float64 for a float64 input). They need not sum to 1.
        num_experts: ``E``, null experts not counted.
        indices: Who was chosen, int64; -1 means nobody.
        dispatch: Slot layout only: how each slot's input is mixed, ``[B, N, E, S]``.
        logits: Clean scores ``[*L, E(+null)]``, before temperature, noise, mask and bias.
        probs: Full distribution ``[*L, E(+null)]`` that the losses read; rows sum to 1.
        valid: bool ``[*L]``; False marks a padding row.
        layout: One of the four above.
        extra: More tensors per row, each starting with ``*L``. Keys in use: ``choices``
            ``[*L, K]`` (what rows asked for before null experts and capacity removed it; ids in
            ``[-1, E + null)``), ``noisy_logits`` and ``sigma`` ``[*L, E]`` (in the units of
            ``logits``), ``covariance`` ``[*L, E, E]``, ``state`` (recurrent scores).

    Notes:
        Frozen: change it with :func:`dataclasses.replace`. In the expert and slot layouts ``*L`` is
        ``[B, N]``.

    Example:
        >>> routing = Routing(torch.tensor([[0.7, 0.3]]), 4, torch.tensor([[2, 0]]), layout="token")
        >>> routing.check().dense()
        tensor([[0.3000, 0.0000, 0.7000, 0.0000]])
        >>> routing.counts()
        tensor([1, 0, 1, 0])
    """

    weights: Tensor
    num_experts: int
    indices: Tensor | None = None
    dispatch: Tensor | None = None
    logits: Tensor | None = None
    probs: Tensor | None = None
    valid: Tensor | None = None
    layout: Layout = "dense"
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> torch.Size:
        """The shape ``*L`` of the rows; ``[*L, T]`` when each row has several gates."""
        if self.layout == "expert":
            for known in (self.probs, self.logits):
                if known is not None:
                    return known.shape[:-1]
            if self.valid is not None:
                return self.valid.shape
            raise GateError(
                "an expert-choice routing without probs, logits or valid does not say how many "
                "rows its groups hold; build it with one of them"
            )
        return self.weights.shape[: -2 if self.layout == "slot" else -1]

    def dense(self) -> Tensor:
        """Weight of every expert for every row, ``[*L, E]``; differentiable.

        In the slot layout it is the sum over the expert's slots.
        """
        if self.layout == "dense":
            return self.weights
        if self.layout == "slot":
            return self.weights.sum(-1)
        assert self.indices is not None
        # A place for "nobody" is added and cut off again: no branch, no host synchronisation.
        if self.layout == "token":
            target = torch.where(self.indices < 0, self.num_experts, self.indices)
            spread = self.weights.new_zeros(*self.rows, self.num_experts + 1)
            return spread.scatter_add(-1, target, self.weights)[..., :-1]
        num_groups, num_rows = self.rows
        target = torch.where(self.indices < 0, num_rows, self.indices)
        spread = self.weights.new_zeros(num_groups, self.num_experts, num_rows + 1)
        return spread.scatter_add(-1, target, self.weights)[..., :-1].transpose(1, 2)

    def counted_rows(self) -> Tensor:
        """The rows that statistics and losses read, bool ``[*L]``: not padding, not NaN."""
        seen = self.probs if self.probs is not None else self.dense()
        finite = seen.sum(-1).isfinite()  # NaN and infinity survive the sum; 50 times faster
        return finite if self.valid is None else finite & _lift(self.valid, finite)

    def counts(self) -> Tensor:
        """Assignments each expert got from the counted rows, int64 ``[E]``; no gradient.

        Dense: rows with a weight other than 0. Slot: slots that take input from some row.
        """
        with torch.no_grad():
            return self._active().flatten(0, -2).sum(0)

    def importance(self) -> Tensor:
        """Sum of ``probs`` over the counted rows, ``[E]``; the weights where there are no probs."""
        seen = self.probs if self.probs is not None else self.dense()
        seen = torch.where(self.counted_rows().unsqueeze(-1), seen, 0)
        return seen[..., : self.num_experts].flatten(0, -2).sum(0)

    def mean_active(self) -> Tensor:
        """Mean number of experts that serve a counted row (per gate), a scalar."""
        with torch.no_grad():
            rows = self.counted_rows()
            if self.layout == "slot":
                served = (self.dense() != 0) & rows.unsqueeze(-1)
            else:
                served = self._active()
            return served.sum() / rows.sum().clamp_min(1)

    def detach(self) -> "Routing":
        """The same routing without gradient."""
        return self._map(Tensor.detach)

    def select_rows(self, index: Tensor) -> "Routing":
        """The routing of the entries ``index`` of the first axis (rows, images or groups).

        Args:
            index: int64 ``[R]``.
        """
        return self._map(lambda tensor: tensor.index_select(0, index))

    def compose(self, inner: "Routing", groups: Sequence[Sequence[int]]) -> "Routing":
        r"""Two stages of mixing as one: experts inside groups, then the groups.

        .. math:: W_e = \sum_{(g, m):\ \mathrm{groups}[g][m] = e} v_g\, w_{g,m}

        Args:
            inner: Weights ``[*L, G, M]`` inside each group.
            groups: ``G`` lists of ``M`` expert ids; an expert may stand in several.

        Returns:
            Dense routing over ``1 + max(groups)`` experts.

        Raises:
            ArgumentError: When the two routings and the groups do not fit together.
        """
        if self.layout not in ("dense", "token") or inner.layout not in ("dense", "token"):
            raise ArgumentError(
                f"compose got layouts {self.layout!r} and {inner.layout!r}; it mixes weights per "
                "row, so both must be 'dense' or 'token'"
            )
        v, w = self.dense(), inner.dense()
        sizes = {len(group) for group in groups}
        if v.shape != w.shape[:-1] or len(groups) != v.shape[-1] or sizes != {w.shape[-1]}:
            raise ArgumentError(
                f"compose got outer weights {list(v.shape)}, inner weights {list(w.shape)} and "
                f"{len(groups)} groups of {sorted(sizes)} experts; expected [*L, G], [*L, G, M] "
                "and G groups of M"
            )
        num_experts = 1 + max(max(group) for group in groups)
        one_hot = [[float(e == m) for e in range(num_experts)] for group in groups for m in group]
        members = torch.tensor(one_hot, dtype=w.dtype).to(w.device, non_blocking=True)

        def mix(outer_weights: Tensor, inner_weights: Tensor) -> Tensor:
            return (outer_weights.unsqueeze(-1) * inner_weights).flatten(-2) @ members

        probs = None
        if self.probs is not None and inner.probs is not None and inner.probs.shape == w.shape:
            probs = mix(self.probs, inner.probs)
        return Routing(mix(v, w), num_experts, probs=probs, valid=self.valid)

    def check(self) -> "Routing":
        """Verify every invariant and return self; for tests and debugging, not for hot paths.

        Raises:
            GateError: Naming the invariant that does not hold.
        """
        expected = {
            "dense": (self.num_experts, False, False),
            "token": (None, True, False),
            "expert": (None, True, False),
            "slot": (None, False, True),
        }
        if self.layout not in expected:
            raise GateError(f"layout is {self.layout!r}, expected one of {', '.join(expected)}")
        width, has_indices, has_dispatch = expected[self.layout]
        _require(
            width in (None, self.weights.shape[-1]), "a dense routing has one weight per expert"
        )
        _require((self.indices is not None) == has_indices, "indices: token and expert layout only")
        _require((self.dispatch is not None) == has_dispatch, "dispatch belongs to the slot layout")
        for name, tensor in [
            ("weights", self.weights),
            ("probs", self.probs),
            ("logits", self.logits),
        ]:
            exact = tensor is None or tensor.dtype in (torch.float32, torch.float64)
            _require(exact, f"{name} must be float32 or float64")
        rows = self.rows
        if self.probs is not None:
            _require(
                self.probs.shape[: len(rows)] == rows, f"probs must start with the rows {rows}"
            )
        if self.valid is not None:
            _require(self.valid.dtype == torch.bool, "valid must be bool")
            _require(self.valid.shape == rows[: self.valid.ndim], f"valid must fit the rows {rows}")
        for name, tensor in self.extra.items():
            _require(
                tensor.shape[:1] == rows[:1], f"extra[{name!r}] must start with the rows {rows}"
            )
        if self.layout in ("expert", "slot"):
            axis = 1 if self.layout == "expert" else 2
            _require(
                self.weights.shape[axis] == self.num_experts, "one block of weights per expert"
            )
        self._check_values()
        return self

    def _check_values(self) -> None:
        if self.indices is not None:
            limit = self.num_experts if self.layout == "token" else self.rows[-1]
            _require(self.indices.shape == self.weights.shape, "one weight per index")
            _require(self.indices.dtype == torch.int64, "indices must be int64")
            in_range = (self.indices >= -1) & (self.indices < limit)
            _require(bool(in_range.all()), f"indices must lie in [-1, {limit})")
            nobody = self.indices < 0
            _require(not bool(self.weights[nobody].any()), "weight must be 0 where the index is -1")
            ordered = self.indices.sort(-1).values
            twice = (ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)
            _require(not bool(twice.any()), "nobody may be chosen twice")
        counted, dense = self.counted_rows(), self.dense()
        read = dense if self.layout != "slot" else self.weights.flatten(-2)
        _require(bool(read[counted].isfinite().all()), "weights must be finite for finite rows")
        if self.dispatch is not None:
            _require(
                self.dispatch.shape == self.weights.shape, "dispatch and weights differ in shape"
            )
        if self.valid is not None:
            padding = ~_lift(self.valid, counted).expand_as(counted)
            _require(not bool(dense[padding].any()), "padding rows must have weight 0")
            if self.layout == "token":
                assert self.indices is not None
                _require(
                    bool((self.indices[padding] == -1).all()), "padding rows must have index -1"
                )
        if self.probs is not None:
            total = self.probs[counted].sum(-1)
            one = torch.isclose(total, torch.ones_like(total), atol=1e-4) | (total == 0)
            _require(bool(one.all()), "probs must sum to 1 (0 where every expert is masked)")

    def _active(self) -> Tensor:
        """Bool, last axis ``E``: assignments of counted rows, whatever the layout."""
        rows = self.counted_rows()
        if self.layout == "dense":
            return (self.weights != 0) & rows.unsqueeze(-1)
        if self.layout == "slot":
            assert self.dispatch is not None
            fed = (self.dispatch != 0) & rows[..., None, None]
            return fed.any(1).transpose(1, 2)
        assert self.indices is not None
        if self.layout == "token":
            target = torch.where(
                (self.indices < 0) | ~rows.unsqueeze(-1), self.num_experts, self.indices
            )
            spread = rows.new_zeros(*rows.shape, self.num_experts + 1)
            return spread.scatter(-1, target, True)[..., :-1]
        row = self.indices.clamp_min(0).flatten(1)
        counted = rows.gather(1, row).view_as(self.indices)
        return ((self.indices >= 0) & counted).transpose(1, 2)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Routing":
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return dataclasses.replace(
            self,
            weights=change(self.weights),
            indices=maybe(self.indices),
            dispatch=maybe(self.dispatch),
            logits=maybe(self.logits),
            probs=maybe(self.probs),
            valid=maybe(self.valid),
            extra={name: change(tensor) for name, tensor in self.extra.items()},
        )


def mask_rows(routing: Routing, valid: Tensor | None) -> Routing:
    """Give padding rows weight 0 and index -1 in a dense, token or slot routing.

    Args:
        routing: Any layout but ``expert``, whose selection has to know the padding beforehand.
        valid: bool ``[*L]``, False for padding; None changes nothing.
    """
    if valid is None:
        return routing
    if routing.layout == "expert":
        raise ArgumentError(
            "mask_rows got an expert-choice routing; pass valid to the selection instead, "
            "which then gives the capacity to real rows"
        )
    keep = _lift(valid, routing.weights)
    indices = routing.indices
    extra = dict(routing.extra)
    if indices is not None:
        indices = torch.where(keep, indices, -1)
    if "choices" in extra:
        extra["choices"] = torch.where(keep, extra["choices"], -1)
    weights = torch.where(keep, routing.weights, 0)
    return dataclasses.replace(routing, weights=weights, indices=indices, valid=valid, extra=extra)


def _lift(valid: Tensor, like: Tensor) -> Tensor:
    """Append axes to ``valid`` until it broadcasts against ``like``."""
    return valid.reshape(valid.shape + (1,) * (like.ndim - valid.ndim))


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise GateError(f"invalid routing: {rule}. Build it with moeapps.gating.selections.")


# A tree of tensors to torch.export. The plain fields go beside the leaves: a saved program with
# text among its outputs could not be loaded again. The process that loads it has to import this.
_PLAIN = ("num_experts", "layout")
_TREE = tuple(each.name for each in dataclasses.fields(Routing) if each.name not in _PLAIN)


def _flatten(routing: Routing) -> tuple[list[Any], list[Any]]:
    return [getattr(routing, name) for name in _TREE], [getattr(routing, name) for name in _PLAIN]


def _flatten_with_keys(routing: Routing) -> tuple[list[tuple[Any, Any]], list[Any]]:
    leaves, plain = _flatten(routing)
    return [
        (pytree.GetAttrKey(name), leaf) for name, leaf in zip(_TREE, leaves, strict=True)
    ], plain


def _unflatten(leaves: Iterable[Any], plain: list[Any]) -> Routing:
    given = {**dict(zip(_TREE, leaves, strict=True)), **dict(zip(_PLAIN, plain, strict=True))}
    return Routing(**given)


pytree.register_pytree_node(
    Routing,
    _flatten,
    _unflatten,
    serialized_type_name="moeapps.gating.routing.Routing",
    flatten_with_keys_fn=_flatten_with_keys,
)
