"""The dense networks that AdvMoE is compared with: full width, or the cost of one pathway."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from moeapps.vision.robust.moe_conv import Route
from moeapps.vision.robust.networks import Normalise, make_network


class DenseCNN(nn.Module):
    r"""The network without experts, under the same calls as `AdvMoE`.

    .. math:: z = f(x)

    Args:
        num_classes: ``C``.
        backbone: ``"resnet18"`` or ``"small_cnn"``.
        ratio: Share of the full width, stem included; 0.5 is "S-Dense".
        in_channels: Channels of an image.
        mean: Of the pixels of each channel; subtracted inside.
        std: Of the pixels of each channel.

    Shape:
        - images ``[B, in_channels, H, W]`` with pixels from 0 to 1; logits ``[B, C]``
        - scores ``[B, 0, 1]``: there is nothing to decide

    Notes:
        Departures from the paper: none.

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.

    Example:
        >>> import torch
        >>> DenseCNN(10, backbone="small_cnn", ratio=0.5)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    num_experts = 1

    def __init__(
        self,
        num_classes: int = 10,
        *,
        backbone: str = "resnet18",
        ratio: float = 1.0,
        in_channels: int = 3,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise(mean, std, in_channels)
        self.network = make_network(
            backbone, ratio, in_channels=in_channels, num_classes=num_classes, thin_stem=True
        )

    def forward(
        self, images: Tensor, route: Route | str = "hard", return_scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; ``route`` is what attacks pass to every network, and decides nothing here."""
        logits = self.network(self.normalise(images), None, "hard")
        return (logits, images.new_zeros(len(images), 0, 1)) if return_scores else logits

    def scores(self, images: Tensor) -> Tensor:
        """Nothing to decide, ``[B, 0, 1]``."""
        return images.new_zeros(len(images), 0, 1)

    def router_parameters(self) -> Iterator[nn.Parameter]:
        """None."""
        yield from ()

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        yield from self.parameters()
