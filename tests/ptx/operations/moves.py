"""mov, loads and stores, and conversions between address spaces."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..formats import DTYPE, UNSIGNED, Values, bits_of
from ..lanes import Active
from ..operands import Step, address, reader, unsupported, writer
from ..program import Instruction, Operand, Vector
from ..spaces import LOCAL_WINDOW, RANK_SHIFT, SHARED_WINDOW, State
from .registry import elementwise, modifiers, operation

_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "param", "param::entry", "local", "const")
_HINT = re.compile(
    r"nc|ca|cg|cs|lu|cv|wb|wt|weak|relaxed|acquire|release|volatile|cta|cluster|gpu|sys|unified|"
    r"L1::(no_allocate|evict_\w+)|L2::(evict_\w+|cache_hint|64B|128B|256B)"
)
_STRONG = {"volatile", "relaxed", "acquire", "release"}


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
        self.strong = self.fenced = False
        for part in instruction.parts[1:-1]:
            if part in _SPACES:
                self.space = part.removesuffix("::entry")
            elif part in ("v2", "v4", "v8"):
                self.count = int(part[1:])
            elif not _HINT.fullmatch(part):
                raise unsupported(f"modifier .{part}")
            elif part in _STRONG:
                self.strong = True
                self.fenced |= part in ("acquire", "release")
        if self.kind not in DTYPE:
            raise unsupported(f"type .{self.kind}")


def _elements(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


@operation("ld", "ldu")
def build_load(instruction: Instruction) -> Step:
    form = Form(instruction)
    outs = [writer(part) for part in _elements(instruction.operands[0])]
    where, element, count = address(instruction.operands[1]), DTYPE[form.kind], form.count
    if len(outs) != count:
        raise unsupported(f"{len(outs)} registers for a vector of {count}")

    def step(state: State, active: Active) -> None:
        at = where(state, active)
        values = state.load(active, form.space, at, element, count, form.strong)
        if form.strong:
            state.signal(active, at, "read")
        if form.fenced:
            state.fence(active)
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
        at = where(state, active)
        if form.fenced:
            state.fence(active)
        state.store(active, form.space, at, values, form.strong)
        if form.strong:
            state.signal(active, at, "write")

    return step


@operation("prefetch", "prefetchu", "applypriority", "discard")
def build_prefetch(instruction: Instruction) -> Step:
    """A hint, which may name any address and changes nothing."""
    return lambda state, active: None


# ---- addresses


_WINDOWS = {"global": 0, "const": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


@operation("cvta")
def build_cvta(instruction: Instruction) -> Step:
    """Conversion between an address in a state space and the generic address."""
    found = modifiers(instruction, {"to", *_SPACES})
    space = next(iter(found - {"to"}), "").split("::")[0]
    if space not in _WINDOWS or instruction.type != "u64":
        raise unsupported(f"cvta of .{space} addresses")
    window = np.uint64(_WINDOWS[space])
    if "to" in found:
        return elementwise(instruction, lambda a: a - window, "u64")
    return elementwise(instruction, lambda a: a + window, "u64")


@operation("isspacep")
def build_isspacep(instruction: Instruction) -> Step:
    space = instruction.parts[1].split("::")[0]
    if space not in _WINDOWS:
        raise unsupported(f"isspacep.{space}")
    window, both = np.uint64(_WINDOWS[space]), np.uint64(SHARED_WINDOW | LOCAL_WINDOW)
    return elementwise(instruction, lambda a: a & both == window, "u64")


@operation("mapa")
def build_mapa(instruction: Instruction) -> Step:
    """The address of the same shared variable in another block of the cluster."""
    kind = instruction.type
    modifiers(instruction, {"shared::cluster", "shared"})
    dtype = DTYPE[kind]
    offset_mask = dtype((1 << RANK_SHIFT) - 1)
    window = dtype(0) if instruction.has("shared::cluster") else dtype(SHARED_WINDOW)

    def map_address(a: Values, rank: Values) -> Values:
        return np.asarray(window | (a & offset_mask) | (rank.astype(dtype) + dtype(1)) << dtype(RANK_SHIFT))

    return elementwise(instruction, map_address, (kind, "u32"))


@operation("getctarank")
def build_getctarank(instruction: Instruction) -> Step:
    """The rank of the block that a cluster address belongs to."""
    out, where = writer(instruction.operands[0]), reader(instruction.operands[1], instruction.type)

    def step(state: State, active: Active) -> None:
        tag = (where(state, active) >> RANK_SHIFT & 0xFF).astype(np.uint32)
        own = (state.lanes.block[active.select] % state.lanes.cluster).astype(np.uint32)
        out(state, active, np.where(tag > 0, tag - np.uint32(1), own))

    return step
