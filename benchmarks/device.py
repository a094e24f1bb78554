"""What the benchmark needs from a device. Tests provide one with a simulated clock; `Cuda` is the real one."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch

PACKAGES = ("softmax-ops", "torch", "triton", "cuda-bindings", "liger-kernel", "quack-kernels", "nvidia-cutlass-dsl")


SPIN_CYCLES = 2_000_000
"""About a millisecond for which the device spins, so that the host has queued all timed work before it starts."""


@dataclass(frozen=True)
class Graph:
    """Calls that replay without the host. `results` are what the calls returned; every replay rewrites them.

    The calls are kept, and with them the tensors that only they know, such as a workspace: replays use its address.
    """

    replay: Callable[[], object]
    results: list[torch.Tensor]
    calls: Sequence[Callable[[], torch.Tensor]]


class NoDevice(RuntimeError):
    """There is no GPU to measure."""


class Device(Protocol):
    """Something that has tensors and a clock."""

    torch_device: str
    name: str
    l2_bytes: int
    multiprocessors: int

    def facts(self) -> dict[str, Any]:
        """What figures depend on: the device and the versions, but not the time."""
        ...

    def clocks(self) -> dict[str, int]:
        """Current clocks in MHz; empty if they cannot be read."""
        ...

    def capture(self, calls: Sequence[Callable[[], torch.Tensor]]) -> Graph:
        """The calls, in order, as one graph; each must have run once before."""
        ...

    def time(self, graph: Graph, replays: int) -> float:
        """Microseconds that this many consecutive replays take."""
        ...

    def synchronize(self) -> None:
        """Wait for the device; raises if it no longer answers."""
        ...

    def release(self) -> None:
        """Return the memory of dropped tensors and graphs; raises if no more graphs can be captured."""
        ...


class Cuda:
    """The first GPU of this machine, through torch. Raises NoDevice without one."""

    torch_device = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise NoDevice("no GPU here: nothing is measured (`make bench-host` needs none)")
        properties = torch.cuda.get_device_properties(0)
        self.name = properties.name
        self.l2_bytes = properties.L2_cache_size
        self.multiprocessors = properties.multi_processor_count
        self._memory = properties.total_memory

    def facts(self) -> dict[str, Any]:
        return {
            "device": self.name,
            "multiprocessors": self.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "memory_bytes": self._memory,
            "driver": _smi("driver_version"),
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            **versions(),
        }

    def clocks(self) -> dict[str, int]:
        try:
            return _nvml_clocks()  # in a thousandth of the time that nvidia-smi takes to start
        except Exception:  # no nvidia-ml-py, or whatever NVML raises
            found = (_smi("clocks.sm,clocks.mem") or "").split(",")
        told = zip(("sm", "memory"), map(str.strip, found), strict=False)
        return {name: int(value) for name, value in told if value.isdecimal()}  # some machines report "[N/A]"

    def capture(self, calls: Sequence[Callable[[], torch.Tensor]]) -> Graph:
        own, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(own)  # what is not ready yet (kernels, workspaces) gets created outside the capture
        with torch.cuda.stream(side):
            calls[0]()
        own.wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # If ending a capture raises, torch.cuda.graph leaves its stream current. Other threads may be compiling.
        with torch.cuda.stream(own), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = [call() for call in calls]
        return Graph(graph.replay, results, calls)

    def time(self, graph: Graph, replays: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SPIN_CYCLES)
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        torch.cuda.empty_cache()


def versions() -> dict[str, str | None]:
    """Versions of the packages whose code is measured; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _uuid() -> str:
    """The identity of torch's first device; nvidia-smi numbers devices in another order, and all of them."""
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)  # torch 2.5
    return "0" if uuid is None else f"GPU-{uuid}"


def _nvml_clocks() -> dict[str, int]:
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByUUID(_uuid())
    kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
    return {name: pynvml.nvmlDeviceGetClockInfo(device, kind) for name, kind in kinds.items()}


def _smi(fields: str) -> str | None:
    command = ["nvidia-smi", f"--id={_uuid()}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
