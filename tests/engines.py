"""Engines that run a launch plan on operands in memory: the PTX interpreter, and the driver where there is a GPU.

Both get the bytes of the product's own packing, and give back the bytes of the output, guard bytes included.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.plan import LaunchPlan
from tests import ptx

Bytes = NDArray[np.uint8]
POISON = 0xFF
"""What memory holds before it is written: NaN in every format."""


@dataclass(frozen=True)
class Operand:
    """A tensor in memory. `phase` is the address of its storage modulo 256, `first` the offset of its first element.

    The bytes that are not `valid` are guard bytes: a kernel neither reads nor writes them.
    """

    storage: Bytes
    phase: int
    first: int
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Operands:
    """What one call computes on. Without y the output takes the place of x."""

    x: Operand
    y: Operand | None
    mask: Operand | None
    scale: float
    fill: float


@dataclass(frozen=True)
class Outcome:
    """The storage of the output after the call. `unwritten` marks the valid bytes that nobody wrote (None: unknown).

    `reports` are the interpreter's, one per launch; the traffic in them is that of the buffers x, y and mask, in place
    of x alone.
    """

    output: Bytes
    unwritten: NDArray[np.bool_] | None = None
    reports: tuple[ptx.Report, ...] = ()


class InterpreterEngine:
    """Runs the linked PTX of one architecture, one lane per thread, every access checked. Raises ptx.Fault."""

    def __init__(self, images: Mapping[str, Cubin]):
        self._images = images
        self.program = cache(self._parse)

    def _parse(self, variant: str) -> ptx.Program:
        return ptx.parse(self._images[variant].code.decode(), variant)

    def run(self, plan: LaunchPlan, operands: Operands) -> Outcome:
        memory = ptx.GlobalMemory()
        x = _add(memory, "x", operands.x, "readwrite" if operands.y is None else "read")
        y = x if operands.y is None else _add(memory, "y", operands.y, "write")
        mask = 0 if operands.mask is None else _add(memory, "mask", operands.mask, "read")
        reports = [
            ptx.run(
                self.program(plan.variant.name),
                grid=launch.grid,
                block=plan.variant.threads,
                cluster=plan.variant.cluster,
                shared_bytes=plan.variant.shared_bytes,
                params=plan.arguments(launch, x=x, y=y, mask=mask, scale=operands.scale, fill=operands.fill),
                memory=memory,
            )
            for launch in plan.launches
        ]
        output = "x" if operands.y is None else "y"
        unwritten = _never_written(memory, output) if operands.y is None else memory.unwritten(output)
        return Outcome(memory.read(output), unwritten, tuple(reports))


def _add(memory: ptx.GlobalMemory, name: str, operand: Operand, access: Any) -> int:
    address = memory.add(name, operand.storage, access, offset=operand.phase, valid=operand.valid)
    return address + operand.first


def _never_written(memory: ptx.GlobalMemory, name: str) -> NDArray[np.bool_]:
    """The valid bytes of a buffer that came with data and that no thread wrote."""
    buffer = memory.buffers[name]
    missing = buffer.inner(buffer.shadow.writer < 0)
    return missing if buffer.valid is None else missing & buffer.valid


class DriverEngine:
    """Runs cubins on the GPU of this machine, through the launcher that ships."""

    DEVICE = 0

    def __init__(self, images: Mapping[str, Cubin]):
        self._images = images
        self._kernel = cache(self._load)

    def _load(self, variant: str, shared_bytes: int) -> Any:
        from softmax_ops import driver

        kernel = driver.Kernel(variant, self._images[variant].code, shared_bytes)
        kernel.prepare(self.DEVICE)
        return kernel

    def run(self, plan: LaunchPlan, operands: Operands) -> Outcome:
        from softmax_ops.launcher import Executable

        executable = Executable(plan, self._kernel(plan.variant.name, plan.variant.shared_bytes), self.DEVICE)
        x = _DeviceBuffer(operands.x)
        y = x if operands.y is None else _DeviceBuffer(operands.y)
        mask = None if operands.mask is None else _DeviceBuffer(operands.mask)
        try:
            executable.launch(
                x=x.first,
                y=y.first,
                mask=0 if mask is None else mask.first,
                scale=operands.scale,
                fill=operands.fill,
                stream=0,
            )
            return Outcome(y.read())
        finally:
            for buffer in {x, y, mask}:
                if buffer is not None:
                    buffer.free()


class _DeviceBuffer:
    """A copy of an operand's storage in device memory; cuMemAlloc aligns to 256 bytes."""

    def __init__(self, operand: Operand):
        from cuda.bindings import driver as cuda

        from softmax_ops import driver

        self._cuda, self._check = cuda, driver.check
        driver.ensure_context(DriverEngine.DEVICE)
        self._nbytes = operand.storage.nbytes
        self._base = driver.check("cuMemAlloc", cuda.cuMemAlloc(operand.phase + max(self._nbytes, 1)))
        self._storage = int(self._base) + operand.phase
        self.first = self._storage + operand.first
        driver.check("cuMemcpyHtoD", cuda.cuMemcpyHtoD(self._storage, operand.storage.ctypes.data, self._nbytes))

    def read(self) -> Bytes:
        """The storage, once everything launched is done."""
        result = np.empty(self._nbytes, np.uint8)
        self._check("cuCtxSynchronize", self._cuda.cuCtxSynchronize())
        copied = self._cuda.cuMemcpyDtoH(result.ctypes.data, self._storage, self._nbytes)
        self._check("cuMemcpyDtoH", copied)
        return result

    def free(self) -> None:
        self._check("cuMemFree", self._cuda.cuMemFree(self._base))


@cache
def gpu_architecture() -> str | None:
    """The architecture of the GPU here; None without one."""
    from softmax_ops import driver

    with suppress(driver.DriverError):
        return driver.architecture(DriverEngine.DEVICE)
    return None
