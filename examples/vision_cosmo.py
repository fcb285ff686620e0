"""Classes with images and classes with attributes only: who should answer?

python examples/vision_cosmo.py    (no files needed; a few seconds on a CPU)
"""

import numpy as np

from moeapps.vision import COSMO, DAP, CalibratedStacking
from moeapps.vision.datasets import pair_digits


def main(seed: int = 0, images_per_class: int = 30) -> dict[str, float]:
    """Harmonic means on pairs of digits, of which a fifth was never seen."""
    splits = pair_digits(seed, imbalance=1, largest=images_per_class)
    # What a class is made of: which digit stands left, which right. Known for unseen pairs too.
    digits = np.array([[int(digit) for digit in name] for name in splits.class_names])
    attributes = np.concatenate([np.eye(10)[digits[:, 0]], np.eye(10)[digits[:, 1]]], axis=1)
    order = np.random.default_rng(seed).permutation(100)
    unseen, held_out = order[:20], order[20:40]  # the second twenty tune the gate
    features = splits.train.images.reshape(len(splits.train), -1)
    seen = ~np.isin(splits.train.labels, unseen)
    train = features[seen], splits.train.labels[seen], attributes
    test = splits.test.images.reshape(len(splits.test), -1), splits.test.labels

    models = {
        "zero-shot expert": CalibratedStacking(DAP(), gamma=0.0),
        "calibrated stacking": CalibratedStacking(DAP()),
        "COSMO": COSMO(zero_shot_expert=DAP()),
    }
    found = {}
    for name, model in models.items():
        report = model.fit(*train, held_out=held_out, seed=seed).report(*test)
        found[name] = report["harmonic"]
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in report.items()))
    routing = models["COSMO"].route(test[0])
    print("mean weight of seen and unseen expert:", routing.weights.mean(0).numpy().round(3))
    return found


if __name__ == "__main__":
    main()
