"""Ten specialists teach one student: a network per left digit, and one for all hundred pairs.

python examples/vision_specialists.py    (no files needed; about a minute on a CPU)
"""

import torch

from moeapps.vision import KnowledgeConcentration, SpecialistPool
from moeapps.vision.datasets import pair_digits
from moeapps.vision.specialists.knowledge_concentration import (
    sigmoid_cross_entropy,
    vertical_precision,
)

SMALL = {"s1": 64, "s2": 16, "backbone": "resnet8", "in_channels": 1,
         "backbone_args": {"widths": [8, 16, 32]}}  # fmt: skip


def train(network, images, targets, steps, seed=0):
    """Sigmoid cross-entropy to targets, hard or soft."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        loss = sigmoid_cross_entropy(network(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def main(steps: int = 300, seed: int = 0) -> dict[str, float]:
    """Mean over verticals of the average precision among the vertical's own images."""
    torch.manual_seed(seed)
    splits = pair_digits(seed, imbalance=1, largest=20)
    images, labels = splits.train.tensor(), torch.from_numpy(splits.train.labels)
    verticals = [int(name[0]) for name in splits.class_names]
    members = [[c for c, v in enumerate(verticals) if v == left] for left in range(10)]
    hard = torch.nn.functional.one_hot(labels, 100).float()

    teachers = []
    for classes in members:
        own = torch.isin(labels, torch.tensor(classes))
        network = KnowledgeConcentration(10, self_paced=None, **SMALL)
        teachers.append(train(network, images[own], hard[own][:, classes], steps // 3))
    pool = SpecialistPool(teachers, verticals)
    networks = {
        "generalist": train(KnowledgeConcentration(100, verticals, **SMALL), images, hard, steps),
        "student": train(KnowledgeConcentration(100, verticals, **SMALL), images,
                         pool(images, labels), steps),
    }  # fmt: skip
    test, truth = splits.test.tensor(), torch.from_numpy(splits.test.labels)
    scores = {"specialists": pool.logits(test), **{n: m(test) for n, m in networks.items()}}
    found = {n: sum(vertical_precision(s, truth, members)) / 10 for n, s in scores.items()}
    print({name: round(value, 3) for name, value in found.items()})
    return found


if __name__ == "__main__":
    main()
