"""What a restored image is trained by: smooth L1, and distance in the features of VGG16."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, CheckpointError, DataNotFoundError

WIDTHS = ((64, 64), (128, 128), (256, 256, 256))  # of VGG16's convolutions, to relu3_3
LAYERS = (3, 8, 15)  # relu1_2, relu2_2, relu3_3, numbered as in torchvision's vgg16().features
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class RestorationLoss(nn.Module):
    r"""Smooth L1 and, weighted, the distance of VGG16 features.

    .. math:: L = \mathrm{SmoothL1}_\beta(\hat x, x) + \lambda\, L_{\mathrm{perc}}(\hat x, x)

    Args:
        perceptual: :math:`\lambda`; the authors use 0.04. With 0 no VGG16 is built.
        beta: Error from which smooth L1 is linear.
        weights: Of VGG16; see :class:`PerceptualLoss`.
        normalize: See :class:`PerceptualLoss`.
        random_ok: See :class:`PerceptualLoss`.

    Shape:
        - restored, target ``[B, 3, H, W]`` from 0 to 1; a scalar

    Raises:
        ArgumentError: For shapes that differ, or a perceptual term without weights.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> loss = RestorationLoss()
        >>> float(loss(torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)))
        0.125
    """

    def __init__(
        self,
        perceptual: float = 0.0,
        *,
        beta: float = 1.0,
        weights: str | Path | Mapping[str, Tensor] | None = None,
        normalize: bool = True,
        random_ok: bool = False,
    ) -> None:
        super().__init__()
        if perceptual < 0 or beta <= 0:
            raise ArgumentError(
                f"perceptual={perceptual}, beta={beta}. Choose perceptual >= 0 and beta > 0."
            )
        self.weight, self.beta = perceptual, beta
        self.perceptual = (
            PerceptualLoss(weights, normalize=normalize, random_ok=random_ok)
            if perceptual
            else None
        )

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        same_shape(restored, target)
        loss = F.smooth_l1_loss(restored, target, beta=self.beta)
        return (
            loss
            if self.perceptual is None
            else loss + self.weight * self.perceptual(restored, target)
        )


class PerceptualLoss(nn.Module):
    r"""Mean squared distance of VGG16 features, averaged over three layers.

    .. math:: L_{\mathrm{perc}} = \tfrac13 \sum_{l} \mathrm{MSE}\big(\phi_l(\hat x), \phi_l(x)\big),
        \qquad l \in \{\text{relu1\_2}, \text{relu2\_2}, \text{relu3\_3}\}

    The network is frozen and stays in eval mode.

    Args:
        weights: File or state dict of torchvision's ``vgg16``, the whole or its ``features``.
        normalize: Give it ImageNet-normalised images. False feeds pixels from 0 to 1 as they are,
            as the authors' code does.
        random_ok: Accept a network with random weights where ``weights`` is None.

    Shape:
        - restored, target ``[B, 3, H, W]`` from 0 to 1, at least 4 pixels a side; a scalar

    Raises:
        ArgumentError: Without weights, unless ``random_ok``; or for shapes that differ.
        DataNotFoundError: There is no such file.
        CheckpointError: The weights are not those of VGG16.

    Notes:
        Departures from the released code: ``normalize``. Weights are never downloaded.

    Example:
        >>> loss = PerceptualLoss(random_ok=True)
        >>> image = torch.rand(1, 3, 16, 16)
        >>> float(loss(image, image))
        0.0
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str | Path | Mapping[str, Tensor] | None = None,
        *,
        normalize: bool = True,
        random_ok: bool = False,
    ) -> None:
        super().__init__()
        if weights is None and not random_ok:
            raise ArgumentError(
                "The perceptual loss needs the weights of VGG16, and nothing is downloaded. Pass "
                "weights=PATH of torchvision's vgg16 (vgg16-397923af.pth), perceptual=0.0 to do "
                "without, or random_ok=True in tests."
            )
        self.features = vgg16_features()
        if weights is not None:
            _load(self.features, weights)
        self.requires_grad_(False)
        self.normalize = normalize
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        same_shape(restored, target)
        with torch.no_grad():
            wanted = self._tapped(target)
        got = self._tapped(restored)
        return torch.stack([F.mse_loss(a, b) for a, b in zip(got, wanted, strict=True)]).mean()

    def _tapped(self, images: Tensor) -> list[Tensor]:
        x, tapped = (images - self.mean) / self.std if self.normalize else images, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in LAYERS:
                tapped.append(x)
        return tapped


def vgg16_features() -> nn.Sequential:
    """The layers of VGG16 up to relu3_3, with random weights and torchvision's numbering."""
    layers: list[nn.Module] = []
    channels = 3
    for block in WIDTHS:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])


def same_shape(restored: Tensor, target: Tensor) -> None:
    """Refuse what would broadcast."""
    if restored.shape != target.shape:
        raise ArgumentError(
            f"restored is {list(restored.shape)} but target {list(target.shape)}; expected equal "
            "shapes [B, 3, H, W]."
        )


def _load(features: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    if isinstance(weights, str | Path):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise DataNotFoundError(
                f"VGG16 weights not found: {path} is no file. Expected torchvision's "
                "vgg16-397923af.pth; pass its path."
            )
        try:
            state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read as a state dict: {error}") from error
    else:
        state = weights
    named = {name.removeprefix("features."): value for name, value in state.items()}
    try:
        features.load_state_dict({name: named[name] for name in features.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"These are not the weights of torchvision's vgg16 ({error}). Expected the state dict "
            "of vgg16() or of its features."
        ) from error
