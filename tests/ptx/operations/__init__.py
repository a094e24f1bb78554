"""Every PTX instruction that the interpreter supports, by family."""

from __future__ import annotations

from ..control import control_of
from ..fault import Fault
from ..lanes import Active
from ..operands import Step, reader, unsupported
from ..program import Instruction, Program
from ..schedule import Code
from ..spaces import State
from . import asynchronous, bits, compare, convert, copies, floats, integers, moves, warp  # noqa: F401 - they register
from .registry import OPERATIONS, WARP_OPERATIONS, lookup

__all__ = ["compile_program"]


def compile_program(program: Program) -> tuple[Code, ...]:
    """Each instruction with its operands decoded, ready for execution."""
    return tuple(_compile(instruction) for instruction in program.instructions)


def _compile(instruction: Instruction) -> Code:
    guard = reader(instruction.guard, "pred") if instruction.guard else None
    try:
        if control := control_of(instruction):
            return Code(instruction, guard, control=control)
        if builder := lookup(WARP_OPERATIONS, instruction):
            return Code(instruction, guard, control=builder(instruction))
        return Code(instruction, guard, step=_build(instruction))
    except Fault as fault:
        return Code(instruction, guard, step=_failing(fault.what))
    except (KeyError, IndexError, ValueError, TypeError) as error:
        what = f"this form of {instruction.parts[0]} ({type(error).__name__}: {error})"
        return Code(instruction, guard, step=_failing(what))


def _build(instruction: Instruction) -> Step:
    if instruction.parts[0] == "call":
        raise unsupported(f"call of a function that was not inlined: {instruction.text}")
    builder = lookup(OPERATIONS, instruction)
    if builder is None:
        raise unsupported(f"unknown instruction {instruction.opcode}")
    step: Step = builder(instruction)
    return step


def _failing(what: str) -> Step:
    """An unsupported instruction is a fault when it is executed, but not if it is merely present."""

    def step(state: State, active: Active) -> None:
        raise Fault("unsupported", what, state.lanes.first + int(active.index[0]))

    return step
