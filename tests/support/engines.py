"""Engines that run a launch plan on operands in memory: the PTX interpreter, and the driver on a machine with a GPU.

Both get parameters packed by the product's own code and return the bytes of the output, guard bytes included.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmax_ops.artifacts.catalog import Variant
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.planning.launch_plan import WORKSPACE, LaunchPlan
from tests import ptx

Bytes = NDArray[np.uint8]
POISON = 0xFF
"""Fills memory before it is written: NaN in every format."""


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
    """What one call computes on. The output is an operand, or the name of the input that it overwrites."""

    inputs: Mapping[str, Operand]
    output: Operand | str
    mask: Operand | None
    scale: float
    fill: float
    others: Mapping[str, Operand] = field(default_factory=dict)  # read
    results: Mapping[str, Operand] = field(default_factory=dict)  # written besides the output

    @property
    def result(self) -> Operand:
        """The operand that holds the output."""
        return self.inputs[self.output] if isinstance(self.output, str) else self.output


@dataclass(frozen=True)
class Outcome:
    """The storage of the output after the call. `unwritten` marks the valid bytes that nobody wrote (None: unknown).

    `reports` are the interpreter's, one per launch. Their traffic is by buffer; buffers have the names of the operands,
    and in place, input and output are one buffer with the name of the input. `writers` has the thread that wrote each
    byte of the output, in the order of the grid.
    """

    output: Bytes
    unwritten: NDArray[np.bool_] | None = None
    results: Mapping[str, Bytes] = field(default_factory=dict)
    reports: tuple[ptx.Report, ...] = ()
    writers: NDArray[np.int64] | None = None


@lru_cache(maxsize=64)
def program(linked: bytes, variant: str) -> ptx.Program:
    """A kernel of linked PTX, parsed."""
    return ptx.parse(linked.decode(), variant)


def run_plan(
    program: ptx.Program,
    plan: LaunchPlan,
    memory: ptx.GlobalMemory,
    addresses: Mapping[str, int],
    scale: float,
    fill: float,
) -> tuple[ptx.Report, ...]:
    """Runs the launches of a plan, with scratch memory if it needs some, on operands at these addresses, by name."""
    values: dict[str, float] = {f"{name}.address": address for name, address in addresses.items()}
    values |= {"scale": scale, "mask.fill": fill}
    if plan.workspace_bytes:
        values[WORKSPACE] = memory.add("workspace", plan.workspace_bytes, "write")
    return tuple(
        ptx.run(
            program,
            grid=launch.grid,
            block=launch.threads,
            cluster=launch.cluster,
            shared_bytes=plan.variant.shared_bytes,
            params=plan.arguments(launch, values),
            memory=memory,
        )
        for launch in plan.launches
    )


class InterpreterEngine:
    """Runs the linked PTX of one architecture, one lane per thread, checking every access. Raises ptx.Fault."""

    def __init__(self, images: Mapping[str, Cubin]):
        self._images = images

    def program(self, variant: str) -> ptx.Program:
        return program(self._images[variant].code, variant)

    def run(self, plan: LaunchPlan, operands: Operands) -> Outcome:
        memory = ptx.GlobalMemory()
        addresses, output = _place(memory, plan, operands)
        reports = run_plan(self.program(plan.variant.name), plan, memory, addresses, operands.scale, operands.fill)
        unwritten = memory.unwritten(output) if output == "output" else _never_written(memory, output)
        results = {name: memory.read(name) for name in operands.results}
        return Outcome(memory.read(output), unwritten, results, reports, memory.writers(output))


def _place(memory: ptx.GlobalMemory, plan: LaunchPlan, operands: Operands) -> tuple[dict[str, int], str]:
    """The operands' addresses by their names in the plan, and the name of the buffer that holds the output."""
    replaced = operands.output if isinstance(operands.output, str) else None
    addresses = {
        name: _add(memory, name, operand, "readwrite" if name == replaced else "read")
        for name, operand in operands.inputs.items()
    }
    result = plan.geometry.output.name
    if isinstance(operands.output, str):
        addresses[result] = addresses[operands.output]
    else:
        addresses[result] = _add(memory, "output", operands.output, "write")
    if operands.mask is not None:
        addresses["mask"] = _add(memory, "mask", operands.mask, "read")
    addresses |= {name: _add(memory, name, operand, "read") for name, operand in operands.others.items()}
    addresses |= {name: _add(memory, name, operand, "write") for name, operand in operands.results.items()}
    return addresses, replaced or "output"


def _add(memory: ptx.GlobalMemory, name: str, operand: Operand, access: Any) -> int:
    address = memory.add(name, operand.storage, access, offset=operand.phase, valid=operand.valid)
    return address + operand.first


def _never_written(memory: ptx.GlobalMemory, name: str) -> NDArray[np.bool_]:
    """The valid bytes that no thread wrote, in a buffer that was given data."""
    buffer = memory.buffers[name]
    missing = buffer.inner(buffer.shadow.writer < 0)
    return missing if buffer.valid is None else missing & buffer.valid


class NoRoom(RuntimeError):
    """The GPU cannot run clusters of so many CTAs: dispatch would have chosen smaller ones, or another variant."""


class DriverEngine:
    """Runs cubins on the GPU of this machine, through the product's launcher."""

    DEVICE = 0

    def __init__(self, images: Mapping[str, Cubin]):
        self._images = images
        self._kernel = cache(self._load)

    def _load(self, variant: Variant) -> Any:
        from softmax_ops import driver

        code = self._images[variant.name].code
        kernel = driver.Kernel(variant.name, code, variant.shared_bytes, variant.threads, variant.cluster)
        kernel.prepare(self.DEVICE)
        return kernel

    def run(self, plan: LaunchPlan, operands: Operands) -> Outcome:
        """What the launches leave. Raises NoRoom, and DriverError."""
        from softmax_ops.launcher import Executable

        kernel = self._kernel(plan.variant)
        kernel.permit_cluster(plan.cluster, self.DEVICE)
        if not kernel.can_run(plan.cluster, self.DEVICE):
            raise NoRoom(f"clusters of {plan.cluster} CTAs")
        buffers = {name: _DeviceBuffer(operand) for name, operand in operands.inputs.items()}
        output = plan.geometry.output.name
        replaces = isinstance(operands.output, str)
        result = buffers[operands.output] if isinstance(operands.output, str) else _DeviceBuffer(operands.output)
        own = [*buffers.values()] if replaces else [*buffers.values(), result]
        addresses = {**{name: buffer.first for name, buffer in buffers.items()}, output: result.first}
        if operands.mask is not None:
            own.append(_DeviceBuffer(operands.mask))
            addresses["mask"] = own[-1].first
        more = {name: _DeviceBuffer(each) for name, each in (*operands.others.items(), *operands.results.items())}
        addresses |= {name: buffer.first for name, buffer in more.items()}
        own += [*more.values(), _DeviceBuffer(_scratch(plan.workspace_bytes))]
        try:
            Executable(plan, kernel, self.DEVICE).launch(
                tuple(addresses[operand.name] for operand in plan.geometry.operands),
                scale=operands.scale,
                fill=operands.fill,
                workspace=own[-1].first,
                stream=0,
            )
            return Outcome(result.read(), results={name: more[name].read() for name in operands.results})
        finally:
            for buffer in own:
                buffer.free()


def _scratch(size: int) -> Operand:
    return Operand(np.full(size, POISON, np.uint8), 0, 0, np.ones(size, np.bool_))


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
        if self._nbytes:
            driver.check("cuMemcpyHtoD", cuda.cuMemcpyHtoD(self._storage, operand.storage.ctypes.data, self._nbytes))

    def read(self) -> Bytes:
        """The storage, after everything launched has finished."""
        result = np.empty(self._nbytes, np.uint8)
        self._check("cuCtxSynchronize", self._cuda.cuCtxSynchronize())
        copied = self._cuda.cuMemcpyDtoH(result.ctypes.data, self._storage, self._nbytes)
        self._check("cuMemcpyDtoH", copied)
        return result

    def free(self) -> None:
        self._check("cuMemFree", self._cuda.cuMemFree(self._base))


@cache
def gpu_architecture() -> str | None:
    """The architecture of this machine's GPU; None without one."""
    from softmax_ops import driver

    with suppress(driver.DriverError):
        return driver.architecture(DriverEngine.DEVICE)
    return None
