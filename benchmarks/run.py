"""`make bench`: times the forward against a copy of the same bytes and against torch, cell by cell, in one run.

Each cell is checked for correctness in the run that times it. Times are of CUDA graph replays that rotate over distinct
buffers of more than three times the L2 cache; providers are interleaved. Results are JSON, written when a cell is done;
a second run goes on where the first stopped.
"""

import argparse
import importlib.metadata
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import softmax_ops
from benchmarks.cells import Cell, cells

ROUNDS = 9
BUFFER_BYTES = 512 << 20  # of x and y together, at least: 3 x L2 of the largest chip is below
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}

Provider = Callable[[torch.Tensor, torch.Tensor], object]


def masks(cell: Cell) -> tuple[torch.Tensor | None, bool]:
    """(mask, causal) of a cell."""
    batch, _, queries, k = cell.shape
    if cell.mask == "padding":
        lengths = torch.randint(k // 2, k + 1, (batch, 1, 1, 1), device="cuda")
        return torch.arange(k, device="cuda") >= lengths, False
    if cell.mask == "bool":
        return torch.rand(batch, 1, queries, k, device="cuda") < 0.3, False
    return None, cell.mask == "causal"


def providers(cell: Cell) -> dict[str, Provider]:
    """Named ways to fill y from x; `copy` is the ceiling."""
    mask, causal = masks(cell)
    hidden = torch.ones(cell.shape[-2:], dtype=torch.bool, device="cuda").triu(1)[None, None] if causal else mask

    def chain(x: torch.Tensor, y: torch.Tensor) -> object:
        scaled = x * 0.125
        return (scaled if hidden is None else scaled.masked_fill(hidden[: x.shape[0]], -10000)).softmax(-1)

    return {
        "copy": lambda x, y: y.copy_(x),
        "softmax_ops": lambda x, y: softmax_ops.softmax(x, scale=0.125, mask=mask, causal=causal, out=y),
        "torch.softmax": lambda x, y: torch.softmax(x, -1),
        "torch chain": chain,
    }


def check(cell: Cell, x: torch.Tensor, named: dict[str, Provider]) -> float:
    """Largest difference from the chain in float64, over the first batch."""
    y = torch.empty_like(x)
    named["softmax_ops"](x, y)
    first = named["torch chain"](x[:1].double(), y)
    assert isinstance(first, torch.Tensor)
    return (first - y[:1].double()).abs().max().item()


def capture(provider: Provider, buffers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.cuda.CUDAGraph:
    """One graph that runs the provider over every buffer."""
    for x, y in buffers[:1]:
        provider(x, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, y in buffers:
            provider(x, y)
    return graph


def measure(cell: Cell) -> dict[str, object]:
    element = torch.empty((), dtype=DTYPES[cell.dtype])
    one = 2 * element.element_size() * torch.Size(cell.shape).numel()
    count = max(-(-BUFFER_BYTES // one), 2)
    inputs = [torch.randn(cell.shape, device="cuda", dtype=DTYPES[cell.dtype]) * 4 for _ in range(count)]
    pairs = [(x, torch.empty_like(x)) for x in inputs]
    named = providers(cell)
    error = check(cell, pairs[0][0], named)
    graphs = {name: capture(provider, pairs) for name, provider in named.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order = list(graphs)
    for _ in range(ROUNDS):
        random.shuffle(order)
        for name in order:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / count * 1e3)
    return {"cell": cell.key, "largest_difference": error, "bytes": one, "microseconds": _summary(times)}


def _summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    deciles = {name: statistics.quantiles(values, n=10) for name, values in times.items()}
    return {name: {"p20": cuts[1], "median": cuts[4], "p80": cuts[7]} for name, cuts in deciles.items()}


def environment() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "cuda-bindings")}
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "date": time.strftime("%Y-%m-%d"),
        "softmax_ops": softmax_ops.__version__,
        **versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no new cell is begun")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/<device>/forward.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured. `make bench-host` needs none.", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_properties(0).name.lower().replace(" ", "-")
    path = options.results or Path(__file__).parent / "results" / device / "forward.json"
    done = json.loads(path.read_text())["cells"] if path.exists() else []
    known = {row["cell"] for row in done}
    deadline = time.monotonic() + options.budget
    for cell in cells():
        if cell.key in known:
            continue
        if time.monotonic() > deadline:
            print(f"budget spent: {len(done)} of {len(cells())} cells measured; run again to go on")
            break
        done.append(measure(cell))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": environment(), "cells": done}, indent=1) + "\n")
        _print(done[-1])
    return 0


def _print(row) -> None:
    times = {name: numbers["median"] for name, numbers in row["microseconds"].items()}
    shares = ", ".join(f"{name} {times['copy'] / value:.3f}" for name, value in times.items() if name != "copy")
    error = row["largest_difference"]
    print(f"{row['cell']:60} copy {times['copy']:9.1f} us; share of copy: {shares}; off by {error:.1e}")


if __name__ == "__main__":
    sys.exit(main())
