"""Counting the cells of the VGG set from 50 training images: one density head or mixtures.

Encoder, decoder, steps, batches, augmentation and the seed are the same in every row of a split;
the learning rate goes up and down once, and the last weights are taken: nothing is selected.
Choices were made by ``stage="choose"``: 40 of the training images train, the other 10 judge.

Whole images are trained on. Crops cut from the map of a whole image teach too few cells: at the
border of an image a map holds the mass that would have fallen outside, at the border of such a crop
it does not, and the network cannot tell the two apart.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.vision import datasets
from moeapps.vision.counting.density_maps import density_map
from moeapps.vision.counting.hmode import FlatDensityCounter, HMoDE, SingleDensityCounter
from moeapps.vision.counting.losses import counting_terms

IMAGES, HELD_OUT, BATCH, RATE = 50, 10, 2, 3e-3
FRAME: dict[str, Any] = {
    "backbone": "plain",
    "backbone_args": {"widths": [16, 32, 48], "norm": False},
    "strides": (2, 4, 8),
    "decoder_width": 8,
    "expert_width": 16,
    "mean": (0.0, 0.0, 0.3),  # the cells are blue
    "std": (1.0, 1.0, 0.2),
}
WEIGHTS = {"levels": 1.0, "importance": 500.0, "attention": 0.01, "relative": 0.0}
"""Of the terms, whose levels are sums over 65,536 pixels; released are 1, 1, 1, 1 (or 0)."""
_SMALL = {"gate_widths": [16], "second_widths": [16], "attention_widths": [8]}
_HMODE: dict[str, Any] = {"make": HMoDE, "args": _SMALL}
VARIANTS: dict[str, dict[str, Any]] = {
    "single": {"make": SingleDensityCounter, "args": {}},
    "single, parameters of hmode": {
        "make": SingleDensityCounter,
        "args": {"backbone_args": {"widths": [18, 36, 54], "norm": False}},
    },
    "flat": {"make": FlatDensityCounter, "args": {"gate_widths": [16]}},
    "hmode": _HMODE,
    "hmode, all levels alike": {**_HMODE, "level_weights": (1, 1, 1)},
    "hmode, output only": {**_HMODE, "level_weights": (0, 0, 4)},
    "hmode, no attention": {"make": HMoDE, "args": {**_SMALL, "attention_widths": None}},
    "hmode, released weights": {**_HMODE, "importance": 1.0, "attention": 1.0},
    "hmode, relative counting": {**_HMODE, "relative": 1.0},
    "hmode, scale 1000": {"make": HMoDE, "args": {**_SMALL, "label_scale": 1000.0}, "lr": 1e-3},
    "single, sigma 2.5": {"make": SingleDensityCounter, "args": {}, "sigma": 2.5},
    "hmode, sigma 2.5": {**_HMODE, "sigma": 2.5},
    "single, batch norm": {"make": SingleDensityCounter, "args": {"norm": True}},
    "hmode, batch norm": {"make": HMoDE, "args": {**_SMALL, "norm": True}},
    "single, wide view": {"make": SingleDensityCounter, "args": {"expert_kernel": 5}},
    "hmode, wide view": {"make": HMoDE, "args": {**_SMALL, "expert_kernel": 5}},
}
SHOWN = ("single", "single, parameters of hmode", "flat", "hmode")

Part = tuple[Tensor, Tensor, Tensor]


def pack(images: Any, sigma: float) -> Part:
    """Images ``[N, 3, H, W]``, densities ``[N, 1, H, W]`` and counts ``[N]``."""
    pixels, maps = [], []
    for image, points in images:
        pixels.append(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        maps.append(torch.from_numpy(density_map(points, image.shape[:2], sigma)))
    counts = torch.tensor(images.counts.tolist(), dtype=torch.float64)
    return torch.stack(pixels), torch.stack(maps).unsqueeze(1), counts


def turned(x: Tensor, way: int) -> Tensor:
    """One of the eight turns and mirrorings of a square."""
    return torch.rot90(x.flip(-1) if way & 4 else x, way & 3, (-2, -1))


def fit(name: str, train: Part, seed: int, steps: int) -> nn.Module:
    """Train on whole images; at their borders maps hold more than a crop would tell."""
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    model = variant["make"](**{**FRAME, **variant["args"]}).to(memory_format=torch.channels_last)
    images, density, _ = train
    rate = variant.get("lr", RATE)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.1
    )
    rng = np.random.default_rng(seed)
    weights = {**WEIGHTS, **{key: value for key, value in variant.items() if key in WEIGHTS}}
    pixels = images.shape[-2] * images.shape[-1]
    scale = (100.0 / model.label_scale) ** 2
    for _ in range(steps):
        ways = rng.integers(8, size=BATCH)
        rows = rng.choice(len(images), BATCH, replace=False)
        x = torch.stack([turned(images[i], way) for i, way in zip(rows, ways, strict=True)])
        y = torch.stack([turned(density[i], way) for i, way in zip(rows, ways, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            _, aux = model(x.contiguous(memory_format=torch.channels_last), return_aux=True)
        terms = counting_terms(
            aux,
            y,
            label_scale=model.label_scale,
            stride=model.stride,
            gate_stride=model.gate_stride,
            level_weights=variant.get("level_weights", (1, 2, 4)),
        )
        terms["levels"] = scale * terms["levels"]
        loss = sum(weights[key] * term for key, term in terms.items()) / pixels
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def counts_of(model: nn.Module, images: Tensor) -> Tensor:
    """Counts in float32 convolutions and float64 sums."""
    return torch.cat([model(part).double().sum((1, 2, 3)) for part in images.split(5)])


def run(name: str, split: int, steps: int, stage: str) -> dict[str, Any]:
    """Train and test one variant on one split."""
    sigma = VARIANTS[name].get("sigma", 4.0)
    found = datasets.load("vgg-cells", train=IMAGES, split=split)
    train = pack(found.train, sigma)
    if stage == "choose":
        judged = tuple(column[-HELD_OUT:] for column in train)
        train = tuple(column[:-HELD_OUT] for column in train)  # type: ignore[assignment]
    else:
        judged = pack(found.test, sigma)
    start = time.process_time()
    model = fit(name, train, split, steps)
    seconds = time.process_time() - start
    gap = counts_of(model, judged[0]) - judged[2]
    row = {"suite": "cells", "stage": stage, "name": name, "split": split, "steps": steps}
    row |= {"mae": float(gap.abs().mean()), "rmse": float(gap.square().mean().sqrt())}
    row |= {"bias": float(gap.mean()), "cpu_seconds": round(seconds)}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    fitted = counts_of(model, train[0]) - train[2]
    row["train_mae"] = float(fitted.abs().mean())
    return row


def page(rows: list[dict[str, Any]]) -> list[str]:
    """One table per stage and number of steps, and the pairs beside the single head."""
    lines: list[str] = []
    titles = {
        "test": f"Test: {IMAGES} training images, 100 test images",
        "choose": f"Choice: {IMAGES - HELD_OUT} training images, {HELD_OUT} of the others judge",
    }
    for stage, steps in sorted({(r["stage"], r["steps"]) for r in rows}, reverse=True):
        here = [r for r in rows if (r["stage"], r["steps"]) == (stage, steps)]
        lines += [f"### {titles[stage]}, {steps} steps", ""]
        lines.append("| | splits | MAE, mean ± sd | RMSE | training MAE | less than single, paired "
                     "(better in) | parameters | CPU s |")  # fmt: skip
        lines.append("|---|---|---|---|---|---|---|---|")
        single = {r["split"]: r["mae"] for r in here if r["name"] == "single"}
        for name in (n for n in VARIANTS if any(r["name"] == n for r in here)):
            mine = [r for r in here if r["name"] == name]
            lines.append(_line(name, mine, single))
        lines.append("")
    return lines


def _line(name: str, mine: list[dict[str, Any]], single: dict[int, float]) -> str:
    def mean(key: str) -> float:
        return float(np.mean([r[key] for r in mine]))

    mae = np.array([r["mae"] for r in mine])
    spread = f" ± {mae.std(ddof=1):.2f}" if len(mae) > 1 else ""
    gains = np.array([single[r["split"]] - r["mae"] for r in mine if r["split"] in single])
    paired = "-"
    if name != "single" and len(gains):
        deviation = f" ± {gains.std(ddof=1):.2f}" if len(gains) > 1 else ""
        paired = f"{gains.mean():+.2f}{deviation} ({(gains > 0).sum()} of {len(gains)})"
    return (
        f"| {name} | {len(mine)} | {mae.mean():.2f}{spread} | {mean('rmse'):.2f} | "
        f"{mean('train_mae'):.2f} | {paired} | {mine[0]['parameters']:,} | "
        f"{mean('cpu_seconds'):.0f} |"
    )
