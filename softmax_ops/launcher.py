"""Runs launch plans on devices. Takes integers only: addresses, scalars, a stream, a device ordinal.

plan = plan_for(geometry)                                       # cached
executable(plan, device, stream)(x=..., y=..., mask=..., scale=..., fill=..., stream=...)
"""

import struct
import threading
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

from cuda.bindings import driver as cuda

from . import driver, resolve
from .artifacts import catalog
from .plan import DYNAMIC, Launch, LaunchPlan, plan
from .problem import Geometry

PLANS = 4096
"""Launch plans kept per process, the least recently used forgotten first."""

_lock = threading.Lock()
_kernels: dict[tuple[str, str], driver.Kernel] = {}
_executables: dict[tuple[LaunchPlan, int], "Executable"] = {}


class NotLoaded(RuntimeError):
    """A kernel would have to be loaded where that is impossible: while a CUDA graph is being captured."""


@lru_cache(maxsize=PLANS)
def plan_for(geometry: Geometry) -> LaunchPlan:
    """The launch plan of a geometry, by the catalogue of this package."""
    return plan(geometry, catalog.load())


class Executable:
    """A launch plan bound to a device: everything but addresses, scalars and stream is decided.

    Calls are thread-safe: each thread has parameter blocks of its own.
    """

    def __init__(self, launch_plan: LaunchPlan, kernel: driver.Kernel, device: int):
        self.plan = launch_plan
        self.device = device
        self._handle = kernel.handle
        self._packers = _packers(launch_plan)
        self._local = threading.local()

    def __call__(self, *, x: int, y: int, mask: int, scale: float, fill: float, stream: int) -> None:
        """Launches on a stream of the device; the default stream (0) is that of the thread's current context.

        Raises driver.DriverError when the driver refuses the launch.
        """
        driver.refuse_after_fork()
        for launch, block, config in self._blocks():
            offset = launch.offset
            values = (x + offset.x, y + offset.y, scale, mask + offset.mask, fill)
            for pack_into, position, pick in self._packers:
                pack_into(block.buffer, position, *pick(values))
            config.hStream = stream
            status = cuda.cuLaunchKernelEx(config, self._handle, block.address, 0)
            if status[0]:
                driver.check(f"cuLaunchKernelEx of {self.plan.variant.name}", status)

    def _blocks(self) -> list[tuple[Launch, driver.ArgumentBlock, cuda.CUlaunchConfig]]:
        try:
            return self._local.blocks
        except AttributeError:
            driver.ensure_context(self.device)
            variant = self.plan.variant
            self._local.blocks = [
                (
                    launch,
                    driver.ArgumentBlock(launch.template),
                    driver.launch_config(launch.grid, variant.threads, variant.cluster, variant.shared_bytes),
                )
                for launch in self.plan.launches
            ]
            return self._local.blocks


def executable(launch_plan: LaunchPlan, device: int, stream: int = 0) -> Executable:
    """The plan on a device; its kernel is found, loaded and made ready the first time.

    Raises resolve.KernelNotFound when no place holds it, NotLoaded when `stream` is being captured into a CUDA graph.
    """
    found = _executables.get((launch_plan, device))
    if found is not None:
        return found
    driver.refuse_after_fork()
    if driver.is_capturing(stream):
        raise NotLoaded(
            f"{launch_plan.variant.name} is not loaded, and nothing can be loaded while a CUDA graph is captured: "
            "call softmax_ops.softmax once with these shapes before the capture."
        )
    kernel = _kernel(launch_plan, driver.architecture(device))
    kernel.prepare(device)
    with _lock:
        if len(_executables) >= PLANS:
            _executables.clear()
        return _executables.setdefault((launch_plan, device), Executable(launch_plan, kernel, device))


def _kernel(launch_plan: LaunchPlan, arch: str) -> driver.Kernel:
    """Loaded once per process and architecture; two threads at once may both resolve it, one load is kept."""
    variant = launch_plan.variant
    kernel = _kernels.get((variant.name, arch))
    if kernel is None:
        cubin = resolve.resolve(variant, arch).cubin
        with _lock:
            kernel = _kernels.get((variant.name, arch))
            if kernel is None:
                kernel = driver.Kernel(variant.name, cubin.code, variant.shared_bytes)
                _kernels[variant.name, arch] = kernel
    return kernel


def _packers(launch_plan: LaunchPlan) -> list[tuple[Callable[..., None], int, Callable]]:
    """Neighbouring dynamic fields are packed by one call: (pack_into, offset in the struct, which values)."""
    groups: list[tuple[int, str, list[int]]] = []
    for name, position, format in launch_plan.fields:
        value = DYNAMIC.index(name)
        if groups and groups[-1][0] + struct.calcsize(groups[-1][1] + "0" + format) == position:
            start, formats, values = groups.pop()
            groups.append((start, formats + format, [*values, value]))
        else:
            groups.append((position, format, [value]))
    return [(struct.Struct(formats).pack_into, start, _picker(values)) for start, formats, values in groups]


def _picker(positions: list[int]) -> Callable:
    if len(positions) == 1:
        (position,) = positions
        return lambda values: (values[position],)
    return itemgetter(*positions)
