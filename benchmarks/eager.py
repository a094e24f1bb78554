"""What an eager call from Python costs: wall time on an idle GPU, beside that of a bare launch of the same cubin."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from cuda.bindings import driver as cuda

import softmax_ops
from softmax_ops import driver, launcher
from tests.geometries import geometry

from .device import Cuda
from .timing import spread

SHAPE = (1, 4, 8, 256)
"""So small that the GPU is done before the next call: what is timed is the host."""

ROUNDS = 21
CALLS = 500


def beyond_launch_us() -> tuple[float, str]:
    """Microseconds of `softmax(x, out=y)` less those of one cuLaunchKernelEx, and both in words.

    Raises NoDevice without a GPU.
    """
    device = Cuda()
    x = torch.randn(SHAPE, dtype=torch.float16, device="cuda")
    y = torch.empty_like(x)
    softmax_ops.softmax(x, out=y)
    bare = _bare(x, y)
    eager, launch = measure({"eager": lambda: softmax_ops.softmax(x, out=y), "launch": bare}, device.synchronize)
    note = f"{device.name}: eager call {eager:.2f} us, bare cuLaunchKernelEx {launch:.2f} us; {SHAPE} f16"
    return eager - launch, note


def measure(calls: Mapping[str, Callable[[], object]], synchronize: Callable[[], None]) -> list[float]:
    """Median microseconds per call, the calls taking turns."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                call()
            rounds[name].append((time.perf_counter_ns() - start) / CALLS / 1e3)
    return [spread(values).median for values in rounds.values()]


def _bare(x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """The launch that the eager call ends in, with everything ready."""
    plan = launcher.plan_for(geometry(SHAPE), driver.architecture(0))
    kernel = launcher.executable(plan, 0)
    (launch,) = plan.launches
    values = {"x.address": x.data_ptr(), "y.address": y.data_ptr(), "scale": 1.0}
    block = driver.ArgumentBlock(plan.arguments(launch, values))
    config = driver.launch_config(launch.grid, launch.threads, launch.cluster, plan.variant.shared_bytes)
    config.hStream = torch.cuda.current_stream().cuda_stream
    return lambda: cuda.cuLaunchKernelEx(config, kernel._handle, block.address, 0)
