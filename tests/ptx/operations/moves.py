"""mov, loads and stores, and conversions between address spaces."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..formats import DTYPE, UNSIGNED, Values, bits_of
from ..lanes import Active
from ..operands import Step, address, reader, unsupported, writer
from ..program import Instruction, Operand, Vector
from ..spaces import RANK_SHIFT, State
from .registry import elementwise, operation

_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "param")
_HINT = re.compile(r"nc|c[ags]|w[bt]|lu|L1::(no_allocate|evict_\w+)|L2::(evict_\w+|64B|128B|256B)")


@operation("mov")
def build_mov(instruction: Instruction) -> Step:
    """A copy, or the packing or unpacking of a vector, least significant element first."""
    target, source = instruction.operands
    if isinstance(target, Vector):
        return _unpack(instruction.type, target, source)
    if isinstance(source, Vector):
        return _pack(instruction.type, target, source)
    return elementwise(instruction, lambda a: a, instruction.type)


def _unpack(kind: str, target: Vector, source: Operand) -> Step:
    read, outs = reader(source, kind), [writer(part) for part in target.parts]
    width = bits_of(kind) // len(outs)
    part, whole = UNSIGNED[width // 8], UNSIGNED[bits_of(kind) // 8]

    def step(state: State, active: Active) -> None:
        value = read(state, active).view(whole)
        for place, out in enumerate(outs):
            out(state, active, (value >> whole(place * width)).astype(part))

    return step


def _pack(kind: str, target: Operand, source: Vector) -> Step:
    width = bits_of(kind) // len(source.parts)
    out, reads = writer(target), [reader(part, f"b{width}") for part in source.parts]
    whole = UNSIGNED[bits_of(kind) // 8]

    def step(state: State, active: Active) -> None:
        value: Any = whole(0)
        for place, read in enumerate(reads):
            value = value | read(state, active).astype(whole) << whole(place * width)
        out(state, active, value)

    return step


class Form:
    """State space, element type and vector length of a load or store, parsed from its modifiers."""

    def __init__(self, instruction: Instruction) -> None:
        self.space, self.count, self.kind = "", 1, instruction.type
        for part in instruction.parts[1:-1]:
            if part in _SPACES:
                self.space = part.split("::")[0]
            elif part in ("v2", "v4", "v8"):
                self.count = int(part[1:])
            elif not _HINT.fullmatch(part):
                raise unsupported(f"modifier .{part}")
        if not self.space:
            raise unsupported("an access to a generic address")
        if self.kind not in DTYPE:
            raise unsupported(f"type .{self.kind}")


def _elements(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


@operation("ld")
def build_load(instruction: Instruction) -> Step:
    form = Form(instruction)
    outs = [writer(part) for part in _elements(instruction.operands[0])]
    where, element, count = address(instruction.operands[1]), DTYPE[form.kind], form.count
    if len(outs) != count:
        raise unsupported(f"{len(outs)} registers for a vector of {count}")

    def step(state: State, active: Active) -> None:
        values = state.load(active, form.space, where(state, active), element, count)
        if count == 1:
            outs[0](state, active, values)
            return
        for place, out in enumerate(outs):
            out(state, active, values[:, place])

    return step


@operation("st")
def build_store(instruction: Instruction) -> Step:
    form = Form(instruction)
    reads = [reader(part, form.kind) for part in _elements(instruction.operands[1])]
    where, element = address(instruction.operands[0]), DTYPE[form.kind]

    def step(state: State, active: Active) -> None:
        values: Values = np.empty((active.size, len(reads)), element)
        for place, read in enumerate(reads):
            values[:, place] = read(state, active)
        state.store(active, form.space, where(state, active), values)

    return step


# ---- addresses


@operation("cvta")
def build_cvta(instruction: Instruction) -> Step:
    """Conversion between an address in a state space and the generic address, which are the same here."""
    if instruction.parts[1:] not in (("to", "global", "u64"), ("shared", "u64")):
        raise unsupported(f"the conversion {instruction.opcode}")
    return elementwise(instruction, lambda a: a, "u64")


@operation("mapa")
def build_mapa(instruction: Instruction) -> Step:
    """The address of the same shared variable in another block of the cluster."""
    if instruction.parts[1:] != ("shared::cluster", "u32"):
        raise unsupported(f"the conversion {instruction.opcode}")
    offset, shift = np.uint32((1 << RANK_SHIFT) - 1), np.uint32(RANK_SHIFT)
    return elementwise(instruction, lambda a, rank: a & offset | (rank + np.uint32(1)) << shift, "u32")
