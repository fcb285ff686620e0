"""What Mowst costs at 100,000 nodes and 1 M edges: message passing, turns, routed prediction.

    python benchmarks/mowst_cost.py [--threads 1] [--out benchmarks/results]

Everything that is compared runs in turns inside one process, single numbers are medians of CPU
time, and each bar of the project is checked at the end. Writes ``mowst_cost.json`` and ``.md``.
Size, width and depth are those of the paper's GCN on Flickr (89,250 nodes, 899,756 edges).
"""

import argparse
import contextlib
import json
import logging
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch_geometric
from torch import Tensor
from torch.nn import functional as F
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import SimpleConv

from moeapps.graphs import (
    CSRNeighborSampler,
    MowstClassifier,
    NodeClassifier,
    NodeData,
    gcn,
    mowst,
    routed_predict,
)
from moeapps.graphs.neighborhood import estimate_edges, neighborhood
from moeapps.graphs.propagation import operator, propagate

BARS = {
    "message passing, forward and backward, times faster than gather-scatter": (">=", 4.0),
    "weak-turn epoch / plain GCN step": ("<=", 0.75),
    "strong-turn epoch / plain GCN step": ("<=", 1.35),
    "routed request, times faster than the GNN at 20 % routed": (">=", 2.0),
}


def cpu_time(run: Callable[[], Any]) -> float:
    """Milliseconds of CPU time of one call."""
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def alternate(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, run one after the other; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = cpu_time(run)
            if number:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


# ------------------------------------------------------------------------------ message passing


def message_passing(data: Data, *, width: int, rounds: int) -> list[dict[str, Any]]:
    """GCN's operator on ``[V, width]`` by four ways, forward and forward plus backward."""
    size = data.num_nodes
    x = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
    gcn_operator = operator(data.edge_index, size)
    pattern, values = gcn_operator.pattern, gcn_operator.values
    pairs = torch.stack([pattern.col, pattern.row])
    conv = SimpleConv(aggr="sum")
    matrix = pattern.matrix(values).detach()
    sorted_pairs = EdgeIndex(
        pairs, sparse_size=(size, size), sort_order="col", is_undirected=True
    ).fill_cache_()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "gather-scatter (PyG)": lambda z: conv(z, pairs, values),
        "torch.sparse CSR": lambda z: torch.sparse.mm(matrix, z),
        "EdgeIndex.matmul": lambda z: sorted_pairs.matmul(z, values, transpose=True),
        "moeapps": lambda z: propagate(z, data.edge_index),
    }

    def both(way: Callable[[Tensor], Tensor]) -> None:
        z = x.clone().requires_grad_()
        way(z).backward(x)

    reference = ways["moeapps"](x)
    for name, way in ways.items():
        torch.testing.assert_close(way(x), reference, rtol=1e-3, atol=1e-3, msg=name)
    forward = alternate({name: lambda way=way: way(x) for name, way in ways.items()}, rounds)
    full = alternate({name: lambda way=way: both(way) for name, way in ways.items()}, rounds)
    slow = full["gather-scatter (PyG)"]
    return [
        {
            "way": name,
            "forward_ms": forward[name],
            "forward_backward_ms": full[name],
            "times_faster": slow / full[name],
        }
        for name in ways
    ]


# ----------------------------------------------------------------------------------------- turns


class Laps(pl.Callback):
    """Times whole Lightning epochs, each followed by one plain GCN training step."""

    def __init__(self, plain: Callable[[], Any]) -> None:
        self.plain = plain
        self.plain_ms: list[float] = []
        self.epochs: list[tuple[str, bool, float]] = []  # phase, first of its turn, milliseconds
        self._open: tuple[str, float] | None = None
        self._last_phase = ""

    def _close(self) -> None:
        if self._open is not None:
            phase, start = self._open
            spent = 1e3 * (time.process_time() - start)
            self.epochs.append((phase, phase != self._last_phase, spent))
            self._last_phase = phase
            self._open = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End the last lap, run the plain step, start a lap."""
        self._close()
        self.plain_ms.append(cpu_time(self.plain))
        self._open = (pl_module.schedule.phase, time.process_time())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last lap."""
        self._close()

    def of(self, kind: str, *, first: bool = False) -> list[float]:
        """Epochs of a kind of phase; by default without each turn's first."""
        return [
            spent
            for phase, is_first, spent in self.epochs
            if phase.partition(":")[0] == kind and is_first == first
        ]


def plain_step(data: Data, *, hidden: int, layers: int) -> Callable[[], None]:
    """Forward, backward and AdamW step of a GCN on the whole graph, without validation."""
    torch.manual_seed(0)
    model = gcn(data.num_features, hidden, layers, int(data.y.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=5e-4, fused=True)
    rows = data.train_mask.nonzero().squeeze(1)
    y = data.y[rows]

    def step() -> None:
        model.train()
        loss = F.cross_entropy(model(data.x, data.edge_index)[rows], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def epochs_of(module: pl.LightningModule, data: NodeData, plain: Callable[[], None]) -> Laps:
    """Train by Lightning with the module's own callbacks and validation after every epoch."""
    laps = Laps(plain)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[laps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data)
    return laps


def turns(data: NodeData, *, hidden: int, layers: int, epochs: int) -> list[dict[str, Any]]:
    """Epochs of a plain GCN, of weak turns and of strong turns against a plain GCN step."""
    plain = plain_step(data.data, hidden=hidden, layers=layers)
    plain()
    sizes = {"hidden_channels": hidden, "num_layers": layers, "epochs": epochs, "patience": epochs}
    mixture = MowstClassifier("gcn", pretrain="none", rounds=2, round_patience=2, **sizes)
    laps = epochs_of(mixture, data, plain)
    single = epochs_of(NodeClassifier("gcn", **sizes), data, plain)
    step = statistics.median(laps.plain_ms)
    rows = [{"what": "plain GCN step", "ms": step, "ratio": 1.0}]
    own = statistics.median(single.plain_ms)
    spent = statistics.median(single.of("train"))
    rows.append({"what": "GCN epoch", "ms": spent, "ratio": spent / own})
    for kind in ("weak", "strong"):
        for first in (False, True):
            spent = statistics.median(laps.of(kind, first=first))
            name = f"{kind}-turn epoch" + (", first of its turn" if first else "")
            rows.append({"what": name, "ms": spent, "ratio": spent / step})
    return rows


# ------------------------------------------------------------------------------------------ routed


def request_sizes(
    data: Data, *, hidden: int, layers: int, sizes: list[int]
) -> list[dict[str, Any]]:
    """Mean time per request, by the GNN alone and routed with 20 % below the threshold."""
    torch.manual_seed(0)
    model = mowst(
        data.num_features, hidden, layers, int(data.y.max()) + 1, strong="gcn", gate="power"
    ).eval()
    tau = torch.quantile(confidence(model, data), 0.2).item()
    hops = model.strong.receptive_hops
    generator = torch.Generator().manual_seed(0)

    def needs_whole_graph(seeds: Tensor) -> bool:
        expected = estimate_edges(data.edge_index, data.num_nodes, seeds, num_hops=hops)
        return expected > 0.5 * data.num_edges

    def gnn(seeds: Tensor) -> Tensor:
        if needs_whole_graph(seeds):
            return model.strong(data.x, data.edge_index)[seeds].argmax(-1)
        part = neighborhood(data.edge_index, data.num_nodes, seeds, num_hops=hops)
        return model.strong(data.x[part.nodes], part.edge_index)[: len(seeds)].argmax(-1)

    rows = []
    with torch.inference_mode():
        whole = model(data.x, data.edge_index, return_routing=True)
        hard = model.predict(whole, "hard", threshold=tau)
        for size in sizes:
            alone, routed, share = [], [], []
            for _ in range(max(20, min(200, 2000 // size))):
                seeds = torch.randperm(data.num_nodes, generator=generator)[:size]
                alone.append(cpu_time(lambda seeds=seeds: gnn(seeds)))
                start = time.process_time()
                done = routed_predict(model, data, tau, seeds=seeds)
                routed.append(1e3 * (time.process_time() - start))
                share.append(float(done.routed.double().mean()))
                assert float((done.labels == hard[seeds]).double().mean()) > 0.999
            rows.append(
                {
                    "nodes": size,
                    "gnn_on": "whole graph" if needs_whole_graph(seeds) else "neighbourhood",
                    "requests": len(alone),
                    "routed_share": statistics.mean(share),
                    "gnn_ms": statistics.mean(alone),
                    "routed_ms": statistics.mean(routed),
                    "times_faster": statistics.mean(alone) / statistics.mean(routed),
                }
            )
        rows.append(whole_graph(model, data, tau))
    return rows


def confidence(model: Any, data: Data) -> Tensor:
    """``c`` of every node."""
    with torch.no_grad():
        return model.route(model.weak(data.x), data.x).weights[:, 0]


def whole_graph(model: Any, data: Data, tau: float) -> dict[str, Any]:
    """All nodes at once, where routing cannot help; shown so that nobody expects it to."""
    spent = alternate(
        {
            "gnn": lambda: model.strong(data.x, data.edge_index).argmax(-1),
            "routed": lambda: routed_predict(model, data, tau),
        },
        3,
    )
    return {
        "nodes": data.num_nodes,
        "gnn_on": "whole graph",
        "requests": 3,
        "routed_share": 0.2,
        "gnn_ms": spent["gnn"],
        "routed_ms": spent["routed"],
        "times_faster": spent["gnn"] / spent["routed"],
    }


def sampling(data: Data) -> dict[str, float]:
    """Milliseconds per batch of 1,024 seeds with fan-outs 10 and 10."""
    from torch_geometric.sampler import NodeSamplerInput

    sampler = CSRNeighborSampler(data, [10, 10])
    seeds = torch.randperm(data.num_nodes)[:1024]
    spent = alternate({"ms": lambda: sampler.sample_from_nodes(NodeSamplerInput(None, seeds))}, 10)
    edges = sampler.sample_from_nodes(NodeSamplerInput(None, seeds)).row.numel()
    return {**spent, "edges": edges}


# ------------------------------------------------------------------------------------------ report


def table(rows: list[dict[str, Any]], digits: dict[str, int]) -> list[str]:
    """Rows as a Markdown table."""

    def cell(key: str, value: Any) -> str:
        return f"{value:,.{digits.get(key, 0)}f}" if isinstance(value, float) else f"{value}"

    keys = list(rows[0])
    return [
        "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|" + "---|" * len(keys),
        *("| " + " | ".join(cell(key, row[key]) for key in keys) + " |" for row in rows),
    ]


def two_layers(result: dict[str, Any], digits: dict[str, int]) -> list[str]:
    """The same with two layers; no bar is set on it."""
    if "turns_2_layers" not in result:
        return []
    return [
        "## With 2 layers",
        "Less of a GCN's step is message passing, so a turn without it saves less, and a request's",
        "neighbourhood is so small that calls into torch are most of its time.",
        "",
        *table(result["turns_2_layers"], digits),
        "",
        *table(result["routed_2_layers"], digits),
        "",
    ]


def cpu_name() -> str:
    """The processor, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar, what was measured, and whether it holds."""
    by_what = {row["what"]: row["ratio"] for row in result["turns"]}
    requests = [row["times_faster"] for row in result["routed"] if row["gnn_on"] == "neighbourhood"]
    measured = [
        result["message_passing"][-1]["times_faster"],
        by_what["weak-turn epoch"],
        by_what["strong-turn epoch"],
        min(requests),
    ]
    return [
        {
            "bar": f"{name} {sign} {bar}",
            "measured": value,
            "holds": "yes" if (value >= bar if sign == ">=" else value <= bar) else "NO",
        }
        for (name, (sign, bar)), value in zip(BARS.items(), measured, strict=True)
    ]


def render(result: dict[str, Any]) -> str:
    """The report."""
    setup = result["setup"]
    digits = {"times_faster": 2, "ratio": 2, "routed_share": 2, "measured": 2}
    digits |= {"gnn_ms": 2, "routed_ms": 2}
    lines = [
        "# What Mowst costs",
        "",
        f"MixedCSBM `{setup['size']}` (synthetic): {setup['nodes']:,} nodes, "
        f"{setup['edges']:,} directed edges, {setup['features']} features; hidden "
        f"{setup['hidden']}, {setup['layers']} layers.",
        f"{setup['date']}, {setup['cpu']}, {setup['threads']} thread(s), torch {setup['torch']}, "
        f"PyTorch Geometric {setup['torch_geometric']}, Lightning {setup['lightning']}.",
        f"Command: `{setup['command']}`. CPU milliseconds.",
        "",
        *table(result["bars"], digits),
        "",
        "## Message passing",
        f"GCN's operator on width {setup['hidden']}; converting the graph once takes "
        f"{result['conversion_ms']:.0f} ms.",
        "",
        *table(result["message_passing"], digits),
        "",
        "## Turns",
        "Epochs are whole Lightning epochs of `MowstClassifier` and `NodeClassifier`: training",
        "step, validation, schedule, callbacks. The plain step is forward, backward and AdamW of",
        "a GCN of the same size on the same message passing, without validation. The first epoch",
        "of a turn also computes what is frozen in it.",
        "",
        *table(result["turns"], digits),
        "",
        "## Routed prediction",
        "Requests of some random nodes; the GNN alone gets the same neighbourhoods and the same",
        "choice of the whole graph. Where requests cover the graph, routing does not help.",
        "",
        *table(result["routed"], digits),
        "",
        *two_layers(result, digits),
        "## Sampling",
        f"1,024 seeds with fan-outs 10 and 10 ({result['sampling']['edges']:,} edges): "
        f"{result['sampling']['ms']:.0f} ms.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="large", help="size of MixedCSBM")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="epochs per turn")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of message passing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    module = NodeData("mixed-csbm", dataset_args={"size": arguments.size})
    module.setup()
    data = module.data
    sizes = {"hidden": arguments.hidden, "layers": arguments.layers}
    result: dict[str, Any] = {
        "setup": {
            "date": date.today().isoformat(),
            "cpu": cpu_name(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "torch_geometric": torch_geometric.__version__,
            "lightning": pl.__version__,
            "command": " ".join(["python benchmarks/mowst_cost.py", *sys.argv[1:]]),
            "size": arguments.size,
            "nodes": data.num_nodes,
            "edges": data.num_edges,
            "features": data.num_features,
            **sizes,
        }
    }
    # The first use converts the graph and keeps the result; everything after it is warm.
    result["conversion_ms"] = cpu_time(lambda: operator(data.edge_index, data.num_nodes).transpose)
    result["message_passing"] = message_passing(
        data, width=arguments.hidden, rounds=arguments.rounds
    )
    result["turns"] = turns(module, epochs=arguments.epochs, **sizes)
    result["routed"] = request_sizes(data, sizes=[1, 10, 100, 1000], **sizes)
    if arguments.layers > 2:
        fewer = {**sizes, "layers": 2}
        result["turns_2_layers"] = turns(module, epochs=arguments.epochs, **fewer)
        result["routed_2_layers"] = request_sizes(data, sizes=[1, 10, 100, 1000], **fewer)
    result["sampling"] = sampling(data)
    result["bars"] = judge(result)
    text = render(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "mowst_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "mowst_cost.md").write_text(text)
    print(text)
    return int(any(bar["holds"] != "yes" for bar in result["bars"]))


if __name__ == "__main__":
    raise SystemExit(main())
