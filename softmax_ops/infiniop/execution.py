"""What runs a descriptor: its launch plans, and their kernels on a device. cuda-bindings is imported on first use."""

from __future__ import annotations

from functools import lru_cache

from ..artifacts import catalog
from ..artifacts.constants import ACCESS_BYTES
from ..planning.geometry import Geometry
from ..planning.launch_plan import LaunchPlan, plan
from ..planning.selection import NoVariant
from ..resolve import KernelNotFound
from .status import (
    INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED,
    INFINI_STATUS_DEVICE_NOT_FOUND,
    INFINI_STATUS_DEVICE_NOT_INITIALIZED,
    INFINI_STATUS_NOT_IMPLEMENTED,
    Failure,
)


@lru_cache(maxsize=1024)
def plans(aligned: Geometry, arch: str) -> tuple[LaunchPlan, LaunchPlan]:
    """Plans for data aligned to ACCESS_BYTES, and for data aligned only to its elements."""
    operands = tuple(operand._replace(alignment=aligned.element_bytes) for operand in aligned.operands)
    anywhere = aligned._replace(operands=operands)
    try:
        return plan(aligned, catalog.load(), arch), plan(anywhere, catalog.load(), arch)
    except NoVariant as error:
        raise Failure(INFINI_STATUS_NOT_IMPLEMENTED, str(error)) from None


def architecture(device: int) -> str:
    """The architecture of a GPU by ordinal. Only this tells an unusable driver from a GPU that does not exist."""
    try:
        from .. import driver
    except ImportError as error:
        raise Failure(INFINI_STATUS_DEVICE_NOT_INITIALIZED, f"cuda-bindings is not installed: {error}") from None
    try:
        driver.refuse_after_fork()
        driver.architecture(0)
    except driver.DriverError as error:
        raise Failure(INFINI_STATUS_DEVICE_NOT_INITIALIZED, str(error)) from None
    try:
        return driver.architecture(device)
    except driver.DriverError as error:
        raise Failure(INFINI_STATUS_DEVICE_NOT_FOUND, f"there is no GPU {device}: {error}") from None


class Kernels:
    """The loaded kernels of both plans of a descriptor, on a device."""

    def __init__(self, plans: tuple[LaunchPlan, LaunchPlan], device: int, stream: int):
        from .. import driver, launcher

        self._driver = driver
        self._device = device
        with driver.context_of(device):
            try:
                executables = [launcher.executable(each, device, stream) for each in plans]
            except KernelNotFound as error:
                raise Failure(INFINI_STATUS_DEVICE_ARCHITECTURE_NOT_SUPPORTED, str(error)) from None
        self._aligned, self._anywhere = executables
        self.workspace_bytes = max(each.workspace_bytes for each in executables)

    def launch(self, data: int, workspace: int, stream: int) -> None:
        """Launches in a context of the device, then restores the thread's own context, or none if it had none."""
        if self._driver.forked:
            architecture(self._device)  # raises the reason
        executable = self._anywhere if data % ACCESS_BYTES else self._aligned
        status, current = self._driver.cuda.cuCtxGetDevice()
        if not status and int(current) == self._device:  # entering the context costs several times the launch
            executable.launch((data, data), scale=1.0, workspace=workspace, stream=stream)
            return
        with self._driver.context_of(self._device):
            executable.launch((data, data), scale=1.0, workspace=workspace, stream=stream)
