"""Executes PTX kernels on the CPU, one numpy lane per CUDA thread, and checks every access.

    memory = ptx.GlobalMemory()
        x = memory.add("x", array)                                  # the address to pass in params
        y = memory.add("y", array.nbytes, access="write")           # poisoned
    program = ptx.parse(ptx_text, "kernel")
    report = ptx.run(program, grid=5, block=128, params=struct.pack("<QQ", x, y), memory=memory)
    memory.read("y").view(numpy.float32)

A kernel that accesses memory out of bounds, reads uninitialised bytes, races, or hangs raises ptx.Fault.
"""

from __future__ import annotations

from .fault import KINDS, Fault
from .machine import Report, run
from .memory import GlobalMemory, Traffic
from .parse import parse
from .program import Program

__all__ = ["KINDS", "Fault", "GlobalMemory", "Program", "Report", "Traffic", "parse", "run"]
