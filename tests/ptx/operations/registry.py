"""The table of operations, and helpers that their builders share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..formats import PACKED, UNSIGNED, Values
from ..lanes import Active
from ..operands import Reader, Step, reader, unsupported, writer
from ..program import Instruction
from ..schedule import Control
from ..spaces import State

Builder = Callable[[Instruction], Step]
ControlBuilder = Callable[[Instruction], Control]
OPERATIONS: dict[str, Builder] = {}
WARP_OPERATIONS: dict[str, ControlBuilder] = {}


def operation(*names: str) -> Callable[[Builder], Builder]:
    """Registers the builder of instructions that start with one of these names, such as "add" or "mul.wide"."""

    def register(builder: Builder) -> Builder:
        OPERATIONS.update(dict.fromkeys(names, builder))
        return builder

    return register


def warp_operation(*names: str) -> Callable[[ControlBuilder], ControlBuilder]:
    def register(builder: ControlBuilder) -> ControlBuilder:
        WARP_OPERATIONS.update(dict.fromkeys(names, builder))
        return builder

    return register


def lookup(table: dict[str, Any], instruction: Instruction) -> Any:
    """The builder with the longest matching name."""
    for length in (3, 2, 1):
        if found := table.get(".".join(instruction.parts[:length])):
            return found
    return None


def modifiers(instruction: Instruction, known: Collection[str], skip: int = 1) -> set[str]:
    """Modifiers between the name (of `skip` parts) and the type; raises for one that the builder does not know."""
    found = set(instruction.parts[skip:-1])
    if strange := found - set(known):
        raise unsupported(f"modifier .{' .'.join(sorted(strange))}")
    return found


def elementwise(instruction: Instruction, function: Callable[..., Any], kinds: str | tuple[str, ...]) -> Step:
    """d = function(a, b, ...); `kinds` is the type of the sources, or one for each."""
    sources = instruction.operands[1:]
    each = (kinds,) * len(sources) if isinstance(kinds, str) else kinds
    if len(each) != len(sources):
        raise unsupported(f"{len(sources)} sources")
    out = writer(instruction.operands[0])
    reads = [reader(operand, kind) for operand, kind in zip(sources, each, strict=True)]
    if len(reads) == 1:
        return _unary(out, function, reads[0])
    if len(reads) == 2:
        return _binary(out, function, *reads)

    def step(state: State, active: Active) -> None:
        out(state, active, function(*[read(state, active) for read in reads]))

    return step


def _unary(out: Any, function: Callable[[Any], Any], first: Reader) -> Step:
    def step(state: State, active: Active) -> None:
        out(state, active, function(first(state, active)))

    return step


def _binary(out: Any, function: Callable[[Any, Any], Any], first: Reader, second: Reader) -> Step:
    def step(state: State, active: Active) -> None:
        out(state, active, function(first(state, active), second(state, active)))

    return step


def packed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a function of scalars of half the width into one of packed registers, applied to both halves at once."""
    dtype = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32}[PACKED[kind]]
    whole = UNSIGNED[2 * np.dtype(dtype).itemsize]

    def apply(*values: Any) -> Values:
        size = max(np.asarray(value).size for value in values)
        halves = [np.ascontiguousarray(np.broadcast_to(value, size)).view(dtype) for value in values]
        return np.asarray(function(*halves)).view(whole)

    return apply
