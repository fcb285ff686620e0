"""Straight code for small batches: a computation recorded once per shape, played without modules.

With few rows a product of matrices takes as long as the Python around it. What a model does for a
batch of one shape is a list of operations; here that list becomes the body of one function.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from moeapps.kernels.select import is_traced

Compute = Callable[..., Tensor]

MAX_ROWS = 64  # beyond, products outweigh the code around them
MAX_SHAPES = 64


class Replay(nn.Module):
    """Runs a computation from its recording where that is faster, and as it is elsewhere.

    Recordings share the weights: a change in place is seen. They are dropped when the module that
    holds this one is moved, cast, loaded or copied.

    Shape:
        - as the computation; up to 64 rows on CPU without gradients are recorded, once per shape,
          which takes about a tenth of a second
    """

    def __init__(self) -> None:
        super().__init__()
        self._codes: dict[tuple[Any, ...], Compute] = {}

    def forward(self, compute: Compute, *inputs: Tensor) -> Tensor:
        """``compute(*inputs)``."""
        if torch.is_grad_enabled() or is_traced():
            return compute(*inputs)
        key = tuple([(x.shape, x.stride(), x.dtype, x.device) for x in inputs])
        code = self._codes.get(key)
        if code is None:
            small = all(x.is_cpu and 0 < len(x) <= MAX_ROWS for x in inputs)
            if not small or len(self._codes) >= MAX_SHAPES:
                return compute(*inputs)
            code = self._codes[key] = record(compute, *inputs)
        return code(*inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Replay":
        self._codes.clear()
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._codes.clear()
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codes": {}}


def record(compute: Compute, *inputs: Tensor) -> Compute:
    """The computation as straight code for inputs of these shapes.

    Chains of views become one view each, views of weights are taken now. A computation that looks
    at its numbers, or changes tensors in place, is returned as it is.

    Args:
        compute: From tensors to one tensor, without randomness.
        *inputs: Of the shapes, strides and types that the code is for.

    Example:
        >>> w = torch.eye(2)
        >>> code = record(lambda x: (x @ w).t().relu().t(), torch.ones(1, 2))
        >>> code(torch.tensor([[-1.0, 3.0]]))
        tensor([[0., 3.]])
    """
    with torch.inference_mode(False), torch.no_grad():
        examples = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in inputs]
        for example, x in zip(examples, inputs, strict=True):
            example.copy_(x)
        try:
            module = make_fx(compute)(*examples)
        except RuntimeError:  # the choice of operations depends on the numbers
            return compute
        if any(_changes(node) for node in module.graph.nodes):
            return compute
        return _Writer(module, examples).function()


def _changes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Writer:
    """Python text of a graph, from the values that one run of it gives."""

    def __init__(self, module: fx.GraphModule, inputs: list[Tensor]) -> None:
        self.module, self.values = module, _Values(module)
        self.values.run(*inputs)
        self.bound: dict[str, Any] = {}  # what the text refers to
        self.given: dict[fx.Node, str] = {}  # inputs and views of them; where they start can vary
        self.roots: dict[fx.Node, tuple[str, Any]] = {}  # of other nodes: whose memory it is
        self.lines: list[str] = []

    def function(self) -> Compute:
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.given[node] = node.name
            elif node.op == "get_attr":
                self.roots[node] = ("", self.values.of[node])
            elif node.op == "call_function":
                self._call(node)
            else:
                self.lines.append(f"return {self._text(node.args[0])}")
        head = f"def play({', '.join(x.name for x in self.given if x.op == 'placeholder')}):\n"
        text = head + "\n".join(f"    {line}" for line in self.lines)
        exec(compile(text, "<recorded>", "exec"), self.bound)
        return self.bound["play"]

    def _call(self, node: fx.Node) -> None:
        source = next((arg for arg in node.all_input_nodes if self._shares(node, arg)), None)
        if source in self.roots and isinstance(self.roots[source][1], Tensor):
            self.roots[node] = self.roots[source]
            return
        name = f"t{len(self.lines)}"
        arguments = [self._text(arg) for arg in node.args]
        arguments += [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
        self.lines.append(f"{name} = {self._bind(_fast(node.target))}({', '.join(arguments)})")
        if source in self.given:
            self.given[node] = name
        else:
            self.roots[node] = (name, self.values.of[node])

    def _shares(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node holds views of what its input holds."""
        ours, theirs = (_tensors(self.values.of[each]) for each in (node, source))
        memory = {tensor.untyped_storage().data_ptr() for tensor in theirs}
        return bool(ours) and all(t.untyped_storage().data_ptr() in memory for t in ours)

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._view(value)
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._text(part) for part in value) + "]"
        plain = value is None or isinstance(value, bool | int | str)
        if plain or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        return self._bind(value)

    def _view(self, node: fx.Node) -> str:
        """What a node holds, as a view of the memory it comes from."""
        if node in self.given:
            return self.given[node]
        root, whole = self.roots[node]
        part = self.values.of[node]
        if not root:
            return self._bind(part)
        if not isinstance(whole, Tensor):  # several results
            return root
        place = [(t.shape, t.stride(), t.storage_offset()) for t in (part, whole)]
        if place[0] == place[1]:
            return root
        size, stride, start = place[0]
        return f"{root}.as_strided({tuple(size)}, {stride}, {start})"

    def _bind(self, value: Any) -> str:
        name = f"n{len(self.bound)}"
        self.bound[name] = value
        return name


class _Values(fx.Interpreter):
    """Keeps what every node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.of: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        self.of[node] = super().run_node(node)
        return self.of[node]


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, Tensor)]


def _fast(target: Any) -> Any:
    """The binding of an operation that torch's own Python functions use; it is the same schema."""
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return target
    name = target._opname
    return getattr(torch._C._VariableFunctions, name, None) or getattr(Tensor, name, target)
