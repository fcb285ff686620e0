"""Long-tailed digits: one network and three experts, then an early exit.

python examples/vision_longtail.py    (no files needed; under a minute on a CPU)
"""

import lightning.pytorch as pl
import torch

from moeapps import gating
from moeapps.vision import LongTailClassifier, LongTailData, MaxProb, Sequential

METHODS = {"balanced_softmax": {}, "ride": {"drw_epoch": 16}}


def train(method: str, data: LongTailData, epochs: int) -> tuple[LongTailClassifier, dict]:
    """Train a method; the module and its test metrics."""
    pl.seed_everything(0, verbose=False)
    module = LongTailClassifier(
        method, model_args={"backbone": "resnet8", **METHODS[method]}, milestones=[16, 18],
        warmup_epochs=1, many=50, few=15,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    return module, found


def leave_early(module: LongTailClassifier, data: LongTailData, threshold: float = 0.9) -> None:
    """Ask the next expert only about images that are not sure yet; the others are skipped."""
    model = module.model.eval()
    model.aggregate = Sequential(MaxProb(threshold), model.aggregate)
    right, used, count = 0, 0, 0
    with torch.inference_mode():
        for batch in data.test_dataloader():
            with gating.record(model) as recording:
                predicted = model(batch["image"]).argmax(-1)
            (calls,) = (calls for calls in recording.routings.values() if calls)
            used += int((calls[0].weights > 0).sum())
            right += int((predicted == batch["label"]).sum())
            count += len(predicted)
    print(f"with early exit: {right / count:.1%} with {used / count:.2f} experts per image")


def main(epochs: int = 20) -> dict[str, float]:
    """Train both and return their balanced accuracies."""
    scores = {}
    for method in METHODS:
        data = LongTailData("digits-lt", batch_size=32)
        module, found = train(method, data, epochs)
        scores[method] = found["test/balanced_accuracy"]
        print(f"{method:17} balanced {scores[method]:.1%}, few {found['test/accuracy/few']:.1%}")
    leave_early(module, data)
    return scores


if __name__ == "__main__":
    main()
