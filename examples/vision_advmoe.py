"""Attack a mixture of pathways and a dense network of equal cost, trained the same way.

    python examples/vision_advmoe.py

Scikit-learn's digits, a few epochs on one core: the numbers are small, the questions are not. Is
the mixture's accuracy under a usual attack still there when the attack follows its router?
"""

import logging
import warnings

import lightning.pytorch as pl

from moeapps.vision import (
    AdversarialClassifier,
    PixelData,
    adaptive_attacks,
    evaluate_robustness,
    fixed_attacks,
)

EPSILON, EPOCHS = 0.15, 6
SMALL = {"backbone": "small_cnn"}
NETWORKS = {
    "mixture": ("advmoe", {**SMALL, "router_depth": 8, "router_widths": [6, 12, 12]}),
    "dense, same cost": ("dense_cnn", {**SMALL, "ratio": 0.69}),
}


def main(epochs: int = EPOCHS, tested: int = 200) -> None:
    """Train, attack, print."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for title, (name, arguments) in NETWORKS.items():
        pl.seed_everything(0, verbose=False)
        data = PixelData("digits")
        module = AdversarialClassifier(
            name, model_args=arguments, epsilon=EPSILON, on_collapse="warn"
        )
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, limit_val_batches=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        images, labels = (part[:tested] for part in data.tensors("test"))
        attacks = {**fixed_attacks(EPSILON, 10), **adaptive_attacks(EPSILON, 10)}
        report = evaluate_robustness(module.model, images, labels, attacks)
        print(f"\n{title}\n{report.table()}")


if __name__ == "__main__":
    main()
