"""Your own images with long-tailed classes: arrays and labels into a data module.

python examples/vision_own_images.py    (no files needed; half a minute on a CPU)
"""

import lightning.pytorch as pl
import numpy as np
from sklearn.datasets import load_digits

from moeapps.vision import LongTailClassifier, LongTailData
from moeapps.vision.datasets import ImageSet, Splits, long_tail


def own_images(seed: int = 0) -> LongTailData:
    """Any images will do: uint8 ``[N, H, W, C]`` or ``[N, H, W]``, and labels from 0."""
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    whole = ImageSet(images, digits.target, [f"digit {label}" for label in range(10)])
    test, train = whole.take(order[:500]), whole.take(order[500:])
    train = long_tail(train, imbalance=20, largest=100)  # yours may have a long tail already
    return LongTailData.from_splits(
        Splits(train, None, test, "at random"), "digits-own", batch_size=32, val_share=0.2
    )


def main(epochs: int = 20) -> float:
    """Train three experts and return their balanced accuracy."""
    pl.seed_everything(0, verbose=False)
    data = own_images()
    module = LongTailClassifier(
        "balpoe", model_args={"backbone": "resnet8"}, mixup_alpha=0.4, milestones=[16, 18],
        warmup_epochs=1, many=50, few=15, select="best",
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    hardest = module.results()["class_accuracy"][0].argmin()
    print(f"balanced accuracy {found['test/balanced_accuracy']:.1%}")
    print(f"hardest: {data.splits.class_names[hardest]}, {data.class_counts[hardest]} images")
    return found["test/balanced_accuracy"]


if __name__ == "__main__":
    main()
