"""Integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import DTYPE, FLOATS, PACKED, WIDER, Values, bits_of
from ..operands import Step, unsupported
from ..program import Instruction
from .floats import build_float
from .registry import elementwise, modifiers, operation


def divide(a: Values, b: Values) -> Values:
    """Quotient rounded towards zero; division by zero gives all ones, as on the hardware."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = (a - np.fmod(a, safe)) // safe
    return np.where(b == 0, ~b.dtype.type(0), quotient)


_SIMPLE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": np.minimum,
    "max": np.maximum,
    "neg": lambda a: -a,
    "div": divide,
}


@operation("add", "sub", "min", "max", "neg", "div")
def build_simple(instruction: Instruction) -> Step:
    name, kind = instruction.parts[0], instruction.type
    if kind in FLOATS or kind in PACKED:
        return build_float(instruction)
    modifiers(instruction, ())
    return elementwise(instruction, _SIMPLE[name], kind)


def product(kind: str, half: str) -> Callable[[Any, Any], Any]:
    """a * b: its low half, its high half, or the whole product (wide)."""
    if half == "lo":
        return lambda a, b: a * b
    if half == "wide":
        wide = DTYPE[WIDER[kind]]
        return lambda a, b: a.astype(wide) * b.astype(wide)
    if half != "hi":
        raise unsupported(f"the product .{half}")
    wide, narrow, shift = DTYPE[WIDER[kind]], DTYPE[kind], bits_of(kind)
    return lambda a, b: (a.astype(wide) * b.astype(wide) >> wide(shift)).astype(narrow)


@operation("mul")
def build_mul(instruction: Instruction) -> Step:
    kind = instruction.type
    if kind in FLOATS or kind in PACKED:
        return build_float(instruction)
    half = instruction.parts[1]
    modifiers(instruction, {half})
    return elementwise(instruction, product(kind, half), kind)


@operation("mad")
def build_mad(instruction: Instruction) -> Step:
    kind, half = instruction.type, instruction.parts[1]
    modifiers(instruction, {half})
    multiply = product(kind, half)
    total = WIDER[kind] if half == "wide" else kind
    return elementwise(instruction, lambda a, b, c: multiply(a, b) + c, (kind, kind, total))
