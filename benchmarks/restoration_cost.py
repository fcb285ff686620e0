"""What MoFME costs: parameters, multiply-adds, time of a layer and of the network, memory.

    python benchmarks/restoration_cost.py [--threads 1] [--rounds 15] [--out benchmarks/results]

Everything that is compared runs in turns inside one process; times are medians of CPU time, and
each bar of the project is checked at the end. Writes ``restoration_cost.json`` and ``.md``.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from moeapps.kernels import film_mix
from moeapps.vision import MoEViT, MoFME, RestorationViT
from moeapps.vision.restoration.modulated_mixture import ModulatedMixture
from mowst_cost import cpu_name, table

WIDTH, TOKENS, SIDE = 384, 1800, 240
EXPERTS = (4, 8, 16, 128)

# What the released code holds beyond our networks, as its recorded sizes tell: a table of the 900
# positions of a 240 x 240 tile, which its forward pass does not read, and two more vectors per
# modulation expert (a normalisation's). It has no multiply-adds.
POSITIONS, VECTORS = 900 * WIDTH, 2 * WIDTH

# The recorded table: millions of parameters and billions of multiply-adds.
RECORDED = {
    ("ViT", 0): (8.71, 36.5),
    ("MoE-ViT", 4): (15.8, 42.9), ("MoE-ViT", 8): (25.3, 51.4), ("MoE-ViT", 16): (44.2, 68.4),
    ("MoE-ViT", 128): (309.1, 306),
    ("MoFME dynamic", 4): (11.7, 38.6), ("MoFME dynamic", 8): (14.1, 40.7),
    ("MoFME dynamic", 16): (18.8, 45.0), ("MoFME dynamic", 128): (85.3, 104.5),
}  # fmt: skip


# ------------------------------------------------------------------------------------------ sizes


def sizes() -> list[dict[str, Any]]:
    """Parameters and multiply-adds at 240 x 240, beside the recorded ones."""
    rows = []
    for (name, n), (millions, billions) in RECORDED.items():
        network = recorded(name, n)
        own = parameters(network)
        released = own + POSITIONS + (2 * n * VECTORS if name == "MoFME dynamic" else 0)
        with patch("moeapps.kernels.film_mix", functools.partial(film_mix, form="reference")):
            loop = multiply_adds(network)  # expert by expert, as released
        row = {
            "network": name,
            "experts": n or "-",
            "parameters_here": own,
            "parameters_released": released,
            "recorded_M": millions,
            "multiply_adds_G": loop / 1e9,
            "recorded_G": billions,
        }
        row["agrees"] = agree(released / 1e6, millions) and agree(loop / 1e9, billions)
        rows.append(row)
    return rows


def agree(value: float, recorded: float) -> bool:
    """Equal to the digits that are recorded."""
    digits = len(str(recorded).partition(".")[2]) if isinstance(recorded, float) else 0
    return round(value, digits) == recorded


def folded_sizes() -> list[dict[str, Any]]:
    """Parameters and multiply-adds as computed here, by the algebra of each form."""
    plain = multiply_adds(recorded("ViT", 0))
    rows = []
    for n in EXPERTS:
        for form, options in {
            "static, folded": {"kind": "static"},
            "dynamic, per image": {"routing": "image"},
            "dynamic, per token": {},
        }.items():
            network = MoFME(n, **options).eval()
            done = multiply_adds(network)
            rows.append(
                {
                    "form": form,
                    "experts": n,
                    "parameters_M": parameters(network) / 1e6,
                    "multiply_adds_G": done / 1e9,
                    "over_ViT": done / plain,
                }
            )
    return rows


def recorded(name: str, n: int) -> nn.Module:
    """A network of the recorded table."""
    if name == "ViT":
        return RestorationViT().eval()
    return (MoEViT(n) if name == "MoE-ViT" else MoFME(n, compat_offset=True)).eval()


def parameters(network: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of one 240 x 240 image, attention's products included."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: attention})
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops() // 2


def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Operations of attention's two products; torch does not count those of its CPU kernel."""
    batch, heads, rows, width = q
    return 2 * batch * heads * rows * k[-2] * (width + v[-1])


# ------------------------------------------------------------------------------------------ times


def layers(rounds: int) -> list[dict[str, Any]]:
    """Forward passes of one layer on 1,800 tokens over one of a feed-forward network."""
    plain = nn.Sequential(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
    ).eval()  # fmt: skip
    image, tiles = torch.randn(1, TOKENS, WIDTH), torch.randn(2, TOKENS // 2, WIDTH)
    runs: dict[str, tuple[nn.Module, Tensor]] = {"feed-forward network": (plain, tiles)}
    for n in (4, 16, 64):
        runs[f"static folded, N = {n}"] = (mixture(n, kind="static"), tiles)
        runs[f"dynamic per image, N = {n}"] = (mixture(n, routing="image"), image)
        runs[f"dynamic per image, N = {n}, two tiles"] = (mixture(n, routing="image"), tiles)
        runs[f"dynamic top 2, N = {n}"] = (mixture(n, top_k=2), tiles)
    runs["dynamic per image with star, N = 64"] = (
        ModulatedMixture(WIDTH, 64, routing="image").eval(), image,
    )  # fmt: skip
    with torch.inference_mode():
        calls = {what: functools.partial(layer, x) for what, (layer, x) in runs.items()}
        spent = interleaved(calls, rounds)
    base = spent["feed-forward network"]
    return [
        {
            "layer": what,
            "ms": statistics.median(times),
            "ratio": statistics.median(times) / statistics.median(base),
            "ratio_of_fastest": min(times) / min(base),
            "saved_for_backward_MiB": saved(*runs[what]),
        }
        for what, times in spent.items()
    ]


def mixture(n: int, **options: Any) -> ModulatedMixture:
    """A layer without base network in front of its modulations."""
    return ModulatedMixture(WIDTH, n, star=False, **options).eval()


def networks(rounds: int) -> list[dict[str, Any]]:
    """Forward passes of whole networks on one 240 x 240 image, N = 16."""
    x = torch.rand(1, 3, SIDE, SIDE)
    made = {
        "MoE-ViT, all experts": MoEViT(16),
        "MoE-ViT, top 2": MoEViT(16, top_k=2),
        "MoFME static, folded": MoFME(16, kind="static"),
        "MoFME dynamic, per image": MoFME(16, routing="image"),
        "MoFME dynamic, top 2": MoFME(16, top_k=2),
        "ViT": RestorationViT(),
    }
    with torch.inference_mode():
        calls = {what: functools.partial(network.eval(), x) for what, network in made.items()}
        spent = interleaved(calls, rounds)
    base = spent["MoE-ViT, all experts"]
    return [
        {
            "network": what,
            "ms": statistics.median(times),
            "less_time": 1 - statistics.median(times) / statistics.median(base),
            "less_time_of_fastest": 1 - min(times) / min(base),
        }
        for what, times in spent.items()
    ]


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each, one after the other; the first round warms up."""
    times: dict[str, list[float]] = {what: [] for what in calls}
    for number in range(rounds + 1):
        for what, call in calls.items():
            start = time.process_time()
            call()
            if number:
                times[what].append(1e3 * (time.process_time() - start))
    return times


def saved(layer: nn.Module, x: Tensor) -> float:
    """MiB that a forward pass keeps for backward, parameters not counted, no dropout."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x.clone().requires_grad_())  # alive, so that no address is used twice
    assert y.requires_grad
    return sum(kept.values()) / 2**20


# ------------------------------------------------------------------------------------------ report


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar, what was measured, and whether it holds."""
    layer = {row["layer"]: row for row in result["layers"]}
    network = {row["network"]: row for row in result["networks"]}
    by_size = {(row["network"], row["experts"]): row for row in result["sizes"]}
    fewer = 1 - (
        by_size["MoFME dynamic", 128]["parameters_released"]
        / by_size["MoE-ViT", 128]["parameters_released"]
    )
    image = layer["dynamic per image, N = 64"]
    bars = [
        ("recorded table agrees in all digits", all(r["agrees"] for r in result["sizes"]), "==", 1),
        ("fewer parameters than MoE-ViT at N = 128, %", round(100 * fewer, 1), "==", 72.4),
        ("static folded, N = 64 / FFN", layer["static folded, N = 64"]["ratio"], "<=", 1.12),
        ("dynamic per image, N = 64 / FFN", image["ratio"], "<=", 1.35),
        ("dynamic top 2, N = 16 / FFN", layer["dynamic top 2, N = 16"]["ratio"], "<=", 1.7),
        ("dynamic top 2, N = 64 / FFN", layer["dynamic top 2, N = 64"]["ratio"], "<=", 1.7),
        ("saved for backward, per image, N = 64, MiB", image["saved_for_backward_MiB"], "<=", 35),
        (
            "less time than MoE-ViT, N = 16",
            network["MoFME static, folded"]["less_time"],
            ">=",
            0.45,
        ),
    ]
    holds = {"==": float.__eq__, "<=": float.__le__, ">=": float.__ge__}
    return [
        {
            "bar": f"{what} {sign} {bar:g}",
            "measured": float(value),
            "holds": "yes" if holds[sign](float(value), float(bar)) else "NO",
        }
        for what, value, sign, bar in bars
    ]


def render(result: dict[str, Any]) -> str:
    """The report."""
    setup = result["setup"]
    digits = {"measured": 2, "recorded_M": 2, "multiply_adds_G": 1, "recorded_G": 1}
    digits |= {"parameters_M": 2, "over_ViT": 3, "ms": 1, "ratio": 3, "ratio_of_fastest": 3}
    digits |= {"saved_for_backward_MiB": 1, "less_time": 3, "less_time_of_fastest": 3}
    return "\n".join([
        "# What MoFME costs", "",
        f"{setup['date']}, {setup['cpu']}, {setup['threads']} thread(s), torch {setup['torch']}. "
        f"Command: `{setup['command']}`. CPU milliseconds, medians of {setup['rounds']} "
        "interleaved rounds.", "",
        *table(result["bars"], digits), "",
        "## The recorded table",
        "One 240 x 240 image, D = 384, two blocks. `parameters released` are ours and what the",
        "released code's recorded sizes imply beside: a table of 900 positions (345,600), which it",
        "does not read, and 768 more per modulation expert. Multiply-adds are counted expert by",
        "expert with the released off-by-one, which leaves the last expert out.", "",
        *table(result["sizes"], digits), "",
        "## As computed here", "",
        *table(result["folded"], digits), "",
        "## One layer",
        f"{TOKENS:,} tokens of width {WIDTH}, forward in inference mode, over a plain feed-forward",
        "network of the same width. Dynamic layers without the optional base network, which alone",
        "is a quarter of a feed-forward network. `two tiles`: two images of 900 tokens, whose maps",
        "are mixed apart; that reads all experts' maps from memory twice over. With 64 experts and",
        "two of them per token an expert gets 56 rows, too few for the matrix product's full",
        "speed. Memory without dropout, whose masks torch keeps in full precision.", "",
        *table(result["layers"], digits), "",
        "## The network", "",
        *table(result["networks"], digits), "",
    ])  # fmt: skip


def main() -> int:
    """Run, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "setup": {
            "date": date.today().isoformat(),
            "cpu": cpu_name(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
            "command": " ".join(["python benchmarks/restoration_cost.py", *sys.argv[1:]]),
        },
        "sizes": sizes(),
        "folded": folded_sizes(),
        "layers": layers(arguments.rounds),
        "networks": networks(max(3, arguments.rounds // 3)),
    }
    result["bars"] = judge(result)
    text = render(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "restoration_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "restoration_cost.md").write_text(text)
    print(text)
    return int(any(bar["holds"] != "yes" for bar in result["bars"]))


if __name__ == "__main__":
    raise SystemExit(main())
