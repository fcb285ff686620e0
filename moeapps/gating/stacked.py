"""Experts of one shape with stacked weights: one tensor per layer for all of them."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps import kernels
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating.protocol import Experts
from moeapps.gating.routing import Routing
from moeapps.kernels.networks import Activation, Networks

Module = TypeVar("Module", bound=nn.Module)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def activation(act: str | Activation) -> Activation:
    """An activation from its name; a callable is returned as it is."""
    if callable(act):
        return act
    if act not in ACTIVATIONS:
        raise UnknownNameError("activation", act, ACTIVATIONS)
    return ACTIVATIONS[act]()


class Mlp(nn.Module):
    r"""One two-layer network: the plain form of a single expert, and a shared expert.

    .. math:: y = W^2\,\mathrm{act}(W^1 x + b^1) + b^2

    With ``gated`` the first layer is twice as wide and its second half multiplies the activated
    first half.

    Args:
        in_features: Width of the input.
        hidden_features: Width of the hidden layer.
        out_features: Width of the output; as the input if None.
        act: A name from ``ACTIVATIONS`` or a callable.
        gated: Use a gated unit.
        bias: Both layers have a bias.
        dropout: Probability on the hidden layer in training.

    Example:
        >>> Mlp(16, 32)(torch.randn(2, 16)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        act: str | Activation = "gelu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = 2 * hidden_features if gated else hidden_features
        self.fc1 = nn.Linear(in_features, width, bias=bias)
        self.act = activation(act)
        self.fc2 = nn.Linear(hidden_features, out_features or in_features, bias=bias)
        self.gated, self.dropout = gated, dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[*L, D] -> [*L, O]``."""
        h = self.fc1(x)
        if self.gated:
            h, scale = h.chunk(2, dim=-1)
            h = self.act(h) * scale
        else:
            h = self.act(h)
        return self.fc2(F.dropout(h, self.dropout, self.training))


class Stacked(Experts):
    """Experts whose ``e``-th slice of every parameter is the ``e``-th expert."""

    @abstractmethod
    def _slots(self, module: nn.Module) -> dict[str, Tensor | None]:
        """The tensors of one plain module, by the name of the stacked parameter they belong to."""

    def _initialise(self, fan_in: dict[str, int]) -> None:
        """Every slice as its own ``nn.Linear`` would start: uniform, bounded by its own fan."""
        for name, fan in fan_in.items():
            parameter = getattr(self, name)
            if parameter is not None:
                nn.init.uniform_(parameter, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    @torch.no_grad()
    def load_modules(self, modules: Sequence[nn.Module]) -> Self:
        """Copy one plain module into each expert.

        Raises:
            ArgumentError: The number of modules or a shape does not fit.
        """
        if len(modules) != self.num_experts:
            raise ArgumentError(
                f"Got {len(modules)} modules for {self.num_experts} experts. Give one per expert."
            )
        for e, module in enumerate(modules):
            for name, tensor in self._slots(module).items():
                parameter = getattr(self, name)
                if (parameter is None) != (tensor is None) or (
                    tensor is not None and tensor.shape != parameter.shape[1:]
                ):
                    have = None if parameter is None else list(parameter.shape[1:])
                    got = None if tensor is None else list(tensor.shape)
                    raise ArgumentError(
                        f"Expert {e}: {name} is {have} here but {got} in {type(module).__name__}. "
                        "Build the experts with the sizes and bias of the modules."
                    )
                if tensor is not None:
                    parameter[e].copy_(tensor)
        return self

    @torch.no_grad()
    def copy_from(
        self, module: nn.Module, noise: float = 0.0, *, generator: torch.Generator | None = None
    ) -> Self:
        """Start every expert as a copy of one trained module (upcycling).

        Args:
            module: The plain module, of the kind ``to_modules`` gives.
            noise: Standard deviation of Gaussian noise on each tensor, in units of the tensor's own
                standard deviation; makes the experts differ.
            generator: Source of the noise.
        """
        self.load_modules([module] * self.num_experts)
        if noise > 0:
            for parameter in self.parameters(recurse=False):
                scale = noise * parameter[0].std(unbiased=False)
                parameter.add_(
                    scale
                    * torch.randn(
                        parameter.shape,
                        generator=generator,
                        dtype=parameter.dtype,
                        device=parameter.device,
                    )
                )
        return self

    def _unload(self, e: int, module: Module) -> Module:
        """Copy expert ``e`` into a plain module of the right shape."""
        with torch.no_grad():
            for name, tensor in self._slots(module).items():
                if tensor is not None:
                    tensor.copy_(getattr(self, name)[e])
        return module


class StackedNetworks(Stacked):
    """Stacked experts that are `Networks`, which the kernels evaluate."""

    @abstractmethod
    def networks(self) -> Networks:
        """The parameters in the form the kernels take."""

    def functions(self) -> Sequence[Callable[..., Tensor]]:
        """One callable per expert, sharing one split of each stacked tensor."""
        return self.networks().functions()

    def all(self, x: Tensor, *args: Any) -> Tensor:
        """Every expert's output for every row, ``[*L, D] -> [*L, E, O]``."""
        y = kernels.all_experts(x.flatten(0, -2), self.networks())
        return y.reshape(*x.shape[:-1], *y.shape[1:])

    def grouped(self, rows: Tensor, expert_ids: Tensor, offsets: Tensor) -> Tensor:
        """Each expert on its slice of sorted rows; see `Experts.grouped`."""
        return kernels.sorted_rows(rows, offsets, self.networks())

    def batched(self, x: Tensor) -> Tensor:
        """Expert ``e`` on its own batch ``x[e]``."""
        return kernels.batched(x, self.networks())

    def routed(self, x: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Weighted sum of each row's chosen experts by the strategy in force."""
        return kernels.routed(x, indices_NK, weights_NK, self.networks())

    def _dense(self, x: Tensor, routing: Routing, *args: Any) -> Tensor:
        if routing.weights.dim() != x.dim() or args:
            return super()._dense(x, routing, *args)
        rows = x.shape[:-1]
        if routing.weights.shape[:-1] != rows:
            self._refuse(x, routing)
        y = kernels.folded(x.flatten(0, -2), routing.weights.flatten(0, -2), self.networks())
        return y.view(*rows, y.shape[-1])


class StackedMLP(StackedNetworks):
    r"""E two-layer networks.

    .. math:: f_e(x) = W^2_e\,\mathrm{act}(W^1_e x + b^1_e) + b^2_e

    Args:
        num_experts: ``E``.
        in_features: ``D``.
        hidden_features: ``F``.
        out_features: ``O``.
        act: A name from ``ACTIVATIONS`` or a callable.
        gated: The first layer is twice as wide and its second half multiplies the activated first.
        bias: Both layers have a bias.
        dropout: Probability on the hidden layer in training.

    Shape:
        - parameters ``w1 [E, F, D]`` (``[E, 2F, D]`` if gated), ``b1 [E, F]``, ``w2 [E, O, F]``,
          ``b2 [E, O]``: each slice laid out as ``nn.Linear``
        - rows ``[*L, D] -> [*L, O]``

    Notes:
        Which kernel runs is chosen by ``moeapps.kernels``; ``kernels.use(...)`` overrides it.

    Example:
        >>> experts = StackedMLP(4, 16, 32, 8)
        >>> routing = Routing(torch.ones(2, 1), 4, torch.tensor([[0], [3]]), layout="token")
        >>> experts(torch.randn(2, 16), routing).shape
        torch.Size([2, 8])
        >>> experts.all(torch.randn(2, 16)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        hidden_features: int,
        out_features: int,
        act: str | Activation = "gelu",
        *,
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_experts)
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout={dropout} is not a probability below 1.")
        E, width = num_experts, 2 * hidden_features if gated else hidden_features
        self.w1 = nn.Parameter(torch.empty(E, width, in_features))
        self.b1 = nn.Parameter(torch.empty(E, width)) if bias else None
        self.w2 = nn.Parameter(torch.empty(E, out_features, hidden_features))
        self.b2 = nn.Parameter(torch.empty(E, out_features)) if bias else None
        self.act = activation(act)
        self.gated, self.dropout = gated, dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every expert as its own pair of ``nn.Linear`` would."""
        D, hidden = self.w1.shape[2], self.w2.shape[2]
        self._initialise({"w1": D, "b1": D, "w2": hidden, "b2": hidden})

    def networks(self) -> Networks:
        """The parameters in the form the kernels take."""
        dropout = self.dropout if self.training else 0.0
        return Networks(self.w1, self.b1, self.w2, self.b2, self.act, self.gated, dropout)

    @classmethod
    def from_modules(
        cls, modules: Sequence[nn.Module], act: str | Activation = "gelu", *, gated: bool = False
    ) -> "StackedMLP":
        """Stack separate networks, each with exactly two ``nn.Linear`` in order of use.

        Args:
            modules: One per expert, all of one shape.
            act: Activation between the layers, which a module's weights do not tell.
            gated: The first layer holds both halves of a gated unit.

        Example:
            >>> StackedMLP.from_modules([Mlp(4, 8), Mlp(4, 8)]).w1.shape
            torch.Size([2, 8, 4])
        """
        first, second = _linears(modules[0], 2)
        bias = first.bias is not None
        experts = cls(
            len(modules),
            first.in_features,
            second.in_features,
            second.out_features,
            act,
            gated=gated,
            bias=bias,
        )
        return experts.to(first.weight.device, first.weight.dtype).load_modules(modules)

    def to_modules(self) -> list[Mlp]:
        """Separate networks with copies of the weights, one per expert."""
        E, out, hidden = self.w2.shape
        return [
            self._unload(
                e,
                Mlp(
                    self.w1.shape[2],
                    hidden,
                    out,
                    act=self.act,
                    gated=self.gated,
                    bias=self.b1 is not None,
                    dropout=self.dropout,
                ).to(self.w1.device, self.w1.dtype),
            )
            for e in range(E)
        ]

    def _slots(self, module: nn.Module) -> dict[str, Tensor | None]:
        first, second = _linears(module, 2)
        return {"w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}


class StackedLinear(StackedNetworks):
    r"""E linear maps, :math:`f_e(x) = W_e x + b_e`.

    Args:
        num_experts: ``E``.
        in_features: ``D``.
        out_features: ``O``.
        bias: Each map has a bias.

    Shape:
        - parameters ``w [E, O, D]``, ``b [E, O]``
        - rows ``[*L, D] -> [*L, O]``

    Example:
        >>> StackedLinear(4, 16, 8).all(torch.randn(2, 16)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, *, bias: bool = True
    ) -> None:
        super().__init__(num_experts)
        self.w = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.b = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every expert as its own ``nn.Linear`` would."""
        self._initialise({"w": self.w.shape[2], "b": self.w.shape[2]})

    def networks(self) -> Networks:
        """The parameters in the form the kernels take."""
        return Networks(self.w, self.b)

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module]) -> "StackedLinear":
        """Stack separate ``nn.Linear``."""
        (first,) = _linears(modules[0], 1)
        experts = cls(
            len(modules), first.in_features, first.out_features, bias=first.bias is not None
        )
        return experts.to(first.weight.device, first.weight.dtype).load_modules(modules)

    def to_modules(self) -> list[nn.Linear]:
        """Separate ``nn.Linear`` with copies of the weights."""
        E, out, D = self.w.shape
        like = {"device": self.w.device, "dtype": self.w.dtype}
        return [
            self._unload(e, nn.Linear(D, out, bias=self.b is not None, **like)) for e in range(E)
        ]

    def _slots(self, module: nn.Module) -> dict[str, Tensor | None]:
        (linear,) = _linears(module, 1)
        return {"w": linear.weight, "b": linear.bias}


def _linears(module: nn.Module, count: int) -> list[nn.Linear]:
    found = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if len(found) != count:
        raise ArgumentError(
            f"{type(module).__name__} holds {len(found)} nn.Linear, expected {count}. Give modules "
            "of the kind to_modules() returns."
        )
    return found
