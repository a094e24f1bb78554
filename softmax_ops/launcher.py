"""Runs launch plans on devices. Takes integers only: addresses, scalars, a stream, a device ordinal.

plan = plan_for(geometry, driver.architecture(device))          # cached
executable(plan, device, stream).launch(addresses, scale, stream, fill=..., workspace=...)
"""

import struct
import threading
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from operator import add, sub

from cuda.bindings import driver as cuda

from . import driver, resolve
from .artifacts import catalog
from .launch_plan import WORKSPACE, Launch, LaunchPlan, plan
from .problem import OPERANDS, Geometry

PLANS = 4096
"""Launch plans kept per process, the least recently used forgotten first."""

_launch = cuda.cuLaunchKernelEx  # bound here: looking it up costs a tenth of the call

_lock = threading.Lock()
_kernels: dict[tuple[str, str], driver.Kernel] = {}
_executables: dict[tuple[int, int], "Executable"] = {}
"""By the id of the plan (hashing one takes longer than a launch) and the device. An executable keeps its plan alive."""

_frozen = False


class NotLoaded(RuntimeError):
    """A kernel would have to be loaded where that cannot or must not be: during a capture, or after `freeze()`."""


@lru_cache(maxsize=PLANS)
def plan_for(geometry: Geometry, arch: str) -> LaunchPlan:
    """The launch plan of a geometry on an architecture ("sm_90"), by the catalogue of this package."""
    return plan(geometry, catalog.load(), arch)


class _Grid:
    """One grid of an executable, in the memory of one thread."""

    __slots__ = ("address", "addresses", "block", "buffer", "config", "fill", "scale", "step", "stream")

    def __init__(self, launch: Launch, launch_plan: LaunchPlan, step: tuple[int, ...]):
        variant = launch_plan.variant
        self.step = step  # bytes that the operands are beyond those of the grid before; empty: none
        self.block = driver.ArgumentBlock(launch.template)
        self.buffer, self.address = self.block.buffer, self.block.address
        self.config = driver.launch_config(launch.grid, launch.threads, launch.cluster, variant.shared_bytes)
        self.stream = 0  # that of a fresh config
        self.addresses: tuple[int, ...] = ()  # these three: what it was launched with before
        self.scale = self.fill = 0.0


class Executable:
    """A launch plan bound to a device: everything but addresses, scalars and stream is decided.

    Calls are thread-safe: each thread has parameter blocks of its own.
    """

    def __init__(self, launch_plan: LaunchPlan, kernel: driver.Kernel, device: int):
        self.plan = launch_plan
        self.device = device
        self._handle = kernel.handle
        geometry = launch_plan.geometry
        tensors = OPERANDS[geometry.direction]
        self._tensors = len(tensors)
        self._pack, self._at = _packer(launch_plan, *(f"{name}.address" for name in tensors), "scale")
        self._masked = geometry.mask is not None
        if self._masked:
            self._pack_mask, self._mask_at = _packer(launch_plan, "mask.address", "mask.fill")
        self._others = [
            (position, *_packer(launch_plan, f"{operand.name}.address"))
            for position, operand in enumerate(geometry.operands)
            if operand.name not in (*tensors, "mask")
        ]
        self._mask_position = -1 if geometry.mask is None else geometry.operands.index(geometry.mask)
        self.workspace_bytes = launch_plan.workspace_bytes
        if self.workspace_bytes:
            self._pack_workspace, self._workspace_at = _packer(launch_plan, WORKSPACE)
        self._local = threading.local()

    def launch(
        self, addresses: tuple[int, ...], scale: float, stream: int, fill: float = 0.0, workspace: int = 0
    ) -> None:
        """Launches on a stream of the device; the default stream (0) is that of the thread's current context.

        What stands in the thread's parameters from the launch before is not written again.

        addresses   of the operands, in the order of the plan's geometry.
        workspace   address of plan.workspace_bytes of scratch memory that nothing else uses until the kernels are done.

        Raises driver.DriverError when the driver refuses the launch.
        """
        if driver.forked:
            driver.refuse_after_fork()
        try:
            grid = self._local.only_grid
        except AttributeError:
            self._launch_all(addresses, scale, stream, fill, workspace)
            return
        if addresses != grid.addresses or scale != grid.scale or fill != grid.fill:
            self._write(grid, addresses, scale, fill)
        if stream != grid.stream:  # telling the config costs as much as packing
            grid.config.hStream = grid.stream = stream
        status = _launch(grid.config, self._handle, grid.address, 0)
        if status[0]:
            driver.check(f"cuLaunchKernelEx of {self.plan.variant.name}", status)

    def _write(self, grid: _Grid, addresses: tuple[int, ...], scale: float, fill: float) -> None:
        """The only grid's parameters; nothing is kept of what was there before if that fails."""
        grid.addresses = ()
        if self._others:
            self._write_any(grid, addresses, scale, fill)
        elif self._masked:
            x, y, mask = addresses  # spelled out: unpacking into a call (*addresses) costs twice the packing itself
            self._pack(grid.buffer, self._at, x, y, scale)
            self._pack_mask(grid.buffer, self._mask_at, mask, fill)
        elif self._tensors == 2:
            x, y = addresses
            self._pack(grid.buffer, self._at, x, y, scale)
        else:
            dy, y, dx = addresses
            self._pack(grid.buffer, self._at, dy, y, dx, scale)
        grid.addresses, grid.scale, grid.fill = addresses, scale, fill

    def _write_any(self, grid: _Grid, addresses: tuple[int, ...], scale: float, fill: float) -> None:
        """Whatever the operands are."""
        self._pack(grid.buffer, self._at, *addresses[: self._tensors], scale)
        if self._masked:
            self._pack_mask(grid.buffer, self._mask_at, addresses[self._mask_position], fill)
        for position, pack, at in self._others:
            pack(grid.buffer, at, addresses[position])

    def _launch_all(self, addresses: tuple[int, ...], scale: float, stream: int, fill: float, workspace: int) -> None:
        """The first launch of a thread, and those of plans with several grids or a workspace."""
        for grid in self._grids_of_this_thread():
            if grid.step:
                addresses = tuple(map(add, addresses, grid.step))
            self._write_any(grid, addresses, scale, fill)
            grid.addresses, grid.scale, grid.fill = addresses, scale, fill
            if self.workspace_bytes:
                self._pack_workspace(grid.buffer, self._workspace_at, workspace)
            if stream != grid.stream:
                grid.config.hStream = grid.stream = stream
            status = _launch(grid.config, self._handle, grid.address, 0)
            if status[0]:
                driver.check(f"cuLaunchKernelEx of {self.plan.variant.name}", status)

    def _grids_of_this_thread(self) -> list[_Grid]:
        if hasattr(self._local, "grids"):
            return self._local.grids
        driver.ensure_context(self.device)
        launches = self.plan.launches
        steps = [tuple(map(sub, later.offset, before.offset)) for before, later in pairwise(launches)]
        self._local.grids = [
            _Grid(launch, self.plan, step if any(step) else ())
            for launch, step in zip(launches, [(), *steps], strict=True)
        ]
        if len(launches) == 1 and not self.workspace_bytes:
            (self._local.only_grid,) = self._local.grids
        return self._local.grids


def executable(launch_plan: LaunchPlan, device: int, stream: int = 0) -> Executable:
    """The plan on a device; its kernel is found, loaded and made ready the first time.

    Raises resolve.KernelNotFound when no place holds it, NotLoaded when it would have to be loaded after `freeze()` or
    while `stream` is being captured into a CUDA graph.
    """
    found = _executables.get((id(launch_plan), device))
    if found is not None:
        return found
    driver.refuse_after_fork()
    kernel = _ready_kernel(launch_plan, device, stream)
    with _lock:
        if len(_executables) >= PLANS:
            _executables.clear()
        return _executables.setdefault((id(launch_plan), device), Executable(launch_plan, kernel, device))


def freeze(frozen: bool = True) -> None:
    """From now on a kernel that is not loaded is an error (NotLoaded), never a search, a compile or a load.

    For servers, after `warm_up`. `freeze(False)` permits loading again.
    """
    global _frozen
    _frozen = frozen


def _ready_kernel(launch_plan: LaunchPlan, device: int, stream: int) -> driver.Kernel:
    variant, arch = launch_plan.variant, driver.architecture(device)
    cluster = max(launch.cluster for launch in launch_plan.launches)
    kernel = _kernels.get((variant.name, arch))
    if kernel is not None and kernel.is_ready(device, cluster):
        return kernel
    if _frozen:
        raise NotLoaded(
            f"{variant.name} is not loaded on device {device}, and softmax_ops.freeze() forbids loading: "
            "name its shape in softmax_ops.warm_up(...) before."
        )
    if driver.is_capturing(stream):
        raise NotLoaded(
            f"{variant.name} is not loaded, and nothing can be loaded while a CUDA graph is captured: "
            "call softmax_ops.warm_up(...), or softmax_ops.softmax once with these shapes, before the capture."
        )
    kernel = _loaded(launch_plan, arch)
    with _lock:
        kernel.prepare(device)
        kernel.permit_cluster(cluster, device)
    return kernel


def _loaded(launch_plan: LaunchPlan, arch: str) -> driver.Kernel:
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


def _packer(launch_plan: LaunchPlan, *names: str) -> tuple[Callable[..., None], int]:
    """Writes neighbouring dynamic fields of the parameter struct at once: (pack_into, offset in the struct)."""
    fields = [field for field in launch_plan.fields if field[0] in names]
    formats = "".join(format for _, _, format in fields)
    start, end = fields[0][1], fields[-1][1] + struct.calcsize(fields[-1][2])
    if tuple(name for name, _, _ in fields) != names or struct.calcsize(formats) != end - start:
        raise catalog.CatalogError(f"{launch_plan.variant.layout}: {', '.join(names)} are no neighbours in this struct")
    return struct.Struct(formats).pack_into, start
