"""Small random inputs for a registered model, by the task it is registered for."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import UnknownNameError
from moeapps.registry import ModelEntry

TASKS = (
    "node classification",
    "multi-task ranking",
    "image classification",
    "image restoration",
    "crowd counting",
)


@dataclass(frozen=True)
class Example:
    """Inputs of one call and what the output should be.

    Args:
        inputs: Arguments of ``forward`` by name; a model gets those it has a parameter for.
        target: Class per node or image, int64; or 0 and 1 per row and task, float32 ``[B, T]``; or
            what the output itself should be, a map ``[B, C, H, W]``.
        output_shape: Shape of the prediction.
        dynamic: Per input, the axes whose size changes from call to call, with a name each.
    """

    inputs: dict[str, Any]
    target: Tensor
    output_shape: tuple[int, ...]
    dynamic: dict[str, Any]

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy with the target; mean squared error of a map."""
        if self.target.dim() == 4:
            return F.mse_loss(logits, self.target)
        if self.target.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, self.target)
        return F.cross_entropy(logits, self.target)

    def accuracy(self, logits: Tensor) -> float:
        """Share of right answers; share of the variance that a map explains."""
        if self.target.dim() == 4:
            return 1 - float(F.mse_loss(logits.detach(), self.target) / self.target.var())
        binary = self.target.is_floating_point()
        said = (logits > 0).float() if binary else logits.argmax(-1)
        return float((said == self.target).double().mean())


def example_inputs(entry: ModelEntry, *, size: int = 24, seed: int = 0) -> Example:
    """A small learnable input for the task of ``entry``.

    Args:
        entry: A row of the registry; its example arguments give the widths.
        size: Nodes of the graph, rows of the log, or images.
        seed: Of everything random in it.

    Raises:
        UnknownNameError: There is no example for the entry's task yet.

    Example:
        >>> from moeapps.registry import model_info
        >>> example = example_inputs(model_info("gcn"))
        >>> example.inputs["x"].shape, example.output_shape
        (torch.Size([24, 8]), (24, 3))
    """
    if entry.task not in TASKS:
        raise UnknownNameError("task of an example input", entry.task, TASKS)
    make = dict(zip(TASKS, _MAKERS, strict=True))
    return make[entry.task](entry.example, size, torch.Generator().manual_seed(seed))


def _ranking(arguments: dict[str, Any], rows: int, generator: torch.Generator) -> Example:
    """A log whose labels follow from the first id; a task's ones are among those of the last."""
    features, num_tasks = arguments["schema"]["features"], len(arguments["tasks"])
    sizes = [f["vocab_size"] for f in features if f["kind"] == "categorical"]
    width = sum(f.get("width", 1) for f in features if f["kind"] == "dense")
    ids = torch.stack([torch.randint(size, (rows,), generator=generator) for size in sizes], 1)
    batch = {"cat": ids, "dense": torch.randn(rows, width, generator=generator)}
    target = torch.stack([ids[:, 0] % (t + 2) == 0 for t in range(num_tasks)], 1)
    return Example(
        {"batch": batch},
        target.float().cumprod(1),
        (rows, num_tasks),
        {"batch": {"cat": {0: "rows"}, "dense": {0: "rows"}}},
    )


def _image_classification(
    arguments: dict[str, Any], num_images: int, generator: torch.Generator
) -> Example:
    """Noisy copies of one picture per class; as large as the arguments say, else 16 pixels."""
    num_classes, channels = arguments["num_classes"], arguments.get("in_channels", 3)
    pixels = arguments.get("image_size", 16)
    y = torch.arange(num_images) % num_classes
    pictures = torch.randn(num_classes, channels, pixels, pixels, generator=generator)
    noise = torch.randn(num_images, channels, pixels, pixels, generator=generator)
    return Example(
        {"images": pictures[y] + 0.5 * noise},
        y,
        (num_images, num_classes),
        {"images": {0: "images"}},
    )


def _node_classification(
    arguments: dict[str, Any], num_nodes: int, generator: torch.Generator
) -> Example:
    """Undirected graph with an isolated node, mostly linking nodes of the same class."""
    num_classes, width = arguments["out_channels"], arguments["in_channels"]
    y = torch.arange(num_nodes) % num_classes
    means = 2 * torch.randn(num_classes, width, generator=generator)
    x = means[y] + 0.5 * torch.randn(num_nodes, width, generator=generator)
    source, target = torch.randint(num_nodes - 1, (2, 8 * num_nodes), generator=generator)
    bridge = torch.rand(source.shape, generator=generator) < 0.1
    keep = (source != target) & ((y[source] == y[target]) | bridge)
    edges = torch.stack([source[keep], target[keep]])
    edge_index = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    return Example(
        {"x": x, "edge_index": edge_index},
        y,
        (num_nodes, num_classes),
        {"x": {0: "nodes"}, "edge_index": {1: "edges"}},
    )


def _image_restoration(
    arguments: dict[str, Any], num_images: int, generator: torch.Generator
) -> Example:
    """Smooth colour pictures of 12 x 16 pixels under a veil; the target is the picture."""
    corners = torch.rand(num_images, 3, 2, 2, generator=generator)
    clean = F.interpolate(corners, (12, 16), mode="bilinear", align_corners=True)
    veil = 0.3 + 0.5 * torch.rand(num_images, 1, 1, 1, generator=generator)
    return Example(
        {"images": clean * (1 - veil) + 0.9 * veil},
        clean,
        tuple(clean.shape),
        {"images": {0: "images"}},
    )


def _crowd_counting(
    arguments: dict[str, Any], num_images: int, generator: torch.Generator
) -> Example:
    """Bright blobs in pictures of 12 x 16 pixels; the target is their density."""
    x, y = torch.arange(16.0), torch.arange(12.0).unsqueeze(1)
    centres = torch.rand(num_images, 2, 3, 1, 1, generator=generator) * torch.tensor(
        [16.0, 12.0]
    ).view(2, 1, 1, 1)
    blobs = (-((x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2) / 8).exp().sum(1, keepdim=True)
    density = 3 * blobs / blobs.sum((2, 3), keepdim=True)
    noise = 0.02 * torch.rand(num_images, 3, 12, 16, generator=generator)
    return Example(
        {"images": (0.3 * blobs + noise).clamp(max=1)},
        density,
        tuple(density.shape),
        {"images": {0: "images"}},
    )


_MAKERS = (
    _node_classification,
    _ranking,
    _image_classification,
    _image_restoration,
    _crowd_counting,
)
