"""Runs launch plans on devices. Takes integers only: addresses, scalars, a stream, a device ordinal.

plan = plan_for(geometry, driver.architecture(device))          # cached
executable(plan, device, stream).launch(addresses, scale, stream, fill=..., workspace=...)
"""

import threading
import warnings
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any, NoReturn

from cuda.bindings import cydriver
from cuda.bindings import driver as cuda

from . import driver, native, resolve
from .artifacts import catalog
from .artifacts.constants import ACCESS_BYTES, MAX_CLUSTER
from .planning.geometry import Geometry
from .planning.launch_plan import WORKSPACE, Launch, LaunchPlan, plan

PLANS = 4096
"""Launch plans kept per process; the least recently used are evicted first."""

_lock = threading.Lock()
_kernels: dict[tuple[str, str], driver.Kernel] = {}
_executables: dict[tuple[int, int], tuple[LaunchPlan, "Executable"]] = {}
"""Executables by id of the plan (hashing it takes longer than a launch) and device, each with that plan, which has to
live as long as its id is used."""

_frozen = False


class NotLoaded(RuntimeError):
    """A kernel would have to be loaded where that is impossible or forbidden: during a capture, or after `freeze()`."""


@lru_cache(maxsize=PLANS)
def plan_for(geometry: Geometry, arch: str, largest_cluster: int = MAX_CLUSTER) -> LaunchPlan:
    """The launch plan of a geometry on an architecture ("sm_90"), by the catalog of this package."""
    return plan(geometry, catalog.load(), arch, largest_cluster)


class Executable:
    """A launch plan bound to a device: everything except addresses, scalars and stream is decided.

    Calls are thread-safe: each launch has parameters of its own.
    """

    def __init__(self, launch_plan: LaunchPlan, kernel: driver.Kernel, device: int):
        self.plan = launch_plan
        self.device = device
        self.workspace_bytes = launch_plan.workspace_bytes
        self._handle = kernel.handle
        self._names = [f"{operand.name}.address" for operand in launch_plan.geometry.operands]
        self._local = threading.local()
        self.native = self._compiled()
        """The compiled object that launches; None if the compiled part was not built or is not used."""

    def launch(
        self, addresses: tuple[int, ...], scale: float, stream: int, fill: float = 0.0, workspace: int = 0
    ) -> None:
        """Launches on a stream of the device; stream 0 is the default stream of the thread's current context, the
        legacy one, as it is for torch.

        addresses   of the operands, in the order of the plan's geometry.
        workspace   address of plan.workspace_bytes of scratch memory that nothing else uses until the kernels are done.

        Raises driver.DriverError when the driver refuses the launch.
        """
        if self.native is not None:
            self.native.launch(addresses, scale, stream, fill, workspace)
            return
        driver.refuse_after_fork()
        values = {**dict(zip(self._names, addresses, strict=True)), "scale": scale, WORKSPACE: workspace}
        if self.plan.geometry.mask is not None:
            values["mask.fill"] = fill
        for launch, block, config in self._grids_of_this_thread():
            block.buffer[:] = self.plan.arguments(launch, values)
            config.hStream = driver.stream_handle(stream)
            try:
                (status,) = cuda.cuLaunchKernelEx(config, self._handle, block.address, 0)
                if status == cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT:  # the thread's was taken away since
                    driver.ensure_context(self.device)
                    (status,) = cuda.cuLaunchKernelEx(config, self._handle, block.address, 0)
            except (KeyError, ValueError) as unknown:  # cuda-bindings look the status up: "917 is not a valid CUresult"
                status = int(str(unknown.args[0]).split()[0])
            if status:
                _refused(self.plan.variant.name, int(status))

    def _grids_of_this_thread(self) -> list[tuple[Launch, driver.ArgumentBlock, cuda.CUlaunchConfig]]:
        """Grids with an argument block for this thread alone: the driver reads it while other threads run."""
        if not hasattr(self._local, "grids"):
            driver.ensure_context(self.device)
            self._local.grids = [
                (launch, driver.ArgumentBlock(launch.template), self._config(launch)) for launch in self.plan.launches
            ]
        return self._local.grids

    def _compiled(self) -> Any:
        calls = native.compiled()
        if calls is None:
            return None
        fields = {name: (offset, format) for name, offset, format in self.plan.fields}
        scale, fill = fields["scale"], (-1, "f") if self.plan.geometry.mask is None else fields["mask.fill"]
        configs = [self._config(launch) for launch in self.plan.launches]
        try:
            return calls.Launches(
                launch_kernel=cydriver.__pyx_capi__["cuLaunchKernelEx"],
                kernel=int(self._handle),
                grids=[
                    (config.getPtr(), launch.template, launch.offset)
                    for config, launch in zip(configs, self.plan.launches, strict=True)
                ],
                addresses=tuple(fields[name][0] for name in self._names),
                scale=(scale[0], scale[1] == "d"),
                fill=(fill[0], fill[1] == "d"),
                workspace=(fields[WORKSPACE][0] if self.workspace_bytes else -1, self.workspace_bytes),
                kept=(configs, self._handle),
                prepare=partial(_prepare_thread, self.device),
                fail=partial(_refused, self.plan.variant.name),
            )
        except (KeyError, ValueError):  # cuda-bindings that export another launch
            return None

    def _config(self, launch: Launch) -> cuda.CUlaunchConfig:
        return driver.launch_config(launch.grid, launch.threads, launch.cluster, self.plan.variant.shared_bytes)


def _prepare_thread(device: int) -> None:
    """Called before a thread's first launch, and when the thread has lost its context."""
    driver.refuse_after_fork()
    driver.ensure_context(device)


def _refused(kernel: str, status: int) -> NoReturn:
    call = f"cuLaunchKernelEx of {kernel}"
    try:
        driver.check(call, (cuda.CUresult(status),))
    except ValueError:
        raise driver.DriverError(f"{call}: status {status}, of a driver newer than cuda-bindings") from None
    raise AssertionError("a launch that succeeded")


def executable(launch_plan: LaunchPlan, device: int, stream: int = 0) -> Executable:
    """The plan on a device; the first time its kernel is found, loaded and prepared.

    Raises resolve.KernelNotFound when no place has it, NotLoaded when it would have to be loaded after `freeze()` or
    while `stream` is being captured into a CUDA graph.
    """
    driver.refuse_after_fork()
    found = _executables.get((id(launch_plan), device))
    if found is not None:
        return found[1]
    kernel, chosen = _ready_kernel(launch_plan, device, stream), launch_plan
    while (instead := settled(chosen, device)) is not chosen:
        _say_once(chosen.variant.name, chosen.cluster, _named(instead), device)
        kernel, chosen = _ready_kernel(instead, device, stream), instead
    with _lock:
        if len(_executables) >= PLANS:
            _executables.clear()
        made = launch_plan, Executable(chosen, kernel, device)
        _, ready = _executables.setdefault((id(launch_plan), device), made)
    _prepare_aligned(launch_plan, device, stream)
    return ready


def _prepare_aligned(launch_plan: LaunchPlan, device: int, stream: int) -> None:
    """Also loads the kernel for such operands at 16-byte boundaries: a CUDA graph is often captured on copies of the
    tensors that the call before it had, and copies are aligned.
    """
    geometry = launch_plan.geometry
    operands = tuple(operand._replace(alignment=ACCESS_BYTES) for operand in geometry.operands)
    aligned = plan_for(geometry._replace(operands=operands), driver.architecture(device))
    if aligned.variant.name != launch_plan.variant.name:
        with suppress(NotLoaded, resolve.KernelNotFound, driver.DriverError):  # the call at hand does not need it
            executable(aligned, device, stream)


def settled(launch_plan: LaunchPlan, device: int) -> LaunchPlan:
    """The plan itself, or one with smaller clusters or none if the device is known to be unable to run its clusters."""
    arch = driver.architecture(device)
    kernel = _kernels.get((launch_plan.variant.name, arch))
    if kernel is None or kernel.can_run(launch_plan.cluster, device):
        return launch_plan
    return settled(plan_for(launch_plan.geometry, arch, launch_plan.cluster - 1), device)


def _named(launch_plan: LaunchPlan) -> str:
    cluster = f" in clusters of {launch_plan.cluster}" if launch_plan.cluster > 1 else ""
    return f"{launch_plan.variant.name}{cluster}"


@cache
def _say_once(kernel: str, cluster: int, instead: str, device: int) -> None:
    warnings.warn(
        f"softmax_ops: device {device} cannot run clusters of {cluster} CTAs of {kernel}, for example because it is "
        f"partitioned (MIG): it runs {instead}",
        RuntimeWarning,
        stacklevel=3,
    )


def freeze(frozen: bool = True) -> None:
    """From now on a kernel that is not loaded is an error (NotLoaded), never a search, a compile or a load.

    For servers, after `warm_up`. `freeze(False)` permits loading again. Raises TypeError for what is not a bool.
    """
    global _frozen
    if not isinstance(frozen, bool):
        raise TypeError(f"softmax_ops.freeze: frozen is {frozen!r}; want True, or False to permit loading again")
    _frozen = frozen


def _ready_kernel(launch_plan: LaunchPlan, device: int, stream: int) -> driver.Kernel:
    variant, arch = launch_plan.variant, driver.architecture(device)
    cluster = launch_plan.cluster
    kernel = _kernels.get((variant.name, arch))
    if kernel is not None and kernel.is_ready(device, cluster):
        return kernel
    if _frozen:
        raise NotLoaded(
            f"{variant.name} is not loaded on device {device}, and softmax_ops.freeze() forbids loading: "
            f"before, name in softmax_ops.warm_up(...) {_scores(launch_plan.geometry)}."
        )
    if driver.is_capturing(stream):
        raise NotLoaded(
            f"{variant.name} is not loaded on device {device}, and nothing can be loaded while a CUDA graph is "
            f"captured: before, name in softmax_ops.warm_up(...) {_scores(launch_plan.geometry)}, or make such a call."
        )
    with driver.beside_captures():
        kernel = _loaded(launch_plan, arch)
        with _lock:
            kernel.prepare(device)
            kernel.permit_cluster(cluster, device)
    return kernel


def _scores(geometry: Geometry) -> str:
    direction = ", backward" if geometry.direction == "bwd" else ""
    return f"scores {geometry.shape} of {geometry.dtype} with mask kind {geometry.mask_kind}{direction}"


def _loaded(launch_plan: LaunchPlan, arch: str) -> driver.Kernel:
    """Loaded once per process and architecture; two threads at once may both resolve it, one load is kept."""
    variant = launch_plan.variant
    kernel = _kernels.get((variant.name, arch))
    if kernel is None:
        cubin = resolve.resolve(variant, arch).cubin
        with _lock:
            kernel = _kernels.get((variant.name, arch))
            if kernel is None:
                kernel = driver.Kernel(variant.name, cubin.code, variant.shared_bytes, variant.threads, variant.cluster)
                _kernels[variant.name, arch] = kernel
    return kernel
