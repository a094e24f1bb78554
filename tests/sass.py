"""Machine code of many cubins at once: the disassembler takes 0.4 s to start and 6 ms per kernel."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from cuda.pathfinder import find_nvidia_binary_utility

from codegen.inspection import OLDEST_DISASSEMBLED
from codegen.toolchain import ToolchainError
from softmax_ops.artifacts.cubin import Cubin

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def opcodes(cubins: Iterable[Cubin]) -> dict[str, Counter[str]]:
    """Instructions of each variant by opcode and modifiers, without the NOPs that pad the end. Of one architecture,
    which the disassembler must know (sm_75 or newer)."""
    cubins = list(cubins)
    if not cubins:
        return {}
    (arch,) = {cubin.arch for cubin in cubins}
    pieces = [code_section(cubin.code) for cubin in cubins]
    ends = list(accumulate(len(piece) for piece in pieces))
    counts: dict[str, Counter[str]] = {cubin.variant: Counter() for cubin in cubins}
    for offset, opcode in _INSTRUCTION.findall(_disassemble(b"".join(pieces), arch)):
        if opcode != "NOP":
            counts[cubins[bisect_right(ends, int(offset, 16))].variant][opcode] += 1
    return counts


def disassembles(arch: str) -> bool:
    return int(arch[3:]) >= OLDEST_DISASSEMBLED


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


def _disassemble(code: bytes, arch: str) -> str:
    tool = find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        raise ToolchainError("nvdisasm is missing: install the package nvidia-cuda-nvdisasm.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "code.bin")
        path.write_bytes(code)
        command = [tool, "--binary", arch.upper().replace("_", ""), str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
