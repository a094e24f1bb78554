"""What a compiled kernel is made of: resources from the linker's report, instruction counts from its SASS."""

from dataclasses import asdict, dataclass

from softmax_ops.artifacts.cubin import Cubin

from . import disassembly


@dataclass(frozen=True)
class Inspection:
    """Facts of one cubin. `sass` counts instructions by opcode and modifiers, without the NOPs at the end; empty if no
    disassembler can read it."""

    variant: str
    arch: str
    registers: int
    shared_bytes: int  # static
    cubin_bytes: int
    sass: dict[str, int]

    @property
    def instructions(self) -> int:
        return sum(self.sass.values())

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "instructions": self.instructions}


def inspect(cubin: Cubin) -> Inspection:
    """The facts of a cubin. There are no spills to count: the toolchain refuses a kernel that has any."""
    sass = disassembly.opcodes([cubin])[cubin.variant] if disassembly.is_disassembled(cubin.arch) else {}
    return Inspection(
        variant=cubin.variant,
        arch=cubin.arch,
        registers=cubin.registers,
        shared_bytes=cubin.shared_bytes,
        cubin_bytes=len(cubin.code),
        sass=dict(sorted(sass.items())),
    )
