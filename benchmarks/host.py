"""What a call costs on the CPU, on a stub of the CUDA driver: the launcher, given integers, and whole calls.

    python -m benchmarks.host

Needs no GPU: in whole calls, CPU tensors pose as GPU tensors, and the current device and stream are constants. In a
launch the stub only asks for its process id, which costs what the row of os.getpid shows; the rest is time spent in
Python and cuda-bindings. On a GPU, the driver's own time comes on top.
Every round measures every cell, so that a change of clock affects all of them; the median over rounds is printed.
"""

import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from cuda.bindings import driver as cuda

import softmax_ops
from softmax_ops import dispatch, driver, launcher
from softmax_ops.artifacts import catalog
from softmax_ops.checks import check_softmax
from softmax_ops.planning.geometry import Geometry, contiguous_geometry
from tests.support import stub_driver
from tests.support.posing import pose

ROUNDS = 41
CALLS = 2000
"""Calls of a cell per round: about 2 ms."""

CALLS_MEASURED = (("fwd", "none"), ("fwd", "boolcausal"), ("bwd", "causal"))
"""Calls on f16 [8, 16, 1024, 1024] that have two, three and three operands."""

BARE = "one bare cuLaunchKernelEx"

GOAL = 4.0
"""Limit for the launcher path, and for a whole call with out=, in bare launches."""

GOALS = ("plan_for + executable + launch", "softmax_ops call with out=")

_STUBBED = "SOFTMAX_OPS_BENCHMARK_STUB"


def main() -> int:
    if _STUBBED not in os.environ:
        # The loader reads LD_LIBRARY_PATH when a process starts.
        environment = {**stub_driver.environment(), _STUBBED: "1"}
        return subprocess.run([sys.executable, "-m", "benchmarks.host"], env=environment).returncode
    stub_driver.record(False)
    pose(setattr, stream=7)
    print(f"Python {platform.python_version()}, cuda-bindings {version('cuda-bindings')}, {platform.machine()}")
    print(f"median of {ROUNDS} rounds of {CALLS} calls, less an empty loop\n")
    print(f"{'':62} {'ns':>6} {'ratio':>6}")
    for direction, mask_kind in CALLS_MEASURED:
        report(f"{direction} {mask_kind}", measure(cells(direction, mask_kind)))
    bare = cells("fwd", "none")[BARE]
    report("fwd general", measure({BARE: bare, **general_calls()}))
    return 0


def report(kind: str, costs: dict[str, float]) -> None:
    for name, cost in costs.items():
        goal = f"  goal: at most {GOAL:.0f}" if name in GOALS else ""
        print(f"{f'{kind}: {name}':62} {cost:6.0f} {cost / costs[BARE]:6.2f}{goal}")


def measure(cells: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Nanoseconds per call; the cells take turns."""
    rounds: dict[str, list[float]] = {name: [] for name in cells}
    for _ in range(ROUNDS):
        empty = _time(lambda: None)
        for name, call in cells.items():
            rounds[name].append(_time(call) - empty)
    return {name: statistics.median(costs) for name, costs in rounds.items()}


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - start) / CALLS


def cells(direction: str, mask_kind: str) -> dict[str, Callable[[], object]]:
    """The launcher's cells, by name."""

    def describe() -> Geometry:
        return contiguous_geometry(
            (8, 16, 1024, 1024), "f16", mask_kind, direction=direction, mask_shape=(8, 1, 1, 1024)
        )

    known, arch = describe(), driver.architecture(0)
    plan = launcher.plan_for(known, arch)
    kernel = serve(plan.variant)
    ready = launcher.executable(plan, 0)
    block = driver.ArgumentBlock(plan.launches[0].template)
    config = driver.launch_config(plan.launches[0].grid, plan.launches[0].threads, 1, 0)
    bare, handle, address = cuda.cuLaunchKernelEx, kernel.handle, block.address
    addresses = tuple((place + 1) << 40 for place in range(len(known.operands)))
    streams = iter(range(1, 1 << 60))
    equal = [describe() for _ in range(64)]
    turn = iter(lambda: equal[next(streams) % 64], None)

    def whole(geometry: Geometry) -> None:
        found = launcher.executable(launcher.plan_for(geometry, arch), 0, 7)
        found.launch(addresses, scale=0.125, fill=0.0, stream=7)

    return {
        BARE: lambda: bare(config, handle, address, 0),
        "os.getpid": os.getpid,
        "Executable.launch": lambda: ready.launch(addresses, scale=0.125, fill=0.0, stream=7),
        "Executable.launch, another stream each time": lambda: ready.launch(
            addresses, scale=0.125, fill=0.0, stream=next(streams)
        ),
        "plan_for + executable + launch": lambda: whole(known),
        "the same with an equal Geometry": lambda: whole(next(turn)),
        **calls(direction, mask_kind),
    }


def calls(direction: str, mask_kind: str) -> dict[str, Callable[[], object]]:
    """Whole calls on f16 [8, 16, 8, 1024]: another grid, the same kernel and the same parameters."""
    x, y, out, other = (torch.zeros(8, 16, 8, 1024, dtype=torch.float16) for _ in range(4))
    causal = "causal" in mask_kind
    outs = itertools.cycle((out, other))
    shorter, shorter_out = (torch.zeros(4, 16, 8, 1024, dtype=torch.float16) for _ in range(2))
    pairs = itertools.cycle(((x, out), (shorter, shorter_out)))
    if direction == "bwd":
        backward, run = softmax_ops.softmax_backward, softmax_ops.plan(x, scale=0.125, causal=causal, backward=True)
        return {
            "softmax_ops call with out=": lambda: backward(x, y, scale=0.125, causal=causal, out=out),
            "softmax_ops call with another out= each time": lambda: backward(
                x, y, scale=0.125, causal=causal, out=next(outs)
            ),
            "softmax_ops call": lambda: backward(x, y, scale=0.125, causal=causal),
            "planned call with out": lambda: run(x, y, out),
            "planned call": lambda: run(x, y),
        }
    mask = torch.zeros(8, 1, 1, 1024, dtype=torch.bool) if "bool" in mask_kind else None
    weighted = x.clone().requires_grad_()
    softmax, planned = softmax_ops.softmax, softmax_ops.plan(x, scale=0.125, mask=mask, causal=causal)

    def in_turn() -> None:
        x, out = next(pairs)
        softmax(x, scale=0.125, causal=causal, out=out)

    def long_way() -> None:
        request = check_softmax(x, scale=0.125, mask=mask, causal=causal, causal_offset=None, out=out)
        dispatch.forward(request)

    return {
        "softmax_ops call with out=": lambda: softmax(x, scale=0.125, mask=mask, causal=causal, out=out),
        "softmax_ops call with another out= each time": lambda: softmax(
            x, scale=0.125, mask=mask, causal=causal, out=next(outs)
        ),
        **({} if mask is not None else {"softmax_ops call with another shape each time": in_turn}),
        "softmax_ops call": lambda: softmax(x, scale=0.125, mask=mask, causal=causal),
        "softmax_ops call that autograd records": lambda: softmax(weighted, scale=0.125, mask=mask, causal=causal),
        "planned call with out": lambda: planned(x, out, mask),
        "planned call": lambda: planned(x, None, mask),
        "checks and dispatch of a call that is not known": long_way,
    }


def general_calls() -> dict[str, Callable[[], object]]:
    """The same calls with a bias of four bytes per element, shared by the batch, and a length per sequence."""
    x, out = (torch.zeros(8, 16, 8, 1024, dtype=torch.float16) for _ in range(2))
    bias, lengths = torch.zeros(16, 8, 1024), torch.full((8,), 1000, dtype=torch.int32)
    softmax = softmax_ops.softmax
    serve(catalog.load().variants[str(softmax_ops.explain(x, bias=bias, key_lengths=lengths).variant)])

    def long_way() -> None:
        dispatch.forward(
            check_softmax(
                x, scale=1.0, mask=None, causal=False, causal_offset=None, out=out, bias=bias, key_lengths=lengths
            )
        )

    return {
        "bias and key_lengths with out=": lambda: softmax(x, bias=bias, key_lengths=lengths, out=out),
        "bias, key_lengths and return_lse": lambda: softmax(x, bias=bias, key_lengths=lengths, return_lse=True),
        "checks and dispatch of one that is not known": long_way,
    }


def serve(variant: catalog.Variant) -> driver.Kernel:
    """Puts a kernel where resolution would put it; the stub does not accept real cubins."""
    image = stub_driver.image(catalog.argument_bytes(catalog.load().layout(variant)), variant.name)
    kernel = driver.Kernel(variant.name, image, variant.shared_bytes)
    launcher._kernels[variant.name, driver.architecture(0)] = kernel
    return kernel


if __name__ == "__main__":
    sys.exit(main())
