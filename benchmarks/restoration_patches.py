"""Windows of degraded photographs: which mixture of modulations helps a small network.

Eight bundled photographs, 224 pixels at the shorter side, eight variants of each of five kinds of
made weather; 32 x 32 crops, 1,000 per weather for training from the left 70 % of the photographs
and 120 for the test from the right. So the photographs are known and only their regions are new: a
gain here is no gain in restoring unknown photographs. A sample is an 8 x 8 window with the means
and deviations of its crop; the target is the change of the 4 x 4 pixels in its middle. All
networks of a seed get the same batches; the test set is one for all seeds.
"""

import statistics
import time
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.gating import Gate, MoE, StackedMLP, softmax
from moeapps.vision.restoration.feed_forward import FeedForward
from moeapps.vision.restoration.modulated_mixture import ModulatedMixture
from moeapps.vision.restoration.photos import Photo, bundled_photos
from moeapps.vision.restoration.weather import WEATHER, add_weather
from runs import Runs

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, LR, WIDTH, HIDDEN = 800, 512, 3e-3, 64, 48
CROP, STRIDE, MARGIN = 32, 4, 2  # windows of 8 at stride 4 with targets of 4 tile the whole crop
VARIANTS, TRAIN, TEST = 8, 1000, 120  # per photograph, and crops per weather

# Name: what stands in each block, and its arguments. "like" widens to the parameters of another.
ARMS: dict[str, dict[str, Any]] = {
    "plain FFN": {"num_experts": 0},
    "static N=4": {"num_experts": 4, "kind": "static"},
    "static N=16": {"num_experts": 16, "kind": "static"},
    "hidden-site static N=16": {"num_experts": 16, "kind": "static", "site": "hidden"},
    "dynamic N=1": {"num_experts": 1, "kind": "dynamic", "star": False},
    "dynamic N=4": {"num_experts": 4, "kind": "dynamic", "star": False},
    "parallel MoE N=4": {"num_experts": 4, "kind": "parallel"},
    "dynamic N=1, as large": {"num_experts": 1, "star": False, "like": "dynamic N=4"},
    "plain FFN, as large as dynamic": {"num_experts": 0, "like": "dynamic N=4"},
    "plain FFN, as large as parallel": {"num_experts": 0, "like": "parallel MoE N=4"},
}


class Comparison(NamedTuple):
    """Two arms, what the specification of this benchmark records, and the bound it sets."""

    arm: str
    against: str
    recorded: str
    bound: float | None


COMPARISONS = (
    Comparison("dynamic N=4", "dynamic N=1", "+0.34 (.35 .25 .43)", 0.10),
    Comparison("dynamic N=4", "dynamic N=1, as large", "+0.16 (.23 -.02 .27)", None),
    Comparison("dynamic N=4", "plain FFN, as large as dynamic", "+0.21 (.36 .18 .09)", 0.0),
    Comparison("parallel MoE N=4", "plain FFN, as large as parallel", "+0.27 (.41 .16 .23)", 0.05),
    Comparison("hidden-site static N=16", "plain FFN", "+0.18 (.14 .18 .22)", 0.05),
    Comparison("static N=4", "plain FFN", "+0.14 (-.01 .12 .32)", -0.10),
    Comparison("static N=16", "plain FFN", "+0.09 (.21 -.08 .14)", -0.10),
)


def main(seeds: int, arms: list[str], steps: int) -> None:
    """Make what is not there yet, seed by seed, and render what is."""
    runs = Runs(RESULTS / "restoration_patches.jsonl", itemgetter("arm", "seed", "steps"))
    for seed in range(seeds):
        for arm in arms:
            if (arm, seed, steps) not in runs.rows:
                row = run(arm, seed, steps)
                runs.add(row, f"{arm}, seed {seed}: {row['psnr']:.3f} dB, {row['seconds']:.0f} s")
    page([row for row in runs.rows.values() if row["steps"] == steps])


class PatchNet(nn.Module):
    """Windows to changes: linear, two pre-norm residual blocks, linear."""

    def __init__(self, hidden: int, **arm: Any) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 64 + 6, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.blocks = nn.ModuleList(block(hidden, **arm) for _ in range(2))
        self.last = nn.Linear(WIDTH, 3 * STRIDE * STRIDE)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """``[N, 198] -> [N, 48]``."""
        x = self.first(windows)
        for norm, part in zip(self.norms, self.blocks, strict=False):
            x = x + part(norm(x))
        return self.last(self.norms[-1](x))


def block(hidden: int, num_experts: int, kind: str = "dynamic", **more: Any) -> nn.Module:
    """The feed-forward part of a block; routers read what it reads."""
    if num_experts == 0:
        return FeedForward(WIDTH, hidden, dropout=0.0, norm=False)
    if kind == "parallel":
        gate = Gate(nn.Linear(WIDTH, num_experts), softmax)
        return MoE(gate, StackedMLP(num_experts, WIDTH, hidden, WIDTH))
    return ModulatedMixture(
        WIDTH, num_experts, hidden_dim=hidden, kind=kind, dropout=0.0, norm=False, **more
    )


def build(arm: str) -> PatchNet:
    """The network of an arm, as large as another where it is to be."""
    arguments = dict(ARMS[arm])
    like = arguments.pop("like", None)
    hidden = HIDDEN
    if like is not None:
        with torch.random.fork_rng(devices=[]):
            wanted = size(build(like))
            few, more = size(PatchNet(8, **arguments)), size(PatchNet(16, **arguments))
        hidden = round(8 + (wanted - few) / (more - few) * 8)
    return PatchNet(hidden, **arguments)


def size(network: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in network.parameters())


def run(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one network and test it."""
    windows, changes = samples("train")
    start = time.process_time()
    torch.manual_seed(seed)
    network = build(arm).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    for rows in batches(len(windows), steps, seed):
        loss = F.smooth_l1_loss(network(windows[rows]), changes[rows], beta=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scores, before = judge(network.eval(), *crops("test"))
    by_weather = {name: round(float(s.mean()), 4) for name, s in zip(WEATHER, scores, strict=True)}
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "parameters": size(network),
        "psnr": round(float(scores.mean()), 4),
        "by_weather": by_weather,
        "input_psnr": round(float(before.mean()), 4),
        "seconds": round(time.process_time() - start, 1),
    }


def batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step; the same for every network."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(count, (BATCH,), generator=generator)


@lru_cache
def crops(part: str) -> tuple[Tensor, Tensor]:
    """Degraded and clean crops ``[weathers * n, 3, 32, 32]``, weather by weather."""
    rng = np.random.default_rng([0, part == "test"])
    start, stop, count = (0.0, 0.7, TRAIN) if part == "train" else (0.7, 1.0, TEST)
    photos = bundled_photos()
    degraded, clean = [], []
    for weather in WEATHER:
        made = [pair(photo, weather, rng, start, stop) for photo in photos for _ in range(VARIANTS)]
        for _ in range(count):
            image, target = made[rng.integers(len(made))]
            y, x = (rng.integers(side - CROP + 1) for side in target.shape[:2])
            degraded.append(image[y : y + CROP, x : x + CROP])
            clean.append(target[y : y + CROP, x : x + CROP])
    return tuple(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        for images in (degraded, clean)
    )


def pair(
    photo: Photo, weather: str, rng: np.random.Generator, start: float, stop: float
) -> tuple[np.ndarray, np.ndarray]:
    """A region of a photograph under a weather made over the whole of it, and the clean region."""
    image = add_weather(photo.image, weather, rng, photo.depth).image
    region = Photo(photo.name, photo.image, None).columns(start, stop).image
    cut = slice(round(start * image.shape[1]), round(stop * image.shape[1]))
    return image[:, cut], region.astype(np.float32) / 255


@lru_cache
def samples(part: str) -> tuple[Tensor, Tensor]:
    """Windows and changes of all crops; made once for all runs of a process."""
    return cut(*crops(part))


def cut(degraded: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Windows ``[n * 64, 198]`` and the changes of their middles ``[n * 64, 48]``."""
    padded = F.pad(degraded, (MARGIN,) * 4, mode="reflect")
    windows = F.unfold(padded, STRIDE + 2 * MARGIN, stride=STRIDE).transpose(1, 2)
    marks = torch.cat([degraded.mean((2, 3)), degraded.std((2, 3))], 1)
    marks = marks.unsqueeze(1).expand(-1, windows.shape[1], -1)
    changes = F.unfold(clean - degraded, STRIDE, stride=STRIDE).transpose(1, 2)
    return (2 * torch.cat([windows, marks], -1) - 1).flatten(0, 1), changes.flatten(0, 1)


@torch.no_grad()
def judge(network: nn.Module, degraded: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR of every crop restored, and of the input, ``[weathers, n]``."""
    change = network(cut(degraded, clean)[0]).unflatten(0, (len(degraded), -1)).transpose(1, 2)
    restored = degraded + F.fold(change, CROP, STRIDE, stride=STRIDE)

    def psnr(images: Tensor) -> Tensor:
        error = (images.clamp(0, 1) - clean).square().mean((1, 2, 3)).clamp_min(1e-5)
        return (-10 * error.log10()).view(len(WEATHER), -1)

    return psnr(restored), psnr(degraded)


def page(rows: list[dict[str, Any]]) -> None:
    """Write ``restoration_patches.md``."""
    if not rows:
        return
    by_arm = {arm: {r["seed"]: r for r in rows if r["arm"] == arm} for arm in ARMS}
    lines = [
        "# Weather removal from windows of known photographs", "",
        "`python benchmarks/restoration.py --suite patches`. Eight bundled photographs under five "
        "kinds of made weather; training on their left, test on their right parts. "
        f"{rows[0]['steps']:,} steps of {BATCH} windows. Mean PSNR per crop; the input has "
        f"{rows[0]['input_psnr']:.2f} dB (17.49 recorded). Regions of known photographs, no "
        "attention: not a general gain in restoration.", "",
        "| comparison, dB | mean (each seed) | std. error | recorded, 3 seeds | bound | holds |",
        "|---|---|---:|---|---:|---|",
    ]  # fmt: skip
    for arm, against, recorded, bound in COMPARISONS:
        seeds = sorted(by_arm[arm].keys() & by_arm[against].keys())
        if len(seeds) < 2:
            continue
        gaps = [by_arm[arm][s]["psnr"] - by_arm[against][s]["psnr"] for s in seeds]
        mean, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
        verdict = "-" if bound is None else "yes" if mean >= bound else "**no**"
        lines.append(
            f"| {arm} against {against} | {mean:+.3f} ({' '.join(f'{g:+.2f}' for g in gaps)}) | "
            f"{error:.3f} | {recorded} | {'report only' if bound is None else f'{bound:+.2f}'} | "
            f"{verdict} |"
        )
    lines += ["", f"| network | parameters | seeds | {' | '.join(WEATHER)} | mean |",
              "|---|" + "---:|" * (len(WEATHER) + 3)]  # fmt: skip
    for arm, found in by_arm.items():
        if found:
            shown = [statistics.mean(r["by_weather"][w] for r in found.values()) for w in WEATHER]
            shown.append(statistics.mean(r["psnr"] for r in found.values()))
            parameters = next(iter(found.values()))["parameters"]
            cells = " | ".join(f"{value:.2f}" for value in shown)
            lines.append(f"| {arm} | {parameters:,} | {len(found)} | {cells} |")
    (RESULTS / "restoration_patches.md").write_text("\n".join(lines) + "\n")
