"""Atomics and fences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import DTYPE, FLOATS
from ..lanes import Active
from ..operands import Reader, Step, address, reader, unsupported, writer
from ..program import Instruction, Operand
from ..spaces import State
from .registry import modifiers, operation

_SPACES = {"global", "shared", "shared::cta", "shared::cluster"}
_SEMANTICS = {"relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys", "noftz"}
_UPDATE: dict[str, Callable[..., Any]] = {
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
    "inc": lambda old, limit: type(old)(0) if old >= limit else old + type(old)(1),
    "dec": lambda old, limit: limit if old == 0 or old > limit else old - type(old)(1),
    "cas": lambda old, compare, new: new if old == compare else old,
}


@operation("atom")
def build_atom(instruction: Instruction) -> Step:
    target = writer(instruction.operands[0])
    return _atomic(instruction, instruction.operands[1], instruction.operands[2:], target)


@operation("red")
def build_red(instruction: Instruction) -> Step:
    return _atomic(instruction, instruction.operands[0], instruction.operands[1:], None)


def _atomic(instruction: Instruction, place: Operand, operands: tuple[Operand, ...], target: Any) -> Step:
    """Executes one lane after the other, in lane order."""
    found = modifiers(instruction, {*_SPACES, *_SEMANTICS, *_UPDATE})
    kind, space = instruction.type, next(iter(found & _SPACES), "")
    names = [part for part in instruction.parts[1:] if part in _UPDATE]
    if kind not in DTYPE or kind in ("f16", "bf16", "f16x2", "bf16x2") or (kind in FLOATS and names != ["add"]):
        raise unsupported(f"atomic {instruction.opcode}")
    update, dtype = _UPDATE[names[-1]], DTYPE[kind]
    where, reads = address(place), [reader(operand, kind) for operand in operands]
    releases, acquires = found & {"release", "acq_rel"}, found & {"acquire", "acq_rel"}

    def step(state: State, active: Active) -> None:
        at = where(state, active)
        if releases:
            state.fence(active)
        old = _apply(state, active, space, at, dtype, update, reads)
        if acquires:
            state.fence(active)
        if target is not None:
            target(state, active, old)

    return step


def _apply(
    state: State, active: Active, space: str, at: Any, dtype: Any, update: Callable[..., Any], reads: list[Reader]
) -> Any:
    """The values before the update, one per active lane."""
    old = np.empty(active.size, dtype)
    values = [np.broadcast_to(read(state, active), active.size) for read in reads]
    for which, storage, position in state.places(active, space, at, np.dtype(dtype).itemsize, "atomic", strong=True):
        words, cells = storage.view(dtype), position // np.dtype(dtype).itemsize
        for i, cell in zip(np.arange(active.size)[which].tolist(), cells.tolist(), strict=True):
            old[i] = words[cell]
            words[cell] = update(old[i], *[value[i] for value in values])
    state.signal(active, at, "atomic")
    return old


@operation("fence", "membar")
def build_fence(instruction: Instruction) -> Step:
    """fence.acq_rel, fence.sc and the older membar; those of block scope order nothing between blocks."""
    if instruction.has("cta"):
        return lambda state, active: None
    known = {"sc", "acq_rel", "gl", "gpu", "sys", "cluster", "acquire", "release", "mbarrier_init"}
    if strange := set(instruction.parts[1:]) - known:
        raise unsupported(f"fence .{' .'.join(sorted(strange))}")
    return State.fence


@operation("griddepcontrol", "nanosleep", "pmevent", "setmaxnreg")
def build_nothing(instruction: Instruction) -> Step:
    """Scheduling hints, which do nothing."""
    return lambda state, active: None
