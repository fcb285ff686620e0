"""Real photographs: restoration networks of equal size trained alike on BSDS500.

The 200 training photographs, 224 pixels at the shorter side, each under the five kinds of made
weather, and the 200 test photographs likewise: no photograph is on both sides. Networks have the
parameters of dynamic MoFME with four experts, to within half a per cent, by the width of their
hidden layers; those named ``same width`` keep the width of plain FFNs and have fewer or more. All
get the same batches in the same order for a seed, the same steps and schedule. The test is whole
photographs in tiles of the training crops' size, without overlap. A run takes some seven minutes of
one core, the weather of all photographs one more at each start.
"""

import statistics
import time
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.registry import create_model
from moeapps.training.optim import build_optimizer, build_schedule
from moeapps.vision import datasets
from moeapps.vision.datasets.paired_images import PairedImages, PairedSplits
from moeapps.vision.restoration.datamodules import random_crop
from moeapps.vision.restoration.metrics import psnr, ssim
from runs import Runs

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, CROP, LR = 1500, 16, 56, 2e-3
FRAME: dict[str, Any] = {
    "embed_dim": 64, "depth": 2, "num_heads": 4, "head_dim": 16, "patch_size": 4, "dropout": 0.0,
    "head_channels": 8, "tail_channels": [16, 8], "residual_learning": True,
}  # fmt: skip
MIXTURE = {"num_experts": 4, "kind": "dynamic"}
# Name: the registered model, its arguments, whether the hidden layer is sized to equal parameters.
ARMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "plain ViT": ("restoration_vit", {}, True),
    "MoFME static, N = 4": ("mofme", {"num_experts": 4, "kind": "static"}, True),
    "MoFME dynamic, N = 1": ("mofme", {"num_experts": 1, "kind": "dynamic"}, True),
    "MoFME dynamic, N = 4": ("mofme", MIXTURE, False),
    "MoE-ViT, N = 4": ("moe_vit", {"num_experts": 4}, True),
    # Tried in search of what makes a mixture help.
    "MoFME dynamic, N = 4, per image": ("mofme", {**MIXTURE, "routing": "image"}, True),
    "MoFME static, N = 16, hidden site": (
        "mofme", {"num_experts": 16, "kind": "static", "site": "hidden"}, True,
    ),
    "MoFME dynamic, N = 4, top 2": ("mofme", {**MIXTURE, "top_k": 2}, True),
    "MoFME dynamic, N = 1, same width": ("mofme", {"num_experts": 1, "kind": "dynamic"}, False),
    "plain ViT, same width": ("restoration_vit", {}, False),
}  # fmt: skip
CORE = [*ARMS][:5]


def main(seeds: int, arms: list[str], steps: int) -> None:
    """Make what is not there yet, seed by seed, and render what is."""
    runs = Runs(RESULTS / "restoration_photographs.jsonl", itemgetter("arm", "seed", "steps"))
    for seed in range(seeds):
        for arm in arms:
            if (arm, seed, steps) not in runs.rows:
                row = run(arm, seed, steps)
                told = f"{arm}, seed {seed}: {row['psnr']['all']:.3f} dB, {row['seconds']:.0f} s"
                runs.add(row, told)
    page(list(runs.rows.values()))


def run(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one network and test it."""
    splits, start = photographs(), time.process_time()
    torch.manual_seed(seed)
    network = build(arm)
    optimizer = build_optimizer(network, "adamw", lr=LR, weight_decay=1e-4)
    schedule = build_schedule(optimizer, "cosine", warmup_steps=steps // 20, total_steps=steps)
    network.train()
    for image, target in batches(splits.train, steps, seed):
        loss = F.smooth_l1_loss(network(image), target, beta=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "parameters": size(network),
        "train_loss": float(loss.detach()),
        **judge(network.eval(), splits.test),
        "seconds": round(time.process_time() - start, 1),
    }


@lru_cache
def photographs() -> PairedSplits:
    """The set; its weather is made once for all runs of a process."""
    found: PairedSplits = datasets.load("bsds500", short_side=224, variants=1, seed=0)
    return found


def build(arm: str) -> nn.Module:
    """The network of an arm, its hidden layers sized to the parameters of the mixture."""
    name, arguments, sized = ARMS[arm]
    if not sized:
        return create_model(name, **FRAME, **arguments)

    def made(hidden: int) -> nn.Module:
        return create_model(name, **FRAME, **arguments, hidden_dim=hidden)

    state = torch.get_rng_state()
    wanted = size(create_model("mofme", **FRAME, **MIXTURE))
    few, more = size(made(8)), size(made(16))
    torch.set_rng_state(state)
    return made(max(8, round(8 + (wanted - few) / (more - few) * 8)))


def size(network: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in network.parameters())


def batches(pairs: PairedImages, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random crops; the same for every network."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(steps):
        rows = rng.integers(0, len(pairs), BATCH)
        crops = [random_crop(pairs[row], (CROP, CROP), rng) for row in rows]
        both = np.stack([np.stack(crop) for crop in crops])  # [B, 2, H, W, 3]
        values = torch.from_numpy(both).permute(1, 0, 4, 2, 3).float() / 255
        yield values[0].contiguous(), values[1].contiguous()


def tensors(pairs: PairedImages, index: int) -> tuple[Tensor, ...]:
    """Input and target, ``[1, 3, H, W]``."""
    return tuple(
        torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255
        for pixels in pairs[index]
    )


@lru_cache
def inputs_of(pairs: PairedImages) -> list[tuple[float, float]]:
    """Scores of the inputs; the same for all runs of a process."""
    found = (tensors(pairs, index) for index in range(len(pairs)))
    return [(float(psnr(image, target)), float(ssim(image, target))) for image, target in found]


@torch.no_grad()
def judge(network: nn.Module, pairs: PairedImages) -> dict[str, Any]:
    """PSNR and SSIM per weather, of the inputs too, and the gates' mean weights per weather."""
    scores, gates = [], []
    before = inputs_of(pairs)
    for index in range(len(pairs)):
        image, target = tensors(pairs, index)
        restored, weights = restore(network, image)
        scores.append(
            [float(psnr(restored, target)), float(ssim(restored, target)), *before[index]]
        )
        gates.append(weights)
    table, names = np.array(scores), pairs.task_names
    found: dict[str, Any] = {}
    for column, name in enumerate(("psnr", "ssim", "input_psnr", "input_ssim")):
        values = {t: table[pairs.tasks == i, column].mean() for i, t in enumerate(names)}
        found[name] = {t: round(float(v), 4) for t, v in values.items()}
        found[name]["all"] = round(float(table[:, column].mean()), 4)
    if gates[0]:
        whole = np.array(gates)  # [images, blocks, N]
        found["gates"] = {
            t: whole[pairs.tasks == i].mean(0).round(4).tolist() for i, t in enumerate(names)
        }
    return found


def restore(network: nn.Module, image: Tensor) -> tuple[Tensor, list[list[float]]]:
    """Tiles of the training crops' size side by side in one pass, and mean gate weights."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % CROP, 0, -height % CROP), mode="reflect")
    rows, columns = (side // CROP for side in padded.shape[-2:])
    tiles = padded.unflatten(-1, (columns, CROP)).unflatten(-3, (rows, CROP))
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    made, aux = network(tiles, return_aux=True)
    made = made.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
    weights = [routing.dense().flatten(0, -2).mean(0).tolist() for routing in aux["routing"]]
    return made[None, :, :height, :width].clamp(0, 1), weights


def page(rows: list[dict[str, Any]]) -> None:
    """Write ``restoration_photographs.md``."""
    steps = max((row["steps"] for row in rows), default=0)
    rows = [row for row in rows if row["steps"] == steps]
    if not rows:
        return
    seeds = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in ARMS}
    seeds = {arm: found for arm, found in seeds.items() if found}
    weathers = [name for name in rows[0]["psnr"] if name != "all"]
    lines = [
        "# Weather removal from real photographs", "",
        "`python benchmarks/restoration.py --suite photographs`. BSDS500 at 224 pixels, 200 "
        "photographs for training and 200 others for the test, each under five kinds of made "
        f"weather. {steps:,} steps of {BATCH} crops of {CROP} pixels, AdamW, the same batches for "
        "all networks of a seed. PSNR in dB and SSIM on whole RGB photographs, means over seeds.",
        "", "| network | parameters | seeds | " + " | ".join(weathers) + " | all | SSIM | "
        "against plain ViT, dB (each seed) |",
        "|---|" + "---:|" * (len(weathers) + 5),
    ]  # fmt: skip
    first = rows[0]
    shown = [f"{first['input_psnr'][name]:.2f}" for name in (*weathers, "all")]
    lines.append(f"| the input | | | {' | '.join(shown)} | {first['input_ssim']['all']:.3f} | |")
    plain = seeds.get("plain ViT", {})
    for arm, found in seeds.items():
        decibels = [
            f"{statistics.mean(row['psnr'][name] for row in found.values()):.2f}"
            for name in (*weathers, "all")
        ]
        similar = statistics.mean(row["ssim"]["all"] for row in found.values())
        gaps = [
            row["psnr"]["all"] - plain[seed]["psnr"]["all"]
            for seed, row in sorted(found.items()) if seed in plain
        ]  # fmt: skip
        told = ""
        if gaps and arm != "plain ViT":
            told = f"{statistics.mean(gaps):+.2f} ({' '.join(f'{gap:+.2f}' for gap in gaps)})"
        parameters = next(iter(found.values()))["parameters"]
        lines.append(
            f"| {arm} | {parameters:,} | {len(found)} | {' | '.join(decibels)} | {similar:.3f} | "
            f"{told} |"
        )
    lines += ["", "Mean weight of each expert in the last block by weather, first seed:", ""]
    for arm, found in seeds.items():
        gates = found[min(found)].get("gates")
        if gates and len(next(iter(gates.values()))[-1]) > 1:
            told = "; ".join(
                f"{name} {' '.join(f'{w:.2f}' for w in gates[name][-1])}" for name in weathers
            )
            lines.append(f"- {arm}: {told}")
    (RESULTS / "restoration_photographs.md").write_text("\n".join(lines) + "\n")
