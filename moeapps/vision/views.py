"""Single images through a transform, with views that follow the seed alone."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class ImageViews(torch.utils.data.Dataset[dict[str, Any]]):
    """Single images through a transform, as items of a batch: image, label and index.

    The views of an image are drawn from the seed, the epoch and its index: neither the number of
    workers nor the order of the images changes them, and no global generator moves.

    Args:
        images: Anything with ``[]`` that gives image and label.
        transform: Of one image: gives a tensor, or a dict of them like :class:`TwoView`.
        seed: Of the views.
    """

    def __init__(self, images: Any, transform: Callable[[Any], Any], seed: int = 0) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        with seeded(self.seed, self.epoch, index):
            views = self.transform(image)
        if not isinstance(views, dict):
            views = {"image": views}
        return {**views, "label": int(label), "index": int(index)}


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python start from these numbers.

    Afterwards they go on where they were. The generators of GPUs are left alone.
    """
    states = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence([int(n) for n in numbers]).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also moves those of GPUs
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
