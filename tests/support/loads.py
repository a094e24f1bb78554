"""Loads of a kernel that are under way at once, as its SASS orders them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from codegen.disassembly import Instruction

_REGISTER = re.compile(r"\bR(\d+)\b")


def rounds(listing: Sequence[Instruction], loads: str) -> list[int]:
    """How many loads, matched by opcode, are issued before the code waits for one of them; a number for each wait.

    The listing is taken in order, ignoring branches: a wait is the first instruction that touches a loaded register.
    """
    under_way: set[int] = set()
    found = [0]
    for instruction in listing:
        is_load = re.match(loads, instruction.opcode) is not None
        if under_way & _touched(instruction):
            under_way.clear()
            found.append(0)
        if is_load:
            under_way |= _written(instruction)
            found[-1] += 1
    return [count for count in found if count]


def _written(instruction: Instruction) -> set[int]:
    """Registers that it sets: starting with the first operand, as many as the opcode implies."""
    opcode, first = instruction.opcode, _REGISTER.match(instruction.operands)
    if first is None or opcode.startswith("ST"):
        return set()
    wide = re.search(r"\.(64|128)\b", opcode) if opcode.startswith("LD") else None
    twice = opcode.startswith(("CS2R", "D")) or ".WIDE" in opcode
    count = int(wide[1]) // 32 if wide else 1 + twice
    return set(range(int(first[1]), int(first[1]) + count))


def _touched(instruction: Instruction) -> set[int]:
    """Registers that it sets or names; the second half of a pair is not named."""
    return _written(instruction) | {int(number) for number in _REGISTER.findall(instruction.operands)}
