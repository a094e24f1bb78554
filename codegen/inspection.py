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
        sass=_count_instructions(disassemble(cubin.code, "-c")) if is_disassembled(cubin.arch) else {},
    )


def is_disassembled(arch: str) -> bool:
    """Whether nvdisasm reads the architecture: sm_75 or newer."""
    return int(arch[3:]) >= 75


def disassemble(code: bytes, *options: str) -> str:
    """SASS of a cubin or of bare instructions, by nvdisasm. Raises ToolchainError when there is none."""
    tool = find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        raise ToolchainError("nvdisasm is missing: install the package nvidia-cuda-nvdisasm.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "code")
        path.write_bytes(code)
        return subprocess.run([tool, *options, str(path)], check=True, capture_output=True, text=True).stdout


def _count_instructions(sass: str) -> dict[str, int]:
    """Instructions by opcode, without the NOPs that pad the end."""
    counts = Counter(_INSTRUCTION.findall(sass))
    del counts["NOP"]
    return dict(sorted(counts.items()))
