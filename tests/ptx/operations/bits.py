"""Logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formats import UNSIGNED, Values, bits_of, is_signed
from ..lanes import Active
from ..operands import Step, reader, unsupported, writer
from ..program import Immediate, Instruction
from ..spaces import State
from .registry import elementwise, modifiers, operation

_LOGIC: dict[str, Callable[..., Any]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "cnot": lambda a: (a == 0).astype(a.dtype),
}


@operation("and", "or", "xor", "not", "cnot")
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


@operation("shf")
def build_funnel(instruction: Instruction) -> Step:
    """Shift of the 64 bits {b, a}: l gives the upper half of a left shift, r the lower half of a right shift."""
    found = modifiers(instruction, {"l", "r", "wrap", "clamp"})
    limit = np.uint32(31 if "wrap" in found else 32)

    def shift(a: Values, b: Values, amount: Values) -> Values:
        by = (amount & limit if "wrap" in found else np.minimum(amount, limit)).astype(np.uint64)
        both = np.asarray(b).astype(np.uint64) << np.uint64(32) | np.asarray(a).astype(np.uint64)
        moved = both << by >> np.uint64(32) if "l" in found else both >> by
        return np.asarray(moved).astype(np.uint32)

    return elementwise(instruction, shift, "u32")


@operation("lop3")
def build_lop3(instruction: Instruction) -> Step:
    """Any function of three bits: it looks up bit 4a+2b+c of the table."""
    modifiers(instruction, ())
    table = instruction.operands[4]
    if not isinstance(table, Immediate):
        raise unsupported("lop3 with a table that is not a constant")
    out = writer(instruction.operands[0])
    reads = [reader(operand, "b32") for operand in instruction.operands[1:4]]

    def step(state: State, active: Active) -> None:
        values = [read(state, active) for read in reads]
        result = np.zeros(np.broadcast_shapes(*[np.shape(value) for value in values]), np.uint32)
        for row in range(8):
            if table.value >> row & 1:
                term = np.uint32(0xFFFFFFFF)
                for place, value in zip((4, 2, 1), values, strict=True):
                    term = term & (value if row & place else ~value)
                result |= term
        out(state, active, result)

    return step


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


@operation("bfe")
def build_bfe(instruction: Instruction) -> Step:
    """Extracts `length` bits at `start`; a signed field is extended by its top bit, or by the sign beyond the width."""
    kind, width = instruction.type, bits_of(instruction.type)
    dtype = UNSIGNED[width // 8]
    signed = is_signed(kind)

    def extract(value: Values, start: Values, length: Values) -> Values:
        bits = np.asarray(value).view(dtype)
        start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
        mask = _low_mask(length, dtype, width)
        field = np.where(start >= width, dtype(0), bits >> np.minimum(start, width - 1).astype(dtype)) & mask
        if not signed:
            return field
        top = np.minimum(start.astype(np.int64) + length - 1, width - 1)
        sign = (bits >> np.maximum(top, 0).astype(dtype) & dtype(1)).astype(np.bool_) & (length > 0)
        return np.where(sign, field | ~(mask & _low_mask(np.maximum(top - start + 1, 0), dtype, width)), field)

    return elementwise(instruction, extract, (kind, "u32", "u32"))


@operation("popc", "clz", "brev", "bfind")
def build_count(instruction: Instruction) -> Step:
    name, kind = instruction.parts[0], instruction.type
    found = modifiers(instruction, {"shiftamt"})
    width = bits_of(kind)

    def leading_zeros(a: Values) -> Values:
        bits = np.unpackbits(_big_endian(a), axis=-1)
        return np.where(a == 0, width, bits.argmax(axis=-1)).astype(np.uint32)

    def find(a: Values) -> Values:
        bits = np.asarray(a)
        bits = np.where(bits < 0, ~bits, bits) if is_signed(kind) else bits
        zeros = leading_zeros(bits.view(UNSIGNED[width // 8]))
        place = zeros if "shiftamt" in found else np.uint32(width - 1) - zeros
        return np.where(bits == 0, np.uint32(0xFFFFFFFF), place)

    def reverse(a: Values) -> Values:
        return (
            np.asarray(np.packbits(np.unpackbits(_big_endian(a), axis=-1)[..., ::-1], axis=-1))
            .view(f">u{width // 8}")[..., 0]
            .astype(UNSIGNED[width // 8])
        )

    functions = {
        "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
        "clz": leading_zeros,
        "bfind": find,
        "brev": reverse,
    }
    return elementwise(instruction, functions[name], kind)


def _big_endian(a: Values) -> Values:
    """Bytes from the most significant down: [..., bytes]"""
    value = np.ascontiguousarray(a)
    return value.astype(value.dtype.newbyteorder(">")).view(np.uint8).reshape(*np.shape(a), -1)


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
