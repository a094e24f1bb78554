"""The PTX interpreter as a GPU: kernels that the torch interface launches run on the memory of CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmax_ops import current, driver, launcher
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.known import calls
from softmax_ops.planning.geometry import Geometry, Operand
from softmax_ops.planning.launch_plan import LaunchPlan
from tests import ptx
from tests.support import posing
from tests.support.engines import program, run_plan

ARCHITECTURE = "sm_90"


class Interpreted:
    """Stands in for a plan's launcher.Executable. Every access is checked against the operands' extents."""

    native = None

    def __init__(self, plan: LaunchPlan, program: ptx.Program):
        self.plan = plan
        self.device = 0
        self.workspace_bytes = plan.workspace_bytes
        self._program = program

    def launch(
        self, addresses: tuple[int, ...], scale: float, stream: int, fill: float = 0.0, workspace: int = 0
    ) -> None:
        geometry = self.plan.geometry
        memory = ptx.GlobalMemory()
        written = {geometry.output.name, *({"lse"} if geometry.direction == "fwd" else {"d"})}
        placed: dict[int, str] = {}
        for operand, address in zip(geometry.operands, addresses, strict=True):
            shared = [other for other, at in zip(geometry.operands, addresses, strict=True) if at == address]
            if address not in placed:
                writes = any(other.name in written for other in shared)
                kind: Any = "read" if not writes else "write" if len(shared) == 1 else "readwrite"
                memory.add(operand.name, _host(address, _extent(geometry, operand)).copy(), kind, at=address)
                placed[address] = operand.name
        named = {each.name: at for each, at in zip(geometry.operands, addresses, strict=True)}
        run_plan(self._program, self.plan, memory, named, scale, fill)
        for operand, address in zip(geometry.operands, addresses, strict=True):
            if operand.name in written:
                _host(address, _extent(geometry, operand))[:] = memory.read(placed[address])


def install(patch: Callable[[object, str, object], None], images: Mapping[str, Cubin]) -> None:
    """Puts every tensor on a GPU that has these kernels. `patch` sets an attribute of a module."""

    def executable(plan: LaunchPlan, device: int, stream: int = 0) -> Interpreted:
        return Interpreted(plan, program(images[plan.variant.name].code, plan.variant.name))

    posing.pose(patch, 0)
    patch(launcher, "executable", executable)
    patch(driver, "architecture", lambda device: ARCHITECTURE)
    patch(current, "increment_version", lambda tensors: None)
    for direction in (calls.forward, calls.backward):  # calls known for CPU tensors are other calls
        patch(direction, "run", calls.unknown)
        patch(direction, "_known", {})
        patch(direction, "_recent", None)


def _extent(geometry: Geometry, operand: Operand) -> int:
    """Bytes from the first element to the end of the last."""
    steps = zip(geometry.shape, operand.strides, strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * operand.element_bytes


def _host(address: int, bytes: int) -> NDArray[np.uint8]:
    memory: Any = (ctypes.c_uint8 * bytes).from_address(address)
    return np.frombuffer(memory, np.uint8)
