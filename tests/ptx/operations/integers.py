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

_SIMPLE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": np.minimum,
    "max": np.maximum,
    "neg": lambda a: -a,
    "abs": np.abs,
    "rem": lambda a, b: np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b))),
    "sad": lambda a, b, c: np.where(a < b, b - a, a - b) + c,
}


def divide(a: Values, b: Values) -> Values:
    """Quotient rounded towards zero; division by zero gives all ones, as on the hardware."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = (a - np.fmod(a, safe)) // safe
    return np.where(b == 0, ~b.dtype.type(0), quotient)


@operation("add", "sub", "min", "max", "neg", "abs", "div", "rem", "sad")
def build_simple(instruction: Instruction) -> Step:
    name, kind = instruction.parts[0], instruction.type
    if kind in FLOATS or kind in PACKED:
        return build_float(instruction)
    found = modifiers(instruction, {"sat"})
    if "sat" in found:
        return elementwise(instruction, _saturating(name, kind), kind)
    return elementwise(instruction, divide if name == "div" else _SIMPLE[name], kind)


def _saturating(name: str, kind: str) -> Callable[[Values, Values], Values]:
    """add.sat.s32 and sub.sat.s32 clamp."""
    if kind != "s32":
        raise unsupported(f".sat on .{kind}")
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max

    def function(a: Values, b: Values) -> Values:
        wide = _SIMPLE[name](a.astype(np.int64), b.astype(np.int64))
        return np.asarray(np.clip(wide, low, high)).astype(np.int32)

    return function


def product(kind: str, half: str) -> Callable[[Any, Any], Any]:
    """a * b: its low half, its high half, or the whole product (wide)."""
    if half == "lo":
        return lambda a, b: a * b
    if half == "wide":
        wide = DTYPE[WIDER[kind]]
        return lambda a, b: a.astype(wide) * b.astype(wide)
    if half != "hi":
        raise unsupported(f"the product .{half}")
    if bits_of(kind) == 64:
        return _high_64
    wide, narrow, shift = DTYPE[WIDER[kind]], DTYPE[kind], bits_of(kind)
    return lambda a, b: (a.astype(wide) * b.astype(wide) >> wide(shift)).astype(narrow)


def _high_64(a: Values, b: Values) -> Values:
    """Upper 64 of the 128 bits of a product, from products of 32-bit halves."""
    signed = a.dtype.kind == "i"
    x, y = a.view(np.uint64), b.view(np.uint64)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x_low, x_high, y_low, y_high = x & mask, x >> shift, y & mask, y >> shift
    middle = x_high * y_low + (x_low * y_low >> shift)
    other = x_low * y_high + (middle & mask)
    high = x_high * y_high + (middle >> shift) + (other >> shift)
    if not signed:
        return np.asarray(high)
    high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return np.asarray(high).view(np.int64)


@operation("mul", "mul24")
def build_mul(instruction: Instruction) -> Step:
    kind = instruction.type
    if kind in FLOATS or kind in PACKED:
        return build_float(instruction)
    half = instruction.parts[1] if len(instruction.parts) > 2 else "lo"
    if instruction.parts[0] == "mul24" and half != "lo":
        raise unsupported("mul24.hi")
    modifiers(instruction, {half})
    return elementwise(instruction, product(kind, half), kind)


@operation("mad")
def build_mad(instruction: Instruction) -> Step:
    kind = instruction.type
    if kind in FLOATS:
        return build_float(instruction)
    half = instruction.parts[1]
    modifiers(instruction, {half})
    multiply = product(kind, half)
    total = WIDER[kind] if half == "wide" else kind
    return elementwise(instruction, lambda a, b, c: multiply(a, b) + c, (kind, kind, total))
