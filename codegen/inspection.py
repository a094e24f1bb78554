"""What a compiled kernel is made of: resources from the linker's report, instruction counts from its SASS."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda.pathfinder import find_nvidia_binary_utility

from softmax_ops.artifacts.cubin import Cubin

from .toolchain import ToolchainError

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
OLDEST_DISASSEMBLED = 75


@dataclass(frozen=True)
class Inspection:
    """Facts of one cubin. `sass` counts instructions by opcode and modifiers; empty if no disassembler can read it."""

    variant: str
    arch: str
    registers: int
    shared_bytes: int  # static
    cubin_bytes: int
    sass: dict[str, int]

    @property
    def instructions(self) -> int:
        return sum(self.sass.values())

    def count(self, pattern: str) -> int:
        """Instructions whose opcode, modifiers included, matches a regular expression from its start."""
        return sum(count for opcode, count in self.sass.items() if re.match(pattern, opcode))

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "instructions": self.instructions}


def inspect(cubin: Cubin) -> Inspection:
    """The facts of a cubin. There are no spills to count: the toolchain refuses a kernel that has any."""
    return Inspection(
        variant=cubin.variant,
        arch=cubin.arch,
        registers=cubin.registers,
        shared_bytes=cubin.shared_bytes,
        cubin_bytes=len(cubin.code),
        sass=_count_instructions(disassemble(cubin)) if int(cubin.arch[3:]) >= OLDEST_DISASSEMBLED else {},
    )


def disassemble(cubin: Cubin) -> str:
    """SASS of a cubin of sm_75 or newer. Raises ToolchainError when there is no nvdisasm."""
    tool = find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        raise ToolchainError("nvdisasm is missing: install the package nvidia-cuda-nvdisasm.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"{cubin.variant}.cubin")
        path.write_bytes(cubin.code)
        return subprocess.run([tool, "-c", str(path)], check=True, capture_output=True, text=True).stdout


def _count_instructions(sass: str) -> dict[str, int]:
    """Instructions by opcode, without the NOPs that pad the end."""
    counts = Counter(_INSTRUCTION.findall(sass))
    del counts["NOP"]
    return dict(sorted(counts.items()))
