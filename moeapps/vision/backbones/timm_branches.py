"""Any network of timm as a trunk and expert branches, cut where its graph is one tensor wide."""

import copy
import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from moeapps.errors import ArgumentError
from moeapps.lazy import needs_extra
from moeapps.vision.backbones.branches import Branches, Parts
from moeapps.vision.backbones.weights import load_into, read_weights

SplitAt = str | float


class ExpertBranches(Branches):
    r"""A network of timm whose later part exists once per expert, classifier included.

    The network is traced; at a point where everything that follows depends on one tensor only, it
    is cut. What comes before becomes the trunk, what comes after is copied per expert.

    Args:
        model: A model of timm, or its name (built at random, without a download).
        num_experts: ``K``.
        split_at: The module after which the experts begin (``"layer2"``, ``"stages.1"``,
            ``"blocks.5"``), or the share of the graph that is shared.
        weights: Local file of weights for the whole network.
        **options: With a name: further options of ``timm.create_model``.

    Shape:
        - images ``[B, C, H, W]``; logits ``[B, K, classes]`` and features ``[B, K, D]``

    Raises:
        ArgumentError: The network cannot be traced or has no single classifier, or it cannot be cut
            there; names the family.

    Notes:
        All experts start as the same network, so the mean of their logits is that of the model.
        Dropout inside attention, which does not survive tracing, is refused.

    Example:
        >>> import torch
        >>> branches = ExpertBranches("resnet18", 2, split_at="layer2", num_classes=5)
        >>> logits, features = branches.eval()(torch.randn(1, 3, 64, 64))
        >>> logits.shape, features.shape
        (torch.Size([1, 2, 5]), torch.Size([1, 2, 512]))
    """

    def __init__(
        self,
        model: nn.Module | str,
        num_experts: int,
        *,
        split_at: SplitAt = 0.5,
        weights: str | Path | None = None,
        **options: Any,
    ) -> None:
        if isinstance(model, str):
            model = _create(model, weights, options)
        trunk, body, head = cut(model, split_at)
        super().__init__(
            _parts(model, trunk, body, num_experts),
            [copy.deepcopy(head) for _ in range(num_experts)],
        )


def timm_parts(
    name: str,
    *,
    num_experts: int = 1,
    in_channels: int = 3,
    split_at: SplitAt = 0.5,
    weights: str | Path | None = None,
    **options: Any,
) -> Parts:
    """Trunk and bodies of a network of timm, without its classifier; see `ExpertBranches`.

    Example:
        >>> timm_parts("resnet18", num_experts=2).features
        512
    """
    model = _create(name, weights, {"in_chans": in_channels, **options})
    trunk, body, _ = cut(model, split_at)
    return _parts(model, trunk, body, num_experts)


def cut(model: nn.Module, split_at: SplitAt) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Trunk (images to maps), body (to features) and head (to logits) of a network of timm."""
    family = type(model).__name__
    graph = _trace(model, family)
    nodes = [node for node in graph.nodes if node.op != "output"]
    features = _features(model, nodes, family)
    points = [node for node in _narrow(nodes) if nodes.index(node) < nodes.index(features)]
    start = _boundary(nodes, points, split_at, family)
    images, logits = nodes[0], graph.output_node().args[0]
    ends = [images, start, features, logits]
    trunk, body, head = (_part(model, nodes, a, b) for a, b in itertools.pairwise(ends))
    return trunk, body, head


class _Tracer(fx.Tracer):
    """Looks inside modules that have children only, so that drop-path still knows its mode."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return next(module.children(), None) is None or super().is_leaf_module(module, name)


def _trace(model: nn.Module, family: str) -> fx.Graph:
    try:
        with needs_extra("vision"):
            from timm.models._features_fx import get_notrace_functions, get_notrace_modules
        tracer = _Tracer(autowrap_functions=tuple(get_notrace_functions()))
        opaque = tuple(get_notrace_modules())
        plain = tracer.is_leaf_module
        tracer.is_leaf_module = (  # type: ignore[method-assign]
            lambda module, name: isinstance(module, opaque) or plain(module, name)
        )
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, AssertionError, RuntimeError) as error:
        raise ArgumentError(
            f"a {family} cannot be split into a trunk and branches: its graph cannot be traced "
            f"({str(error).splitlines()[0]}). Choose another family, such as ResNet, ConvNeXt, "
            "EfficientNet, ViT or Swin."
        ) from error
    called = tuple(f"{node.target}." for node in graph.nodes if node.op == "call_module")
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0 and not f"{name}.".startswith(called):
            raise ArgumentError(
                f"a {family} cannot be split with dropout {module.p} in {name}: it is drawn inside "
                "attention, which does not survive tracing. Set that rate (attn_drop_rate) to 0."
            )
    return graph


def _features(model: nn.Module, nodes: Sequence[fx.Node], family: str) -> fx.Node:
    """The input of the classifier."""
    name = getattr(model, "pretrained_cfg", {}).get("classifier")
    if not isinstance(name, str) or not isinstance(model.get_submodule(name), nn.Linear):
        raise ArgumentError(
            f"a {family} cannot be split: its classifier is {name!r}, expected one linear layer. "
            "Use a model of timm with a single head and num_classes > 0 (not a distilled one)."
        )
    for node in nodes:
        if node.op == "call_module" and node.target == name:
            return node.all_input_nodes[0]
        if any(i.op == "get_attr" and i.target == f"{name}.weight" for i in node.all_input_nodes):
            return node.all_input_nodes[0]
    raise ArgumentError(f"a {family} cannot be split: it never calls its classifier {name!r}.")


def _narrow(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that alone carry on everything computed from the images so far."""
    place = {node: i for i, node in enumerate(nodes)}
    last = {node: max((place.get(u, len(nodes)) for u in node.users), default=-1) for node in nodes}
    computed = {nodes[0]}
    found: list[fx.Node] = []
    live = [nodes[0]]
    for i, node in enumerate(nodes[1:], start=1):
        live = [other for other in live if last[other] > i]
        if not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
            if last[node] > i:
                live.append(node)
        if live == [node]:
            found.append(node)
    return found


def _boundary(
    nodes: Sequence[fx.Node], points: Sequence[fx.Node], split_at: SplitAt, family: str
) -> fx.Node:
    if not points:
        raise ArgumentError(
            f"a {family} cannot be split: nowhere before its classifier does everything depend on "
            "one tensor. Choose another family."
        )
    if not isinstance(split_at, str):
        if not 0 < split_at < 1:
            raise ArgumentError(f"split_at={split_at} is no share. Choose 0 < split_at < 1.")
        return min(points, key=lambda node: abs(nodes.index(node) / len(nodes) - split_at))
    inside = [node for node in nodes if split_at in _modules(node)]
    if inside and inside[-1] in points:
        return inside[-1]
    known = sorted({name for node in points for name in _ends(nodes, node)})
    raise ArgumentError(
        f"a {family} cannot be split at {split_at!r}: "
        + ("there is no such module. " if not inside else "more than one tensor leaves it. ")
        + f"It can be split after {', '.join(known) or 'no module'}, or at a share such as 0.5."
    )


def _modules(node: fx.Node) -> set[str]:
    """Names of the modules inside which a node was traced."""
    return {name for name, _ in node.meta.get("nn_module_stack", {}).values()} | set(
        node.meta.get("nn_module_stack", {})
    )


def _ends(nodes: Sequence[fx.Node], node: fx.Node) -> set[str]:
    """Modules that a node is the last one of, two levels deep at most."""
    later = {name for other in nodes[nodes.index(node) + 1 :] for name in _modules(other)}
    return {name for name in _modules(node) - later if name.count(".") < 2 and name}


def _part(model: nn.Module, nodes: Sequence[fx.Node], start: fx.Node, end: Any) -> fx.GraphModule:
    """The part of the graph from one tensor to another as a module of its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {start: graph.placeholder("x")}

    def copied(node: fx.Node) -> Any:
        if node not in copies:
            if node.op == "placeholder":  # an optional argument, such as an attention mask
                copies[node] = node.args[0]
            else:
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    first, last = nodes.index(start), nodes.index(end)
    for node in nodes[first + 1 : last + 1]:
        if node.op not in ("placeholder", "get_attr"):
            copied(node)
    graph.output(copied(end))
    part = fx.GraphModule(model, graph, type(model).__name__)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    _drop_by_mode(part)
    part.recompile()
    return part


def _drop_by_mode(part: fx.GraphModule) -> None:
    """Make modules of functional dropout, which would stay in the mode it was traced in."""
    for node in part.graph.find_nodes(op="call_function", target=F.dropout):
        given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        name = f"{node.name}_by_mode"
        part.add_submodule(name, nn.Dropout(given.arguments["p"]))
        with part.graph.inserting_before(node):
            dropped = part.graph.call_module(name, (given.arguments["input"],))
        node.replace_all_uses_with(dropped)
        part.graph.erase_node(node)


def _create(name: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    with needs_extra("vision"):
        import timm
    if options.get("pretrained"):
        raise ArgumentError(
            "pretrained=True would download weights. Give weights=PATH of a local file instead."
        )
    try:
        model: nn.Module = timm.create_model(name, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        known = timm.list_models(f"*{name.partition('_')[0]}*")[:5]
        raise ArgumentError(
            f"timm has no model {name!r}. Similar: {', '.join(known) or 'none'}. See "
            "timm.list_models()."
        ) from error
    if weights is not None:
        load_into(model, read_weights(weights), weights)
    return model


def _parts(model: Any, trunk: nn.Module, body: nn.Module, num_experts: int) -> Parts:
    classifier = model.get_submodule(model.pretrained_cfg["classifier"])
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return Parts(
        copy.deepcopy(trunk),
        [copy.deepcopy(body) for _ in range(num_experts)],
        classifier.in_features,
        getattr(model, "in_chans", first.in_channels),  # TResNet folds pixels into channels first
        stride=_stride(model) if normalised else 1,
        image_size=None if size is None else tuple(size),
    )


def _stride(model: Any) -> int:
    info = getattr(model, "feature_info", None) or [{}]
    reduction = info[-1].get("reduction", 1)
    return int(reduction)
