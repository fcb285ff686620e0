"""An image classifier as a program that takes images and gives probabilities."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from moeapps.errors import ConfigError


class Classifier(nn.Module):
    """Probabilities from normalised images.

    Args:
        model: Trained.

    Shape:
        - images ``[B, C, H, W]`` -> ``{"probability": [B, classes]}``
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The probabilities."""
        logits = self.model(images)
        own = getattr(self.model, "probabilities", None)  # of classes that may hold together
        return {"probability": logits.softmax(-1) if own is None else own(logits)}


def export_network(module: Any) -> nn.Module:
    """What is exported of a run."""
    return Classifier(module.model)


def export_inputs(module: Any) -> tuple[Callable[[int], tuple[Tensor]], Any]:
    """Batches of different sizes, and which dimension may vary: the images, not their pixels.

    Returns:
        A function from a whole number to the network's input, and the dynamic shapes.

    Raises:
        ConfigError: The run does not say how large its images are.
    """
    channels, size = module.hparams.get("in_channels"), module.hparams.get("image_size")
    if channels is None or size is None:
        raise ConfigError(
            f"{type(module).__name__} does not know the size of its images. Set in_channels= and "
            "image_size=[height, width] of the model."
        )

    def images(number: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(number)
        return (torch.randn(4 + 5 * number, channels, *size, generator=generator),)

    return images, ({0: Dim("images", min=1)},)
