"""What a kernel executes per element, and how much of it the memory traffic of an H200 hides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.ptx import Report

INSTRUCTIONS_PER_BYTE = 29 / 4
"""Lane-instructions that issue while a byte moves: 29 per 16-bit element, which is read and written."""

INSTRUCTIONS_PER_PASS = 128
"""Lane-instructions that an SM issues in the cycle that a pass through its load/store unit takes."""


def lane_instructions(reports: Sequence[Report], opcodes: Counter[str], elements: int) -> float:
    """Instructions issued per lane and element: those of the executed PTX, times the kernel's machine instructions
    (by opcode) per PTX instruction. That ratio is taken over the whole kernel, because SASS does not name PTX lines."""
    ratio = opcodes.total() / len(reports[0].program.instructions)
    return sum(sum(report.reached_at) for report in reports) * ratio / elements


def accesses(reports: Sequence[Report], elements: int) -> float:
    """Passes through the load/store unit per element, in the lane-instructions that issue meanwhile."""
    return INSTRUCTIONS_PER_PASS * sum(report.passes.total() for report in reports) / elements
