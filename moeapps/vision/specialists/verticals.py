"""Classes grouped into verticals, and what each class needs to be found in its group."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError


class Verticals(nn.Module):
    """Which vertical every class belongs to.

    Args:
        class_to_vertical: One number per class, from 0; every vertical up to the largest has a
            class.

    Attributes:
        of_class: The vertical of every class, ``[N]``.
        members: Classes of each vertical, ascending.
        padded: Classes of every vertical in one table ``[M, N_max]``; places without a class
            repeat the vertical's first one.
        place: Where each class stands in the flattened table, ``[N]``.

    Raises:
        ArgumentError: A class without a vertical, or a vertical without a class.

    Example:
        >>> verticals = Verticals([0, 1, 0])
        >>> verticals.members, verticals.padded.tolist(), verticals.place.tolist()
        ([[0, 2], [1]], [[0, 2], [1, 1]], [0, 2, 1])
    """

    of_class: Tensor
    padded: Tensor
    place: Tensor
    sizes: Tensor

    def __init__(self, class_to_vertical: Sequence[int]) -> None:
        super().__init__()
        given = list(class_to_vertical)
        for label, vertical in enumerate(given):
            if not isinstance(vertical, int) or isinstance(vertical, bool) or vertical < 0:
                raise ArgumentError(
                    f"class {label} has vertical {vertical!r}; expected a whole number from 0. "
                    "Give every class a vertical."
                )
        if not given:
            raise ArgumentError("class_to_vertical is empty. Give one vertical per class.")
        self.members = [[c for c, v in enumerate(given) if v == m] for m in range(max(given) + 1)]
        for vertical, classes in enumerate(self.members):
            if not classes:
                raise ArgumentError(
                    f"vertical {vertical} of {len(self.members)} has no class. Number the "
                    "verticals without gaps."
                )
        widest = max(map(len, self.members))
        table = [classes + classes[:1] * (widest - len(classes)) for classes in self.members]
        rank = {c: i for classes in self.members for i, c in enumerate(classes)}
        places = [vertical * widest + rank[label] for label, vertical in enumerate(given)]
        for name, values in {
            "of_class": given, "padded": table, "place": places,
            "sizes": [len(classes) for classes in self.members],
        }.items():  # fmt: skip
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def num_classes(self) -> int:
        """``N``."""
        return len(self.of_class)

    def sum_within(self, values: Tensor) -> Tensor:
        """Sum over the classes of each vertical, ``[B, N] -> [B, M]``."""
        zeros = values.new_zeros(values.shape[0], len(self.members))
        return zeros.index_add(1, self.of_class, values)

    def check_width(self, logits: Tensor) -> None:
        """Refuse anything but one logit per class."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ArgumentError(
                f"logits are {list(logits.shape)}, expected [B, {self.num_classes}]: one per class "
                "of the verticals."
            )
