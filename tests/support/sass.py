"""Disassembles many cubins at once, since the disassembler takes 0.4 s to start and 6 ms per kernel."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from codegen.inspection import disassemble
from softmax_ops.artifacts.cubin import Cubin

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*) *(.*?) *;", re.MULTILINE)
_REGISTER = re.compile(r"\bR(\d+)\b")


class Instruction(NamedTuple):
    """One line of a listing: the opcode with its modifiers, and its operands."""

    opcode: str
    operands: str

    @property
    def written(self) -> set[int]:
        """Registers that it sets: starting with the first operand, as many as the opcode implies."""
        first = _REGISTER.match(self.operands)
        if first is None or self.opcode.startswith("ST"):
            return set()
        wide = re.search(r"\.(64|128)\b", self.opcode) if self.opcode.startswith("LD") else None
        twice = self.opcode.startswith(("CS2R", "D")) or ".WIDE" in self.opcode
        count = int(wide[1]) // 32 if wide else 1 + twice
        return set(range(int(first[1]), int(first[1]) + count))

    @property
    def touched(self) -> set[int]:
        """Registers that it sets or names; the second half of a pair is not named."""
        return self.written | {int(number) for number in _REGISTER.findall(self.operands)}


def listings(cubins: Iterable[Cubin]) -> dict[str, list[Instruction]]:
    """The instructions of each variant in order, without the NOPs at the end. All cubins must have the same
    architecture, which the disassembler must support (sm_75 or newer)."""
    cubins = list(cubins)
    if not cubins:
        return {}
    (arch,) = {cubin.arch for cubin in cubins}
    pieces = [code_section(cubin.code) for cubin in cubins]
    ends = list(accumulate(len(piece) for piece in pieces))
    found: dict[str, list[Instruction]] = {cubin.variant: [] for cubin in cubins}
    sass = disassemble(b"".join(pieces), "--binary", arch.upper().replace("_", ""))
    for offset, opcode, operands in _INSTRUCTION.findall(sass):
        if opcode != "NOP":
            found[cubins[bisect_right(ends, int(offset, 16))].variant].append(Instruction(opcode, operands))
    return found


def opcodes(cubins: Iterable[Cubin]) -> dict[str, Counter[str]]:
    """Number of instructions of each variant by opcode with modifiers."""
    return {name: counted(listing) for name, listing in listings(cubins).items()}


def counted(listing: Sequence[Instruction]) -> Counter[str]:
    return Counter(instruction.opcode for instruction in listing)


def rounds(listing: Sequence[Instruction], loads: str) -> list[int]:
    """How many loads, matched by opcode, are issued before the code waits for one of them; a number for each wait.

    The listing is taken in order, ignoring branches: a wait is the first instruction that touches a loaded register.
    """
    under_way: set[int] = set()
    found = [0]
    for instruction in listing:
        is_load = re.match(loads, instruction.opcode) is not None
        if under_way & instruction.touched:
            under_way.clear()
            found.append(0)
        if is_load:
            under_way |= instruction.written
            found[-1] += 1
    return [count for count in found if count]


def code_section(elf: bytes) -> bytes:
    """The section .text.NAME of a cubin that holds one kernel."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    sections = [struct.unpack_from("<2I4Q", elf, table + i * size) for i in range(count)]
    strings = sections[names][4]
    (code,) = (
        elf[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if elf.startswith(b".text.", strings + name)
    )
    return code
