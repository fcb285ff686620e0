"""A network made fit for one user: the big one stays as it is, a small expert and a gate learn.

python examples/vision_customization.py    (no files needed; a few seconds on a CPU)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from moeapps.gating import record
from moeapps.vision import ExpertCustomization, LeNet5, WriterStyle, personalise
from moeapps.vision.specialists.expert_customization import accuracies


def main(seed: int = 0, steps: int = 400) -> dict[str, float]:
    """Accuracy on a user's digits: global expert, local expert, mixture, and the best choice."""
    bunch = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(bunch.target), generator=generator)
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)[order]
    labels = torch.tensor(bunch.target)[order]

    torch.manual_seed(seed)
    network = LeNet5(10, image_size=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(700, (64,), generator=generator)
        loss = F.cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    style = WriterStyle(slant=0.9, scale=0.8, degrees=20)  # how this user writes
    model = ExpertCustomization(network, budget=0.12)  # a share of LeNet's 17,000 weights
    replay = images[900:1300], labels[900:1300]
    print(personalise(model, style(images[700:900]), labels[700:900], replay, seed=seed))

    test, truth = images[1300:], labels[1300:]
    model.eval()
    found = accuracies(model, style(test), truth)
    print("the user's images:", {name: round(value, 3) for name, value in found.items()})
    generic = accuracies(model, test, truth)
    print("generic images:   ", {name: round(value, 3) for name, value in generic.items()})
    with record(model) as recording:
        model(style(test))
    print("images of each expert:", recording.routings["ExpertCustomization"][0].counts().tolist())
    print("overhead:", {k: round(v, 3) for k, v in model.overhead(test).items()})
    return found


if __name__ == "__main__":
    main()
