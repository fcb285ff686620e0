"""Speed of the routed kernels and of the MoE layer on one CPU thread.

    python benchmarks/kernels.py                 # all lines, every peer that is installed
    python benchmarks/kernels.py --lines 0 2     # some lines
    python benchmarks/kernels.py --quick         # one tiny line, for a smoke test

Every runner of a line is timed in turn, again and again, in one process; a cell is the ratio of
medians. Time is the CPU time of the one thread, which a busy machine lengthens least; lines of a
few milliseconds get four times the repeats. A ratio to dense is the time of a plain two-layer
network (bias, GELU) with the same active operations, ``N * K`` rows, divided by the time of the
runner: 1 means routing costs nothing.
A runner faster than 50 ms is called once untimed before each timed call, so that it does not pay
for the caches its neighbour filled. ``sorted`` is what no strategy of separate products can beat:
each expert in turn on rows that lie sorted already, without gathering, putting back and weighing.

Peers are whole layers with a gate, so they are compared with our whole layer, `MoE` with a top-k
gate. The peer with soft slots is compared with our soft slots besides: the same mathematics, nearly
all of it in matrix products, except that our gate works in float32 for half-precision inputs too.
Peers get groups of at most 512 rows, because their cost grows with the square of the group. A peer
that cannot run a line says why.
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps import kernels
from moeapps.gating import Gate, MoE, StackedMLP

RESULTS = Path(__file__).parent / "results"
GROUP = 512

# N, D, E, K, dtype; then the levels to hold: loop forward, loop forward + backward, grouped both.
# The last line's second level is a range; its lower end counts.
LINES = [
    (512, 192, 8, 1, "float32", (0.75, 0.75, 0.73, 0.81)),
    (512, 192, 8, 1, "bfloat16", (0.46, 0.48, 0.47, 0.55)),
    (2048, 384, 8, 2, "float32", (0.94, 0.95, 0.92, 0.91)),
    (2048, 384, 8, 2, "bfloat16", (0.86, 0.86, 0.73, 0.88)),
    (4096, 192, 64, 2, "float32", (0.79, 0.80, 0.75, 0.86)),
    (4096, 192, 64, 2, "bfloat16", (0.63, 0.56, 0.62, 0.62)),
    (2048, 768, 8, 2, "bfloat16", (0.89, 0.85, 0.88, 0.89)),
    (16384, 192, 8, 1, "float32", (1.06, 1.14, 0.62, 0.75)),
    (16384, 384, 16, 1, "bfloat16", (1.14, 0.86, 0.69, 0.65)),
]
QUICK = [(32, 16, 4, 2, "float32", (0.0, 0.0, 0.0, 0.0))]
TOLERANCE = 0.15


class Runner:
    """A function of ``x`` and the tensors its gradient goes to."""

    def __init__(self, run: Callable[[Tensor], Tensor], x: Tensor, leaves: list[Tensor]) -> None:
        self.run, self.x, self.leaves = run, x, [x, *leaves]
        with torch.no_grad():
            y = run(x)
        self.cotangent = torch.randn_like(y)

    def forward(self) -> float:
        """Seconds of a forward pass without gradient."""
        with torch.no_grad():
            start = time.thread_time()
            self.run(self.x)
            return time.thread_time() - start

    def both(self) -> float:
        """Seconds of a forward and a backward pass."""
        for leaf in self.leaves:
            leaf.grad = None
        start = time.thread_time()
        self.run(self.x).backward(self.cotangent)
        return time.thread_time() - start


def settled(timed: Callable[[], float]) -> float:
    """Seconds of a call; of a second call if the first was short."""
    seconds = timed()
    return timed() if seconds < 0.05 else seconds


def dense_mlp(N: int, D: int, dtype: torch.dtype) -> Runner:
    """A plain two-layer network on as many rows as the experts see together."""
    model = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)).to(dtype)
    return Runner(model, rows(N, D, dtype), list(model.parameters()))


def rows(N: int, D: int, dtype: torch.dtype) -> Tensor:
    """Input rows that want a gradient."""
    return torch.randn(N, D).to(dtype).requires_grad_()


def ours(N: int, D: int, E: int, K: int, dtype: torch.dtype) -> dict[str, Runner]:
    """The kernels on a given routing, and the layers that peers are compared with."""
    experts = StackedMLP(E, D, 4 * D, D).to(dtype)
    probs = (0.3 * torch.randn(N, E)).softmax(-1)
    weights, indices = probs.topk(K, -1)
    weights.requires_grad_()

    def kernel(strategy: str) -> Callable[[Tensor], Tensor]:
        return lambda x: kernels.routed_mlp(
            x,
            indices,
            weights,
            experts.w1,
            experts.b1,
            experts.w2,
            experts.b2,
            strategy=strategy,
        )

    leaves = [weights, *experts.parameters()]
    runners = {
        name: Runner(kernel(name), rows(N, D, dtype), leaves) for name in ("loop", "grouped")
    }
    sizes = torch.bincount(indices.flatten(), minlength=E).tolist()

    def sorted_already(x: Tensor) -> Tensor:
        functions = experts.networks().functions()
        return torch.cat([f(part) for f, part in zip(functions, x.split(sizes), strict=True)])

    runners["sorted"] = Runner(sorted_already, rows(N * K, D, dtype), leaves[1:])
    layer = MoE(Gate.topk(D, E, K), StackedMLP(E, D, 4 * D, D)).to(dtype)
    runners["layer"] = Runner(layer, rows(N, D, dtype), list(layer.parameters()))
    return runners


def soft_layer(N: int, D: int, E: int, K: int, dtype: torch.dtype) -> Runner:
    """Our layer with soft slots."""
    layer = MoE(Gate.soft(D, E, slots(N, E, K)), StackedMLP(E, D, 4 * D, D)).to(dtype)
    x = rows(N, D, dtype)
    return Runner(lambda x: layer(in_groups(x)), x, list(layer.parameters()))


def slots(N: int, E: int, K: int) -> int:
    """Slots per expert that give a soft layer the operations of K experts per row."""
    return max(1, min(N, GROUP) * K // E)


def in_groups(x: Tensor) -> Tensor:
    """``[N, D] -> [groups, at most 512, D]``, as peers and soft slots need it."""
    return x.view(-1, min(len(x), GROUP), x.shape[-1])


def expert(D: int) -> nn.Module:
    """One expert as a plain module."""
    return nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))


def mixture_of_experts(peer: Any, N: int, D: int, E: int, K: int) -> nn.Module:
    """GShard-style layer; one or two experts per row."""
    if K > 2:
        raise ValueError("it has at most two experts per row")
    policy = "none" if K == 1 else "all"
    return peer.MoE(
        D,
        num_experts=E,
        hidden_dim=4 * D,
        activation=nn.GELU,
        second_policy_train=policy,
        second_policy_eval=policy,
        capacity_factor_train=1.25 * K,
        capacity_factor_eval=1.25 * K,
    )


def st_moe_pytorch(peer: Any, N: int, D: int, E: int, K: int) -> nn.Module:
    """ST-MoE layer; two or more experts per row."""
    if K < 2:
        raise ValueError("it needs at least two experts per row")
    return peer.MoE(
        D,
        num_experts=E,
        gating_top_n=K,
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=1.25 * K,
        capacity_factor_eval=1.25 * K,
        experts=nn.ModuleList(expert(D) for _ in range(E)),
    )


def soft_moe_pytorch(peer: Any, N: int, D: int, E: int, K: int) -> nn.Module:
    """Soft slots."""
    return peer.SoftMoE(D, num_experts=E, num_slots=slots(N, E, K))


def tutel(peer: Any, N: int, D: int, E: int, K: int) -> nn.Module:
    """Tutel's layer on one process."""
    layer = importlib.import_module("tutel.moe").moe_layer
    return layer(
        gate_type={"type": "top", "k": K},
        experts={
            "type": "ffn",
            "num_experts_per_device": E,
            "hidden_size_per_expert": 4 * D,
            "activation_fn": F.gelu,
        },
        model_dim=D,
    )


PEERS = {
    "tutel": tutel,
    "mixture_of_experts": mixture_of_experts,
    "st_moe_pytorch": st_moe_pytorch,
    "soft_moe_pytorch": soft_moe_pytorch,
}
SOFT = "soft_moe_pytorch"


def peer_runner(name: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Runner:
    """A peer's layer; raises with the reason if it cannot run this line."""
    layer = PEERS[name](importlib.import_module(name), *shape).to(dtype)
    x = rows(shape[0], shape[1], dtype)

    def run(x: Tensor) -> Tensor:
        y = layer(in_groups(x))
        return y if isinstance(y, Tensor) else y[0]

    runner = Runner(run, x, list(layer.parameters()))
    runner.both()
    return runner


def find_peers() -> tuple[list[str], dict[str, str]]:
    """Peers that can be imported, and why the others cannot."""
    present, absent = [], {}
    for name in PEERS:
        try:
            importlib.import_module(name)
            present.append(name)
        except ImportError as error:
            absent[name] = f"not installed ({error})"
    return present, absent


def measure(line: tuple, repeats: int, peers: list[str]) -> dict[str, Any]:
    """Time every runner of one line in turn; medians in milliseconds."""
    N, D, E, K, dtype_name, levels = line
    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    runners = {"dense": dense_mlp(N * K, D, dtype), **ours(N, D, E, K, dtype)}
    refused = {}
    for name in peers:
        try:
            runners[name] = peer_runner(name, (N, D, E, K), dtype)
        except Exception as error:  # whatever a peer raises is its reason
            refused[name] = f"{dtype_name}, K={K}: {str(error).splitlines()[0]}"
    if SOFT in runners:
        runners["soft layer"] = soft_layer(N, D, E, K, dtype)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runners}
    if settled(runners["dense"].forward) < 0.01:
        repeats *= 4
    for repeat in range(repeats + 2):
        for name, runner in runners.items():
            forward, both = settled(runner.forward), settled(runner.both)
            if repeat >= 2:  # warm-up: kernels are chosen and memory is mapped
                times[name][0].append(forward)
                times[name][1].append(both)
    medians = {
        name: [1e3 * statistics.median(part) for part in parts] for name, parts in times.items()
    }
    return {
        "line": {"N": N, "D": D, "E": E, "K": K, "dtype": dtype_name},
        "milliseconds": medians,
        "ratio_to_dense": {
            name: [medians["dense"][i] / medians[name][i] for i in (0, 1)]
            for name in medians
            if name != "dense"
        },
        "speed_over_peer": {
            name: [medians[name][i] / medians["layer"][i] for i in (0, 1)]
            for name in peers
            if name in medians
        },
        "soft_over_soft_peer": [medians[SOFT][i] / medians["soft layer"][i] for i in (0, 1)]
        if SOFT in medians
        else None,
        "levels": {"loop": levels[:2], "grouped": levels[2:]},
        "peers_refused": refused,
    }


def verdict(result: dict[str, Any]) -> list[str]:
    """What this line misses; empty if it holds."""
    short = []
    for name, levels in result["levels"].items():
        for what, got, level in zip(
            ("forward", "forward+backward"), result["ratio_to_dense"][name], levels, strict=True
        ):
            if got < (1 - TOLERANCE) * level:
                short.append(f"{name} {what} {got:.2f} < 0.85 x {level:.2f}")
    for name, speeds in result["speed_over_peer"].items():
        if min(speeds) < 1:
            short.append(f"slower than {name} ({min(speeds):.2f})")
    return short


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    results, peers = report["results"], report["peers"]
    names = [name for name in PEERS if name in peers]
    head = [
        "N x D, E, K, dtype",
        "rows per expert",
        "dense ms",
        "sorted",
        "loop",
        "grouped",
        "layer",
    ]
    lines = [
        "# Kernels on one CPU thread",
        "",
        f"- {report['date']}, torch {report['torch']}, {report['cpu']}, one thread",
        f"- command: `{report['command']}`",
        f"- {report['repeats']} interleaved repeats, medians of CPU time; load of the machine "
        f"before {report['load'][0]:.1f}, after {report['load'][1]:.1f}",
        "- cells: forward / forward+backward",
        "- `sorted`, `loop`, `grouped`, `layer`: speed relative to a dense two-layer network of",
        "  the same active operations (1 = routing is free); in brackets the level to hold within "
        "15 %",
        "- `sorted`: the experts alone, on rows that lie sorted already; what the products allow",
        "- `vs` a peer: how many times faster `layer` is; `soft vs soft`: our soft slots against "
        "theirs, the same products, with our gate in float32",
        *(f"- {name}: {why}" for name, why in report["peers_absent"].items()),
        "",
        "| " + " | ".join([*head, *(f"vs {n}" for n in names), "soft vs soft", "holds"]) + " |",
        "|" + "---|" * (len(head) + len(names) + 2),
    ]
    for result in results:
        shape = result["line"]
        ratio = result["ratio_to_dense"]

        def cell(name: str, result: dict = result, ratio: dict = ratio) -> str:
            level = result["levels"][name]
            return f"{pair(ratio[name])} ({pair(level)})"

        row = [
            f"{shape['N']} x {shape['D']}, {shape['E']}, {shape['K']}, {shape['dtype']}",
            str(shape["N"] * shape["K"] // shape["E"]),
            pair(result["milliseconds"]["dense"], 1),
            pair(ratio["sorted"]),
            cell("loop"),
            cell("grouped"),
            pair(ratio["layer"]),
        ]
        for name in names:
            speed = result["speed_over_peer"].get(name)
            row.append("does not run" if speed is None else pair(speed, 1))
        soft = result["soft_over_soft_peer"]
        row.append("-" if soft is None else pair(soft))
        row.append("; ".join(verdict(result)) or "yes")
        lines.append("| " + " | ".join(row) + " |")
    refused = {
        f"{name}: {why}" for result in results for name, why in result["peers_refused"].items()
    }
    lines += ["", *(f"- does not run: {why}" for why in sorted(refused))]
    return "\n".join(lines).rstrip() + "\n"


def pair(values: list[float] | tuple[float, ...], digits: int = 2) -> str:
    """``forward / forward+backward``."""
    return " / ".join(f"{value:.{digits}f}" for value in values)


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for text in info.read_text().splitlines():
            if text.startswith("model name"):
                return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one tiny line, three repeats")
    parser.add_argument("--lines", type=int, nargs="+", metavar="I", help="numbers of lines")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for kernels.{json,md}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = QUICK if options.quick else [LINES[i] for i in options.lines or range(len(LINES))]
    repeats = 3 if options.quick else options.repeats
    peers, absent = ([], {}) if options.no_peers else find_peers()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "cpu": processor(),
        "command": "python benchmarks/kernels.py " + " ".join(arguments or sys.argv[1:]),
        "repeats": repeats,
        "peers": peers,
        "peers_absent": absent,
        "results": [],
    }
    load = load_average()
    for line in lines:
        result = measure(line, repeats, peers)
        report["results"].append(result)
        sys.stdout.write(f"{result['line']}: {'; '.join(verdict(result)) or 'holds'}\n")
        sys.stdout.flush()
    report["command"] = report["command"].strip()
    report["load"] = [load, load_average()]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    text = render(report)
    (options.output / "kernels.md").write_text(text)
    sys.stdout.write(text)
    return 0


def load_average() -> float:
    """Load of the machine over the last minute."""
    return Path("/proc/loadavg").exists() and float(Path("/proc/loadavg").read_text().split()[0])


if __name__ == "__main__":
    sys.exit(main())
