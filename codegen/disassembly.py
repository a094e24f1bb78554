"""Disassembles cubins: many at once, since the disassembler takes 0.4 s to start and 6 ms per kernel."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from cuda.pathfinder import find_nvidia_binary_utility

from softmax_ops.artifacts.cubin import Cubin, architecture_order

from .toolchain import ToolchainError

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*) *(.*?) *;", re.MULTILINE)


class Instruction(NamedTuple):
    """One line of a listing: the opcode with its modifiers, and its operands."""

    opcode: str
    operands: str


def is_disassembled(arch: str) -> bool:
    """Whether nvdisasm reads the architecture: sm_75 or newer."""
    return architecture_order(arch) >= (75, "")


def disassemble(code: bytes, *options: str) -> str:
    """SASS of a cubin or of bare instructions, by nvdisasm. Raises ToolchainError when there is none."""
    tool = find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        raise ToolchainError("nvdisasm is missing: install the package nvidia-cuda-nvdisasm.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "code")
        path.write_bytes(code)
        return subprocess.run([tool, *options, str(path)], check=True, capture_output=True, text=True).stdout


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
    found = listings(cubins).items()
    return {name: Counter(instruction.opcode for instruction in listing) for name, listing in found}


def count(opcodes: Mapping[str, int], pattern: str) -> int:
    """Instructions whose opcode, modifiers included, matches a regular expression from its start."""
    return sum(number for opcode, number in opcodes.items() if re.match(pattern, opcode))


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
