"""The shared core in your own network: a routed feed-forward block with a balance loss.

python examples/moe_layer.py    (no files needed; a few seconds on a CPU)
"""

import torch
from torch import nn

from moeapps import gating, kernels
from moeapps.gating import Gate, MoE, StackedMLP


def main(steps: int = 200) -> float:
    """Fit a piecewise function with 2 of 8 experts per row and return the last loss."""
    torch.manual_seed(0)
    layer = MoE(Gate.topk(16, 8, 2), StackedMLP(8, 16, 32, 16))
    model = nn.Sequential(nn.Linear(4, 16), layer, nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        x = torch.randn(512, 4)
        target = torch.where(x[:, :1] > 0, x[:, 1:2] * x[:, 2:3], x[:, 3:].sin())
        with gating.record(model) as rec:
            y = model(x)
        task = nn.functional.mse_loss(y, target)
        loss = task + rec.loss({"balance": 1e-2, "router_z": 1e-3})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            used = rec.stats()["1"]["utilisation"]
            print(f"step {step + 1}: loss {task.item():.3f}, utilisation {used.numpy().round(2)}")
    routing = layer.gate(model[0](x))
    print(kernels.explain(model[0](x), routing.indices, layer.experts.w1, layer.experts.w2))
    return task.item()


if __name__ == "__main__":
    main()
