"""What an eager call from Python costs: wall time on an idle GPU, beside torch and a bare launch of the same cubin."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from cuda.bindings import driver as cuda

import softmax_ops
from softmax_ops import current, driver, launcher, native
from softmax_ops.known import calls
from softmax_ops.planning.geometry import contiguous_geometry

from .device import Cuda
from .timing import spread

SHAPE = (1, 4, 8, 256)
"""So small that the GPU finishes before the next call, so the time is the host's."""

OURS = "softmax(x, out=y)"
BARE = "bare cuLaunchKernelEx", "Executable.launch"
"""The launch alone, through cuda-bindings and through the launcher, whose compiled part calls the driver at less cost:
the faster one is taken for the launch."""

ROUNDS = 21
CALLS = 500


def beyond_launch_us() -> tuple[float, str]:
    """Microseconds of `softmax(x, out=y)` beyond one cuLaunchKernelEx, and a description with both and other calls.

    Raises NoDevice without a GPU.
    """
    device = Cuda()
    x = torch.randn(SHAPE, dtype=torch.float16, device="cuda")
    y = torch.empty_like(x)
    found = costs(x, y, device.synchronize)
    words = ", ".join(f"{name} {cost:.2f} us" for name, cost in found.items())
    return found[OURS] - min(found[name] for name in BARE), f"{device.name}: {words}; {SHAPE} f16; {served()}"


def served() -> str:
    """What the compiled part (softmax_ops.native) does of the calls that were made."""
    kernel = launcher.executable(launcher.plan_for(contiguous_geometry(SHAPE, "f16"), driver.architecture(0)), 0)
    if kernel.native is None:
        return f"compiled part unused: {native.problem or 'SOFTMAX_OPS_NATIVE=never, or the launch is not exported'}"
    return "compiled part: whole calls" if calls.forward._known else "compiled part: launches only"


def costs(x: torch.Tensor, y: torch.Tensor, synchronize: Callable[[], None]) -> dict[str, float]:
    """Microseconds per call for scores x and output y."""
    planned = softmax_ops.plan(x, out=y)
    timed = {
        OURS: lambda: softmax_ops.softmax(x, out=y),
        **dict(zip(BARE, _bare(x, y), strict=True)),
        "planned call": lambda: planned(x, y),
        "softmax(x)": lambda: softmax_ops.softmax(x),
        "torch.softmax(x, -1)": lambda: torch.softmax(x, -1),
        "torch.empty_like(x)": lambda: torch.empty_like(x),
        "torch.cuda.current_stream()": lambda: torch.cuda.current_stream(),
    }
    for call in timed.values():
        call()
    return measure(timed, synchronize)


def measure(calls: Mapping[str, Callable[[], object]], synchronize: Callable[[], None]) -> dict[str, float]:
    """Median microseconds per call; the calls take turns."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                call()
            rounds[name].append((time.perf_counter_ns() - start) / CALLS / 1e3)
    return {name: spread(values).median for name, values in rounds.items()}


def _bare(x: torch.Tensor, y: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The launch at the end of the eager call, with everything prepared, in the two ways of BARE.

    Raises DriverError if the driver refuses it, which the timed calls would not notice.
    """
    plan = launcher.plan_for(contiguous_geometry(SHAPE, "f16"), driver.architecture(0))
    kernel = launcher.executable(plan, 0)
    (launch,) = plan.launches
    values = {"x.address": x.data_ptr(), "y.address": y.data_ptr(), "scale": 1.0}
    block = driver.ArgumentBlock(plan.arguments(launch, values))
    config = driver.launch_config(launch.grid, launch.threads, launch.cluster, plan.variant.shared_bytes)
    config.hStream = current.stream(current.ordinal(x))

    def bare() -> tuple[cuda.CUresult]:
        return cuda.cuLaunchKernelEx(config, kernel._handle, block.address, 0)

    driver.check("cuLaunchKernelEx", bare())
    addresses, stream = (x.data_ptr(), y.data_ptr()), int(config.hStream)
    return bare, lambda: kernel.launch(addresses, 1.0, stream)
