"""Mowst* in your own torch loop: any weak and strong module, one optimiser.

    python examples/mowst_in_your_loop.py    (no files needed; about ten seconds on a CPU)

For Mowst proper, whose experts train in turns, see quickstart_graphs.py.
"""

import torch

from moeapps.graphs import Mowst, gcn, load, mlp


def main(epochs: int = 150) -> float:
    """Train on a generated graph and return the test accuracy of the mixture."""
    torch.manual_seed(0)
    data = load("mixed-csbm", seed=0)
    sizes = {"in_channels": 32, "hidden_channels": 64, "num_layers": 2, "out_channels": 5}
    model = Mowst(mlp(**sizes), gcn(**sizes), out_channels=5, joint=True, mix="logit")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=5e-4)

    def accuracy(mask: torch.Tensor) -> float:
        model.eval()
        with torch.no_grad():
            predicted = model(data.x, data.edge_index).argmax(-1)
        return float((predicted == data.y)[mask].float().mean())

    best = (0.0, 0.0)
    for epoch in range(epochs):
        model.train()
        out = model(data.x, data.edge_index, return_routing=True)
        train = torch.nn.functional.cross_entropy(
            out.prediction[data.train_mask], data.y[data.train_mask]
        )
        optimizer.zero_grad()
        train.backward()
        optimizer.step()
        best = max(best, (accuracy(data.val_mask), accuracy(data.test_mask)))
        if epoch % 50 == 49:
            confidence = out.routing.weights[:, 0]
            means = [float(confidence[data.kind == kind].mean().detach()) for kind in (1, 0)]
            print(
                f"epoch {epoch + 1}: loss {train.item():.3f}, mean confidence "
                f"{means[0]:.2f} on feature nodes, {means[1]:.2f} on structure nodes"
            )
    print(f"test accuracy at the best validation epoch: {best[1]:.3f}")
    return best[1]


if __name__ == "__main__":
    main()
