"""Backdoor adjustment: the mean over fine-tuned models of different pretraining."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError, DataNotFoundError
from moeapps.lazy import needs_extra
from moeapps.vision.backbones.branches import Branches, Parts
from moeapps.vision.longtail.aggregate import MeanProb, PriorCorrected
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.losses import logit_adjusted_cross_entropy

Statistics = tuple[Sequence[float], Sequence[float]]


class BackdoorAdjustment(LongTailModel):
    r"""Average over models that were pretrained in different ways and fine-tuned on a long tail.

    .. math:: P(y \mid \mathrm{do}(x)) = \sum_c P(y \mid x, c)\, P(c), \qquad P(c) = 1 / M

    A pretrained model is a value :math:`c` of what confounds image and class. Each is fine-tuned by
    itself with logit adjustment, :math:`\mathrm{CE}(z_c + \lambda \log \pi)`; the probabilities are
    averaged.

    Args:
        num_classes: ``C``.
        class_counts: Training images of every class.
        models: Modules from images to logits ``[B, C]``, names of timm, or mappings with ``name``,
            ``weights`` (a local file of the pretrained network; its classifier is left out) and
            further options of ``timm.create_model``.
        lam: Correction of the imbalance in fine-tuning; 0 leaves it all to the prediction.
        test_prior: Class shares of the test data; uniform by default.
        normalised_by: Mean and standard deviation by which the images come normalised; models of
            timm then get them in their own units. Without, all get them as they are.
        in_channels: Channels of an image, for models made by name.

    Shape:
        - images ``[B, in_channels, H, W]`` -> logits ``[B, classes]``; in ``aux``
          the models' logits, which are the features too, as the widths of the models differ

    Raises:
        ArgumentError: No model, a name unknown to timm, statistics that do not fit, or a model
            with another number of outputs than classes.
        DataNotFoundError: There is no file of weights.

    Notes:
        As a predictor this is an ensemble over pretrainings, trained jointly only in that one step
        updates all (the loss is the sum of the models' own); what is gained over one model is the
        gain of that ensemble, at ``M`` times the cost. The correction removes the imbalance of the
        fine-tuning data, not that of the pretraining, whose class prior is unknown.

        Models can also be fine-tuned one at a time, each as a ``BackdoorAdjustment`` of one, and
        be handed over here as modules.

    References:
        *Rethinking the Bias of Foundation Model under Long-tailed Distribution*, ICML 2025.
        https://arxiv.org/abs/2501.15955

    Example:
        >>> models = [nn.Sequential(nn.Flatten(), nn.Linear(48, 3)) for _ in range(2)]
        >>> both = BackdoorAdjustment(3, [30, 10, 2], models=models)
        >>> p = both(torch.randn(5, 3, 4, 4)).softmax(-1)
        >>> bool(torch.allclose(p.sum(1), torch.ones(5)))
        True
    """

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        *,
        models: Sequence[nn.Module | str | Mapping[str, Any]],
        lam: float = 1.0,
        test_prior: Sequence[float] | Tensor | None = None,
        normalised_by: Statistics | None = None,
        in_channels: int = 3,
    ) -> None:
        nn.Module.__init__(self)  # models instead of a trunk with branches
        self._count(num_classes, class_counts)
        self.scale, self.lam = 1.0, lam
        if not models:
            raise ArgumentError("models is empty. Give at least one module or name of timm.")
        members = [_Member(model, num_classes, in_channels, normalised_by) for model in models]
        parts = Parts(nn.Identity(), members, features=num_classes, in_channels=in_channels)
        self.backbone = Branches(parts, [nn.Identity() for _ in members])
        self.aggregate = MeanProb()
        if self.class_counts is not None:
            self.aggregate = PriorCorrected(
                MeanProb(), self.class_counts, test_prior=test_prior, lam=lam
            )
        elif test_prior is not None:
            raise ArgumentError(
                "test_prior needs class_counts, the prior that it replaces. Give both."
            )

    def loss_parts(self, aux: dict[str, Tensor], target: Tensor, epoch: int) -> dict[str, Tensor]:
        """The sum of the models' own losses: each learns as if it were alone."""
        prior = self.log_prior
        losses = [
            logit_adjusted_cross_entropy(z, target, prior, self.lam)
            for z in aux["logits"].unbind(1)
        ]
        return {"models": torch.stack(losses).sum()}


class _Member(nn.Module):
    """One model, and the affine map from the images' units to its own."""

    gain: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        model: nn.Module | str | Mapping[str, Any],
        num_classes: int,
        in_channels: int,
        normalised_by: Statistics | None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            options = {"name": model} if isinstance(model, str) else dict(model)
            model = _from_timm(num_classes, in_channels, **options)
        self.model, self.num_classes = model, num_classes
        own = getattr(model, "pretrained_cfg", None)
        gain = offset = None
        if normalised_by is not None and own:
            mean, std = _statistics(normalised_by)
            own_mean, own_std = _statistics((own["mean"], own["std"]))
            if len(mean) != len(own_mean):
                raise ArgumentError(
                    f"normalised_by has {len(mean)} channels, {type(model).__name__} was "
                    f"pretrained on {len(own_mean)}. Leave normalised_by out, or repeat the "
                    "channels of the images."
                )
            gain, offset = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images normalised by the data module's statistics."""
        if self.gain is not None and self.offset is not None:
            images = images * self.gain + self.offset
        logits: Tensor = self.model(images)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ArgumentError(
                f"{type(self.model).__name__} gave {list(logits.shape)} for {len(images)} images, "
                f"expected [B, {self.num_classes}]. Give it one output per class."
            )
        return logits


def _statistics(pair: Statistics) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(list(part), dtype=torch.float32).view(-1, 1, 1) for part in pair)
    return mean, std


def _from_timm(
    num_classes: int,
    in_channels: int,
    *,
    name: str,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    with needs_extra("vision"):
        import timm
    if not timm.is_model(name):
        raise ArgumentError(
            f"timm has no model {name!r}. Expected a name such as 'vit_base_patch16_224'. See "
            "timm.list_models()."
        )
    options = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if weights is not None:
        if not Path(weights).is_file():
            raise DataNotFoundError(
                f"No weights of {name} at {weights}. Give the path of a local .pth or .safetensors "
                "file; nothing is downloaded. Leave weights out to start at random."
            )
        # timm then adapts the first layer to in_channels and leaves the classifier out.
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    elif options.get("pretrained"):
        raise ArgumentError(
            f"pretrained=True of {name} would download weights. Give weights=PATH instead."
        )
    model: nn.Module = timm.create_model(name, **options)
    return model
