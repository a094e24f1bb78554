"""Logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import UNSIGNED, Values, bits_of, is_signed
from ..operands import Step, unsupported
from ..program import Instruction
from .registry import elementwise, modifiers, operation

_LOGIC: dict[str, Callable[..., Any]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
}


@operation("and", "or", "xor", "not")
def build_logic(instruction: Instruction) -> Step:
    modifiers(instruction, ())
    return elementwise(instruction, _LOGIC[instruction.parts[0]], instruction.type)


@operation("shl", "shr")
def build_shift(instruction: Instruction) -> Step:
    """Shift amounts are unsigned and clamped: a shift beyond the width leaves only the sign."""
    modifiers(instruction, ())
    kind, left = instruction.type, instruction.parts[0] == "shl"
    width = bits_of(kind)

    def shift(value: Values, amount: Values) -> Values:
        over = amount >= width
        by = np.minimum(amount, np.uint32(width - 1)).astype(value.dtype)
        if not left and is_signed(kind):
            return np.asarray(value >> by)
        moved = value << by if left else value >> by
        return np.where(over, value.dtype.type(0), moved) if over.any() else moved

    return elementwise(instruction, shift, (kind, "u32"))


@operation("bfi")
def build_bfi(instruction: Instruction) -> Step:
    """Inserts the low `length` bits of a into b at `start`."""
    kind, width = instruction.type, bits_of(instruction.type)
    dtype = UNSIGNED[width // 8]

    def insert(a: Values, b: Values, start: Values, length: Values) -> Values:
        start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
        mask = _shift_left(_low_mask(length, dtype, width), start, dtype, width)
        return np.asarray((b & ~mask) | (_shift_left(a, start, dtype, width) & mask))

    return elementwise(instruction, insert, (kind, kind, "u32", "u32"))


def _low_mask(length: Values, dtype: Any, width: int) -> Values:
    """A value whose low `length` bits are set."""
    return np.where(length >= width, ~dtype(0), (dtype(1) << np.minimum(length, width - 1).astype(dtype)) - dtype(1))


def _shift_left(value: Values, by: Values, dtype: Any, width: int) -> Values:
    return np.where(by >= width, dtype(0), value << np.minimum(by, width - 1).astype(dtype))


@operation("popc")
def build_count(instruction: Instruction) -> Step:
    modifiers(instruction, ())
    return elementwise(instruction, lambda a: np.bitwise_count(a).astype(np.uint32), instruction.type)


_NIBBLES = np.arange(0, 16, 4, dtype=np.uint32)


@operation("prmt")
def build_prmt(instruction: Instruction) -> Step:
    """Each byte of the result is one of the eight of {b, a}, or its sign repeated."""
    modifiers(instruction, {"b32"})
    if instruction.type != "b32":
        raise unsupported(f"prmt mode .{instruction.type}")

    def permute(a: Values, b: Values, selector: Values) -> Values:
        both = np.empty(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(selector)), np.uint64)
        halves = both[..., None].view(np.uint32)
        halves[..., 0], halves[..., 1] = a, b
        choice = np.asarray(selector)[..., None] >> _NIBBLES & 15
        byte = np.take_along_axis(both[..., None].view(np.uint8), np.broadcast_to(choice & 7, (*both.shape, 4)), -1)
        byte = np.where(choice & 8, (byte >> 7) * np.uint8(0xFF), byte)
        return byte.view(np.uint32)[..., 0]

    return elementwise(instruction, permute, "b32")
